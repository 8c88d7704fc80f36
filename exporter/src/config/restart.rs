//! Two settings come in; what differs and stays as it is until a restart goes out.

use super::{AttributeLimits, Batch, Config, Console, Enrich, Metrics, Queue, Resource, Signal, Spans, Spool};
use crate::uprobe::spec::Uprobe;

/// Keys of the file, each once.
pub(super) fn needed(old: &Config, new: &Config) -> Vec<&'static str> {
    // Whoever adds a setting has to decide here and below: nothing is left out with `..`.
    let Config {
        // How the terminal is written to is settled at the start.
        console,
        run_for,
        // All but one condition: the programs are loaded anew.
        probes: _,
        // It holds from the next record on.
        arguments: _,
        // Who is asked, and what is remembered.
        enrich,
        // Encoded, and remembered for each container.
        resource,
        // Under these, open spans were promised to their children.
        spans,
        limits,
        span_limits,
        batch,
        span_batch,
        // They hold what waits.
        queue,
        span_queue,
        // Another sender takes over.
        logs: _,
        traces: _,
        destinations: _,
        spool,
        listen,
        switched_off,
        metrics,
        // Each is attached and detached for itself; but for one condition, as for containers above.
        uprobes: _,
        // The command says so, which stays.
        uprobes_only: _,
        // Another guard takes over; but for one condition, as for containers above.
        guard: _,
        // What is given up is given up for ever.
        sandbox,
        log_level: _,
        log_format,
        notes: _,
    } = old;
    let mut found = Vec::new();
    // Runtimes keep of a container the labels alone that somebody asked for when they told of it.
    let is_kept = |key| old.label_keys().any(|kept| kept == key);
    // Only what is printed depends on it.
    let differs =
        |signal| new.console == Console::Jsonl && switched_off.contains(&signal) != new.switched_off.contains(&signal);
    let single = [
        ("console", *console != new.console),
        ("run_for", *run_for != new.run_for),
        ("log_format", *log_format != new.log_format),
        ("listen", *listen != new.listen),
        ("sandbox", *sandbox != new.sandbox),
        ("probes.filters.containers", !new.probes.filters.containers.label_keys().all(is_kept)),
        ("uprobes", !new.uprobes.iter().flat_map(Uprobe::label_keys).all(is_kept)),
        ("guard", !new.guard.label_keys().all(is_kept)),
        ("spool.directory", spool.is_some() != new.spool.is_some()),
        ("logs.exporter", differs(Signal::Logs)),
        ("traces.exporter", differs(Signal::Traces)),
        ("metrics.exporter", metrics.is_some() != new.metrics.is_some()),
    ];
    found.extend(single.into_iter().filter_map(|(key, differs)| differs.then_some(key)));
    enrich.compare(&new.enrich, &mut found);
    resource.compare(&new.resource, &mut found);
    spans.compare(&new.spans, &mut found);
    limits.compare(&new.limits, &mut found);
    span_limits.compare(&new.span_limits, &mut found);
    batch.compare(&new.batch, &mut found);
    span_batch.compare(&new.span_batch, &mut found);
    queue.compare(&new.queue, &mut found);
    span_queue.compare(&new.span_queue, &mut found);
    spool.compare(&new.spool, &mut found);
    metrics.compare(&new.metrics, &mut found);
    found
}

/// A section of which nothing can be changed while running.
trait Fixed {
    /// Adds the keys of what differs.
    fn compare(&self, new: &Self, found: &mut Vec<&'static str>);
}

impl<T: Fixed> Fixed for Option<T> {
    fn compare(&self, new: &Self, found: &mut Vec<&'static str>) {
        if let (Some(old), Some(new)) = (self, new) {
            old.compare(new, found);
        }
    }
}

macro_rules! fixed {
    ($section:ident { $($field:ident: $key:literal),+ $(,)? }) => {
        impl Fixed for $section {
            fn compare(&self, new: &Self, found: &mut Vec<&'static str>) {
                let Self { $($field),+ } = self;
                $(if *$field != new.$field && !found.contains(&$key) {
                    found.push($key);
                })+
            }
        }
    };
}

fixed!(Enrich {
    runtimes: "enrich.runtimes",
    cache_entries: "enrich.cache_entries",
    cache_grace: "enrich.cache_grace",
    cache_negative: "enrich.cache_negative",
    wait: "enrich.wait",
    wait_bytes: "enrich.wait_bytes",
    labels: "enrich.labels",
});
fixed!(Resource { service_name: "resource.service_name", attributes: "resource.attributes" });
fixed!(Spans {
    sampler: "spans.sampler",
    max_duration: "spans.max_duration",
    max_per_trace: "spans.max_per_trace",
    boundaries: "spans.boundaries",
    env_context: "spans.env_context",
    ok_exit_codes: "spans.ok_exit_codes",
});
fixed!(AttributeLimits { value_length: "limits.value_length", count: "limits.count" });
fixed!(Batch { max_records: "batch.max_records", max_bytes: "batch.max_bytes", delay: "batch.delay" });
fixed!(Queue { max_bytes: "queue.max_bytes", max_records: "queue.max_records", drain: "queue.drain" });
fixed!(Spool { directory: "spool.directory", max_bytes: "spool.max_bytes", max_age: "spool.max_age" });

impl Fixed for Metrics {
    fn compare(&self, new: &Self, found: &mut Vec<&'static str>) {
        // Another exporter takes over; the SDK's timer is its own.
        let Self { export: _, interval } = self;
        if *interval != new.interval {
            found.push("metrics.interval");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tracing::level_filters::LevelFilter;

    use super::super::{Arguments, Destination, Export, LogFormat, Probes, Reach, Scope, Selection};
    use super::*;
    use crate::guard::spec::Mode;
    use crate::uprobe::spec::Target;

    fn export(url: &str) -> Export {
        Export::to(url.parse().unwrap())
    }

    fn containers(selector: &str) -> Selection {
        Selection { include: vec![super::super::selector(selector).unwrap()], exclude: Vec::new() }
    }

    fn probe(text: &str, selector: &str) -> Uprobe {
        let target = Target::Containers(vec![super::super::selector(selector).unwrap()]);
        Uprobe { target, ..crate::uprobe::parse::probe(text, &[]).unwrap() }
    }

    fn changed(change: impl FnOnce(&mut Config)) -> Config {
        let mut config = Config::default();
        change(&mut config);
        config
    }

    #[test]
    fn where_to_and_what_is_watched_can_change_while_running() {
        let probes = Probes { failed_execs: true, exits: false, ring_bytes: 4096, ..Probes::default() };
        let vendor = Destination { name: "vendor".to_owned(), logs: Some(export("http://v/l")), traces: None };
        let reloaded = vec![
            changed(|config| config.probes = probes),
            changed(|config| config.probes.filters.scope = Scope::Host),
            changed(|config| config.probes.filters.containers = containers("image:nginx*,id:1")),
            changed(|config| config.arguments = Arguments::Off),
            changed(|config| config.log_level = LevelFilter::DEBUG),
            changed(|config| config.logs = Some(export("http://l"))),
            changed(|config| config.traces = Some(export("http://t"))),
            changed(|config| config.destinations = vec![vendor]),
            changed(|config| config.switched_off = vec![Signal::Logs]),
            changed(|config| config.notes = vec!["a note".to_owned()]),
        ];
        let metrics = |url| changed(|config| config.metrics = Some(Metrics::to(export(url))));
        assert_ne!(metrics("http://a"), metrics("http://b"));
        assert_eq!(metrics("http://a").needs_restart(&metrics("http://b")), [""; 0]);
        let before = Config::default();
        let guarded = changed(|config| config.guard.mode = Mode::Enforce);
        assert_eq!(before.needs_restart(&guarded), [""; 0]);
        let tracing = |selector: &str| changed(|config| config.uprobes = vec![probe("web:/bin/sh:f", selector)]);
        assert_eq!(before.needs_restart(&tracing("name:web")), [""; 0]);
        assert_ne!(tracing("name:web"), tracing("name:db"));
        for after in reloaded {
            assert_ne!(before, after);
            assert_eq!(before.needs_restart(&after), [""; 0], "{after:?}");
            assert_eq!(after.needs_restart(&before), [""; 0], "{after:?}");
        }
    }

    type Change = fn(&mut Config);

    const CHANGES: &[(&str, Change)] = &[
        ("console", |config| config.console = Console::None),
        ("run_for", |config| config.run_for = Some(Duration::MAX)),
        ("log_format", |config| config.log_format = LogFormat::Json),
        ("listen", |config| config.listen = Some("127.0.0.1:0".parse().unwrap())),
        ("sandbox", |config| config.sandbox = false),
        ("enrich.runtimes", |config| config.enrich.runtimes.docker = Reach::Off),
        ("enrich.cache_entries", |config| config.enrich.cache_entries = 1.try_into().unwrap()),
        ("enrich.cache_grace", |config| config.enrich.cache_grace = Duration::MAX),
        ("enrich.cache_negative", |config| config.enrich.cache_negative = Duration::MAX),
        ("enrich.wait", |config| config.enrich.wait = Duration::MAX),
        ("enrich.wait_bytes", |config| config.enrich.wait_bytes = 1),
        ("enrich.labels", |config| config.enrich.labels = Vec::new()),
        ("resource.service_name", |config| config.resource.service_name = Some("a".to_owned())),
        ("resource.attributes", |config| config.resource.attributes = vec![("a".to_owned(), "b".to_owned())]),
        ("spans.sampler", |config| config.spans.sampler.parent_based = false),
        ("spans.max_duration", |config| config.spans.max_duration = Duration::MAX),
        ("spans.max_per_trace", |config| config.spans.max_per_trace = 1),
        ("spans.boundaries", |config| config.spans.boundaries = Vec::new()),
        ("spans.env_context", |config| config.spans.env_context = Vec::new()),
        ("spans.ok_exit_codes", |config| config.spans.ok_exit_codes = Vec::new()),
        ("limits.value_length", |config| config.limits.value_length = Some(1)),
        ("limits.count", |config| config.span_limits.count = 1),
        ("batch.max_records", |config| config.batch.max_records = 1),
        ("batch.max_bytes", |config| config.batch.max_bytes = 1),
        ("batch.delay", |config| config.span_batch.delay = Duration::MAX),
        ("queue.max_bytes", |config| config.queue.max_bytes = 1),
        ("queue.drain", |config| config.span_queue.drain = Duration::MAX),
        ("enrich.runtimes", |config| config.enrich.runtimes.files = false),
    ];

    #[test]
    fn what_else_changes_is_named_and_both_ways() {
        let metrics = |url, seconds| {
            changed(|config| {
                config.metrics = Some(Metrics { interval: Duration::from_secs(seconds), ..Metrics::to(export(url)) });
            })
        };
        let spool = |spool| changed(|config| config.spool = Some(spool));
        let at = |directory: &str| Spool::at(directory.into());
        let pairs = vec![
            ("spool.directory", Config::default(), spool(at("/a"))),
            ("spool.directory", spool(at("/a")), spool(at("/b"))),
            ("spool.max_age", spool(at("/a")), spool(Spool { max_age: Duration::MAX, ..at("/a") })),
            ("spool.max_bytes", spool(at("/a")), spool(Spool { max_bytes: 1, ..at("/a") })),
            ("metrics.exporter", Config::default(), metrics("http://a", 1)),
            ("metrics.interval", metrics("http://a", 1), metrics("http://a", 2)),
        ];
        let from_default = CHANGES.iter().map(|(key, change)| (*key, Config::default(), changed(change)));
        for (key, before, after) in from_default.chain(pairs) {
            assert_eq!(before.needs_restart(&before), [""; 0]);
            assert_eq!(before.needs_restart(&after), [key]);
            assert_eq!(after.needs_restart(&before), [key]);
        }
    }

    #[test]
    fn a_setting_of_both_signals_is_named_once() {
        let after = changed(|config| {
            config.queue.max_records = Some(1);
            config.span_queue.max_records = Some(2);
        });
        assert_eq!(Config::default().needs_restart(&after), ["queue.max_records"]);
    }

    #[test]
    fn a_label_that_was_not_kept_cannot_be_selected_by() {
        let before = changed(|config| config.probes.filters.containers = containers("label:a,name:b"));
        let same_label = changed(|config| config.probes.filters.containers = containers("label:a=x"));
        let other_label = changed(|config| config.probes.filters.containers = containers("label:c"));
        assert_eq!(before.needs_restart(&same_label), [""; 0]);
        assert_eq!(before.needs_restart(&Config::default()), [""; 0]);
        assert_eq!(before.needs_restart(&other_label), ["probes.filters.containers"]);
    }

    #[test]
    fn a_label_that_was_not_kept_cannot_select_for_a_probe() {
        let tracing = |selector: &str| changed(|config| config.uprobes = vec![probe("web:/bin/sh:f", selector)]);
        let filtered = changed(|config| config.probes.filters.containers = containers("label:a"));
        assert_eq!(Config::default().needs_restart(&tracing("label:a")), ["uprobes"]);
        assert_eq!(tracing("label:b").needs_restart(&tracing("label:a")), ["uprobes"]);
        assert_eq!(tracing("label:a").needs_restart(&tracing("label:a=x")), [""; 0]);
        assert_eq!(filtered.needs_restart(&tracing("label:a=x")), [""; 0]);
        assert_eq!(tracing("label:a").needs_restart(&filtered), [""; 0]);
    }

    #[test]
    fn a_label_that_was_not_kept_cannot_select_for_the_guard() {
        let allowing = |selector: &str| {
            changed(|config| config.guard.allow.containers = vec![super::super::selector(selector).unwrap()])
        };
        assert_eq!(Config::default().needs_restart(&allowing("label:a")), ["guard"]);
        assert_eq!(Config::default().needs_restart(&allowing("name:a")), [""; 0]);
        assert_eq!(allowing("label:a").needs_restart(&allowing("label:a=x")), [""; 0]);
    }

    #[test]
    fn what_is_switched_off_matters_where_it_is_printed() {
        let before = changed(|config| config.console = Console::Jsonl);
        let after = Config { switched_off: vec![Signal::Traces], ..before.clone() };
        assert_eq!(before.needs_restart(&after), ["traces.exporter"]);
    }
}
