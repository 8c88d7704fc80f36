//! Precedence, and every error by name.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use clap::Parser;
use tempfile::NamedTempFile;
use tracing::level_filters::LevelFilter;

use super::*;
use crate::cli::{Cli, Command};
use crate::config::{Arguments, Compression};

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
    given.load().unwrap().export.expect("an endpoint is given")
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
    assert_eq!(bare.export, Some(Export::to("http://c:4318/v1/logs".parse().unwrap())));
}

#[test]
fn every_setting_can_be_given_in_the_file() {
    let config = file(
        "console: jsonl
run_for: 1h30m
log_level: debug
probes:
  failed_execs: true
  exits: false
  args_limit: 4KiB
  ring_bytes: 1048576
  filters: {scope: containers, uids: [0, 1000], comms: [ba], paths: [/usr/bin/]}
arguments: full
enrich:
  docker_socket: none
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
export:
  endpoint: c:4317
  insecure: true
  protocol: grpc
  headers: {Authorization: Bearer x=y%20, x-scope-orgid: 1}
  compression: zstd
  timeout: 0
  retry_max_elapsed: 1m
  ca_file: /etc/ca.pem
metrics: {exporter: otlp, endpoint: 'https://m:1', interval: 30s}
",
    )
    .load()
    .unwrap();
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let wanted = Config {
        console: Console::Jsonl,
        run_for: Some(Duration::from_secs(5400)),
        probes: Probes {
            failed_execs: true,
            exits: false,
            args_limit: 4096,
            ring_bytes: 1 << 20,
            filters: Filters {
                scope: Scope::Containers,
                uids: vec![0, 1000],
                comms: vec!["ba".to_owned()],
                paths: vec!["/usr/bin/".to_owned()],
            },
        },
        arguments: Arguments::Full,
        enrich: Enrich {
            docker_socket: None,
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
        limits: AttributeLimits { value_length: Some(100), count: 64 },
        batch: Batch { max_records: 10, max_bytes: 64 << 10, delay: Duration::from_secs(5) },
        queue: Queue { max_bytes: 1 << 20, max_records: Some(20), drain: Duration::from_secs(1) },
        export: Some(Export {
            protocol: Protocol::Grpc,
            endpoint: "http://c:4317".parse().unwrap(),
            headers: parse::headers([("authorization", "Bearer x=y%20"), ("x-scope-orgid", "1")]).unwrap(),
            compression: Compression::Zstd,
            timeout: None,
            retry_max_elapsed: Duration::from_secs(60),
            ca_file: Some("/etc/ca.pem".into()),
        }),
        metrics: Some(Metrics {
            export: Export { endpoint: "https://m:1".parse().unwrap(), ..config.export.clone().unwrap() },
            interval: Duration::from_secs(30),
        }),
        log_level: LevelFilter::DEBUG,
        notes: Vec::new(),
    };
    assert_eq!(config, wanted);
}

#[test]
fn every_setting_with_a_flag_can_be_given_by_it() {
    let config = flags(
        "--console none --for 500ms --containers --uid 0 --uid 7 --comm sh --path /bin/ --path /usr/ --failed \
         --no-exit --args off --args-limit 32K --ring-size 16MiB --endpoint https://c --protocol http/json \
         --header a=b=c --header d= --compression gzip --docker-socket /run/d.sock --label x --log-level none",
    )
    .load()
    .unwrap();
    let mut wanted = Config {
        console: Console::None,
        run_for: Some(Duration::from_millis(500)),
        arguments: Arguments::Off,
        export: Some(Export {
            protocol: Protocol::HttpJson,
            headers: parse::headers([("a", "b=c"), ("d", "")]).unwrap(),
            compression: Compression::Gzip,
            ..Export::to("https://c/v1/logs".parse().unwrap())
        }),
        log_level: LevelFilter::OFF,
        ..Config::default()
    };
    wanted.probes = Probes {
        failed_execs: true,
        exits: false,
        args_limit: 32 << 10,
        ring_bytes: 16 << 20,
        filters: Filters {
            scope: Scope::Containers,
            uids: vec![0, 7],
            comms: vec!["sh".to_owned()],
            paths: vec!["/bin/".to_owned(), "/usr/".to_owned()],
        },
    };
    wanted.enrich.docker_socket = Some("/run/d.sock".into());
    wanted.enrich.labels = vec!["x".to_owned()];
    assert_eq!(config, wanted);
    assert_eq!(flags("--host").load().unwrap().probes.filters.scope, Scope::Host);
    assert_eq!(flags("--no-docker").load().unwrap().enrich.docker_socket, None);
}

#[test]
fn flags_beat_own_variables_beat_general_ones_beat_the_file() {
    const FILE: &str = "export: {endpoint: 'http://file', protocol: http/json, compression: zstd, timeout: 1s, \
                        headers: {from: file}, ca_file: /file}";
    const GENERAL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT=http://general\nOTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf\n\
                           OTEL_EXPORTER_OTLP_COMPRESSION=none\nOTEL_EXPORTER_OTLP_TIMEOUT=2000\n\
                           OTEL_EXPORTER_OTLP_HEADERS=from=general\nOTEL_EXPORTER_OTLP_CERTIFICATE=/general";
    const OWN: &str = "\nOTEL_EXPORTER_OTLP_LOGS_ENDPOINT=http://own/x\n\
                       OTEL_EXPORTER_OTLP_LOGS_PROTOCOL=http/json\n\
                       OTEL_EXPORTER_OTLP_LOGS_COMPRESSION=gzip\nOTEL_EXPORTER_OTLP_LOGS_TIMEOUT=3000\n\
                       OTEL_EXPORTER_OTLP_LOGS_HEADERS=from=own\nOTEL_EXPORTER_OTLP_LOGS_CERTIFICATE=/own";
    const FLAGS: &str = "--endpoint http://flag --protocol grpc --compression zstd --header from=flag";
    let both = format!("{GENERAL}{OWN}");
    let layers: [(Given<'_>, &str, Protocol, Compression, u64, &str, &str); 4] = [
        (file(FILE), "http://file/v1/logs", Protocol::HttpJson, Compression::Zstd, 1, "file", "/file"),
        (
            Given { env: GENERAL, file: FILE, ..Given::default() },
            "http://general/v1/logs",
            Protocol::HttpProtobuf,
            Compression::None,
            2,
            "general",
            "/general",
        ),
        (
            Given { env: &both, file: FILE, ..Given::default() },
            "http://own/x",
            Protocol::HttpJson,
            Compression::Gzip,
            3,
            "own",
            "/own",
        ),
        (
            Given { flags: FLAGS, env: &both, file: FILE },
            "http://flag/",
            Protocol::Grpc,
            Compression::Zstd,
            3,
            "flag",
            "/own",
        ),
    ];
    for (given, endpoint, protocol, compression, seconds, header, ca_file) in layers {
        let wanted = Export {
            protocol,
            compression,
            timeout: Some(Duration::from_secs(seconds)),
            headers: parse::headers([("from", header)]).unwrap(),
            ca_file: Some(ca_file.into()),
            ..Export::to(endpoint.parse().unwrap())
        };
        assert_eq!(exported(given), wanted, "{endpoint}");
    }
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
            OTEL_ATTRIBUTE_COUNT_LIMIT=30
            OTEL_EXPORTER_OTLP_ENDPOINT=http://c
            DOCKER_HOST=unix:///run/user/1000/docker.sock",
        file: "log_level: error
batch: {delay: 9s, max_records: 9}
queue: {max_records: 9}
limits: {value_length: 9, count: 9}
enrich: {docker_socket: /9}
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
    assert_eq!(config.enrich.docker_socket, Some("/run/user/1000/docker.sock".into()));
    assert_eq!(config.export.unwrap().retry_max_elapsed, Duration::from_secs(30));
}

#[test]
fn an_empty_variable_is_an_unset_one() {
    let names = "OTEL_EXPORTER_OTLP_ENDPOINT OTEL_EXPORTER_OTLP_PROTOCOL OTEL_EXPORTER_OTLP_TIMEOUT OTEL_LOG_LEVEL \
                 OTEL_EXPORTER_OTLP_CLIENT_KEY OTEL_CONFIG_FILE OTEL_LOGS_EXPORTER OTEL_SDK_DISABLED DOCKER_HOST \
                 OTEL_RESOURCE_ATTRIBUTES OTEL_SERVICE_NAME OTEL_EXPORTER_OTLP_HEADERS";
    let empty = names.split_whitespace().flat_map(|name| [name, "=\n"]).collect::<String>();
    assert_eq!(env(&empty).load().unwrap(), Config::default());
}

#[test]
fn nothing_is_shipped_unless_an_endpoint_is_set_and_otlp_is_wanted() {
    const ENDPOINT: &str = "--endpoint http://c";
    let cases = [
        ("", "", false, Console::Table, ""),
        (ENDPOINT, "", true, Console::None, ""),
        (ENDPOINT, "OTEL_LOGS_EXPORTER=otlp", true, Console::None, ""),
        (ENDPOINT, "OTEL_LOGS_EXPORTER=none", false, Console::None, "OTEL_LOGS_EXPORTER"),
        (ENDPOINT, "OTEL_LOGS_EXPORTER=console", false, Console::Jsonl, "OTEL_LOGS_EXPORTER"),
        (ENDPOINT, "OTEL_LOGS_EXPORTER=otlp, console", true, Console::Jsonl, ""),
        (ENDPOINT, "OTEL_SDK_DISABLED=True", false, Console::None, "OTEL_SDK_DISABLED"),
        (ENDPOINT, "OTEL_SDK_DISABLED=false", true, Console::None, ""),
        ("", "OTEL_LOGS_EXPORTER=none", false, Console::Table, ""),
        ("", "OTEL_LOGS_EXPORTER=console", false, Console::Jsonl, ""),
        ("", "OTEL_LOGS_EXPORTER=otlp", false, Console::Table, "no endpoint is set"),
        ("--console table", "OTEL_LOGS_EXPORTER=console", false, Console::Table, ""),
        ("--console table --endpoint http://c", "", true, Console::Table, ""),
    ];
    for (flags, env, shipped, console, note) in cases {
        let config = Given { flags, env, ..Given::default() }.load().unwrap();
        assert_eq!((config.export.is_some(), config.console), (shipped, console), "{flags} {env}");
        assert_eq!(config.notes.len(), usize::from(!note.is_empty()), "{flags} {env}");
        assert!(config.notes.iter().all(|text| text.contains(note)), "{:?}", config.notes);
    }
}

#[test]
fn metrics_follow_logs_where_their_own_settings_do_not_say_otherwise() {
    const WANTED: &str = "OTEL_METRICS_EXPORTER=otlp\n";
    let metrics = |flags: &str, env: &str, file: &str| {
        let env = format!("{WANTED}{env}");
        Given { flags, env: &env, file }.load().unwrap().metrics.unwrap()
    };
    let endpoint = |flags, env, file| metrics(flags, env, file).export.endpoint.to_string();
    assert_eq!(endpoint("--endpoint http://f/v1/logs", "", ""), "http://f/v1/metrics");
    assert_eq!(endpoint("", "OTEL_EXPORTER_OTLP_ENDPOINT=http://g/x", ""), "http://g/x/v1/metrics");
    assert_eq!(endpoint("", "", "export: {endpoint: 'http://e'}"), "http://e/v1/metrics");
    assert_eq!(endpoint("--endpoint http://f", "", "metrics: {endpoint: 'http://m'}"), "http://m/");
    let own = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://own/x\nOTEL_EXPORTER_OTLP_METRICS_PROTOCOL=http/json\n\
               OTEL_EXPORTER_OTLP_METRICS_HEADERS=a=own\nOTEL_EXPORTER_OTLP_METRICS_TIMEOUT=7\n\
               OTEL_EXPORTER_OTLP_TIMEOUT=8\nOTEL_METRIC_EXPORT_INTERVAL=500";
    let flags = "--endpoint c:1 --protocol grpc --header a=flag";
    let wanted = Export {
        protocol: Protocol::HttpJson,
        headers: parse::headers([("a", "own")]).unwrap(),
        timeout: Some(Duration::from_millis(7)),
        ..Export::to("http://own/x".parse().unwrap())
    };
    let found = metrics(flags, own, "metrics: {endpoint: 'http://m', interval: 9s}");
    assert_eq!(found, Metrics { export: wanted, interval: Duration::from_millis(500) });
    let found = metrics(flags, "", "").export;
    assert_eq!((found.protocol, found.endpoint.as_str()), (Protocol::Grpc, "https://c:1/"));
    assert_eq!(found.headers, parse::headers([("a", "flag")]).unwrap());
    let found = Given { flags, env: own, ..Given::default() }.load().unwrap();
    assert_eq!((found.metrics, found.export.unwrap().protocol), (None, Protocol::Grpc));
}

#[test]
fn no_metrics_leave_unless_asked_for_and_with_an_endpoint() {
    const FILE: &str = "metrics: {exporter: otlp}";
    let cases = [
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://c", "", false, ""),
        ("OTEL_METRICS_EXPORTER=none\nOTEL_EXPORTER_OTLP_ENDPOINT=http://c", FILE, false, ""),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://c", FILE, true, ""),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://c\nOTEL_SDK_DISABLED=true", FILE, false, "OTEL_SDK_DISABLED"),
        ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=http://c", FILE, false, "line 1: metrics.exporter asks for otlp, but no"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL=not-looked-at", "", false, ""),
    ];
    for (env, file, exported, note) in cases {
        let config = Given { env, file, ..Given::default() }.load().unwrap();
        assert_eq!(config.metrics.is_some(), exported, "{env} {file}");
        assert_eq!(config.notes.len(), usize::from(!note.is_empty()), "{env} {file}");
        assert!(config.notes.iter().all(|text| text.contains(note)), "{:?}", config.notes);
    }
    let refused = env("OTEL_METRICS_EXPORTER=otlp\nOTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY=/k").refusal();
    assert!(refused.contains("OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY: client certificates"), "{refused}");
}

#[test]
fn a_scheme_beats_insecure() {
    const GRPC: &str = "OTEL_EXPORTER_OTLP_PROTOCOL=grpc\nOTEL_EXPORTER_OTLP_ENDPOINT=";
    let cases = [
        ("c:4317", "https://c:4317/"),
        ("c:4317\nOTEL_EXPORTER_OTLP_INSECURE=true", "http://c:4317/"),
        ("c:4317\nOTEL_EXPORTER_OTLP_INSECURE=true\nOTEL_EXPORTER_OTLP_LOGS_INSECURE=false", "https://c:4317/"),
        ("https://c:4317\nOTEL_EXPORTER_OTLP_INSECURE=true", "https://c:4317/"),
        ("http://c:4317\nOTEL_EXPORTER_OTLP_INSECURE=false", "http://c:4317/"),
    ];
    for (rest, url) in cases {
        assert_eq!(exported(env(&format!("{GRPC}{rest}"))).endpoint.as_str(), url, "{rest}");
    }
}

#[test]
fn timeout_zero_is_no_limit() {
    let timeout = |env: &str| exported(Given { flags: "--endpoint http://c", env, ..Given::default() }).timeout;
    assert_eq!(timeout("OTEL_EXPORTER_OTLP_TIMEOUT=0"), None);
    assert_eq!(timeout("OTEL_EXPORTER_OTLP_TIMEOUT=250"), Some(Duration::from_millis(250)));
    assert_eq!(timeout(""), Some(Duration::from_secs(10)));
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
fn a_batch_has_to_fit_into_the_queue() {
    let small = env("OTEL_BLRP_MAX_QUEUE_SIZE=100").load().unwrap();
    assert_eq!((small.batch.max_records, small.queue.max_records), (100, Some(100)));
    let message = env("OTEL_BLRP_MAX_QUEUE_SIZE=100\nOTEL_BLRP_MAX_EXPORT_BATCH_SIZE=200").refusal();
    for part in ["200 records (environment variable OTEL_BLRP_MAX_EXPORT_BATCH_SIZE)", "100 records"] {
        assert!(message.contains(part), "{message}");
    }
    let message = file("queue:\n  max_bytes: 1MiB\n").refusal();
    for part in ["3145728 bytes (the default)", "line 2: queue.max_bytes"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn an_invalid_flag_is_refused_by_name() {
    let cases = [
        ("--for 10", "flag --for: `10` is not a duration such as"),
        ("--for 0s", "flag --for: `0s` is not more than zero"),
        ("--uid root", "flag --uid: `root` is not a numeric user id"),
        ("--uid 4294967295", "flag --uid: `4294967295` is not"),
        ("--comm 0123456789abcdef", "flag --comm: `0123456789abcdef` is not a prefix of 1 to 15 bytes"),
        ("--path bin/", "flag --path: `bin/` is not an absolute path"),
        ("--args-limit 64KiB", "flag --args-limit: `64KiB` is not a size from 1 to 65535 bytes"),
        ("--ring-size 5MiB", "flag --ring-size: `5MiB` is not a power of two from 4KiB to 1GiB"),
        ("--endpoint localhost:4318", "flag --endpoint: `localhost:4318` is not an http:// or https:// URL"),
        ("--endpoint http://u:pw@c", "flag --endpoint: `http://…@c` is not free of credentials"),
        ("--header hunter2", "flag --header: entry 1 has no `=`"),
        ("--header te=hunter2", "flag --header: entry 1, `te`: this header is set by OTLP itself"),
        ("--docker-socket docker.sock", "flag --docker-socket: `docker.sock` is not the absolute path"),
        ("--label a*b", "flag --label: `a*b` is not a label key"),
        ("--config /does/not/exist.yaml", "flag --config: cannot read /does/not/exist.yaml"),
    ];
    for (given, start) in cases {
        let message = flags(given).refusal();
        assert!(message.starts_with(start), "{message}");
        assert!(!message.contains("hunter2") && !message.contains("pw"), "{message}");
    }
    let many = "--uid 1 ".repeat(17);
    assert_eq!(flags(&many).refusal(), "flag --uid: 17 entries, at most 16 fit");
    let many = "--comm a ".repeat(9);
    assert_eq!(flags(&many).refusal(), "flag --comm: 9 entries, at most 8 fit");
}

#[test]
fn an_invalid_variable_is_refused_by_name_even_if_it_is_overridden() {
    let cases = [
        ("OTEL_EXPORTER_OTLP_PROTOCOL=grcp", "`grcp` is not one of grpc, http/protobuf, http/json"),
        ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL=GRPC", "`GRPC` is not one of"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION=br", "`br` is not one of none, gzip, zstd"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT=10s", "`10s` is not a whole number of milliseconds"),
        ("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT=-1", "`-1` is not"),
        ("OTEL_EXPORTER_OTLP_INSECURE=yes", "`yes` is not one of true, false"),
        ("OTEL_EXPORTER_OTLP_HEADERS=authorization=hunter2%", "the value of entry 1, `authorization` is not"),
        ("OTEL_EXPORTER_OTLP_LOGS_HEADERS=hunter2", "entry 1 has no `=`"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY=/k", "client certificates (mutual TLS) are not supported yet"),
        ("OTEL_EXPORTER_OTLP_LOGS_CLIENT_CERTIFICATE=/c", "client certificates (mutual TLS)"),
        ("OTEL_CONFIG_FILE=/x.yaml", "Namespan does not read OpenTelemetry's declarative configuration"),
        ("OTEL_LOGS_EXPORTER=otlp,none", "`otlp,none` is not one of otlp, console, none"),
        ("OTEL_METRICS_EXPORTER=prometheus", "`prometheus` is not one of otlp, none"),
        ("OTEL_METRIC_EXPORT_INTERVAL=0", "`0` is not more than zero"),
        ("OTEL_SDK_DISABLED=1", "`1` is not one of true, false"),
        ("OTEL_BLRP_SCHEDULE_DELAY=0", "`0` is not more than zero"),
        ("OTEL_BLRP_EXPORT_TIMEOUT=0", "`0` is not more than zero"),
        ("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE=0", "`0` is not a whole number above zero"),
        ("OTEL_BLRP_MAX_QUEUE_SIZE=x", "`x` is not a whole number above zero"),
        ("OTEL_ATTRIBUTE_COUNT_LIMIT=-1", "`-1` is not a whole number"),
        ("OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT=x", "`x` is not a whole number"),
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT=x", "`x` is not a whole number"),
        ("OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT=x", "`x` is not a whole number"),
        ("OTEL_RESOURCE_ATTRIBUTES=a=b,c", "`a=b,c` is not a list of key=value: entry 2 has no `=`"),
        ("OTEL_RESOURCE_ATTRIBUTES=a=%ff", "`a=%ff` is not a list of key=value: the value of `a` is not UTF-8"),
        ("OTEL_LOG_LEVEL=loud", "`loud` is not one of none, error, warn, info, debug, trace"),
    ];
    let flags = "--protocol grpc --compression gzip --header a=b --log-level info --endpoint http://c:1";
    for (env, end) in cases {
        let (name, _) = env.split_once('=').unwrap();
        let message = Given { flags, env, ..Given::default() }.refusal();
        assert!(message.starts_with(&format!("environment variable {name}: {end}")), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    }
    let message = env("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=localhost:4318").refusal();
    assert!(message.starts_with("environment variable OTEL_EXPORTER_OTLP_LOGS_ENDPOINT: `localhost:4318` is not"));
}

#[test]
fn a_docker_host_elsewhere_is_refused_unless_a_flag_decides() {
    let message = env("DOCKER_HOST=tcp://d:2376").refusal();
    assert!(message.starts_with("environment variable DOCKER_HOST: `tcp://d:2376` is not unix://"), "{message}");
    assert!(message.contains("--docker-socket"), "{message}");
    for flags in ["--no-docker", "--docker-socket /run/docker.sock"] {
        assert!(Given { flags, env: "DOCKER_HOST=tcp://d:2376", ..Given::default() }.load().is_ok());
    }
}

#[test]
fn a_variable_that_is_not_utf_8_is_refused_by_name() {
    let env = |name: &str| (name == "OTEL_SERVICE_NAME").then(|| OsString::from_vec(vec![b'a', 0xff]));
    let message = Config::load(&Run::default(), &env).unwrap_err().to_string();
    assert_eq!(message, "environment variable OTEL_SERVICE_NAME: the value is not UTF-8");
}

#[test]
fn an_invalid_value_in_the_file_is_refused_by_line_and_key() {
    let cases = [
        "console: no",
        "run_for: 10",
        "log_level: loud",
        "arguments: some",
        "probes.failed_execs: 1",
        "probes.exits: yes",
        "probes.args_limit: 64KiB",
        "probes.ring_bytes: 5MiB",
        "probes.filters.scope: pods",
        "probes.filters.uids: [root]",
        "probes.filters.comms: ['']",
        "probes.filters.paths: [bin]",
        "enrich.docker_socket: docker.sock",
        "enrich.cache_entries: 0",
        "enrich.cache_grace: 1",
        "enrich.cache_negative: x",
        "enrich.wait: -1s",
        "enrich.wait_bytes: 0",
        "enrich.labels: ['*a']",
        "resource.service_name: ' '",
        "limits.value_length: -1",
        "limits.count: x",
        "batch.max_records: 0",
        "batch.max_bytes: 65MiB",
        "batch.delay: 0s",
        "queue.max_bytes: 1KB",
        "queue.max_records: 0",
        "queue.drain: soon",
        "export.endpoint: localhost:4318",
        "export.insecure: maybe",
        "export.protocol: http",
        "export.compression: br",
        "export.timeout: 10",
        "export.retry_max_elapsed: 10",
        "export.ca_file: ''",
        "metrics.exporter: console",
        "metrics.interval: 0s",
    ];
    for case in cases {
        let (key, value) = case.split_once(": ").unwrap();
        let mut text = String::new();
        let parts: Vec<_> = key.split('.').collect();
        for (depth, part) in parts.iter().enumerate() {
            let value = if depth + 1 == parts.len() { value } else { "" };
            text.extend(["  ".repeat(depth).as_str(), part, ": ", value, "\n"]);
        }
        let message = file(&text).refusal();
        let value = value.trim_matches(['[', ']']).trim_matches('\'');
        let wanted = format!(" line {}: {key}: `{value}` is not ", parts.len());
        assert!(message.contains(&wanted), "{message}, not {wanted}");
    }
}

#[test]
fn a_header_or_list_in_the_file_is_refused_without_its_value() {
    let message = file("export:\n  headers:\n    x-key: \"hunter2\\n\"\n").refusal();
    assert!(message.contains("line 3: export.headers.x-key: entry 1, `x-key`: the value (not shown)"), "{message}");
    assert!(!message.contains("hunter2"), "{message}");
    let message = file("export:\n  headers:\n    x-key:\n").refusal();
    assert!(message.contains("export.headers.x-key: a value is missing"), "{message}");
    let message = file("probes: {filters: {uids: [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}}").refusal();
    assert!(message.contains("line 1: probes.filters.uids: 17 entries, at most 16 fit"), "{message}");
    let message = file("resource: {attributes: {'': x}}").refusal();
    assert!(message.contains("its key is empty"), "{message}");
}
