//! Every setting, resolved: flags over the standard `OTEL_*` variables over our YAML file over the defaults.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use url::Url;

use crate::cli;
use crate::enrich::selection::{Selection, Selector};
use crate::guard::spec::{Guard, Policy};
use crate::uprobe::spec::Uprobe;

mod env;
mod error;
mod file;
mod given;
mod load;
mod parse;
mod restart;
mod runtimes;

pub use error::{ConfigError, Origin};
pub use runtimes::{Reach, RuntimeName, Runtimes, present};

/// The settings of `namespan run`, all checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub console: Console,
    /// Stop by itself after this long.
    pub run_for: Option<Duration>,
    pub probes: Probes,
    pub arguments: Arguments,
    pub enrich: Enrich,
    pub resource: Resource,
    pub spans: Spans,
    pub limits: AttributeLimits,
    pub span_limits: AttributeLimits,
    pub batch: Batch,
    pub span_batch: Batch,
    pub queue: Queue,
    pub span_queue: Queue,
    /// `None`: no logs are shipped.
    pub logs: Option<Export>,
    /// `None`: no spans are shipped.
    pub traces: Option<Export>,
    /// Where else the same is shipped, each with queues of its own.
    pub destinations: Vec<Destination>,
    /// `None`: what waits for a collector is in memory alone.
    pub spool: Option<Spool>,
    /// Where `/metrics`, `/healthz` and `/readyz` are served; `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// What is neither shipped nor printed as JSON, as somebody has said so.
    pub switched_off: Vec<Signal>,
    /// `None`: Namespan's own counters are not exported.
    pub metrics: Option<Metrics>,
    /// Functions that are probed, at most [`crate::uprobe::spec::PROBES_MAX`], no name twice.
    pub uprobes: Vec<Uprobe>,
    /// Nothing else is told of: neither execs nor exits.
    pub uprobes_only: bool,
    pub guard: Guard,
    /// What will not be needed is given up at the start, as [`crate::sandbox`] has it.
    pub sandbox: bool,
    pub log_level: LevelFilter,
    pub log_format: LogFormat,
    /// What a user should know about the settings, in whole sentences; to be logged once.
    pub notes: Vec<String>,
}

impl Config {
    /// Everywhere the signal is shipped to, by name; no name twice.
    pub fn exports(&self, signal: Signal) -> impl Iterator<Item = (&str, &Export)> {
        let main = (Destination::MAIN, &self.logs, &self.traces);
        let others = self.destinations.iter().map(|Destination { name, logs, traces }| (name.as_str(), logs, traces));
        std::iter::once(main).chain(others).filter_map(move |(name, logs, traces)| match signal {
            Signal::Logs => Some((name, logs.as_ref()?)),
            Signal::Traces => Some((name, traces.as_ref()?)),
        })
    }

    /// Keys of the labels that containers are selected by, which runtimes have to keep.
    pub fn label_keys(&self) -> impl Iterator<Item = &str> {
        let probed = self.uprobes.iter().flat_map(Uprobe::label_keys);
        self.probes.filters.containers.label_keys().chain(probed).chain(self.guard.label_keys())
    }

    /// Flags over the environment over the file of `--config` over the defaults. `env` is asked for variables by name.
    pub fn load(run: &cli::Run, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, ConfigError> {
        load::load(run, env)
    }

    /// The settings, by their keys in the file, that are others in `new` and cannot be changed while running. All others
    /// can.
    #[must_use]
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        restart::needed(self, new)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            console: Console::Table,
            run_for: None,
            probes: Probes::default(),
            arguments: Arguments::Redacted,
            enrich: Enrich::default(),
            resource: Resource::default(),
            spans: Spans::default(),
            limits: AttributeLimits::default(),
            span_limits: AttributeLimits::default(),
            batch: Batch::default(),
            span_batch: Batch::default(),
            queue: Queue::default(),
            span_queue: Queue::default(),
            logs: None,
            traces: None,
            destinations: Vec::new(),
            spool: None,
            listen: None,
            switched_off: Vec::new(),
            metrics: None,
            uprobes: Vec::new(),
            uprobes_only: false,
            guard: Guard::default(),
            sandbox: true,
            log_level: LevelFilter::INFO,
            log_format: LogFormat::Text,
            notes: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// Aligned columns for people.
    Table,
    /// Trees of processes for people, each printed when its last process has ended.
    Tree,
    /// One OTLP/JSON `ExportLogsServiceRequest` or `ExportTraceServiceRequest` a line.
    Jsonl,
    None,
}

/// What the kernel side collects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probes {
    /// Failed `execve` and `execveat` too.
    pub failed_execs: bool,
    pub exits: bool,
    /// Look for a trace context in the environment; as [`Spans::env_context`] needs it.
    pub env_context: bool,
    /// Most argument bytes kept per exec, at most [`namespan_ebpf::wire::ARGS_MAX`].
    pub args_limit: u32,
    /// Bytes of the ring buffer, a power of two and a multiple of the page size.
    pub ring_bytes: u32,
    /// Most that a record waits in the ring buffer where too few have come to wake the reader, from 1 ms to 1 s.
    pub ring_delay: Duration,
    pub filters: Filters,
}

impl Probes {
    /// Whether the programs have to be loaded anew for these.
    #[must_use]
    pub fn loads_other_than(&self, loaded: &Self) -> bool {
        // How long a record may wait is the reader's alone.
        Self { ring_delay: self.ring_delay, ..loaded.clone() } != *self
    }
}

impl Default for Probes {
    fn default() -> Self {
        Self {
            failed_execs: false,
            exits: true,
            env_context: true,
            args_limit: 32 << 10,
            ring_bytes: 4 << 20,
            ring_delay: Duration::from_millis(20),
            filters: Filters::default(),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    pub scope: Scope,
    /// Effective uids; empty: all. At most [`namespan_ebpf::settings::UIDS_MAX`].
    pub uids: Vec<u32>,
    /// Prefixes of comm; empty: all.
    pub comms: Vec<String>,
    /// Prefixes of the executable's path; empty: all.
    pub paths: Vec<String>,
    /// Of what is in a container.
    pub containers: Selection,
}

impl Filters {
    /// Whether it depends on the container what is told of.
    #[must_use]
    pub fn selects(&self) -> bool {
        self.scope != Scope::All || !self.containers.is_empty()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    #[default]
    All,
    Host,
    Containers,
}

/// How arguments leave the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arguments {
    /// Only their number and `argv[0]`.
    Off,
    /// Values that look secret become `REDACTED`.
    Redacted,
    Full,
}

/// How containers are found and remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrich {
    pub runtimes: Runtimes,
    /// Most containers remembered.
    pub cache_entries: NonZeroUsize,
    /// How long a container is remembered after it is gone.
    pub cache_grace: Duration,
    /// How long an unknown id is not asked for again.
    pub cache_negative: Duration,
    /// How long a record waits for its container's name.
    pub wait: Duration,
    /// Most bytes of records that wait.
    pub wait_bytes: usize,
    /// Label keys sent as `container.label.<key>`; `*` at the end matches any rest.
    pub labels: Vec<String>,
}

/// Most containers remembered, unless set.
const CACHE_ENTRIES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

impl Default for Enrich {
    fn default() -> Self {
        let labels = [
            "com.docker.compose.project",
            "com.docker.compose.service",
            "org.opencontainers.image.version",
            "org.opencontainers.image.revision",
            "org.opencontainers.image.source",
        ];
        Self {
            runtimes: Runtimes::default(),
            cache_entries: CACHE_ENTRIES,
            cache_grace: Duration::from_secs(60),
            cache_negative: Duration::from_secs(10),
            wait: Duration::from_millis(500),
            wait_bytes: 8 << 20,
            labels: labels.map(str::to_owned).to_vec(),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resource {
    /// Of the host's and the agent's resource; containers have their own.
    pub service_name: Option<String>,
    /// On every resource; wins over what is found.
    pub attributes: Vec<(String, String)>,
}

/// What an `OTEL_RESOURCE_ATTRIBUTES` lists, by unique keys. `None`: one error, and by the specification nothing counts.
pub(crate) fn resource_attributes(list: &str) -> Option<Vec<(String, String)>> {
    parse::attributes(list).ok()
}

/// A selector of containers, as a user writes it. The error says what it is, in a phrase.
pub(crate) fn selector(text: &str) -> Result<Selector, String> {
    parse::selector(text).map_err(|parse::Expected(phrase)| phrase)
}

/// The policies of a file, or of the files of a folder; and each file that was read. What they need of each other is not
/// checked.
pub(crate) fn policies(path: &std::path::Path) -> Result<(Vec<Policy>, Vec<PathBuf>), ConfigError> {
    load::policies(path, "policies")
}

/// What is told of the lifetimes of processes as spans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spans {
    pub sampler: Sampler,
    /// A process that lives longer is told of as logs only, and its later children start new traces.
    pub max_duration: Duration,
    /// Most spans of one trace that begin here; what comes then starts new traces.
    pub max_per_trace: u32,
    /// Names of executables whose children start new traces; `*` at the end matches any rest.
    pub boundaries: Vec<String>,
    /// Whose `TRACEPARENT` and `TRACESTATE` are believed; empty: the kernel side does not read them.
    pub env_context: Vec<Trust>,
    /// Exit codes besides 0 that are no errors, by the name of the executable or applet; `*` at the end matches any rest.
    /// In the order of the names.
    pub ok_exit_codes: Vec<(String, Vec<u8>)>,
}

impl Default for Spans {
    fn default() -> Self {
        let boundaries = [
            "systemd",
            "init",
            "containerd-shim*",
            "containerd",
            "dockerd",
            "runc",
            "crun",
            "conmon*",
            "crio",
            "sshd*",
            "cron",
            "crond",
            "atd",
        ];
        let one = |name: &str| (name.to_owned(), vec![1]);
        Self {
            sampler: Sampler { parent_based: true, root: RootSampler::On },
            max_duration: Duration::from_secs(600),
            max_per_trace: 2000,
            boundaries: boundaries.map(str::to_owned).to_vec(),
            env_context: vec![Trust::All],
            ok_exit_codes: ["[", "cmp", "diff", "egrep", "fgrep", "grep", "test"].map(one).to_vec(),
        }
    }
}

/// Whether a text is what a pattern says: the same, or with `*` at the pattern's end anything that begins so.
#[must_use]
pub fn matches(pattern: &str, text: &[u8]) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => text.starts_with(prefix.as_bytes()),
        None => pattern.as_bytes() == text,
    }
}

/// A trace sampler of the specification (`OTEL_TRACES_SAMPLER`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    /// Spans with a parent are sampled as their parent is.
    pub parent_based: bool,
    pub root: RootSampler,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootSampler {
    On,
    Off,
    /// Traces whose last 63 bits are below this: the ratio times 2^63.
    Below(u64),
}

/// Processes whose trace context in the environment is believed. `*` at the end of a text matches any rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    All,
    Host,
    /// Every container.
    Containers,
    /// A container of this name.
    Name(String),
    /// A container of an image of this name, without tag.
    Image(String),
}

/// The specification's attribute limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttributeLimits {
    /// Most characters of a string value; `None`: no limit.
    pub value_length: Option<usize>,
    /// Most attributes of a record or span; what is over is counted in `dropped_attributes_count`.
    pub count: usize,
}

impl Default for AttributeLimits {
    fn default() -> Self {
        Self { value_length: None, count: 128 }
    }
}

/// When a batch is closed: at the first of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    pub max_records: usize,
    /// Uncompressed bytes.
    pub max_bytes: usize,
    pub delay: Duration,
}

impl Default for Batch {
    fn default() -> Self {
        // Many receivers take 4 MiB at most.
        Self { max_records: 512, max_bytes: 3 << 20, delay: Duration::from_secs(1) }
    }
}

/// Batches waiting to be sent; the oldest is dropped, and counted, when full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    pub max_bytes: usize,
    /// Bound in records or spans too, if set.
    pub max_records: Option<usize>,
    /// How long the last batches may take at shutdown.
    pub drain: Duration,
}

impl Default for Queue {
    fn default() -> Self {
        Self { max_bytes: 16 << 20, max_records: None, drain: Duration::from_secs(5) }
    }
}

/// One OTLP destination for one signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    pub protocol: Protocol,
    /// `http` or `https` with the signal's path already appended where the specification says so, or `unix` with the
    /// absolute path of a socket, in which nothing is percent-encoded.
    pub endpoint: Url,
    pub headers: Vec<(http::HeaderName, http::HeaderValue)>,
    pub compression: Compression,
    /// Per attempt; `None`: no limit.
    pub timeout: Option<Duration>,
    /// Give a batch up after this long.
    pub retry_max_elapsed: Duration,
    /// CA certificates (PEM) to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Who we are for a collector that asks (mutual TLS).
    pub client: Option<ClientIdentity>,
}

/// PEM files; read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientIdentity {
    /// The client's certificate, and what leads from it to the CA.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Export {
    /// Everything but the destination at its default.
    #[must_use]
    pub fn to(endpoint: Url) -> Self {
        Self {
            protocol: Protocol::HttpProtobuf,
            endpoint,
            headers: Vec::new(),
            compression: Compression::Gzip,
            timeout: Some(Duration::from_secs(10)),
            retry_max_elapsed: Duration::from_secs(300),
            ca_file: None,
            client: None,
        }
    }
}

/// One of several places that the same is shipped to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// In logs, metrics and the spool: 1 to 32 lower-case letters, digits, `-` and `_`.
    pub name: String,
    /// `None`: no logs for this one.
    pub logs: Option<Export>,
    /// `None`: no spans for this one.
    pub traces: Option<Export>,
}

impl Destination {
    /// The name of the one that flags and the `OTEL_*` variables set.
    pub const MAIN: &str = "main";
}

/// Where what waits for a collector outlives us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spool {
    pub directory: PathBuf,
    /// Most bytes on disk, for each destination and signal.
    pub max_bytes: u64,
    /// What is older is given up.
    pub max_age: Duration,
}

impl Spool {
    /// Everything but the place at its default.
    #[must_use]
    pub fn at(directory: PathBuf) -> Self {
        Self { directory, max_bytes: 512 << 20, max_age: Duration::from_secs(24 * 3600) }
    }
}

/// How Namespan's own log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where Namespan's own counters go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    pub export: Export,
    /// From one export to the next.
    pub interval: Duration,
}

impl Metrics {
    /// Everything but the destination at its default.
    #[must_use]
    pub fn to(export: Export) -> Self {
        Self { export, interval: Duration::from_secs(60) }
    }
}

/// What is shipped, each to a destination of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Logs,
    Traces,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Grpc,
    HttpProtobuf,
    HttpJson,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_loaded_anew_for_all_but_the_readers_own() {
        let loaded = Probes::default();
        let of = |change: fn(&mut Probes)| {
            let mut probes = Probes::default();
            change(&mut probes);
            assert_ne!(probes, loaded);
            probes.loads_other_than(&loaded)
        };
        assert!(!of(|probes| probes.ring_delay = Duration::from_secs(1)));
        assert!(of(|probes| probes.ring_bytes = 4096));
        assert!(of(|probes| (probes.ring_delay, probes.exits) = (Duration::from_secs(1), false)));
        assert!(of(|probes| probes.filters.uids = vec![1]));
    }
}
