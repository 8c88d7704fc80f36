//! What is shipped, where to, and which layer says so.

use super::*;

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
    let own_of_traces = OWN.replace("LOGS", "TRACES");
    let both = format!("{GENERAL}{OWN}{own_of_traces}");
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
        let Config { logs, traces, .. } = given.load().unwrap();
        assert_eq!(logs.as_ref(), Some(&wanted), "{endpoint}");
        let endpoint = endpoint.replace("v1/logs", "v1/traces").parse().unwrap();
        assert_eq!(traces, Some(Export { endpoint, ..wanted }));
    }
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
        assert_eq!((config.logs.is_some(), config.console), (shipped, console), "{flags} {env}");
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
    assert_eq!((found.metrics, found.logs.unwrap().protocol), (None, Protocol::Grpc));
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
