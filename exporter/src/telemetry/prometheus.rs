//! What the instruments have observed comes in, Prometheus' text format 0.0.4 goes out, named as OpenTelemetry's
//! compatibility specification says.

use std::fmt::{self, Write as _};
use std::sync::{Arc, Weak};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::{HistogramDataPoint, Metric, NumberDataPoint, metric, number_data_point};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::reader::MetricReader;
use opentelemetry_sdk::metrics::{InstrumentKind, ManualReader, Pipeline, Temporality};

pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Reads all instruments when it is asked to.
#[derive(Clone, Debug, Default)]
pub(super) struct Scrape(Arc<ManualReader>);

impl Scrape {
    /// What the instruments observe now. Empty once the provider is shut down.
    pub(super) fn observed(&self) -> ExportMetricsServiceRequest {
        let mut metrics = ResourceMetrics::default();
        match self.0.collect(&mut metrics) {
            Ok(()) => (&metrics).into(),
            Err(_) => ExportMetricsServiceRequest::default(),
        }
    }

    pub(super) fn text(&self) -> String {
        text(&self.observed())
    }
}

impl MetricReader for Scrape {
    fn register_pipeline(&self, pipeline: Weak<Pipeline>) {
        self.0.register_pipeline(pipeline);
    }

    fn collect(&self, metrics: &mut ResourceMetrics) -> OTelSdkResult {
        self.0.collect(metrics)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn temporality(&self, kind: InstrumentKind) -> Temporality {
        self.0.temporality(kind)
    }
}

fn text(request: &ExportMetricsServiceRequest) -> String {
    let mut out = String::new();
    // Into a String: cannot fail.
    write(&mut out, request).ok();
    out
}

fn write(out: &mut String, request: &ExportMetricsServiceRequest) -> fmt::Result {
    for resource_metrics in &request.resource_metrics {
        if let Some(resource) = &resource_metrics.resource {
            out.push_str("# HELP target_info Target metadata\n# TYPE target_info gauge\ntarget_info");
            labels(out, &resource.attributes, &[])?;
            out.push_str(" 1\n");
        }
        for scope_metrics in &resource_metrics.scope_metrics {
            let scope = scope_metrics.scope.clone().unwrap_or_default();
            for metric in &scope_metrics.metrics {
                family(out, metric, &scope_labels(&scope, &scope_metrics.schema_url))?;
            }
        }
    }
    Ok(())
}

fn scope_labels<'a>(scope: &'a InstrumentationScope, schema_url: &'a str) -> [(&'static str, &'a str); 3] {
    [("otel_scope_name", &scope.name), ("otel_scope_version", &scope.version), ("otel_scope_schema_url", schema_url)]
}

/// All of one metric, its points one after the other.
fn family(out: &mut String, metric: &Metric, scope: &[(&str, &str)]) -> fmt::Result {
    let Some((kind, points)) = points(metric) else { return Ok(()) };
    let name = name(metric, kind);
    writeln!(out, "# HELP {name} {}", escaped(&metric.description, false))?;
    writeln!(out, "# TYPE {name} {}", kind.word())?;
    let points = match points {
        Points::Numbers(points) => points,
        Points::Histograms(points) => {
            return points.iter().try_for_each(|point| histogram(out, &name, point, scope));
        }
    };
    for point in points {
        out.push_str(&name);
        labels(out, &point.attributes, scope)?;
        match point.value {
            Some(number_data_point::Value::AsInt(value)) => writeln!(out, " {value}")?,
            Some(number_data_point::Value::AsDouble(value)) => writeln!(out, " {value}")?,
            None => out.push_str(" NaN\n"),
        }
    }
    Ok(())
}

/// Each bucket has what is in those before it as well.
fn histogram(out: &mut String, name: &str, point: &HistogramDataPoint, scope: &[(&str, &str)]) -> fmt::Result {
    let bounds = point.explicit_bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
    let mut below = 0;
    for (bound, count) in bounds.zip(&point.bucket_counts) {
        below += count;
        write!(out, "{name}_bucket")?;
        let scope: Vec<_> = scope.iter().copied().chain([("le", bound.as_str())]).collect();
        labels(out, &point.attributes, &scope)?;
        writeln!(out, " {below}")?;
    }
    write!(out, "{name}_sum")?;
    labels(out, &point.attributes, scope)?;
    writeln!(out, " {}", point.sum.unwrap_or_default())?;
    write!(out, "{name}_count")?;
    labels(out, &point.attributes, scope)?;
    writeln!(out, " {}", point.count)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Of one metric.
#[derive(Clone, Copy, Debug)]
pub(super) enum Points<'a> {
    Numbers(&'a [NumberDataPoint]),
    Histograms(&'a [HistogramDataPoint]),
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// `None`: a kind of metric that we have none of.
pub(super) fn points(metric: &Metric) -> Option<(Kind, Points<'_>)> {
    Some(match metric.data.as_ref()? {
        metric::Data::Gauge(gauge) => (Kind::Gauge, Points::Numbers(&gauge.data_points)),
        metric::Data::Sum(sum) if sum.is_monotonic => (Kind::Counter, Points::Numbers(&sum.data_points)),
        metric::Data::Sum(sum) => (Kind::Gauge, Points::Numbers(&sum.data_points)),
        metric::Data::Histogram(histogram) => (Kind::Histogram, Points::Histograms(&histogram.data_points)),
        metric::Data::ExponentialHistogram(_) | metric::Data::Summary(_) => return None,
    })
}

/// With unit and, of a counter, `_total`.
pub(super) fn name(metric: &Metric, kind: Kind) -> String {
    let mut name = sanitized(&metric.name, true);
    let unit = unit(&metric.unit, kind);
    if !unit.is_empty() && !name.ends_with(unit) {
        name = format!("{name}_{unit}");
    }
    if kind == Kind::Counter && !name.ends_with("_total") {
        name += "_total";
    }
    name
}

/// Of the units that we have. What is in braces says what is counted, and is left out.
fn unit(unit: &str, kind: Kind) -> &'static str {
    match unit {
        "s" => "seconds",
        "By" => "bytes",
        "1" if kind == Kind::Gauge => "ratio",
        _ => "",
    }
}

/// Letters, digits and `_`, no digit first; in the name of a metric no two `_` in a row.
fn sanitized(name: &str, squeezes: bool) -> String {
    let mut sanitized = String::with_capacity(name.len() + 1);
    for letter in name.chars() {
        let letter = if letter.is_ascii_alphanumeric() { letter } else { '_' };
        if sanitized.is_empty() && letter.is_ascii_digit() {
            sanitized.push('_');
        }
        if !(squeezes && letter == '_' && sanitized.ends_with('_')) {
            sanitized.push(letter);
        }
    }
    sanitized
}

/// Keys that become the same are one label, their values joined in the order of the keys.
fn labels(out: &mut String, attributes: &[KeyValue], scope: &[(&str, &str)]) -> fmt::Result {
    let mut pairs: Vec<_> = attributes.iter().map(|pair| (pair.key.as_str(), value(pair))).collect();
    pairs.extend(scope.iter().map(|(key, value)| (*key, (*value).to_owned())));
    pairs.sort();
    let mut labels: Vec<(String, String)> = Vec::with_capacity(pairs.len());
    for (key, value) in pairs {
        let name = sanitized(key, false);
        match labels.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => *values = format!("{values};{value}"),
            None => labels.push((name, value)),
        }
    }
    for (index, (name, value)) in labels.iter().enumerate() {
        let before = if index == 0 { '{' } else { ',' };
        write!(out, "{before}{name}=\"{}\"", escaped(value, true))?;
    }
    if !labels.is_empty() {
        out.push('}');
    }
    Ok(())
}

/// Our attributes are texts, but for ports.
fn value(pair: &KeyValue) -> String {
    match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(value)) => value.to_string(),
        Some(Value::BoolValue(value)) => value.to_string(),
        Some(Value::DoubleValue(value)) => value.to_string(),
        Some(Value::BytesValue(_) | Value::ArrayValue(_) | Value::KvlistValue(_) | Value::StringValueStrindex(_))
        | None => String::new(),
    }
}

fn escaped(text: &str, quotes: bool) -> String {
    let escaped = text.replace('\\', "\\\\").replace('\n', "\\n");
    if quotes { escaped.replace('"', "\\\"") } else { escaped }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::AnyValue;
    use opentelemetry_proto::tonic::metrics::v1::{Gauge, Histogram, ResourceMetrics, ScopeMetrics, Sum};
    use opentelemetry_proto::tonic::resource::v1::Resource;

    use super::*;

    fn pair(key: &str, value: &str) -> KeyValue {
        let value = Some(AnyValue { value: Some(Value::StringValue(value.into())) });
        KeyValue { key: key.into(), value, key_strindex: 0 }
    }

    fn metric(name: &str, unit: &str, data: metric::Data) -> Metric {
        Metric {
            name: name.into(),
            unit: unit.into(),
            description: "a \"b\" \\\nc".into(),
            data: Some(data),
            ..Metric::default()
        }
    }

    fn point(value: number_data_point::Value, attributes: Vec<KeyValue>) -> NumberDataPoint {
        NumberDataPoint { value: Some(value), attributes, ..NumberDataPoint::default() }
    }

    #[test]
    fn metrics_are_written_as_prometheus_reads_them() {
        let int = number_data_point::Value::AsInt;
        let sum = |is_monotonic, data_points| metric::Data::Sum(Sum { data_points, is_monotonic, ..Sum::default() });
        let twice = vec![pair("a.b", "x\"\\\n"), pair("a_b", "y"), pair("7", "é")];
        let times = HistogramDataPoint {
            attributes: vec![pair("a", "b")],
            count: 7,
            sum: Some(3.5),
            explicit_bounds: vec![0.25, 5.0],
            bucket_counts: vec![4, 2, 1],
            ..HistogramDataPoint::default()
        };
        let times = Histogram { data_points: vec![times], ..Histogram::default() };
        let metrics = vec![
            metric("namespan.events.dropped", "{event}", sum(true, vec![point(int(7), twice), point(int(0), vec![])])),
            metric("process.cpu.time", "s", sum(true, vec![point(number_data_point::Value::AsDouble(0.25), vec![])])),
            metric("queue..usage", "By", sum(false, vec![point(int(-3), vec![])])),
            metric("age.seconds", "s", metric::Data::Gauge(Gauge { data_points: vec![point(int(1), vec![])] })),
            metric("duration", "s", metric::Data::Histogram(times)),
        ];
        let scope = Some(InstrumentationScope { name: "s".into(), version: "1".into(), ..Default::default() });
        let scope_metrics = vec![ScopeMetrics { scope, metrics, schema_url: "u".into() }];
        let resource = Some(Resource { attributes: vec![pair("service.name", "namespan")], ..Resource::default() });
        let resource_metrics = vec![ResourceMetrics { resource, scope_metrics, ..ResourceMetrics::default() }];
        let written = text(&ExportMetricsServiceRequest { resource_metrics });
        let scope = r#"otel_scope_name="s",otel_scope_schema_url="u",otel_scope_version="1""#;
        let help = r#"a "b" \\\nc"#;
        let expected = format!(
            r#"# HELP target_info Target metadata
# TYPE target_info gauge
target_info{{service_name="namespan"}} 1
# HELP namespan_events_dropped_total {help}
# TYPE namespan_events_dropped_total counter
namespan_events_dropped_total{{_7="é",a_b="x\"\\\n;y",{scope}}} 7
namespan_events_dropped_total{{{scope}}} 0
# HELP process_cpu_time_seconds_total {help}
# TYPE process_cpu_time_seconds_total counter
process_cpu_time_seconds_total{{{scope}}} 0.25
# HELP queue_usage_bytes {help}
# TYPE queue_usage_bytes gauge
queue_usage_bytes{{{scope}}} -3
# HELP age_seconds {help}
# TYPE age_seconds gauge
age_seconds{{{scope}}} 1
# HELP duration_seconds {help}
# TYPE duration_seconds histogram
duration_seconds_bucket{{a="b",le="0.25",{scope}}} 4
duration_seconds_bucket{{a="b",le="5",{scope}}} 6
duration_seconds_bucket{{a="b",le="+Inf",{scope}}} 7
duration_seconds_sum{{a="b",{scope}}} 3.5
duration_seconds_count{{a="b",{scope}}} 7
"#
        );
        assert_eq!(written, expected);
    }
}
