//! Where each signal is shipped.

use std::path::PathBuf;
use std::time::Duration;

use super::Sources;
use crate::config::error::{ConfigError, Origin};
use crate::config::file::{self, Entry, Schema};
use crate::config::given::{Given, OrDefault, flag};
use crate::config::parse::{self, EndpointKind, Exporters, Headers};
use crate::config::{ClientIdentity, Compression, Destination, Export, Metrics, Protocol};

/// Most destinations besides the main one: each has queues and connections of its own.
const DESTINATIONS_MAX: usize = 8;

/// What becomes of a signal.
pub(super) struct Outlet {
    /// To the main destination.
    pub export: Option<Export>,
    pub wanted: Wanted,
    /// Also where nothing is exported to it.
    pub has_endpoint: bool,
    /// Its variable asks for the console.
    pub to_console: bool,
    /// Why nothing is exported, where that may surprise.
    pub note: Option<String>,
}

/// Where a signal is wanted, whatever the destinations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Everywhere,
    OnConsole,
    Nowhere,
}

impl Sources<'_> {
    /// What the file says of destinations besides the main one. Nothing is inherited from that: what is secret there is
    /// not for others, and what is needed there may be wrong elsewhere.
    pub(super) fn destinations(&self) -> Result<Vec<Destination>, ConfigError> {
        let file = &self.file;
        let listed = &file.schema.destinations;
        let mut destinations = Vec::new();
        for (index, given) in listed.iter().enumerate() {
            let section = format!("destinations[{index}]");
            let key = format!("{section}.name");
            let Some(Given { value: name, origin }) = file.parse(&key, &given.name, parse::destination_name)? else {
                return Err(file.refusal(&section, &None, "it has no name; give it one, such as name: vendor"));
            };
            if index >= DESTINATIONS_MAX {
                return Err(ConfigError::TooMany { origin, found: listed.len(), most: DESTINATIONS_MAX });
            }
            if destinations.iter().any(|known: &Destination| known.name == name) {
                let expected = "a name of its own: a destination above has it".to_owned();
                return Err(ConfigError::Invalid { origin, value: name, expected });
            }
            if [&given.export.endpoint, &given.logs.endpoint, &given.traces.endpoint]
                .iter()
                .all(|entry| entry.is_none())
            {
                return Err(file.refusal(&section, &given.name, "it has no endpoint; give it one, or take it out"));
            }
            let logs = self.export_elsewhere(&section, given, &given.logs, &LOGS)?;
            let traces = self.export_elsewhere(&section, given, &given.traces, &TRACES)?;
            destinations.push(Destination { name, logs, traces });
        }
        Ok(destinations)
    }

    fn export_elsewhere(
        &self,
        section: &str,
        destination: &file::Destination,
        own: &file::Signal,
        signal: &Signal,
    ) -> Result<Option<Export>, ConfigError> {
        let (file, part) = (&self.file, format!("{section}.{}", signal.section));
        let wanted = file.parse(&format!("{part}.exporter"), &own.exporter, parse::otlp)?.or_default(true);
        let exact = file.text(&format!("{part}.endpoint"), &own.endpoint).map(|given| (given, EndpointKind::Exact));
        let base = file.text(&format!("{section}.endpoint"), &destination.export.endpoint);
        let endpoint = exact.or(base.map(|given| (given, EndpointKind::OwnBase)));
        let export = self.in_file(section, &destination.export)?.to(endpoint, signal.path)?;
        Ok(export.filter(|_| wanted))
    }

    /// `elsewhere`: another destination takes them.
    pub(super) fn logs(&self, elsewhere: bool) -> Result<Outlet, ConfigError> {
        self.outlet(&LOGS, elsewhere)
    }

    /// `elsewhere`: another destination takes them.
    pub(super) fn traces(&self, elsewhere: bool) -> Result<Outlet, ConfigError> {
        let outlet = self.outlet(&TRACES, elsewhere)?;
        if self.run.export.no_spans {
            let has_endpoint = false;
            return Ok(Outlet { export: None, wanted: Wanted::Nowhere, has_endpoint, note: None, ..outlet });
        }
        let is_shipped = outlet.export.is_some() || elsewhere && outlet.wanted == Wanted::Everywhere;
        match self.exits()? {
            Some(Given { value: false, origin }) if is_shipped => {
                let note = format!("{origin}: without exits there are no spans, so none are shipped");
                Ok(Outlet { export: None, wanted: Wanted::OnConsole, note: Some(note), ..outlet })
            }
            _ => Ok(outlet),
        }
    }

    fn outlet(&self, signal: &Signal, elsewhere: bool) -> Result<Outlet, ConfigError> {
        let by_variable = self.env.parse(signal.exporter, parse::exporters)?;
        let in_file = self.exporter_in_file(signal)?;
        let export = self.export(signal)?;
        let has_endpoint = export.is_some() || elsewhere;
        let to_console = by_variable.as_ref().is_some_and(|given| given.value.console);
        let Some(Given { value: exporters, origin }) = by_variable else {
            let here = in_file.or_default(true);
            let wanted = if here || elsewhere { Wanted::Everywhere } else { Wanted::Nowhere };
            return Ok(Outlet { export: export.filter(|_| here), wanted, has_endpoint, to_console, note: None });
        };
        let (name, [own, general]) = (signal.name, signal.endpoint);
        let note = match (exporters.otlp, has_endpoint) {
            (true, true) | (false, false) => None,
            (false, true) => Some(format!("{origin} has no otlp: no {name} are shipped")),
            (true, false) => Some(format!(
                "{origin} has otlp, but no endpoint is set for {name}: none are shipped; give --endpoint, {general} or \
                 {own}"
            )),
        };
        let wanted = match exporters {
            Exporters { otlp: true, .. } => Wanted::Everywhere,
            Exporters { console: true, .. } => Wanted::OnConsole,
            Exporters { .. } => Wanted::Nowhere,
        };
        Ok(Outlet { export: export.filter(|_| exporters.otlp), wanted, has_endpoint, to_console, note })
    }

    fn exporter_in_file(&self, signal: &Signal) -> Result<Option<Given<bool>>, ConfigError> {
        let (key, entry) = signal.exporter_in_file;
        self.file.parse(key, entry(&self.file.schema), parse::otlp)
    }

    /// `None`: not asked for, and then the variables of metrics are not looked at.
    pub(super) fn metrics(&self, notes: &mut Vec<String>) -> Result<Option<Metrics>, ConfigError> {
        let (env, file) = (&self.env, &self.file);
        let metrics = &file.schema.metrics;
        let wanted = env.parse(METRICS.exporter, parse::otlp)?.or(self.exporter_in_file(&METRICS)?);
        let interval = env.parse("OTEL_METRIC_EXPORT_INTERVAL", parse::positive_millis)?.or(file.parse(
            "metrics.interval",
            &metrics.interval,
            parse::positive_duration,
        )?);
        let Some(Given { origin, .. }) = wanted.filter(|given| given.value) else { return Ok(None) };
        let Some(export) = self.export(&METRICS)? else {
            notes.push(format!("{origin} asks for otlp, but no endpoint is set: no metrics are exported"));
            return Ok(None);
        };
        let default = Metrics::to(export);
        Ok(Some(Metrics { interval: interval.or_default(default.interval), export: default.export }))
    }

    /// `None`: no endpoint anywhere. The rest is checked all the same.
    fn export(&self, signal: &Signal) -> Result<Option<Export>, ConfigError> {
        let above = self.above_file(signal)?;
        let in_file = self.in_file("export", &self.file.schema.export)?;
        above.over(in_file).to(self.endpoint(signal)?, signal.path)
    }

    fn above_file(&self, signal: &Signal) -> Result<Means, ConfigError> {
        let (flags, env) = (&self.run.export, &self.env);
        let protocol = flag("--protocol", flags.protocol.as_ref(), parse::protocol)?;
        let compression = flag("--compression", flags.compression.as_ref(), parse::compression)?;
        Ok(Means {
            protocol: signal.first(protocol, env.both(signal.protocol, parse::protocol)?),
            insecure: env.either(signal.insecure, parse::boolean)?,
            headers: self.headers(signal)?,
            compression: signal.first(compression, env.both(signal.compression, parse::compression)?),
            timeout: env.either(signal.timeout, parse::millis)?,
            retry_max_elapsed: env.parse(signal.export_timeout, parse::positive_millis)?,
            ca_file: env.either(signal.certificate, parse::file_path)?,
            client_certificate: env.either(signal.client_certificate, parse::file_path)?,
            client_key: env.either(signal.client_key, parse::file_path)?,
        })
    }

    fn in_file(&self, section: &str, export: &file::Export) -> Result<Means, ConfigError> {
        let file = &self.file;
        let key = |name| format!("{section}.{name}");
        Ok(Means {
            protocol: file.parse(&key("protocol"), &export.protocol, parse::protocol)?,
            insecure: file.parse(&key("insecure"), &export.insecure, parse::boolean)?,
            headers: file.headers(&key("headers"), &export.headers)?,
            compression: file.parse(&key("compression"), &export.compression, parse::compression)?,
            timeout: file.parse(&key("timeout"), &export.timeout, parse::duration)?,
            retry_max_elapsed: file.parse(&key("retry_max_elapsed"), &export.retry_max_elapsed, parse::duration)?,
            ca_file: file.parse(&key("ca_file"), &export.ca_file, parse::file_path)?,
            client_certificate: file.parse(&key("client_certificate"), &export.client_certificate, parse::file_path)?,
            client_key: file.parse(&key("client_key"), &export.client_key, parse::file_path)?,
        })
    }

    fn endpoint(&self, signal: &Signal) -> Result<Option<(Given, EndpointKind)>, ConfigError> {
        let [own, general] = signal.endpoint;
        let by_flag = self.run.export.endpoint.clone();
        let by_flag = by_flag.map(|value| (Given { value, origin: Origin::Flag("--endpoint") }, EndpointKind::OwnBase));
        let own = self.env.text(own)?;
        let general = self.env.text(general)?.map(|given| (given, EndpointKind::Base));
        let (key, entry) = signal.endpoint_in_file;
        let own_in_file = self.file.text(key, entry(&self.file.schema));
        // What is of metrics alone beats flags, in the file too.
        let (own, own_in_file) = if signal.flags_first { (own, own_in_file) } else { (own.or(own_in_file), None) };
        let exact = |given| (given, EndpointKind::Exact);
        let in_file = self.file.text("export.endpoint", &self.file.schema.export.endpoint);
        let in_file = own_in_file.map(exact).or(in_file.map(|given| (given, EndpointKind::OwnBase)));
        Ok(signal.first(by_flag, [own.map(exact), general]).or(in_file))
    }

    fn headers(&self, signal: &Signal) -> Result<Option<Given<Headers>>, ConfigError> {
        let secret = |origin: Origin| move |problem| ConfigError::Secret { origin, problem };
        let in_env = |name| match self.env.text(name)? {
            None => Ok(None),
            Some(Given { value, origin }) => match parse::pairs(&value).and_then(parse::headers) {
                Ok(value) => Ok(Some(Given { value, origin })),
                Err(problem) => Err(ConfigError::Secret { origin, problem }),
            },
        };
        let given = &self.run.export.headers;
        let origin = Origin::Flag("--header");
        let by_flag = given
            .iter()
            .enumerate()
            .map(|(index, text)| match text.split_once('=') {
                Some(pair) => Ok(pair),
                None => Err(format!("entry {} has no `=`; write --header KEY=VALUE", index + 1)),
            })
            .collect::<Result<Vec<_>, _>>()
            .and_then(parse::headers)
            .map_err(secret(origin.clone()))?;
        let by_flag = (!given.is_empty()).then_some(Given { value: by_flag, origin });
        let [own, general] = signal.headers;
        Ok(signal.first(by_flag, [in_env(own)?, in_env(general)?]))
    }
}

/// How something is exported, as far as it is given.
struct Means {
    protocol: Option<Given<Protocol>>,
    insecure: Option<Given<bool>>,
    headers: Option<Given<Headers>>,
    compression: Option<Given<Compression>>,
    timeout: Option<Given<Duration>>,
    retry_max_elapsed: Option<Given<Duration>>,
    ca_file: Option<Given<PathBuf>>,
    client_certificate: Option<Given<PathBuf>>,
    client_key: Option<Given<PathBuf>>,
}

impl Means {
    /// Each value for itself.
    fn over(self, below: Self) -> Self {
        Self {
            protocol: self.protocol.or(below.protocol),
            insecure: self.insecure.or(below.insecure),
            headers: self.headers.or(below.headers),
            compression: self.compression.or(below.compression),
            timeout: self.timeout.or(below.timeout),
            retry_max_elapsed: self.retry_max_elapsed.or(below.retry_max_elapsed),
            ca_file: self.ca_file.or(below.ca_file),
            client_certificate: self.client_certificate.or(below.client_certificate),
            client_key: self.client_key.or(below.client_key),
        }
    }

    /// `None`: no endpoint. The rest is checked all the same.
    fn to(self, endpoint: Option<(Given, EndpointKind)>, path: &str) -> Result<Option<Export>, ConfigError> {
        let client = identity(self.client_certificate, self.client_key)?;
        let Some((Given { value: text, origin }, kind)) = endpoint else { return Ok(None) };
        let (protocol, insecure) = (self.protocol.or_default(Protocol::HttpProtobuf), self.insecure.or_default(false));
        let default = match parse::endpoint(&text, kind, path, protocol, insecure) {
            Ok(url) => Export::to(url),
            Err(parse::Expected(expected)) => {
                return Err(ConfigError::Invalid { origin, value: parse::printable_endpoint(&text), expected });
            }
        };
        Ok(Some(Export {
            protocol,
            headers: self.headers.or_default(default.headers),
            compression: self.compression.or_default(default.compression),
            timeout: self.timeout.map_or(default.timeout, |given| parse::limit(given.value)),
            retry_max_elapsed: self.retry_max_elapsed.or_default(default.retry_max_elapsed),
            ca_file: self.ca_file.map(|given| given.value),
            client,
            endpoint: default.endpoint,
        }))
    }
}

fn identity(
    certificate: Option<Given<PathBuf>>,
    key: Option<Given<PathBuf>>,
) -> Result<Option<ClientIdentity>, ConfigError> {
    // The other one is called alike.
    let half = |origin: Origin, lacking, [from, to]: [&str; 2]| {
        let name = match &origin {
            Origin::Flag(name) | Origin::Variable(name) => name,
            Origin::File { key, .. } => key.as_str(),
            Origin::Default => lacking,
        };
        let remedy = name.replace(from, to).replace(&from.to_uppercase(), &to.to_uppercase());
        Err(ConfigError::HalfAnIdentity { origin, lacking, remedy })
    };
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some(ClientIdentity { certificate: certificate.value, key: key.value })),
        (Some(Given { origin, .. }), None) => half(origin, "key", ["client_certificate", "client_key"]),
        (None, Some(Given { origin, .. })) => half(origin, "certificate", ["client_key", "client_certificate"]),
        (None, None) => Ok(None),
    }
}

/// A value of the file: its key, and where it stands.
type InFile = (&'static str, fn(&Schema) -> &Entry);

/// The names of a signal's settings. Of two variables, the first is its own, and the second the general one.
struct Signal {
    /// As people call it.
    name: &'static str,
    /// Of the file.
    section: &'static str,
    path: &'static str,
    /// Flags are of logs and spans: what is of metrics alone beats them.
    flags_first: bool,
    exporter: &'static str,
    exporter_in_file: InFile,
    endpoint_in_file: InFile,
    export_timeout: &'static str,
    endpoint: [&'static str; 2],
    protocol: [&'static str; 2],
    headers: [&'static str; 2],
    compression: [&'static str; 2],
    timeout: [&'static str; 2],
    insecure: [&'static str; 2],
    certificate: [&'static str; 2],
    client_certificate: [&'static str; 2],
    client_key: [&'static str; 2],
}

impl Signal {
    /// The highest layer above the file.
    fn first<T>(&self, by_flag: Option<T>, [own, general]: [Option<T>; 2]) -> Option<T> {
        if self.flags_first { by_flag.or(own) } else { own.or(by_flag) }.or(general)
    }
}

macro_rules! own_and_general {
    ($name:literal, $setting:literal) => {
        [concat!("OTEL_EXPORTER_OTLP_", $name, "_", $setting), concat!("OTEL_EXPORTER_OTLP_", $setting)]
    };
}
macro_rules! signal {
    ($name:literal, $section:ident, $path:expr, $spoken:literal, $processor:literal, flags_first: $first:literal) => {
        Signal {
            name: $spoken,
            section: stringify!($section),
            path: $path,
            flags_first: $first,
            exporter: concat!("OTEL_", $name, "_EXPORTER"),
            exporter_in_file: (concat!(stringify!($section), ".exporter"), |schema| &schema.$section.exporter),
            endpoint_in_file: (concat!(stringify!($section), ".endpoint"), |schema| &schema.$section.endpoint),
            export_timeout: concat!("OTEL_", $processor, "_EXPORT_TIMEOUT"),
            endpoint: own_and_general!($name, "ENDPOINT"),
            protocol: own_and_general!($name, "PROTOCOL"),
            headers: own_and_general!($name, "HEADERS"),
            compression: own_and_general!($name, "COMPRESSION"),
            timeout: own_and_general!($name, "TIMEOUT"),
            insecure: own_and_general!($name, "INSECURE"),
            certificate: own_and_general!($name, "CERTIFICATE"),
            client_certificate: own_and_general!($name, "CLIENT_CERTIFICATE"),
            client_key: own_and_general!($name, "CLIENT_KEY"),
        }
    };
}

const LOGS: Signal = signal!("LOGS", logs, parse::LOGS_PATH, "logs", "BLRP", flags_first: true);
const TRACES: Signal = signal!("TRACES", traces, parse::TRACES_PATH, "spans", "BSP", flags_first: true);
// Metrics have no processor of batches: they are given up with logs.
const METRICS: Signal = signal!("METRICS", metrics, parse::METRICS_PATH, "metrics", "BLRP", flags_first: false);
