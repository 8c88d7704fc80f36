//! Flags, environment and file come in, the settings go out. Every value given is checked, also one that is overridden,
//! but for endpoints, which may be meant for another protocol, and `DOCKER_HOST`, which is not ours.

use std::ffi::OsString;
use std::path::PathBuf;

use namespan_ebpf::settings::{PREFIXES_MAX, UIDS_MAX};
use url::Url;

use super::env::Env;
use super::error::{ConfigError, Origin};
use super::file::File;
use super::given::{Given, OrDefault, flag, flags, switch};
use super::parse::{self, EndpointKind, Exporters, Headers};
use super::{
    AttributeLimits, Batch, Config, Console, Enrich, Export, Filters, Metrics, Probes, Protocol, Queue, Resource, Scope,
};
use crate::cli::Run;

pub(super) fn load(run: &Run, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Config, ConfigError> {
    let sources = Sources { run, env: Env(env), file: File::load(run.config.as_deref())? };
    sources.refuse_unsupported()?;
    sources.config()
}

const MUTUAL_TLS: &str = "client certificates (mutual TLS) are not supported yet: unset it, and send through a Collector \
                          if the receiver insists on one";

struct Sources<'a> {
    run: &'a Run,
    env: Env<'a>,
    file: File,
}

impl Sources<'_> {
    /// What would be ignored otherwise, though somebody counts on it.
    fn refuse_unsupported(&self) -> Result<(), ConfigError> {
        const CONFIG_FILE: &str = "Namespan does not read OpenTelemetry's declarative configuration: unset it for \
                                   Namespan, and give its own file with --config";
        self.refuse(&[
            ("OTEL_CONFIG_FILE", CONFIG_FILE),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", MUTUAL_TLS),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", MUTUAL_TLS),
            ("OTEL_EXPORTER_OTLP_LOGS_CLIENT_KEY", MUTUAL_TLS),
            ("OTEL_EXPORTER_OTLP_LOGS_CLIENT_CERTIFICATE", MUTUAL_TLS),
        ])
    }

    fn refuse(&self, refused: &[(&'static str, &'static str)]) -> Result<(), ConfigError> {
        for (name, remedy) in refused {
            if let Some(Given { origin, .. }) = self.env.text(name)? {
                return Err(ConfigError::Unsupported { origin, remedy });
            }
        }
        Ok(())
    }

    fn config(&self) -> Result<Config, ConfigError> {
        let Self { run, env, file } = self;
        let defaults = Config::default();
        let exporters = env.parse("OTEL_LOGS_EXPORTER", parse::exporters)?;
        let disabled = env.parse("OTEL_SDK_DISABLED", parse::boolean)?.or_default(false);
        let mut notes = Vec::new();

        let export = self.export(&LOGS)?;
        let has_endpoint = export.is_some();
        let wanted = exporters.as_ref().map(|given| given.value);
        let export = export.filter(|_| !disabled && wanted.is_none_or(|exporters| exporters.otlp));
        if disabled {
            notes.push("environment variable OTEL_SDK_DISABLED is true: nothing is shipped".to_owned());
        } else if has_endpoint && export.is_none() {
            notes.push("environment variable OTEL_LOGS_EXPORTER has no otlp: nothing is shipped".to_owned());
        } else if !has_endpoint && wanted.is_some_and(|exporters| exporters.otlp) {
            notes.push(
                "environment variable OTEL_LOGS_EXPORTER has otlp, but no endpoint is set: nothing is shipped; give \
                 --endpoint or OTEL_EXPORTER_OTLP_ENDPOINT"
                    .to_owned(),
            );
        }

        let metrics = self.metrics(&mut notes)?.filter(|_| !disabled);

        let by_exporter = wanted.and_then(|Exporters { console, .. }| console.then_some(Console::Jsonl));
        let in_file = file.parse("console", &file.schema.console, parse::console)?;
        let console = match flag("--console", run.console.as_ref(), parse::console)? {
            Some(given) => given.value,
            None => by_exporter
                .unwrap_or_else(|| in_file.or_default(if has_endpoint { Console::None } else { Console::Table })),
        };

        let run_for = flag("--for", run.run_for.as_ref(), parse::positive_duration)?
            .or(file.parse("run_for", &file.schema.run_for, parse::positive_duration)?)
            .map(|given| given.value);
        let log_level = flag("--log-level", run.log_level.as_ref(), parse::log_level)?
            .or(env.parse("OTEL_LOG_LEVEL", parse::log_level)?)
            .or(file.parse("log_level", &file.schema.log_level, parse::log_level)?)
            .or_default(defaults.log_level);
        let arguments = flag("--args", run.probes.args.as_ref(), parse::arguments)?
            .or(file.parse("arguments", &file.schema.arguments, parse::arguments)?)
            .or_default(defaults.arguments);
        let (batch, queue) = self.batch_and_queue()?;
        Ok(Config {
            console,
            run_for,
            probes: self.probes()?,
            arguments,
            enrich: self.enrich()?,
            resource: self.resource()?,
            limits: self.limits()?,
            batch,
            queue,
            export,
            metrics,
            log_level,
            notes,
        })
    }

    fn probes(&self) -> Result<Probes, ConfigError> {
        let (flags, file, default) = (&self.run.probes, &self.file, Probes::default());
        let probes = &file.schema.probes;
        Ok(Probes {
            failed_execs: switch("--failed", flags.failed, true)
                .or(file.parse("probes.failed_execs", &probes.failed_execs, parse::boolean)?)
                .or_default(default.failed_execs),
            exits: switch("--no-exit", flags.no_exit, false)
                .or(file.parse("probes.exits", &probes.exits, parse::boolean)?)
                .or_default(default.exits),
            args_limit: flag("--args-limit", flags.args_limit.as_ref(), parse::args_limit)?
                .or(file.parse("probes.args_limit", &probes.args_limit, parse::args_limit)?)
                .or_default(default.args_limit),
            ring_bytes: flag("--ring-size", flags.ring_size.as_ref(), parse::ring_bytes)?
                .or(file.parse("probes.ring_bytes", &probes.ring_bytes, parse::ring_bytes)?)
                .or_default(default.ring_bytes),
            filters: self.filters()?,
        })
    }

    fn filters(&self) -> Result<Filters, ConfigError> {
        let (given, file, default) = (&self.run.probes, &self.file, Filters::default());
        let filters = &file.schema.probes.filters;
        Ok(Filters {
            scope: switch("--host", given.host, Scope::Host)
                .or(switch("--containers", given.containers, Scope::Containers))
                .or(file.parse("probes.filters.scope", &filters.scope, parse::scope)?)
                .or_default(default.scope),
            uids: flags("--uid", &given.uids, UIDS_MAX, parse::uid)?
                .or(file.list("probes.filters.uids", &filters.uids, UIDS_MAX, parse::uid)?)
                .or_default(default.uids),
            comms: flags("--comm", &given.comms, PREFIXES_MAX, parse::comm_prefix)?
                .or(file.list("probes.filters.comms", &filters.comms, PREFIXES_MAX, parse::comm_prefix)?)
                .or_default(default.comms),
            paths: flags("--path", &given.paths, PREFIXES_MAX, parse::path_prefix)?
                .or(file.list("probes.filters.paths", &filters.paths, PREFIXES_MAX, parse::path_prefix)?)
                .or_default(default.paths),
        })
    }

    fn enrich(&self) -> Result<Enrich, ConfigError> {
        let (run, file, default) = (self.run, &self.file, Enrich::default());
        let enrich = &file.schema.enrich;
        Ok(Enrich {
            docker_socket: self.docker_socket()?.or_default(default.docker_socket),
            cache_entries: file
                .parse("enrich.cache_entries", &enrich.cache_entries, parse::cache_entries)?
                .or_default(default.cache_entries),
            cache_grace: file
                .parse("enrich.cache_grace", &enrich.cache_grace, parse::duration)?
                .or_default(default.cache_grace),
            cache_negative: file
                .parse("enrich.cache_negative", &enrich.cache_negative, parse::duration)?
                .or_default(default.cache_negative),
            wait: file.parse("enrich.wait", &enrich.wait, parse::duration)?.or_default(default.wait),
            wait_bytes: file
                .parse("enrich.wait_bytes", &enrich.wait_bytes, parse::bytes)?
                .or_default(default.wait_bytes),
            labels: flags("--label", &run.labels, usize::MAX, parse::label)?
                .or(file.list("enrich.labels", &enrich.labels, usize::MAX, parse::label)?)
                .or_default(default.labels),
        })
    }

    fn docker_socket(&self) -> Result<Option<Given<Option<PathBuf>>>, ConfigError> {
        let (flags, file) = (&self.run.docker, &self.file);
        let in_file = file.parse("enrich.docker_socket", &file.schema.enrich.docker_socket, parse::docker_socket)?;
        let by_flag = switch("--no-docker", flags.no_docker, None).or(flag(
            "--docker-socket",
            flags.docker_socket.as_ref(),
            parse::docker_socket,
        )?);
        // Not one of ours: where it names a Docker elsewhere, a flag has to be enough.
        if by_flag.is_some() {
            return Ok(by_flag);
        }
        Ok(self.env.parse("DOCKER_HOST", parse::docker_host)?.or(in_file))
    }

    fn resource(&self) -> Result<Resource, ConfigError> {
        const SERVICE_NAME: &str = "service.name";
        let (env, file) = (&self.env, &self.file);
        let resource = &file.schema.resource;
        let mut attributes: Vec<(String, String)> = Vec::new();
        for (key, given) in file.attributes("resource.attributes", &resource.attributes)? {
            attributes.push((key, given.value));
        }
        // A service.name is taken out of each layer, for the layer above it to win.
        let mut service_name = remove(&mut attributes, SERVICE_NAME);
        let in_file = file.parse("resource.service_name", &resource.service_name, parse::non_empty)?;
        service_name = in_file.map(|given| given.value).or(service_name);

        for (key, value) in env.parse("OTEL_RESOURCE_ATTRIBUTES", parse::attributes)?.or_default(Vec::new()) {
            parse::put(&mut attributes, key, value);
        }
        service_name = remove(&mut attributes, SERVICE_NAME).or(service_name);
        let in_env = env.parse("OTEL_SERVICE_NAME", parse::non_empty)?;
        service_name = in_env.map(|given| given.value).or(service_name);
        Ok(Resource { service_name, attributes })
    }

    fn limits(&self) -> Result<AttributeLimits, ConfigError> {
        const VALUE_LENGTH: [&str; 2] =
            ["OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT"];
        const COUNT: [&str; 2] = ["OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT", "OTEL_ATTRIBUTE_COUNT_LIMIT"];
        let (env, file, default) = (&self.env, &self.file, AttributeLimits::default());
        let limits = &file.schema.limits;
        Ok(AttributeLimits {
            value_length: env
                .either(VALUE_LENGTH, parse::limit_count)?
                .or(file.parse("limits.value_length", &limits.value_length, parse::limit_count)?)
                .map(|given| given.value),
            count: env
                .either(COUNT, parse::limit_count)?
                .or(file.parse("limits.count", &limits.count, parse::limit_count)?)
                .or_default(default.count),
        })
    }

    fn batch_and_queue(&self) -> Result<(Batch, Queue), ConfigError> {
        let (env, file) = (&self.env, &self.file);
        let (batch, queue) = (&file.schema.batch, &file.schema.queue);
        let (batch_default, queue_default) = (Batch::default(), Queue::default());

        let queue_records = env.parse("OTEL_BLRP_MAX_QUEUE_SIZE", parse::count)?.or(file.parse(
            "queue.max_records",
            &queue.max_records,
            parse::count,
        )?);
        let most = queue_records.as_ref().map_or(usize::MAX, |given| given.value);
        let batch_records = env
            .parse("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", parse::count)?
            .or(file.parse("batch.max_records", &batch.max_records, parse::count)?)
            .or_given_default(batch_default.max_records.min(most));
        if let Some(queue_records) = &queue_records {
            fits("records", &batch_records, queue_records)?;
        }

        let queue_bytes =
            file.parse("queue.max_bytes", &queue.max_bytes, parse::bytes)?.or_given_default(queue_default.max_bytes);
        let batch_bytes = file
            .parse("batch.max_bytes", &batch.max_bytes, parse::batch_bytes)?
            .or_given_default(batch_default.max_bytes);
        fits("bytes", &batch_bytes, &queue_bytes)?;

        let delay = env
            .parse("OTEL_BLRP_SCHEDULE_DELAY", parse::positive_millis)?
            .or(file.parse("batch.delay", &batch.delay, parse::positive_duration)?)
            .or_default(batch_default.delay);
        let drain = file.parse("queue.drain", &queue.drain, parse::duration)?.or_default(queue_default.drain);
        Ok((
            Batch { max_records: batch_records.value, max_bytes: batch_bytes.value, delay },
            Queue { max_bytes: queue_bytes.value, max_records: queue_records.map(|given| given.value), drain },
        ))
    }

    /// `None`: not asked for, and then the variables of metrics are not looked at.
    fn metrics(&self, notes: &mut Vec<String>) -> Result<Option<Metrics>, ConfigError> {
        let (env, file) = (&self.env, &self.file);
        let metrics = &file.schema.metrics;
        let wanted = env.parse("OTEL_METRICS_EXPORTER", parse::metrics_exporter)?.or(file.parse(
            "metrics.exporter",
            &metrics.exporter,
            parse::metrics_exporter,
        )?);
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
        let retry_max_elapsed = env.parse("OTEL_BLRP_EXPORT_TIMEOUT", parse::positive_millis)?.or(file.parse(
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
        let own = self.env.text(own)?.or_else(|| self.own_endpoint(signal)).map(|given| (given, EndpointKind::Exact));
        let general = self.env.text(general)?.map(|given| (given, EndpointKind::Base));
        let in_file = self.file.text("export.endpoint", &self.file.schema.export.endpoint);
        Ok(signal.first(by_flag, [own, general]).or(in_file.map(|given| (given, EndpointKind::OwnBase))))
    }

    /// In the file, of this signal alone.
    fn own_endpoint(&self, signal: &Signal) -> Option<Given> {
        if signal.flags_first { None } else { self.file.text("metrics.endpoint", &self.file.schema.metrics.endpoint) }
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

/// The names of a signal's settings: each its own variable, and the general one.
struct Signal {
    path: &'static str,
    /// Flags are of logs first: what is of metrics alone beats them.
    flags_first: bool,
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
    ($name:literal, $path:literal, flags_first: $flags_first:literal) => {
        Signal {
            path: $path,
            flags_first: $flags_first,
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

const LOGS: Signal = signal!("LOGS", "v1/logs", flags_first: true);
const METRICS: Signal = signal!("METRICS", "v1/metrics", flags_first: false);

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

fn remove(attributes: &mut Vec<(String, String)>, key: &str) -> Option<String> {
    let at = attributes.iter().position(|(known, _)| known == key)?;
    Some(attributes.remove(at).1)
}

fn fits(unit: &'static str, batch: &Given<usize>, queue: &Given<usize>) -> Result<(), ConfigError> {
    if batch.value <= queue.value {
        return Ok(());
    }
    Err(ConfigError::BatchOverQueue {
        unit,
        batch: batch.value,
        batch_origin: Box::new(batch.origin.clone()),
        queue: queue.value,
        queue_origin: Box::new(queue.origin.clone()),
    })
}

#[cfg(test)]
mod tests;
