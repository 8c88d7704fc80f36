//! Defaults and precedence.

use std::collections::HashMap;
use std::io::Write;
use std::time::Duration;

use clap::Parser;
use tempfile::NamedTempFile;
use tracing::level_filters::LevelFilter;

use super::*;
use crate::cli::{Cli, Command};
use crate::config::{
    Arguments, AttributeLimits, Batch, ClientIdentity, Compression, Destination, Export, LogFormat, Metrics, Protocol,
    Queue, Spans,
};

mod destinations;
mod export;
mod refusals;
mod spans;
mod uprobes;

const SAMPLE: &str = include_str!("../../../../otel-config/namespan.yaml");

/// What a user gives: flags as typed, `NAME=value` of the environment a line, and the file's text.
#[derive(Clone, Copy, Default)]
struct Given<'a> {
    flags: &'a str,
    env: &'a str,
    file: &'a str,
}

impl Given<'_> {
    fn load(self) -> Result<Config, ConfigError> {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(self.file.as_bytes()).unwrap();
        let mut words = vec!["namespan".to_owned(), "run".to_owned()];
        words.extend(self.flags.split_whitespace().map(str::to_owned));
        if !self.file.is_empty() {
            words.extend(["--config".to_owned(), file.path().display().to_string()]);
        }
        let Command::Run(run) = Cli::try_parse_from(words).unwrap().command else { panic!("run expected") };
        let env: HashMap<_, _> = self.env.lines().filter_map(|line| line.trim().split_once('=')).collect();
        Config::load(&run, &|name| env.get(name).map(OsString::from))
    }

    fn refusal(self) -> String {
        self.load().unwrap_err().to_string()
    }
}

fn flags(flags: &str) -> Given<'_> {
    Given { flags, ..Given::default() }
}

fn env(env: &str) -> Given<'_> {
    Given { env, ..Given::default() }
}

fn file(file: &str) -> Given<'_> {
    Given { file, ..Given::default() }
}

fn exported(given: Given<'_>) -> Export {
    given.load().unwrap().logs.expect("an endpoint is given")
}

#[test]
fn nothing_given_is_the_defaults() {
    assert_eq!(Given::default().load().unwrap(), Config::default());
}

#[test]
fn the_sample_file_is_the_defaults() {
    assert_eq!(file(SAMPLE).load().unwrap(), Config::default());
    let endpoint = "--endpoint http://c:4318";
    let bare = flags(endpoint).load().unwrap();
    assert_eq!(Given { flags: endpoint, file: SAMPLE, ..Given::default() }.load().unwrap(), bare);
    assert_eq!(bare.logs, Some(Export::to("http://c:4318/v1/logs".parse().unwrap())));
    assert_eq!(bare.traces, Some(Export::to("http://c:4318/v1/traces".parse().unwrap())));
}

fn selection(include: &[&str], exclude: &[&str]) -> Selection {
    let selectors = |texts: &[&str]| texts.iter().map(|text| parse::selector(text).unwrap()).collect();
    Selection { include: selectors(include), exclude: selectors(exclude) }
}

fn pair(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

const EVERY_SETTING: &str = "console: jsonl
run_for: 1h30m
log_level: debug
log_format: json
sandbox: false
listen: '[::1]:9464'
probes:
  failed_execs: true
  exits: true
  args_limit: 4KiB
  ring_bytes: 1048576
  ring_delay: 1ms
  filters:
    {scope: all, uids: [0, 1000], comms: [ba], paths: [/usr/bin/], containers: {include: ['name:a,pod:b'], exclude: ['id:0']}}
arguments: full
enrich:
  runtimes: {docker: none, containerd: auto, cri-o: /c.sock}
  runtime_files: false
  cache_entries: 16
  cache_grace: 1s
  cache_negative: 2s
  wait: 0s
  wait_bytes: 1MiB
  labels: [com.example.*]
resource:
  service_name: shell
  attributes: {deployment.environment.name: prod, version: 1.10}
limits: {value_length: 100, count: 64}
batch: {max_records: 10, max_bytes: 64KiB, delay: 5s}
queue: {max_bytes: 1MiB, max_records: 20, drain: 1s}
spool: {directory: /spool, max_bytes: 1GiB, max_age: 1h}
export:
  endpoint: c:4317
  insecure: true
  protocol: grpc
  headers: {Authorization: Bearer x=y%20, x-scope-orgid: 1}
  compression: zstd
  timeout: 0
  retry_max_elapsed: 1m
  ca_file: /etc/ca.pem
  client_certificate: /etc/client.pem
  client_key: /etc/client.key
logs: {exporter: otlp, endpoint: 'https://l:2'}
traces: {exporter: otlp, endpoint: 't:3'}
destinations: [{name: d, endpoint: 'http://d'}]
metrics: {exporter: otlp, endpoint: 'https://m:1', interval: 30s}
";

#[test]
fn every_setting_can_be_given_in_the_file() {
    let config = file(EVERY_SETTING).load().unwrap();
    let batch = Batch { max_records: 10, max_bytes: 64 << 10, delay: Duration::from_secs(5) };
    let queue = Queue { max_bytes: 1 << 20, max_records: Some(20), drain: Duration::from_secs(1) };
    let export = Export {
        protocol: Protocol::Grpc,
        endpoint: "https://l:2".parse().unwrap(),
        headers: parse::headers([("authorization", "Bearer x=y%20"), ("x-scope-orgid", "1")]).unwrap(),
        compression: Compression::Zstd,
        timeout: None,
        retry_max_elapsed: Duration::from_secs(60),
        ca_file: Some("/etc/ca.pem".into()),
        client: Some(ClientIdentity { certificate: "/etc/client.pem".into(), key: "/etc/client.key".into() }),
    };
    let elsewhere = |path: &str| Some(Export::to(format!("http://d/{path}").parse().unwrap()));
    let wanted = Config {
        destinations: vec![Destination {
            name: "d".to_owned(),
            logs: elsewhere("v1/logs"),
            traces: elsewhere("v1/traces"),
        }],
        spool: Some(Spool { directory: "/spool".into(), max_bytes: 1 << 30, max_age: Duration::from_secs(3600) }),
        listen: Some("[::1]:9464".parse().unwrap()),
        log_format: LogFormat::Json,
        switched_off: Vec::new(),
        console: Console::Jsonl,
        run_for: Some(Duration::from_secs(5400)),
        probes: Probes {
            failed_execs: true,
            exits: true,
            env_context: true,
            args_limit: 4096,
            ring_bytes: 1 << 20,
            ring_delay: Duration::from_millis(1),
            filters: Filters {
                scope: Scope::All,
                uids: vec![0, 1000],
                comms: vec!["ba".to_owned()],
                paths: vec!["/usr/bin/".to_owned()],
                containers: selection(&["name:a,pod:b"], &["id:0"]),
            },
        },
        arguments: Arguments::Full,
        enrich: Enrich {
            runtimes: Runtimes {
                crio: Reach::At("/c.sock".into()),
                docker: Reach::Off,
                files: false,
                ..Runtimes::default()
            },
            cache_entries: 16.try_into().unwrap(),
            cache_grace: Duration::from_secs(1),
            cache_negative: Duration::from_secs(2),
            wait: Duration::ZERO,
            wait_bytes: 1 << 20,
            labels: vec!["com.example.*".to_owned()],
        },
        resource: Resource {
            service_name: Some("shell".to_owned()),
            attributes: vec![pair("deployment.environment.name", "prod"), pair("version", "1.10")],
        },
        spans: Spans::default(),
        limits: AttributeLimits { value_length: Some(100), count: 64 },
        span_limits: AttributeLimits { value_length: Some(100), count: 64 },
        batch,
        span_batch: batch,
        queue,
        span_queue: queue,
        logs: Some(export.clone()),
        traces: Some(Export { endpoint: "http://t:3".parse().unwrap(), ..export.clone() }),
        metrics: Some(Metrics {
            export: Export { endpoint: "https://m:1".parse().unwrap(), ..export },
            interval: Duration::from_secs(30),
        }),
        uprobes: Vec::new(),
        uprobes_only: false,
        guard: crate::guard::spec::Guard::default(),
        sandbox: false,
        log_level: LevelFilter::DEBUG,
        notes: vec![
            "destination main: its endpoint for spans is not https, so the client certificate is not used".to_owned(),
        ],
    };
    assert_eq!(config, wanted);
}

#[test]
fn every_setting_with_a_flag_can_be_given_by_it() {
    let config = flags(
        "--console none --for 500ms --containers --uid 0 --uid 7 --comm sh --path /bin/ --path /usr/ --failed \
         --include name:a* --include pod:b --exclude label:c=d \
         --no-exit --no-env-context --no-spans --args off --args-limit 32K --ring-size 16MiB --endpoint https://c \
         --protocol http/json --header a=b=c --header d= --compression gzip --runtime docker=/run/d.sock --label x \
         --runtime podman=none --runtime cri-o=/c --runtime cri-o=auto --no-runtime-files --log-level none \
         --log-format json --no-sandbox --listen 127.0.0.1:0 --spool /var/lib/namespan",
    )
    .load()
    .unwrap();
    let mut wanted = Config {
        console: Console::None,
        run_for: Some(Duration::from_millis(500)),
        arguments: Arguments::Off,
        logs: Some(Export {
            protocol: Protocol::HttpJson,
            headers: parse::headers([("a", "b=c"), ("d", "")]).unwrap(),
            compression: Compression::Gzip,
            ..Export::to("https://c/v1/logs".parse().unwrap())
        }),
        switched_off: vec![Signal::Traces],
        sandbox: false,
        log_level: LevelFilter::OFF,
        log_format: LogFormat::Json,
        listen: Some("127.0.0.1:0".parse().unwrap()),
        spool: Some(Spool::at("/var/lib/namespan".into())),
        ..Config::default()
    };
    wanted.probes = Probes {
        failed_execs: true,
        exits: false,
        env_context: true,
        args_limit: 32 << 10,
        ring_bytes: 16 << 20,
        ring_delay: Duration::from_millis(20),
        filters: Filters {
            scope: Scope::Containers,
            uids: vec![0, 7],
            comms: vec!["sh".to_owned()],
            paths: vec!["/bin/".to_owned(), "/usr/".to_owned()],
            containers: selection(&["name:a*", "pod:b"], &["label:c=d"]),
        },
    };
    wanted.spans.env_context = Vec::new();
    wanted.enrich.runtimes =
        Runtimes { docker: Reach::At("/run/d.sock".into()), podman: Reach::Off, files: false, ..Runtimes::default() };
    wanted.enrich.labels = vec!["x".to_owned()];
    assert_eq!(config, wanted);
    assert_eq!(flags("--host").load().unwrap().probes.filters.scope, Scope::Host);
}

#[test]
fn the_environment_beats_the_file_outside_of_export_too() {
    let config = Given {
        env: "OTEL_LOG_LEVEL=WARN
            OTEL_BLRP_SCHEDULE_DELAY=2000
            OTEL_BLRP_MAX_EXPORT_BATCH_SIZE=100
            OTEL_BLRP_MAX_QUEUE_SIZE=200
            OTEL_BLRP_EXPORT_TIMEOUT=30000
            OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT=10
            OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT=20
            OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=40
            OTEL_BSP_SCHEDULE_DELAY=4000
            OTEL_BSP_MAX_EXPORT_BATCH_SIZE=300
            OTEL_BSP_MAX_QUEUE_SIZE=400
            OTEL_BSP_EXPORT_TIMEOUT=50000
            OTEL_ATTRIBUTE_COUNT_LIMIT=30
            OTEL_EXPORTER_OTLP_ENDPOINT=http://c
            DOCKER_HOST=unix:///run/user/1000/docker.sock",
        file: "log_level: error
batch: {delay: 9s, max_records: 9}
queue: {max_records: 9}
limits: {value_length: 9, count: 9}
enrich: {runtimes: {docker: /9, podman: /9}}
export: {retry_max_elapsed: 9s}
",
        ..Given::default()
    }
    .load()
    .unwrap();
    assert_eq!(config.log_level, LevelFilter::WARN);
    assert_eq!((config.batch.delay, config.batch.max_records), (Duration::from_secs(2), 100));
    assert_eq!(config.queue.max_records, Some(200));
    assert_eq!(config.limits, AttributeLimits { value_length: Some(20), count: 30 });
    let Runtimes { docker, podman, .. } = config.enrich.runtimes;
    assert_eq!((docker, podman), (Reach::At("/run/user/1000/docker.sock".into()), Reach::At("/9".into())));
    assert_eq!(config.logs.unwrap().retry_max_elapsed, Duration::from_secs(30));
    assert_eq!((config.span_batch.delay, config.span_batch.max_records), (Duration::from_secs(4), 300));
    assert_eq!(config.span_queue.max_records, Some(400));
    assert_eq!(config.span_limits, AttributeLimits { value_length: Some(10), count: 40 });
    assert_eq!(config.traces.unwrap().retry_max_elapsed, Duration::from_secs(50));
}

#[test]
fn a_flag_names_the_place_of_a_spool_whose_bounds_are_in_the_file() {
    const FILE: &str =
        "spool: {directory: /file, max_bytes: 16MiB, max_age: 1m}\nlisten: 127.0.0.1:1\nlog_format: json";
    let flags = "--spool /flag --listen 127.0.0.1:2 --log-format text";
    let config = Given { flags, file: FILE, ..Given::default() }.load().unwrap();
    let spool = Spool { directory: "/flag".into(), max_bytes: 16 << 20, max_age: Duration::from_secs(60) };
    assert_eq!(config.spool, Some(spool));
    assert_eq!((config.listen, config.log_format), (Some("127.0.0.1:2".parse().unwrap()), LogFormat::Text));
    assert_eq!(file("spool: {max_bytes: 16MiB}").load().unwrap(), Config::default());
}

#[test]
fn an_empty_variable_is_an_unset_one() {
    let names = "OTEL_EXPORTER_OTLP_ENDPOINT OTEL_EXPORTER_OTLP_PROTOCOL OTEL_EXPORTER_OTLP_TIMEOUT OTEL_LOG_LEVEL \
                 OTEL_EXPORTER_OTLP_CLIENT_KEY OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE OTEL_CONFIG_FILE OTEL_LOGS_EXPORTER OTEL_SDK_DISABLED DOCKER_HOST \
                 OTEL_EXPORTER_OTLP_TRACES_ENDPOINT OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY OTEL_TRACES_EXPORTER \
                 OTEL_TRACES_SAMPLER OTEL_TRACES_SAMPLER_ARG OTEL_BSP_MAX_QUEUE_SIZE OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT \
                 OTEL_RESOURCE_ATTRIBUTES OTEL_SERVICE_NAME OTEL_EXPORTER_OTLP_HEADERS";
    let empty = names.split_whitespace().flat_map(|name| [name, "=\n"]).collect::<String>();
    assert_eq!(env(&empty).load().unwrap(), Config::default());
}

#[test]
fn service_name_comes_from_the_highest_layer_and_is_no_attribute() {
    const FILE: &str = "resource:\n  attributes: {service.name: file-attribute, a: file, c: file}\n";
    const ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES=a=b%20c,service.name=attribute";
    let named = format!("{FILE}  service_name: file\n");
    let both = format!("{ATTRIBUTES}\nOTEL_SERVICE_NAME=own");
    let cases = [
        ("", FILE, "file-attribute", "file"),
        ("", &named, "file", "file"),
        (ATTRIBUTES, &named, "attribute", "b c"),
        (&both, &named, "own", "b c"),
    ];
    for (env, file, name, a) in cases {
        let resource = Given { env, file, ..Given::default() }.load().unwrap().resource;
        assert_eq!(resource.service_name.as_deref(), Some(name));
        let wanted = [("a", a), ("c", "file")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(resource.attributes, wanted);
    }
}

#[test]
fn who_asks_for_some_containers_does_not_ask_for_the_host() {
    const SOME: &str = "probes: {filters: {containers: {include: ['name:web']}}}";
    const SCOPED: &str = "probes: {filters: {scope: all, containers: {include: ['name:web']}}}";
    let cases = [
        ("", "", Scope::All),
        ("--exclude name:web", "", Scope::All),
        ("--include name:web", "", Scope::Containers),
        ("", SOME, Scope::Containers),
        ("", SCOPED, Scope::All),
        ("--include name:db", SCOPED, Scope::All),
        ("--containers", SCOPED, Scope::Containers),
    ];
    for (flags, file, scope) in cases {
        let config = Given { flags, file, ..Given::default() }.load().unwrap();
        assert_eq!((config.probes.filters.scope, config.notes.len()), (scope, 0), "{flags} {file}");
    }
    let config = Given { flags: "--host", file: SOME, ..Given::default() }.load().unwrap();
    assert_eq!((config.probes.filters.scope, config.notes.len()), (Scope::Host, 1));
}
