//! The command line: what was typed comes in; flags, still as text, go out for [`crate::config`] to check.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

const PRECEDENCE: &str = "\
A flag beats an environment variable, which beats the file of --config, which beats the default. \
A flag that can be repeated replaces the whole list below it.

The standard OTEL_* variables for logs and traces are honoured, OTEL_EXPORTER_OTLP_LOGS_* and \
OTEL_EXPORTER_OTLP_TRACES_* before OTEL_EXPORTER_OTLP_*, and DOCKER_HOST where it names a Unix socket; so are the \
usual variables for proxies. \
An invalid value is an error, also where it is overridden.";

const RUN_HELP: &str = "\
Examples:
  # Watch this host in the terminal
  namespan run
  # Only programs that root starts in containers, for ten seconds, as OTLP/JSON lines
  namespan run --containers --uid 0 --for 10s --console jsonl
  # Ship logs and spans to a Collector on this host
  namespan run --endpoint http://localhost:4318
  # Ship logs to Loki, with the password out of sight of ps
  export OTEL_EXPORTER_OTLP_HEADERS='authorization=Basic%20...'
  namespan run --endpoint https://loki.example/otlp --no-spans
  # Ship over gRPC with a client certificate (mutual TLS), and keep on disk what cannot be sent yet
  export OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=/etc/namespan/client.pem
  export OTEL_EXPORTER_OTLP_CLIENT_KEY=/etc/namespan/client.key
  namespan run --endpoint https://otel.example:4317 --protocol grpc --spool /var/lib/namespan
  # Ship to a Collector's Unix socket; tell Prometheus and probes how it goes
  namespan run --endpoint unix:/run/otel.sock --listen 127.0.0.1:9464
  # Tell of what would be stopped: shells in containers; with --guard-mode enforce they are
  namespan run --policy otel-config/policies/no-shells-in-containers.yaml
  # Ship spans of one trace in ten to Jaeger, and no logs
  export OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://localhost:4318/v1/traces
  export OTEL_TRACES_SAMPLER=parentbased_traceidratio OTEL_TRACES_SAMPLER_ARG=0.1
  namespan run";

const PROBE_HELP: &str = "\
Examples:
  # What is typed into bash in the container web
  namespan probe 'web:/usr/bin/bash:readline -> ret:string'
  # Every malloc of a process of the host, one of a thousand, for ten seconds
  namespan probe 'pid=1234:libc:malloc(size:u64) -> ptr:pointer' --sample 1000 --for 10s
  # What containers of an image send by TLS, with passwords hidden
  namespan probe '[image:nginx*]:libssl:SSL_write(ssl:pointer, buf:bytes(2), len:i32)' --redact 'password=[^&]+'
  # The same for several selectors, by flags
  namespan probe --container name:web-* --container label:tier=front 'libssl:/^SSL_(read|write)$/'
  # How long a function of C++ takes, as spans
  namespan probe --span --endpoint http://localhost:4318 'app:/srv/app:\"shop::Cart::total(int)\"() -> sum:i64'
  # A USDT marker of Python
  namespan probe 'web:libpython3.11:usdt:python:function__entry(file:string, function:string, line:i32)'";

/// Watches every exec and exit of a Linux host and its containers, and ships them as OpenTelemetry logs and spans.
#[derive(Parser)]
#[command(name = "namespan", version, after_help = PRECEDENCE)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Watch processes, until interrupted
    Run(Box<Run>),
    /// Tell of the calls of a function, in containers or on the host, until interrupted
    Probe(Box<Probe>),
    /// Say what would work on this host: kernel, permissions, container runtimes, endpoint
    Check(Box<Check>),
    /// Ask the Namespan that runs how it does: exit code 0 if well, else 1 with the reasons
    Health(Box<Health>),
    /// List the containers of this host: id, name, image, runtime, cgroup, namespaces, processes, and how each was found
    Containers(Box<Containers>),
    /// List the functions and USDT probes of a program or library that uprobes can be put on
    Symbols(Box<Symbols>),
    /// Say what policies of the guard would do
    #[command(subcommand)]
    Policy(Policy),
}

#[derive(Subcommand)]
pub enum Policy {
    /// Validate policies, and explain in words what each would do
    Check(Box<PolicyCheck>),
    /// Say what would happen to a program, and why
    Test(Box<PolicyTest>),
}

/// The flags of `namespan run`.
#[derive(Args, Default)]
#[command(after_help = format!("{PRECEDENCE}\n\n{RUN_HELP}"))]
pub struct Run {
    /// Read settings from this YAML file; otel-config/namespan.yaml has them all
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Print each event, or trees of processes that have ended [default: table if no endpoint is set, else none]
    #[arg(long, value_name = "FORMAT", value_parser = ["table", "tree", "jsonl", "none"], overrides_with = "console")]
    pub console: Option<String>,

    #[command(flatten)]
    pub own: OwnFlags,

    /// Serve /metrics (Prometheus), /healthz and /readyz here, such as 127.0.0.1:9464, to whoever can connect
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,

    #[command(flatten)]
    pub probes: ProbeFlags,

    #[command(flatten)]
    pub guard: GuardFlags,

    #[command(flatten)]
    pub export: ExportFlags,

    #[command(flatten)]
    pub runtimes: RuntimeFlags,

    /// Send this container label, if present, as container.label.KEY; `*` at the end matches any rest (repeatable)
    #[arg(long = "label", value_name = "KEY", help_heading = "Containers")]
    pub labels: Vec<String>,

    /// Of `namespan probe`; `None`: those of the file, beside all else that is watched.
    #[arg(skip)]
    pub uprobes: Option<UprobeFlags>,
}

/// The flags of `namespan probe`.
#[derive(Args, Default)]
#[command(after_help = format!("{PROBE_HELP}\n\n{PRECEDENCE}"))]
pub struct Probe {
    /// Read settings from this YAML file; its own probes are left out
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Print each hit: for people, or one OTLP/JSON request a line [default: table if no endpoint is set, else none]
    #[arg(long, value_name = "FORMAT", value_parser = ["table", "tree", "jsonl", "none"], overrides_with = "console")]
    pub console: Option<String>,

    #[command(flatten)]
    pub own: OwnFlags,

    #[command(flatten)]
    pub uprobes: UprobeFlags,

    #[command(flatten)]
    pub export: ExportFlags,

    #[command(flatten)]
    pub runtimes: RuntimeFlags,
}

/// How Namespan itself goes about it.
#[derive(Args, Clone, Default)]
pub struct OwnFlags {
    /// Stop by itself after this long, such as 10s, 500ms or 1h30m
    #[arg(long = "for", value_name = "DURATION")]
    pub run_for: Option<String>,

    /// Log of Namespan itself [default: info]
    #[arg(long, value_name = "LEVEL", value_parser = ["none", "error", "warn", "info", "debug", "trace"])]
    pub log_level: Option<String>,

    /// Form of that log: for people, or one JSON object a line [default: text]
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"])]
    pub log_format: Option<String>,

    /// Keep capabilities and system calls that Namespan does not need
    ///
    /// By default all but a few capabilities are given up at the start, and dangerous system calls are refused.
    /// docs/privileges.md has them all.
    #[arg(long)]
    pub no_sandbox: bool,
}

/// Which functions.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Which functions")]
pub struct UprobeFlags {
    /// [TARGET:]BINARY:FUNCTION[(NAME:TYPE, ...)] [-> NAME:TYPE], such as
    /// `web:/usr/bin/bash:readline -> ret:string`
    ///
    /// TARGET is host, pid=N, the name of a container (with `*` and `?`), or [SELECTOR] as of --include of `run`; before a
    /// path it may be left out for the host. BINARY is an absolute path as the target sees it, or the name of a library
    /// that it has loaded, such as libssl. FUNCTION is a symbol, SYMBOL+OFFSET, +OFFSET in the file, /REGEX/ with the
    /// highest number of functions after it (10 unless said), or usdt:PROVIDER:NAME; names with other characters stand in
    /// double quotes. TYPE is i8 to i64, u8 to u64, pointer, bool, string, bytes(N) whose length is argument N, *f32 or
    /// *f64. Arguments are counted from 0; NAME@N:TYPE is argument N. Without `->` entries are told of, with `->` alone
    /// returns, with both whole calls and how long they took. `-> _` captures no value, and `()` no arguments.
    #[arg(value_name = "PROBE", required = true)]
    pub specs: Vec<String>,

    /// Of these containers, for probes without TARGET: name:GLOB, image:GLOB, label:KEY=GLOB, ... (repeatable)
    #[arg(long = "container", value_name = "SELECTOR", action = ArgAction::Append)]
    pub containers: Vec<String>,

    /// Most bytes kept of a string or of bytes, up to 4096 [default: 256]
    #[arg(long, value_name = "BYTES")]
    pub max_string: Option<String>,

    /// Tell of one of so many hits [default: 1]
    #[arg(long, value_name = "N")]
    pub sample: Option<String>,

    /// Most hits a second of each probe, or none [default: 1000]
    #[arg(long, value_name = "N")]
    pub rate: Option<String>,

    /// Hide what matches in captured strings (repeatable)
    #[arg(long, value_name = "REGEX", action = ArgAction::Append)]
    pub redact: Vec<String>,

    /// Make a span of every call; of probes of whole calls
    #[arg(long)]
    pub span: bool,
}

/// The flags of `namespan check`.
#[derive(Args, Default)]
#[command(after_help = PRECEDENCE)]
pub struct Check {
    /// Print the answers as one JSON object
    #[arg(long)]
    pub json: bool,

    /// Read settings from this YAML file; otel-config/namespan.yaml has them all
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Whether `run --listen` could listen here
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,

    #[command(flatten)]
    pub export: ExportFlags,

    #[command(flatten)]
    pub runtimes: RuntimeFlags,
}

/// The flags of `namespan health`.
#[derive(Args, Default)]
#[command(after_help = PRECEDENCE)]
pub struct Health {
    /// Only whether it goes on at all (/healthz), not whether it attributes and delivers (/readyz)
    #[arg(long)]
    pub alive: bool,

    /// Read settings from this YAML file, as the Namespan that is asked
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Where the Namespan that is asked listens
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,
}

/// The flags of `namespan containers`.
#[derive(Args, Default)]
#[command(after_help = PRECEDENCE)]
pub struct Containers {
    /// Print one JSON object, with whole ids
    #[arg(long)]
    pub json: bool,

    /// Read settings from this YAML file; otel-config/namespan.yaml has them all
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    #[command(flatten)]
    pub runtimes: RuntimeFlags,
}

const SYMBOLS_HELP: &str = "\
Examples:
  # What of the C library a process has, a container has
  namespan symbols --container web --binary libc 'mall?oc'
  # A program of this host
  namespan symbols --binary /usr/bin/bash readline";

/// The flags of `namespan symbols`.
#[derive(Args, Default)]
#[command(after_help = format!("{PRECEDENCE}\n\n{SYMBOLS_HELP}"))]
pub struct Symbols {
    /// Only those in whose name this regular expression is found
    #[arg(value_name = "PATTERN")]
    pub pattern: Option<String>,

    /// Absolute path of the program or library; or the name of a library that a process has mapped, such as libssl
    #[arg(long, value_name = "PATH|LIBRARY")]
    pub binary: String,

    /// In this container, by name or by the beginning of its id; `*` and `?` as in --include [default: this host]
    #[arg(long, value_name = "NAME", conflicts_with = "pid")]
    pub container: Option<String>,

    /// As this process sees it
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    /// Read settings from this YAML file; otel-config/namespan.yaml has them all
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    #[command(flatten)]
    pub runtimes: RuntimeFlags,
}

/// What is watched.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "What is watched")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct ProbeFlags {
    /// Only processes outside containers
    #[arg(long, conflicts_with = "containers")]
    pub host: bool,

    /// Only processes inside containers
    #[arg(long)]
    pub containers: bool,

    /// Only this container, by name, image, label, ... (repeatable)
    ///
    /// SELECTOR is name:GLOB, image:GLOB (the name without tag, unless GLOB has one), label:KEY, label:KEY=GLOB,
    /// compose:GLOB (the project), namespace:GLOB (Kubernetes', or containerd's own), pod:GLOB, id:PREFIX or
    /// runtime:NAME; of several joined by `,` all have to hold. In a GLOB `*` is any text and `?` any character; `\`
    /// takes the next character as it is. The host's processes are left out then, unless the file has `scope: all`; so
    /// are containers whose runtime does not say what they are.
    #[arg(long, value_name = "SELECTOR", action = ArgAction::Append, conflicts_with = "host")]
    pub include: Vec<String>,

    /// All but this container, even if it is included (repeatable)
    #[arg(long, value_name = "SELECTOR", action = ArgAction::Append)]
    pub exclude: Vec<String>,

    /// Only processes of this effective user id (repeatable)
    #[arg(long = "uid", value_name = "N", action = ArgAction::Append)]
    pub uids: Vec<String>,

    /// Only processes whose comm begins so (repeatable)
    #[arg(long = "comm", value_name = "PREFIX", action = ArgAction::Append)]
    pub comms: Vec<String>,

    /// Only processes whose executable's path begins so (repeatable)
    #[arg(long = "path", value_name = "PREFIX", action = ArgAction::Append)]
    pub paths: Vec<String>,

    /// Tell of failed execs too
    #[arg(long)]
    pub failed: bool,

    /// Tell of execs only, not of exits; there are no spans then
    #[arg(long)]
    pub no_exit: bool,

    /// Arguments: off keeps only argv[0] and the count, redacted hides what looks secret [default: redacted]
    #[arg(long, value_name = "MODE", value_parser = ["off", "redacted", "full"])]
    pub args: Option<String>,

    /// Most argument bytes kept per exec, such as 4KiB [default: 32KiB]
    #[arg(long, value_name = "BYTES")]
    pub args_limit: Option<String>,

    /// Do not read TRACEPARENT and TRACESTATE in the environment of processes
    #[arg(long)]
    pub no_env_context: bool,

    /// Size of the ring buffer between kernel and user space, a power of two [default: 4MiB]
    #[arg(long, value_name = "BYTES")]
    pub ring_size: Option<String>,
}

/// What should not run.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "What should not run")]
pub struct GuardFlags {
    /// Take policies from this YAML file, or from those of this folder; otel-config/policies has some (repeatable)
    #[arg(long = "policy", value_name = "FILE", action = ArgAction::Append)]
    pub policies: Vec<String>,

    /// Tell only of what policies would stop, or stop it [default: observe]
    #[arg(long = "guard-mode", value_name = "MODE", value_parser = ["observe", "enforce"])]
    pub mode: Option<String>,
}

const POLICY_HELP: &str = "\
Examples:
  # What would a shell in the container web do, typed at a terminal?
  namespan policy test otel-config/policies/no-shells-in-containers.yaml --exec /bin/sh --container web --interactive
  # And an applet of busybox, in a container that no runtime has told of yet?
  namespan policy test no-shells.yaml --exec /bin/busybox --argv0 sh --unknown-container

It exits with 0 if the program would run, with 3 if it would be stopped, and with 1 if that cannot be told.";

/// The flags of `namespan policy check`.
#[derive(Args, Default)]
pub struct PolicyCheck {
    /// Files of policies, or folders of such files
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// The flags of `namespan policy test`. Without a container it is about the host.
#[derive(Args, Default)]
#[command(after_help = POLICY_HELP)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct PolicyTest {
    /// Files of policies, or folders of such files; they are asked as where guard.mode is enforce
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,

    /// Absolute path of the executable, without symlinks; of a script that of its interpreter
    #[arg(long, value_name = "PATH")]
    pub exec: String,

    /// In the container of this name
    #[arg(long, value_name = "NAME")]
    pub container: Option<String>,

    /// In a container of this image
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,

    /// In a container with this label (repeatable)
    #[arg(long = "label", value_name = "KEY=VALUE", action = ArgAction::Append)]
    pub labels: Vec<String>,

    /// In a container of this namespace, Kubernetes' or containerd's
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,

    /// In a container of this pod
    #[arg(long, value_name = "NAME")]
    pub pod: Option<String>,

    /// In a container that no runtime has told of yet
    #[arg(long, conflicts_with_all = ["container", "image", "labels", "namespace", "pod"])]
    pub unknown_container: bool,

    /// First argument, the program's own name [default: as --exec]
    #[arg(long, value_name = "TEXT")]
    pub argv0: Option<String>,

    /// Second argument
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub argv1: Option<String>,

    /// Absolute path of the parent's executable
    #[arg(long, value_name = "PATH")]
    pub parent: Option<String>,

    /// Effective user id, as the host numbers users [default: 0]
    #[arg(long, value_name = "N")]
    pub uid: Option<u32>,

    /// It has a controlling terminal
    #[arg(long)]
    pub interactive: bool,

    /// It is run as the interpreter of a script
    #[arg(long)]
    pub script: bool,

    /// Where the executable comes from [default: image]
    #[arg(long, value_name = "ORIGIN", value_parser = ["image", "changed", "mounted", "memfd", "deleted", "unknown"])]
    pub origin: Option<String>,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Where it is shipped.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Where it is shipped")]
pub struct ExportFlags {
    /// OTLP endpoint of logs and spans; nothing is shipped without one
    ///
    /// Over HTTP v1/logs and v1/traces are appended, as to `OTEL_EXPORTER_OTLP_ENDPOINT`. For gRPC a bare HOST:PORT
    /// will do: it means https, unless `OTEL_EXPORTER_OTLP_INSECURE` is true. A scheme in the URL beats that variable.
    /// unix:PATH is a Unix socket. Further destinations stand in the file.
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,

    /// Ship logs only, such as to Loki
    #[arg(long)]
    pub no_spans: bool,

    /// OTLP protocol [default: http/protobuf]
    #[arg(long, value_parser = ["grpc", "http/protobuf", "http/json"])]
    pub protocol: Option<String>,

    /// Header or gRPC metadata to send, taken as it is (repeatable)
    ///
    /// Every user of the host can read a command line: give secrets in `OTEL_EXPORTER_OTLP_HEADERS` or in the file.
    #[arg(long = "header", value_name = "K=V", action = ArgAction::Append)]
    pub headers: Vec<String>,

    /// Compression of requests; where zstd is refused, gzip is tried, then none [default: gzip]
    #[arg(long, value_parser = ["none", "gzip", "zstd"])]
    pub compression: Option<String>,

    /// Keep what the collector does not take on disk below this directory, so that it outlives outages and restarts
    #[arg(long, value_name = "DIR")]
    pub spool: Option<String>,
}

/// How containers are found.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Containers")]
pub struct RuntimeFlags {
    /// Where docker, containerd, cri-o or podman is asked: the PATH of its socket, `auto` or `none` (repeatable)
    ///
    /// Unless it is named here, a runtime is looked for at its usual places: `auto`.
    #[arg(long = "runtime", value_name = "NAME=PATH", action = ArgAction::Append)]
    pub runtimes: Vec<String>,

    /// Do not read what runtimes leave on disk
    #[arg(long)]
    pub no_runtime_files: bool,
}

impl From<&Probe> for Run {
    fn from(probe: &Probe) -> Self {
        Self {
            config: probe.config.clone(),
            console: probe.console.clone(),
            own: probe.own.clone(),
            export: probe.export.clone(),
            runtimes: probe.runtimes.clone(),
            uprobes: Some(probe.uprobes.clone()),
            ..Self::default()
        }
    }
}

impl From<&Check> for Run {
    /// The same settings, for a run that is only tried.
    fn from(check: &Check) -> Self {
        Self {
            config: check.config.clone(),
            listen: check.listen.clone(),
            export: check.export.clone(),
            runtimes: check.runtimes.clone(),
            ..Self::default()
        }
    }
}

impl From<&Health> for Run {
    /// The same settings as of the run that is asked.
    fn from(health: &Health) -> Self {
        Self { config: health.config.clone(), listen: health.listen.clone(), ..Self::default() }
    }
}

impl From<&Containers> for Run {
    /// The same settings, for a run that is only tried.
    fn from(containers: &Containers) -> Self {
        Self { config: containers.config.clone(), runtimes: containers.runtimes.clone(), ..Self::default() }
    }
}

impl From<&Symbols> for Run {
    /// The same settings, for a run that is only tried.
    fn from(symbols: &Symbols) -> Self {
        Self { config: symbols.config.clone(), runtimes: symbols.runtimes.clone(), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    fn refusal(line: &str) -> String {
        parse(line).err().expect("must be refused").to_string()
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn scope_filters_exclude_each_other() {
        let message = refusal("namespan run --host --containers");
        assert!(message.contains("--host") && message.contains("--containers"), "{message}");
        let message = refusal("namespan run --host --include name:web");
        assert!(message.contains("--host") && message.contains("--include"), "{message}");
    }

    #[test]
    fn an_unknown_choice_is_refused_with_flag_value_and_choices() {
        for (flag, choice) in [
            ("--console", "jsonl"),
            ("--console", "tree"),
            ("--args", "redacted"),
            ("--protocol", "http/json"),
            ("--compression", "zstd"),
            ("--log-level", "trace"),
            ("--log-format", "json"),
        ] {
            let message = refusal(&format!("namespan run {flag} bogus"));
            for part in [flag, "bogus", choice] {
                assert!(message.contains(part), "{part} in {message}");
            }
        }
    }

    #[test]
    fn the_last_console_counts_as_make_run_has_one_of_its_own() {
        let Command::Run(run) = parse("namespan run --console table --console tree").unwrap().command else {
            panic!("run expected");
        };
        assert_eq!(run.console.as_deref(), Some("tree"));
    }

    #[test]
    fn repeatable_flags_keep_their_order() {
        let Command::Run(run) = parse("namespan run --uid 7 --uid 0 --header a=b --header c=d").unwrap().command else {
            panic!("run expected");
        };
        assert_eq!(run.probes.uids, ["7", "0"]);
        assert_eq!(run.export.headers, ["a=b", "c=d"]);
    }

    #[test]
    fn a_probe_is_one_word_and_takes_flags_of_its_own() {
        let words =
            ["namespan", "probe", "web:/bin/sh:f -> r:i32", "/bin/sh:g", "--container", "id:1", "--sample", "7"];
        let Command::Probe(probe) = Cli::try_parse_from(words).unwrap().command else { panic!("probe expected") };
        let Run { uprobes: Some(uprobes), .. } = Run::from(&*probe) else { panic!("probes expected") };
        assert_eq!(uprobes.specs, ["web:/bin/sh:f -> r:i32", "/bin/sh:g"]);
        assert_eq!(uprobes.containers, ["id:1"]);
        assert_eq!(uprobes.sample.as_deref(), Some("7"));
        assert!(refusal("namespan probe").contains("PROBE"));
    }

    #[test]
    fn every_probe_of_the_help_can_be_read() {
        let mut count = 0;
        for line in PROBE_HELP.lines().filter(|line| line.starts_with("  namespan probe ")) {
            // What stands in single quotes, and is no value of a flag.
            let probe = line.split('\'').skip(1).step_by(2).find(|text| text.contains(':')).unwrap();
            let selector = crate::config::selector("name:web-*").unwrap();
            let containers = if line.contains("--container") { vec![selector] } else { Vec::new() };
            crate::uprobe::parse::probe(probe, &containers).unwrap();
            count += 1;
        }
        assert_eq!(count, 6);
    }

    #[test]
    fn help_names_the_precedence_and_examples() {
        let help = refusal("namespan run --help");
        for part in [
            "A flag beats an environment variable",
            "namespan run --containers --uid 0",
            "[default: 4MiB]",
            "OTEL_EXPORTER_OTLP_TRACES_*",
            "OTEL_TRACES_SAMPLER",
        ] {
            assert!(help.contains(part), "{part} in {help}");
        }
    }
}
