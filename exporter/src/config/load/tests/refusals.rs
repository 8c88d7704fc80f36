//! Every error by name.

use std::os::unix::ffi::OsStringExt;

use super::*;

#[test]
fn a_batch_has_to_fit_into_the_queue() {
    let small = env("OTEL_BLRP_MAX_QUEUE_SIZE=100").load().unwrap();
    assert_eq!((small.batch.max_records, small.queue.max_records), (100, Some(100)));
    let message = env("OTEL_BLRP_MAX_QUEUE_SIZE=100\nOTEL_BLRP_MAX_EXPORT_BATCH_SIZE=200").refusal();
    for part in ["200 records (environment variable OTEL_BLRP_MAX_EXPORT_BATCH_SIZE)", "100 records"] {
        assert!(message.contains(part), "{message}");
    }
    let message = env("OTEL_BSP_MAX_QUEUE_SIZE=100\nOTEL_BSP_MAX_EXPORT_BATCH_SIZE=200").refusal();
    for part in ["200 spans (environment variable OTEL_BSP_MAX_EXPORT_BATCH_SIZE)", "100 spans"] {
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
        ("--include web", "flag --include: `web` is not name:GLOB, image:GLOB"),
        ("--exclude id:", "flag --exclude: `id:` is not id: and the beginning"),
        ("--path bin/", "flag --path: `bin/` is not an absolute path"),
        ("--args-limit 64KiB", "flag --args-limit: `64KiB` is not a size from 1 to 65535 bytes"),
        ("--ring-size 5MiB", "flag --ring-size: `5MiB` is not a power of two from 4KiB to 1GiB"),
        ("--endpoint localhost:4318", "flag --endpoint: `localhost:4318` is not an http:// or https:// URL"),
        ("--endpoint http://u:pw@c", "flag --endpoint: `http://…@c` is not free of credentials"),
        ("--header hunter2", "flag --header: entry 1 has no `=`"),
        ("--header te=hunter2", "flag --header: entry 1, `te`: this header is set by OTLP itself"),
        ("--runtime docker=d.sock", "flag --runtime: `docker=d.sock` is not docker= and the absolute path of a Unix"),
        ("--runtime docker", "flag --runtime: `docker` is not docker= and the absolute path"),
        (
            "--runtime dokcer=none",
            "flag --runtime: `dokcer=none` is not NAME=PATH, NAME=auto or NAME=none, with one of d",
        ),
        ("--listen localhost:9464", "flag --listen: `localhost:9464` is not an IP address and a port such as"),
        ("--listen :9464", "flag --listen: `:9464` is not an IP address"),
        ("--spool spool", "flag --spool: `spool` is not the absolute path of a directory such as"),
        ("--endpoint unix:x", "flag --endpoint: `unix:x` is not unix: and the absolute path of a socket such as"),
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
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=thrift", "`thrift` is not one of grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION=br", "`br` is not one of none, gzip, zstd"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT=-1", "`-1` is not"),
        ("OTEL_EXPORTER_OTLP_TRACES_INSECURE=yes", "`yes` is not one of true, false"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS=hunter2", "entry 1 has no `=`"),
        ("OTEL_TRACES_EXPORTER=zipkin", "`zipkin` is not one of otlp, console, none"),
        ("OTEL_TRACES_SAMPLER=jaeger_remote", "`jaeger_remote` is not one of always_on, always_off, traceidratio, par"),
        ("OTEL_BSP_SCHEDULE_DELAY=0", "`0` is not more than zero"),
        ("OTEL_BSP_EXPORT_TIMEOUT=0", "`0` is not more than zero"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE=0", "`0` is not a whole number above zero"),
        ("OTEL_BSP_MAX_QUEUE_SIZE=x", "`x` is not a whole number above zero"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=x", "`x` is not a whole number"),
        ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT=x", "`x` is not a whole number"),
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
    for name in ["OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] {
        let message = env(&format!("{name}=localhost:4318")).refusal();
        assert!(message.starts_with(&format!("environment variable {name}: `localhost:4318` is not")), "{message}");
    }
}

#[test]
fn a_docker_host_elsewhere_is_refused_unless_a_flag_decides() {
    let message = env("DOCKER_HOST=tcp://d:2376").refusal();
    assert!(message.starts_with("environment variable DOCKER_HOST: `tcp://d:2376` is not unix://"), "{message}");
    assert!(message.contains("--runtime docker=PATH"), "{message}");
    for flags in ["--runtime docker=none", "--runtime docker=auto"] {
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
        "log_format: xml",
        "listen: 9464",
        "probes.ring_delay: 2s",
        "spool.directory: spool",
        "spool.max_bytes: 1MiB",
        "spool.max_age: 0s",
        "export.client_key: ''",
        "arguments: some",
        "probes.failed_execs: 1",
        "probes.exits: yes",
        "probes.args_limit: 64KiB",
        "probes.ring_bytes: 5MiB",
        "probes.filters.scope: pods",
        "probes.filters.uids: [root]",
        "probes.filters.comms: ['']",
        "probes.filters.paths: [bin]",
        "probes.filters.containers.include: [web]",
        "probes.filters.containers.exclude: ['name:']",
        "enrich.runtimes.docker: docker.sock",
        "enrich.runtimes.cri-o: yes",
        "enrich.runtime_files: 1",
        "enrich.cache_entries: 0",
        "enrich.cache_grace: 1",
        "enrich.cache_negative: x",
        "enrich.wait: -1s",
        "enrich.wait_bytes: 0",
        "enrich.labels: ['*a']",
        "resource.service_name: ' '",
        "spans.sampler: xray",
        "spans.sampler_arg: 1.1",
        "spans.max_duration: 0s",
        "spans.max_per_trace: 0",
        "spans.boundaries: [/sbin/init]",
        "spans.env_context: [web]",
        "spans.env_context: ['image:nginx:1']",
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
        "logs.exporter: console",
        "logs.endpoint: c",
        "traces.exporter: console",
        "traces.endpoint: c",
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
    let message = file("spans:\n  env_context:\n  - host\n  - none\n").refusal();
    assert!(message.contains("line 3: spans.env_context: `none` is not alone: leave out"), "{message}");
    let message = file("resource: {attributes: {'': x}}").refusal();
    assert!(message.contains("its key is empty"), "{message}");
}

#[test]
fn an_exit_code_in_the_file_is_refused_by_line_and_name() {
    let cases = [
        ("grep: [1, 0]", "line 3: spans.ok_exit_codes.grep: `0` is not an exit code from 1 to 255"),
        ("grep: [256]", "line 3: spans.ok_exit_codes.grep: `256` is not"),
        ("a*b: [1]", "line 3: spans.ok_exit_codes: `a*b` is not the name of an executable"),
        ("/bin/grep: []", ": spans.ok_exit_codes: `/bin/grep` is not the name of an executable without its folder"),
        ("grep:", ": spans.ok_exit_codes: a list is missing for `grep`"),
        ("grep: 1", "line 3: spans.ok_exit_codes.grep: expected"),
        ("grep: [~]", "spans.ok_exit_codes.grep: a value is missing"),
    ];
    for (entry, wanted) in cases {
        let message = file(&format!("spans:\n  ok_exit_codes:\n    {entry}\n")).refusal();
        assert!(message.contains(wanted), "{message}, not {wanted}");
    }
}
