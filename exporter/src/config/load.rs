//! Flags, environment and file come in, the settings go out. Every value given is checked, also one that is overridden,
//! but for endpoints, which may be meant for another protocol, and `DOCKER_HOST`, which is not ours.

use std::ffi::OsString;

use namespan_ebpf::settings::{PREFIXES_MAX, UIDS_MAX};

use super::env::Env;
use super::error::ConfigError;
use super::file::File;
use super::given::{Given, OrDefault, flag, flags, switch};
use super::parse;
use super::{Config, Console, Enrich, Filters, Probes, Reach, Resource, RuntimeName, Runtimes, Scope, Signal, Spool};
use crate::cli::Run;
use crate::enrich::selection::Selection;
use bounds::{RECORDS, SPANS};
use export::Wanted;

mod bounds;
mod export;
mod guard;
mod spans;
mod uprobes;

pub(super) use guard::policies;

pub(super) fn load(run: &Run, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Config, ConfigError> {
    let sources = Sources { run, env: Env(env), file: File::load(run.config.as_deref())? };
    sources.refuse_unsupported()?;
    sources.config()
}

struct Sources<'a> {
    run: &'a Run,
    env: Env<'a>,
    file: File,
}

impl Sources<'_> {
    /// What would be ignored otherwise, though somebody counts on it.
    fn refuse_unsupported(&self) -> Result<(), ConfigError> {
        const REMEDY: &str = "Namespan does not read OpenTelemetry's declarative configuration: unset it for Namespan, \
                              and give its own file with --config";
        match self.env.text("OTEL_CONFIG_FILE")? {
            Some(Given { origin, .. }) => Err(ConfigError::Unsupported { origin, remedy: REMEDY }),
            None => Ok(()),
        }
    }

    fn config(&self) -> Result<Config, ConfigError> {
        let Self { run, env, file } = self;
        let defaults = Config::default();
        let disabled = env.parse("OTEL_SDK_DISABLED", parse::boolean)?.or_default(false);
        let mut destinations = self.destinations()?;
        let logs = self.logs(destinations.iter().any(|destination| destination.logs.is_some()))?;
        let traces = self.traces(destinations.iter().any(|destination| destination.traces.is_some()))?;
        for destination in &mut destinations {
            destination.logs.take_if(|_| disabled || logs.wanted != Wanted::Everywhere);
            destination.traces.take_if(|_| disabled || traces.wanted != Wanted::Everywhere);
        }
        destinations.retain(|destination| destination.logs.is_some() || destination.traces.is_some());
        let has_endpoint = logs.has_endpoint || traces.has_endpoint;
        let to_console = logs.to_console || traces.to_console;
        let mut notes = Vec::new();
        if disabled {
            notes.push("environment variable OTEL_SDK_DISABLED is true: nothing is shipped".to_owned());
        } else {
            notes.extend([logs.note, traces.note].into_iter().flatten());
        }
        let metrics = self.metrics(&mut notes)?.filter(|_| !disabled);

        let in_file = file.parse("console", &file.schema.console, parse::console)?;
        let console = match flag("--console", run.console.as_ref(), parse::console)? {
            Some(given) => given.value,
            None if to_console => Console::Jsonl,
            None => in_file.or_default(if has_endpoint { Console::None } else { Console::Table }),
        };
        if let (Console::Tree, Some(Given { value: false, origin })) = (console, self.exits()?) {
            notes.push(format!("{origin}: without exits no process ends, so a tree shows only what runs"));
        }

        let run_for = flag("--for", run.own.run_for.as_ref(), parse::positive_duration)?
            .or(file.parse("run_for", &file.schema.run_for, parse::positive_duration)?)
            .map(|given| given.value);
        let log_level = flag("--log-level", run.own.log_level.as_ref(), parse::log_level)?
            .or(env.parse("OTEL_LOG_LEVEL", parse::log_level)?)
            .or(file.parse("log_level", &file.schema.log_level, parse::log_level)?)
            .or_default(defaults.log_level);
        let log_format = flag("--log-format", run.own.log_format.as_ref(), parse::log_format)?
            .or(file.parse("log_format", &file.schema.log_format, parse::log_format)?)
            .or_default(defaults.log_format);
        let sandbox = switch("--no-sandbox", run.own.no_sandbox, false)
            .or(file.parse("sandbox", &file.schema.sandbox, parse::boolean)?)
            .or_default(defaults.sandbox);
        let listen = flag("--listen", run.listen.as_ref(), parse::address)?
            .or(file.parse("listen", &file.schema.listen, parse::address)?)
            .map(|given| given.value);
        let arguments = flag("--args", run.probes.args.as_ref(), parse::arguments)?
            .or(file.parse("arguments", &file.schema.arguments, parse::arguments)?)
            .or_default(defaults.arguments);
        let probes = self.probes()?;
        if probes.filters.scope == Scope::Host && !probes.filters.containers.include.is_empty() {
            notes.push("containers are to be included, but only the host's processes are told of".to_owned());
        }
        let (batch, queue) = self.batch_and_queue(&RECORDS)?;
        let (span_batch, span_queue) = self.batch_and_queue(&SPANS)?;
        let mut config = Config {
            console,
            run_for,
            probes,
            arguments,
            enrich: self.enrich()?,
            resource: self.resource()?,
            spans: self.spans()?,
            limits: self.limits(&RECORDS)?,
            span_limits: self.limits(&SPANS)?,
            batch,
            span_batch,
            queue,
            span_queue,
            logs: logs.export.filter(|_| !disabled),
            traces: traces.export.filter(|_| !disabled),
            destinations,
            spool: self.spool()?,
            listen,
            sandbox,
            log_format,
            switched_off: [(logs.wanted, Signal::Logs), (traces.wanted, Signal::Traces)]
                .into_iter()
                .filter_map(|(wanted, signal)| (wanted == Wanted::Nowhere).then_some(signal))
                .collect(),
            metrics,
            uprobes: self.uprobes()?,
            uprobes_only: run.uprobes.is_some(),
            guard: self.guard(&mut notes)?,
            log_level,
            notes,
        };
        let unused = unused_identities(&config);
        config.notes.extend(unused);
        Ok(config)
    }

    fn probes(&self) -> Result<Probes, ConfigError> {
        let (flags, file, default) = (&self.run.probes, &self.file, Probes::default());
        let probes = &file.schema.probes;
        Ok(Probes {
            failed_execs: switch("--failed", flags.failed, true)
                .or(file.parse("probes.failed_execs", &probes.failed_execs, parse::boolean)?)
                .or_default(default.failed_execs),
            exits: self.exits()?.or_default(default.exits),
            env_context: default.env_context,
            args_limit: flag("--args-limit", flags.args_limit.as_ref(), parse::args_limit)?
                .or(file.parse("probes.args_limit", &probes.args_limit, parse::args_limit)?)
                .or_default(default.args_limit),
            ring_bytes: flag("--ring-size", flags.ring_size.as_ref(), parse::ring_bytes)?
                .or(file.parse("probes.ring_bytes", &probes.ring_bytes, parse::ring_bytes)?)
                .or_default(default.ring_bytes),
            ring_delay: file
                .parse("probes.ring_delay", &probes.ring_delay, parse::ring_delay)?
                .or_default(default.ring_delay),
            filters: self.filters()?,
        })
    }

    fn exits(&self) -> Result<Option<Given<bool>>, ConfigError> {
        let in_file = self.file.parse("probes.exits", &self.file.schema.probes.exits, parse::boolean)?;
        Ok(switch("--no-exit", self.run.probes.no_exit, false).or(in_file))
    }

    fn filters(&self) -> Result<Filters, ConfigError> {
        let (given, file, default) = (&self.run.probes, &self.file, Filters::default());
        let filters = &file.schema.probes.filters;
        let containers = self.containers()?;
        // Who asks for some containers does not ask for the host.
        let scope = if containers.include.is_empty() { default.scope } else { Scope::Containers };
        Ok(Filters {
            scope: switch("--host", given.host, Scope::Host)
                .or(switch("--containers", given.containers, Scope::Containers))
                .or(file.parse("probes.filters.scope", &filters.scope, parse::scope)?)
                .or_default(scope),
            uids: flags("--uid", &given.uids, UIDS_MAX, parse::uid)?
                .or(file.list("probes.filters.uids", &filters.uids, UIDS_MAX, parse::uid)?)
                .or_default(default.uids),
            comms: flags("--comm", &given.comms, PREFIXES_MAX, parse::comm_prefix)?
                .or(file.list("probes.filters.comms", &filters.comms, PREFIXES_MAX, parse::comm_prefix)?)
                .or_default(default.comms),
            paths: flags("--path", &given.paths, PREFIXES_MAX, parse::path_prefix)?
                .or(file.list("probes.filters.paths", &filters.paths, PREFIXES_MAX, parse::path_prefix)?)
                .or_default(default.paths),
            containers,
        })
    }

    fn containers(&self) -> Result<Selection, ConfigError> {
        let (given, file) = (&self.run.probes, &self.file);
        let containers = &file.schema.probes.filters.containers;
        let list = |flag, texts: &[String], key, list| {
            let in_file = file.list(key, list, usize::MAX, parse::selector)?;
            Ok(flags(flag, texts, usize::MAX, parse::selector)?.or(in_file).or_default(Vec::new()))
        };
        Ok(Selection {
            include: list("--include", &given.include, "probes.filters.containers.include", &containers.include)?,
            exclude: list("--exclude", &given.exclude, "probes.filters.containers.exclude", &containers.exclude)?,
        })
    }

    fn enrich(&self) -> Result<Enrich, ConfigError> {
        let (run, file, default) = (self.run, &self.file, Enrich::default());
        let enrich = &file.schema.enrich;
        Ok(Enrich {
            runtimes: self.runtimes()?,
            cache_entries: file
                .parse("enrich.cache_entries", &enrich.cache_entries, parse::cache_entries)?
                .or_default(default.cache_entries),
            cache_grace: file
                .parse("enrich.cache_grace", &enrich.cache_grace, parse::duration)?
                .or_default(default.cache_grace),
            cache_negative: file
                .parse("enrich.cache_negative", &enrich.cache_negative, parse::duration)?
                .or_default(default.cache_negative),
            wait: file.parse("enrich.wait", &enrich.wait, parse::duration)?.or_default(default.wait),
            wait_bytes: file
                .parse("enrich.wait_bytes", &enrich.wait_bytes, parse::bytes)?
                .or_default(default.wait_bytes),
            labels: flags("--label", &run.labels, usize::MAX, parse::label)?
                .or(file.list("enrich.labels", &enrich.labels, usize::MAX, parse::label)?)
                .or_default(default.labels),
        })
    }

    fn runtimes(&self) -> Result<Runtimes, ConfigError> {
        let (given, file) = (&self.run.runtimes, &self.file);
        let (runtimes, in_use) = (&file.schema.enrich.runtimes, &file.schema.enrich.runtime_files);
        let by_flags = flags("--runtime", &given.runtimes, usize::MAX, parse::runtime)?.or_default(Vec::new());
        let reach = |runtime: RuntimeName, entry| {
            let in_file = file.parse(&format!("enrich.runtimes.{}", runtime.name()), entry, parse::reach)?;
            if let Some((_, reach)) = by_flags.iter().rfind(|(named, _)| *named == runtime) {
                return Ok(reach.clone());
            }
            // Not one of ours: where it names a Docker elsewhere, a flag has to be enough.
            let in_env =
                if runtime == RuntimeName::Docker { self.env.parse("DOCKER_HOST", parse::docker_host)? } else { None };
            Ok(in_env.or(in_file).or_default(Reach::Auto))
        };
        Ok(Runtimes {
            docker: reach(RuntimeName::Docker, &runtimes.docker)?,
            containerd: reach(RuntimeName::Containerd, &runtimes.containerd)?,
            crio: reach(RuntimeName::Crio, &runtimes.crio)?,
            podman: reach(RuntimeName::Podman, &runtimes.podman)?,
            files: switch("--no-runtime-files", given.no_runtime_files, false)
                .or(file.parse("enrich.runtime_files", in_use, parse::boolean)?)
                .or_default(true),
        })
    }

    fn spool(&self) -> Result<Option<Spool>, ConfigError> {
        let (run, file) = (self.run, &self.file);
        let spool = &file.schema.spool;
        let directory = flag("--spool", run.export.spool.as_ref(), parse::directory)?.or(file.parse(
            "spool.directory",
            &spool.directory,
            parse::directory,
        )?);
        let max_bytes = file.parse("spool.max_bytes", &spool.max_bytes, parse::spool_bytes)?;
        let max_age = file.parse("spool.max_age", &spool.max_age, parse::positive_duration)?;
        Ok(directory.map(|given| {
            let default = Spool::at(given.value);
            Spool {
                max_bytes: max_bytes.or_default(default.max_bytes),
                max_age: max_age.or_default(default.max_age),
                directory: default.directory,
            }
        }))
    }

    fn resource(&self) -> Result<Resource, ConfigError> {
        const SERVICE_NAME: &str = "service.name";
        let (env, file) = (&self.env, &self.file);
        let resource = &file.schema.resource;
        let mut attributes: Vec<(String, String)> = Vec::new();
        for (key, given) in file.attributes("resource.attributes", &resource.attributes)? {
            attributes.push((key, given.value));
        }
        // A service.name is taken out of each layer, for the layer above it to win.
        let mut service_name = remove(&mut attributes, SERVICE_NAME);
        let in_file = file.parse("resource.service_name", &resource.service_name, parse::non_empty)?;
        service_name = in_file.map(|given| given.value).or(service_name);

        for (key, value) in env.parse("OTEL_RESOURCE_ATTRIBUTES", parse::attributes)?.or_default(Vec::new()) {
            parse::put(&mut attributes, key, value);
        }
        service_name = remove(&mut attributes, SERVICE_NAME).or(service_name);
        let in_env = env.parse("OTEL_SERVICE_NAME", parse::non_empty)?;
        service_name = in_env.map(|given| given.value).or(service_name);
        Ok(Resource { service_name, attributes })
    }
}

/// Whoever gives a client certificate counts on TLS.
fn unused_identities(config: &Config) -> Vec<String> {
    let mut notes = Vec::new();
    for (signal, what) in [(Signal::Logs, "logs"), (Signal::Traces, "spans")] {
        for (name, export) in config.exports(signal) {
            if export.client.is_some() && export.endpoint.scheme() != "https" {
                let note = "is not https, so the client certificate is not used";
                notes.push(format!("destination {name}: its endpoint for {what} {note}"));
            }
        }
    }
    notes
}

fn remove(attributes: &mut Vec<(String, String)>, key: &str) -> Option<String> {
    let at = attributes.iter().position(|(known, _)| known == key)?;
    Some(attributes.remove(at).1)
}

#[cfg(test)]
mod tests;
