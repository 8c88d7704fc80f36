//! Where each signal is shipped.

use url::Url;

use super::{MUTUAL_TLS, Sources};
use crate::config::error::{ConfigError, Origin};
use crate::config::file::{Entry, Schema};
use crate::config::given::{Given, OrDefault, flag};
use crate::config::parse::{self, EndpointKind, Headers};
use crate::config::{Export, Metrics, Protocol};

/// What becomes of a signal.
pub(super) struct Outlet {
    pub export: Option<Export>,
    /// Also where nothing is exported to it.
    pub has_endpoint: bool,
    /// Its variable asks for the console.
    pub to_console: bool,
    /// Nothing is wanted of it, not even on the console.
    pub is_off: bool,
    /// Why nothing is exported, where that may surprise.
    pub note: Option<String>,
}

impl Sources<'_> {
    pub(super) fn logs(&self) -> Result<Outlet, ConfigError> {
        self.outlet(&LOGS)
    }

    pub(super) fn traces(&self) -> Result<Outlet, ConfigError> {
        let outlet = self.outlet(&TRACES)?;
        if self.run.export.no_spans {
            let has_endpoint = false;
            return Ok(Outlet { export: None, has_endpoint, is_off: true, note: None, ..outlet });
        }
        match self.exits()? {
            Some(Given { value: false, origin }) if outlet.export.is_some() => {
                let note = format!("{origin}: without exits there are no spans, so none are shipped");
                Ok(Outlet { export: None, note: Some(note), ..outlet })
            }
            _ => Ok(outlet),
        }
    }

    fn outlet(&self, signal: &Signal) -> Result<Outlet, ConfigError> {
        let by_variable = self.env.parse(signal.exporter, parse::exporters)?;
        let in_file = self.exporter_in_file(signal)?;
        let export = self.export(signal)?;
        let has_endpoint = export.is_some();
        let to_console = by_variable.as_ref().is_some_and(|given| given.value.console);
        let Some(Given { value: exporters, origin }) = by_variable else {
            let wanted = in_file.or_default(true);
            let export = export.filter(|_| wanted);
            return Ok(Outlet { export, has_endpoint, to_console, is_off: !wanted, note: None });
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
        let is_off = !exporters.otlp && !exporters.console;
        Ok(Outlet { export: export.filter(|_| exporters.otlp), has_endpoint, to_console, is_off, note })
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
        self.refuse(&[
            ("OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY", MUTUAL_TLS),
            ("OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE", MUTUAL_TLS),
        ])?;
        let Some(export) = self.export(&METRICS)? else {
            notes.push(format!("{origin} asks for otlp, but no endpoint is set: no metrics are exported"));
            return Ok(None);
        };
        let default = Metrics::to(export);
        Ok(Some(Metrics { interval: interval.or_default(default.interval), export: default.export }))
    }

    /// `None`: no endpoint anywhere. The rest is checked all the same.
    fn export(&self, signal: &Signal) -> Result<Option<Export>, ConfigError> {
        let (flags, env, file) = (&self.run.export, &self.env, &self.file);
        let export = &file.schema.export;
        let by_flag = flag("--protocol", flags.protocol.as_ref(), parse::protocol)?;
        let protocol = signal.first(by_flag, env.both(signal.protocol, parse::protocol)?).or(file.parse(
            "export.protocol",
            &export.protocol,
            parse::protocol,
        )?);
        let insecure = env
            .either(signal.insecure, parse::boolean)?
            .or(file.parse("export.insecure", &export.insecure, parse::boolean)?)
            .or_default(false);
        let headers = self.headers(signal)?;
        let by_flag = flag("--compression", flags.compression.as_ref(), parse::compression)?;
        let compression = signal.first(by_flag, env.both(signal.compression, parse::compression)?).or(file.parse(
            "export.compression",
            &export.compression,
            parse::compression,
        )?);
        let timeout = env.either(signal.timeout, parse::millis)?.or(file.parse(
            "export.timeout",
            &export.timeout,
            parse::duration,
        )?);
        let retry_max_elapsed = env.parse(signal.export_timeout, parse::positive_millis)?.or(file.parse(
            "export.retry_max_elapsed",
            &export.retry_max_elapsed,
            parse::duration,
        )?);
        let ca_file = env.either(signal.certificate, parse::file_path)?.or(file.parse(
            "export.ca_file",
            &export.ca_file,
            parse::file_path,
        )?);

        let Some((endpoint, kind)) = self.endpoint(signal)? else { return Ok(None) };
        let protocol = protocol.or_default(Protocol::HttpProtobuf);
        let default = Export::to(url(endpoint, kind, signal.path, protocol, insecure)?);
        Ok(Some(Export {
            protocol,
            headers: headers.or_default(default.headers),
            compression: compression.or_default(default.compression),
            timeout: timeout.map_or(default.timeout, |given| parse::limit(given.value)),
            retry_max_elapsed: retry_max_elapsed.or_default(default.retry_max_elapsed),
            ca_file: ca_file.map(|given| given.value),
            endpoint: default.endpoint,
        }))
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
        let (own, general) = (in_env(own)?, in_env(general)?);
        let in_file = self.file.headers("export.headers", &self.file.schema.export.headers)?;
        Ok(signal.first(by_flag, [own, general]).or(in_file))
    }
}

/// A value of the file: its key, and where it stands.
type InFile = (&'static str, fn(&Schema) -> &Entry);

/// The names of a signal's settings. Of two variables, the first is its own, and the second the general one.
struct Signal {
    /// As people call it.
    name: &'static str,
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
}

impl Signal {
    /// The highest layer above the file.
    fn first<T>(&self, by_flag: Option<T>, [own, general]: [Option<T>; 2]) -> Option<T> {
        if self.flags_first { by_flag.or(own) } else { own.or(by_flag) }.or(general)
    }
}

macro_rules! signal {
    ($name:literal, $section:ident, $path:expr, $spoken:literal, $processor:literal, flags_first: $first:literal) => {
        Signal {
            name: $spoken,
            path: $path,
            flags_first: $first,
            exporter: concat!("OTEL_", $name, "_EXPORTER"),
            exporter_in_file: (concat!(stringify!($section), ".exporter"), |schema| &schema.$section.exporter),
            endpoint_in_file: (concat!(stringify!($section), ".endpoint"), |schema| &schema.$section.endpoint),
            export_timeout: concat!("OTEL_", $processor, "_EXPORT_TIMEOUT"),
            endpoint: [concat!("OTEL_EXPORTER_OTLP_", $name, "_ENDPOINT"), "OTEL_EXPORTER_OTLP_ENDPOINT"],
            protocol: [concat!("OTEL_EXPORTER_OTLP_", $name, "_PROTOCOL"), "OTEL_EXPORTER_OTLP_PROTOCOL"],
            headers: [concat!("OTEL_EXPORTER_OTLP_", $name, "_HEADERS"), "OTEL_EXPORTER_OTLP_HEADERS"],
            compression: [concat!("OTEL_EXPORTER_OTLP_", $name, "_COMPRESSION"), "OTEL_EXPORTER_OTLP_COMPRESSION"],
            timeout: [concat!("OTEL_EXPORTER_OTLP_", $name, "_TIMEOUT"), "OTEL_EXPORTER_OTLP_TIMEOUT"],
            insecure: [concat!("OTEL_EXPORTER_OTLP_", $name, "_INSECURE"), "OTEL_EXPORTER_OTLP_INSECURE"],
            certificate: [concat!("OTEL_EXPORTER_OTLP_", $name, "_CERTIFICATE"), "OTEL_EXPORTER_OTLP_CERTIFICATE"],
        }
    };
}

const LOGS: Signal = signal!("LOGS", logs, parse::LOGS_PATH, "logs", "BLRP", flags_first: true);
const TRACES: Signal = signal!("TRACES", traces, parse::TRACES_PATH, "spans", "BSP", flags_first: true);
// Metrics have no processor of batches: they are given up with logs.
const METRICS: Signal = signal!("METRICS", metrics, parse::METRICS_PATH, "metrics", "BLRP", flags_first: false);

fn url(
    endpoint: Given,
    kind: EndpointKind,
    path: &str,
    protocol: Protocol,
    insecure: bool,
) -> Result<Url, ConfigError> {
    let shown = parse::printable_endpoint(&endpoint.value);
    parse::endpoint(&endpoint.value, kind, path, protocol, insecure)
        .map_err(|parse::Expected(expected)| ConfigError::Invalid { origin: endpoint.origin, value: shown, expected })
}
