//! What is shipped, where to, and which layer says so.

use super::*;

#[test]
fn flags_beat_own_variables_beat_general_ones_beat_the_file() {
    const FILE: &str = "export: {endpoint: 'http://file', protocol: http/json, compression: zstd, timeout: 1s, \
                        headers: {from: file}, ca_file: /file, client_certificate: /file.pem, \
                        client_key: /file.key}";
    const GENERAL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT=http://general\nOTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf\n\
                           OTEL_EXPORTER_OTLP_COMPRESSION=none\nOTEL_EXPORTER_OTLP_TIMEOUT=2000\n\
                           OTEL_EXPORTER_OTLP_HEADERS=from=general\nOTEL_EXPORTER_OTLP_CERTIFICATE=/general\n\
                           OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=/general.pem\n\
                           OTEL_EXPORTER_OTLP_CLIENT_KEY=/general.key";
    const OWN: &str = "\nOTEL_EXPORTER_OTLP_LOGS_ENDPOINT=http://own/x\n\
                       OTEL_EXPORTER_OTLP_LOGS_PROTOCOL=http/json\n\
                       OTEL_EXPORTER_OTLP_LOGS_COMPRESSION=gzip\nOTEL_EXPORTER_OTLP_LOGS_TIMEOUT=3000\n\
                       OTEL_EXPORTER_OTLP_LOGS_HEADERS=from=own\nOTEL_EXPORTER_OTLP_LOGS_CERTIFICATE=/own\n\
                       OTEL_EXPORTER_OTLP_LOGS_CLIENT_CERTIFICATE=/own.pem\n\
                       OTEL_EXPORTER_OTLP_LOGS_CLIENT_KEY=/own.key";
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
            client: Some(ClientIdentity {
                certificate: format!("{ca_file}.pem").into(),
                key: format!("{ca_file}.key").into(),
            }),
            ..Export::to(endpoint.parse().unwrap())
        };
        let Config { logs, traces, .. } = given.load().unwrap();
        assert_eq!(logs.as_ref(), Some(&wanted), "{endpoint}");
        let endpoint = endpoint.replace("v1/logs", "v1/traces").parse().unwrap();
        assert_eq!(traces, Some(Export { endpoint, ..wanted }));
    }
}

#[test]
fn each_signal_has_a_variable_of_its_own_for_everything() {
    fn variables(signal: &str, of: &str, [protocol, insecure, compression, timeout]: [&str; 4]) -> String {
        format!(
            "OTEL_EXPORTER_OTLP_{signal}ENDPOINT={of}:1
            OTEL_EXPORTER_OTLP_{signal}PROTOCOL={protocol}
            OTEL_EXPORTER_OTLP_{signal}INSECURE={insecure}
            OTEL_EXPORTER_OTLP_{signal}HEADERS=from={of}
            OTEL_EXPORTER_OTLP_{signal}COMPRESSION={compression}
            OTEL_EXPORTER_OTLP_{signal}TIMEOUT={timeout}
            OTEL_EXPORTER_OTLP_{signal}CERTIFICATE=/{of}
            OTEL_EXPORTER_OTLP_{signal}CLIENT_CERTIFICATE=/{of}.pem
            OTEL_EXPORTER_OTLP_{signal}CLIENT_KEY=/{of}.key
"
        )
    }
    let export = |of: &str, scheme: &str, compression, timeout| Export {
        protocol: Protocol::Grpc,
        headers: parse::headers([("from", of)]).unwrap(),
        compression,
        timeout: Some(Duration::from_millis(timeout)),
        ca_file: Some(format!("/{of}").into()),
        client: Some(ClientIdentity { certificate: format!("/{of}.pem").into(), key: format!("/{of}.key").into() }),
        ..Export::to(format!("{scheme}://{of}:1").parse().unwrap())
    };
    let general = variables("", "general", ["grpc", "false", "none", "1"]);
    for (index, signal) in ["LOGS_", "TRACES_", "METRICS_"].into_iter().enumerate() {
        let own = variables(signal, "own", ["grpc", "true", "zstd", "2"]);
        let both = format!(
            "OTEL_METRICS_EXPORTER=otlp
{general}{own}"
        );
        let Config { logs, traces, metrics, .. } = env(&both).load().unwrap();
        let mut wanted = std::array::from_fn(|_| Some(export("general", "https", Compression::None, 1)));
        wanted[index] = Some(export("own", "http", Compression::Zstd, 2));
        assert_eq!([logs, traces, metrics.map(|metrics| metrics.export)], wanted, "{signal}");
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
}

#[test]
fn a_client_has_a_certificate_and_a_key_each_from_the_highest_layer() {
    let client = |env: &str, file: &str| {
        let Config { logs, traces, metrics, .. } =
            Given { flags: "--endpoint https://c", env, file }.load().map_err(|error| error.to_string())?;
        let metrics = metrics.map(|metrics| metrics.export);
        Ok([logs, traces, metrics].map(|export| {
            let ClientIdentity { certificate, key } = export?.client?;
            Some(format!("{} {}", certificate.display(), key.display()))
        }))
    };
    let all = |text: &str| [Some(text.to_owned()), Some(text.to_owned()), None];
    let general = "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=/g.pem\nOTEL_EXPORTER_OTLP_CLIENT_KEY=/g.key";
    let in_file = "export: {client_certificate: /f.pem, client_key: /f.key}";
    assert_eq!(client("", ""), Ok([None, None, None]));
    assert_eq!(client(general, ""), Ok(all("/g.pem /g.key")));
    assert_eq!(client("", in_file), Ok(all("/f.pem /f.key")));
    assert_eq!(client("OTEL_EXPORTER_OTLP_CLIENT_KEY=/g.key", in_file), Ok(all("/f.pem /g.key")));
    let own = format!(
        "{general}\nOTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY=/t.key\nOTEL_METRICS_EXPORTER=otlp\n\
                       OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE=/m.pem"
    );
    let each = ["/g.pem /g.key", "/g.pem /t.key", "/m.pem /g.key"].map(|text| Some(text.to_owned()));
    assert_eq!(client(&own, in_file), Ok(each));

    let halves = [
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY=/k", "", "certificate", "set OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE too"),
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=/c", "", "key", "set OTEL_EXPORTER_OTLP_CLIENT_KEY too"),
        (
            "OTEL_EXPORTER_OTLP_LOGS_CLIENT_KEY=/k",
            "",
            "certificate",
            "set OTEL_EXPORTER_OTLP_LOGS_CLIENT_CERTIFICATE too",
        ),
        (
            "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE=/c",
            "",
            "key",
            "environment variable OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE: mutual TLS takes a certificate and its key",
        ),
        (
            "OTEL_METRICS_EXPORTER=otlp\nOTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY=/k",
            "",
            "certificate",
            "set OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE too",
        ),
        ("", "export: {client_key: /k}", "certificate", " line 1: export.client_key: mutual TLS takes"),
        ("", "export: {client_certificate: /c}", "key", "set export.client_key too"),
        (
            "",
            "destinations:\n- {name: a, endpoint: https://a, client_key: /k}",
            "certificate",
            " line 2: destinations[0].",
        ),
        (
            "",
            "destinations: [{name: a, endpoint: https://a, client_certificate: /c}]",
            "key",
            "set destinations[0].client_key too",
        ),
    ];
    for (env, file, lacking, part) in halves {
        let refusal: String = client(env, file).unwrap_err();
        assert!(refusal.contains(&format!("but the {lacking} is missing")) && refusal.contains(part), "{refusal}");
    }
    let unasked = "OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY=/k";
    assert_eq!(client(unasked, ""), Ok([None, None, None]));
    assert!(env("OTEL_EXPORTER_OTLP_CLIENT_KEY=/k").refusal().contains("the certificate is missing"));
}

#[test]
fn a_socket_takes_all_signals_at_their_usual_paths() {
    let sockets = [
        ("--endpoint unix:/run/otel.sock", "", ""),
        ("--endpoint unix:/run/otel.sock --protocol grpc", "", ""),
        ("", "OTEL_EXPORTER_OTLP_ENDPOINT=unix:///run/otel.sock", ""),
        ("", "", "export: {endpoint: 'unix:/run/otel.sock'}"),
        (
            "",
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=unix:/run/otel.sock\nOTEL_EXPORTER_OTLP_TRACES_ENDPOINT=unix:/run/otel.sock",
            "metrics: {endpoint: 'unix:/run/otel.sock'}",
        ),
    ];
    for (flags, env, file) in sockets {
        let env = format!("OTEL_METRICS_EXPORTER=otlp\n{env}");
        let Config { logs, traces, metrics, .. } = Given { flags, env: &env, file }.load().unwrap();
        for export in [logs.unwrap(), traces.unwrap(), metrics.unwrap().export] {
            assert_eq!(export.endpoint.as_str(), "unix:///run/otel.sock");
        }
    }
    let refusal = env("OTEL_EXPORTER_OTLP_ENDPOINT=unix:otel.sock").refusal();
    let wanted = "OTEL_EXPORTER_OTLP_ENDPOINT: `unix:otel.sock` is not unix: and the absolute path of a socket";
    assert!(refusal.contains(wanted), "{refusal}");
}

#[test]
fn a_scheme_beats_insecure() {
    const GRPC: &str = "OTEL_EXPORTER_OTLP_PROTOCOL=grpc\nOTEL_EXPORTER_OTLP_ENDPOINT=";
    let cases = [
        ("c:4317", "https://c:4317/"),
        ("c:4317\nOTEL_EXPORTER_OTLP_INSECURE=true", "http://c:4317/"),
        ("c:4317\nOTEL_EXPORTER_OTLP_INSECURE=true\nOTEL_EXPORTER_OTLP_LOGS_INSECURE=false", "https://c:4317/"),
        ("c:4317\nOTEL_EXPORTER_OTLP_LOGS_INSECURE=TRUE", "http://c:4317/"),
        ("c:4317\nOTEL_EXPORTER_OTLP_TRACES_INSECURE=true", "https://c:4317/"),
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
