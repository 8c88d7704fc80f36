//! Every setting, resolved: flags over the standard `OTEL_*` variables over our YAML file over the defaults.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

/// The settings of `namespan run`, all checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub console: Console,
    /// Stop by itself after this long.
    pub run_for: Option<Duration>,
    pub probes: Probes,
    pub arguments: Arguments,
    pub enrich: Enrich,
    pub resource: Resource,
    pub limits: AttributeLimits,
    pub batch: Batch,
    pub queue: Queue,
    /// `None`: nothing is shipped.
    pub export: Option<Export>,
    pub log_level: tracing::level_filters::LevelFilter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// Aligned columns for people.
    Table,
    /// One OTLP/JSON `ExportLogsServiceRequest` a line.
    Jsonl,
    None,
}

/// What the kernel side collects.
#[derive(Clone, Debug)]
pub struct Probes {
    /// Failed `execve` and `execveat` too.
    pub failed_execs: bool,
    pub exits: bool,
    /// Most argument bytes kept per exec, at most [`namespan_ebpf::wire::ARGS_MAX`].
    pub args_limit: u32,
    /// Bytes of the ring buffer, a power of two and a multiple of the page size.
    pub ring_bytes: u32,
    pub filters: Filters,
}

#[derive(Clone, Debug, Default)]
pub struct Filters {
    pub scope: Scope,
    /// Effective uids; empty: all. At most [`namespan_ebpf::settings::UIDS_MAX`].
    pub uids: Vec<u32>,
    /// Prefixes of comm; empty: all.
    pub comms: Vec<String>,
    /// Prefixes of the executable's path; empty: all.
    pub paths: Vec<String>,
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
#[derive(Clone, Debug)]
pub struct Enrich {
    /// Docker's Unix socket; `None`: switched off.
    pub docker_socket: Option<PathBuf>,
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

#[derive(Clone, Debug, Default)]
pub struct Resource {
    /// Of the host's and the agent's resource; containers have their own.
    pub service_name: Option<String>,
    /// On every resource; wins over what is found.
    pub attributes: Vec<(String, String)>,
}

/// The specification's attribute limits for log records.
#[derive(Clone, Copy, Debug)]
pub struct AttributeLimits {
    /// Most characters of a string value; `None`: no limit.
    pub value_length: Option<usize>,
    /// Most attributes of a record; what is over is counted in `dropped_attributes_count`.
    pub count: usize,
}

/// When a batch is closed: at the first of these.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    pub max_records: usize,
    /// Uncompressed bytes.
    pub max_bytes: usize,
    pub delay: Duration,
}

/// Batches waiting to be sent; the oldest is dropped, and counted, when full.
#[derive(Clone, Copy, Debug)]
pub struct Queue {
    pub max_bytes: usize,
    /// Bound in records too, if set.
    pub max_records: Option<usize>,
    /// How long the last batches may take at shutdown.
    pub drain: Duration,
}

/// One OTLP destination for logs.
#[derive(Clone, Debug)]
pub struct Export {
    pub protocol: Protocol,
    /// With the signal's path already appended where the specification says so.
    pub endpoint: Url,
    pub headers: Vec<(http::HeaderName, http::HeaderValue)>,
    pub compression: Compression,
    /// Per attempt; `None`: no limit.
    pub timeout: Option<Duration>,
    /// Give a batch up after this long.
    pub retry_max_elapsed: Duration,
    /// CA certificates (PEM) to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
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
