//! Where else the same is shipped.

use super::*;

/// Each destination's name, and the endpoints of its logs and spans.
fn shipped(config: &Config) -> Vec<String> {
    let endpoint = |export: &Option<Export>| export.as_ref().map_or("-", |export| export.endpoint.as_str()).to_owned();
    let of =
        |Destination { name, logs, traces }: &Destination| format!("{name} {} {}", endpoint(logs), endpoint(traces));
    config.destinations.iter().map(of).collect()
}

const TWO: &str = "destinations:
  - name: both
    endpoint: http://b
  - name: spans
    endpoint: t:4317
    protocol: grpc
    insecure: true
    logs: {exporter: none}
";

#[test]
fn each_is_what_its_own_keys_say_and_inherits_nothing() {
    const FILE: &str = "
export:
  endpoint: https://main
  protocol: grpc
  headers: {authorization: hunter2}
  compression: zstd
  timeout: 1s
  retry_max_elapsed: 1s
  ca_file: /main
  client_certificate: /main.pem
  client_key: /main.key
  insecure: true
logs: {endpoint: 'https://main-logs'}
traces: {exporter: none}
destinations:
  - {name: bare, endpoint: 'https://bare'}
  - name: full_1-2
    endpoint: full:1
    protocol: grpc
    insecure: false
    headers: {Key: value}
    compression: none
    timeout: 0
    retry_max_elapsed: 0s
    ca_file: /full
    client_certificate: /full.pem
    client_key: /full.key
    traces: {endpoint: 'unix:/run/t.sock'}
  - {name: logs, logs: {endpoint: 'http://only/x'}}
";
    const ENV: &str = "OTEL_EXPORTER_OTLP_HEADERS=authorization=hunter3\nOTEL_EXPORTER_OTLP_PROTOCOL=http/json\n\
                       OTEL_EXPORTER_OTLP_TIMEOUT=7\nOTEL_EXPORTER_OTLP_INSECURE=true\nOTEL_BLRP_EXPORT_TIMEOUT=8\n\
                       OTEL_EXPORTER_OTLP_COMPRESSION=zstd\nOTEL_EXPORTER_OTLP_CERTIFICATE=/env";
    let flags = "--endpoint https://flag --header a=b --compression zstd";
    for (flags, env) in [("", ""), (flags, ENV)] {
        let config = Given { flags, env, file: FILE }.load().unwrap();
        let full = Export {
            protocol: Protocol::Grpc,
            headers: parse::headers([("key", "value")]).unwrap(),
            compression: Compression::None,
            timeout: None,
            retry_max_elapsed: Duration::ZERO,
            ca_file: Some("/full".into()),
            client: Some(ClientIdentity { certificate: "/full.pem".into(), key: "/full.key".into() }),
            ..Export::to("https://full:1".parse().unwrap())
        };
        let to = |url: &str| Some(Export::to(url.parse().unwrap()));
        let wanted = [
            ("bare", to("https://bare/v1/logs"), to("https://bare/v1/traces")),
            ("full_1-2", Some(full.clone()), Some(Export { endpoint: "unix:///run/t.sock".parse().unwrap(), ..full })),
            ("logs", to("http://only/x"), None),
        ];
        let wanted = wanted.map(|(name, logs, traces)| Destination { name: name.to_owned(), logs, traces });
        assert_eq!(config.destinations, wanted);
        assert_eq!(config.traces, None, "what the file says of `traces` is of the main destination alone");
        assert_eq!(config.switched_off, [], "spans are shipped elsewhere");
        let names: Vec<_> = config.exports(Signal::Traces).map(|(name, _)| name).collect();
        assert_eq!(names, ["bare", "full_1-2"]);
    }
}

#[test]
fn no_main_one_is_needed_and_the_console_counts_them_all() {
    let config = file(TWO).load().unwrap();
    assert_eq!((&config.logs, &config.traces, config.console), (&None, &None, Console::None));
    assert_eq!(shipped(&config), ["both http://b/v1/logs http://b/v1/traces", "spans - http://t:4317/"]);
    assert_eq!(config.notes, [""; 0]);
    let config = file("destinations: [{name: a, traces: {endpoint: 'http://a'}}]").load().unwrap();
    assert_eq!((shipped(&config), config.console), (vec!["a - http://a/".to_owned()], Console::None));
    for none in ["destinations:", "destinations: []", "destinations: ~"] {
        assert_eq!(file(none).load().unwrap(), Config::default());
    }
}

#[test]
fn what_switches_a_signal_off_does_so_for_all() {
    /// Flags and environment; destinations, the notes, what is switched off, and the console.
    type Case<'a> = (&'a str, &'a str, &'a [&'a str], &'a [&'a str], &'a [Signal], Console);
    const BOTH: &str = "both http://b/v1/logs http://b/v1/traces";
    const LOGS: &[&str] = &["both http://b/v1/logs -"];
    const SPANS: &[&str] = &["both - http://b/v1/traces", "spans - http://t:4317/"];
    let all = &[BOTH, "spans - http://t:4317/"][..];
    let no_spans = "environment variable OTEL_TRACES_EXPORTER has no otlp: no spans are shipped";
    let no_logs = "environment variable OTEL_LOGS_EXPORTER has no otlp: no logs are shipped";
    let cases: [Case<'_>; 9] = [
        ("", "", all, &[], &[], Console::None),
        ("", "OTEL_TRACES_EXPORTER=otlp\nOTEL_LOGS_EXPORTER=otlp", all, &[], &[], Console::None),
        ("--no-spans", "", LOGS, &[], &[Signal::Traces], Console::None),
        (
            "--no-exit",
            "",
            LOGS,
            &["flag --no-exit: without exits there are no spans, so none are shipped"],
            &[],
            Console::None,
        ),
        ("--no-spans --no-exit", "", LOGS, &[], &[Signal::Traces], Console::None),
        ("", "OTEL_TRACES_EXPORTER=none", LOGS, &[no_spans], &[Signal::Traces], Console::None),
        ("", "OTEL_TRACES_EXPORTER=console", LOGS, &[no_spans], &[], Console::Jsonl),
        ("", "OTEL_LOGS_EXPORTER=none", SPANS, &[no_logs], &[Signal::Logs], Console::None),
        (
            "",
            "OTEL_SDK_DISABLED=true",
            &[],
            &["environment variable OTEL_SDK_DISABLED is true: nothing is shipped"],
            &[],
            Console::None,
        ),
    ];
    for (flags, env, destinations, notes, off, console) in cases {
        let config = Given { flags, env, file: TWO }.load().unwrap();
        assert_eq!(shipped(&config), destinations, "{flags} {env}");
        assert_eq!(config.notes, notes, "{flags} {env}");
        assert_eq!((config.switched_off.as_slice(), config.console), (off, console), "{flags} {env}");
    }
    let main_takes_no_logs = format!("{TWO}logs: {{exporter: none}}\n");
    assert_eq!(file(&main_takes_no_logs).load().unwrap().switched_off, []);
    let nobody_takes_logs = "destinations: [{name: a, endpoint: 'http://a', logs: {exporter: none}}]\n\
                             logs: {exporter: none}";
    assert_eq!(file(nobody_takes_logs).load().unwrap().switched_off, [Signal::Logs]);
    let only_spans_run = "destinations: [{name: a, traces: {endpoint: 'http://a'}}]";
    let config = Given { flags: "--no-spans", file: only_spans_run, ..Given::default() }.load().unwrap();
    assert_eq!((config.destinations.len(), config.console), (0, Console::Table));
}

#[test]
fn an_invalid_one_is_refused_by_line_and_key() {
    let cases = [
        ("- {endpoint: 'http://a'}", "destinations[0]: it has no name; give it one"),
        ("- {name: a}", " line 2: destinations[0]: it has no endpoint; give it one, or take it out"),
        ("- {name: main, endpoint: 'http://a'}", " line 2: destinations[0].name: `main` is not free for use"),
        ("- {name: A, endpoint: 'http://a'}", "destinations[0].name: `A` is not a name of 1 to 32 lower-case letters"),
        ("- {name: a.b, endpoint: 'http://a'}", "`a.b` is not a name of"),
        ("- {name: '', endpoint: 'http://a'}", "`` is not a name of"),
        ("- {name: a23456789012345678901234567890123, endpoint: 'http://a'}", "is not a name of"),
        (
            "- {name: a, endpoint: 'http://a'}\n- {name: a, endpoint: 'http://b'}",
            " line 3: destinations[1].name: `a` is not a name of its own",
        ),
        ("- name: a\n  endpoint: a:1", " line 3: destinations[0].endpoint: `a:1` is not an http:// or https:// URL"),
        ("- name: a\n  endpoint: http://u:hunter2@a", "`http://…@a` is not free of credentials"),
        ("- {name: a, endpoint: 'http://a', protocol: http}", "destinations[0].protocol: `http` is not one of grpc"),
        ("- {name: a, endpoint: 'http://a', compression: br}", "destinations[0].compression: `br` is not one of"),
        ("- {name: a, endpoint: 'http://a', timeout: 1}", "destinations[0].timeout: `1` is not a duration"),
        ("- {name: a, endpoint: 'http://a', retry_max_elapsed: 1}", "destinations[0].retry_max_elapsed: `1` is not"),
        ("- {name: a, endpoint: 'http://a', insecure: 1}", "destinations[0].insecure: `1` is not one of true, false"),
        ("- {name: a, endpoint: 'http://a', ca_file: ' '}", "destinations[0].ca_file: ` ` is not"),
        (
            "- {name: a, endpoint: 'http://a', headers: {te: hunter2}}",
            "destinations[0].headers.te: entry 1, `te`: this",
        ),
        ("- {name: a, endpoint: 'http://a', headers: {k: }}", "destinations[0].headers.k: a value is missing"),
        (
            "- {name: a, endpoint: 'http://a', logs: {exporter: console}}",
            "destinations[0].logs.exporter: `console` is not",
        ),
        ("- {name: a, endpoint: 'http://a', traces: {endpoint: b}}", "destinations[0].traces.endpoint: `b` is not"),
    ];
    for (list, wanted) in cases {
        let message = file(&format!("destinations:\n{list}\n")).refusal();
        assert!(message.contains(wanted), "{message}, not {wanted}");
        assert!(!message.contains("hunter2"), "{message}");
    }
    let listed = |count: usize| {
        let entry = |number| format!("- {{name: d{number}, endpoint: 'http://d'}}\n");
        format!("destinations:\n{}", (0..count).map(entry).collect::<String>())
    };
    assert_eq!(file(&listed(8)).load().unwrap().destinations.len(), 8);
    let refusal = file(&listed(9)).refusal();
    assert!(refusal.ends_with(" line 10: destinations[8].name: 9 entries, at most 8 fit"), "{refusal}");
}

#[test]
fn the_examples_of_the_documentation_are_valid() {
    let text = include_str!("../../../../../docs/delivery.md");
    let blocks: Vec<_> = text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let [several, mutual_tls] = blocks[..] else { panic!("two examples expected") };
    let config = file(several).load().unwrap();
    assert_eq!(config.logs, Some(Export::to("http://collector:4318/v1/logs".parse().unwrap())));
    let wanted = [
        "vendor https://otlp.vendor.example/v1/logs https://otlp.vendor.example/v1/traces",
        "jaeger - http://jaeger:4317/",
    ];
    assert_eq!((shipped(&config), config.notes.len()), (wanted.map(str::to_owned).to_vec(), 0));
    let config = file(mutual_tls).load().unwrap();
    assert_eq!((config.logs.unwrap().client.is_some(), config.notes.len()), (true, 0));
}
