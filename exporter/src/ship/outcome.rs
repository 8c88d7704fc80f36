//! What a collector's answer means: the retry tables and partial success of the OTLP specification.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::{HeaderMap, StatusCode, header};
use percent_encoding::percent_decode;
use prost::Message;
use tonic::Code;
use tonic_types::{RetryInfo, StatusExt as _};

use crate::config::Compression;
use crate::queue::{Answer, GRPC_CODES};

/// What to do with a batch that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Accepted,
    /// Taken, without `rejected` of the records; or with nothing but a warning.
    Partial {
        rejected: u64,
        message: String,
    },
    Retry {
        after: Option<Duration>,
        reason: String,
    },
    Permanent {
        answer: Answer,
        reason: String,
    },
    TooLarge {
        reason: String,
    },
    /// The endpoint takes nothing of the signal.
    Unimplemented {
        reason: String,
    },
    /// The endpoint does not know the compression.
    EncodingRefused {
        reason: String,
    },
}

/// As the specification recommends.
const ANSWER_MAX: usize = 4 << 20;

/// The body of an answer, as far as it was read.
#[derive(Debug, Default)]
pub(super) struct Body(Vec<u8>);

impl Body {
    /// `false`: it is larger than an answer may be.
    pub(super) fn take(&mut self, chunk: &[u8]) -> bool {
        let fits = self.0.len() + chunk.len() <= ANSWER_MAX;
        if fits {
            self.0.extend_from_slice(chunk);
        }
        fits
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What is shown of a collector's message.
const MESSAGE_MAX: usize = 200;

impl Outcome {
    /// No answer at all: not connected, disconnected, or none in time.
    pub(super) fn unanswered(reason: impl Into<String>) -> Self {
        Self::Retry { after: None, reason: reason.into() }
    }

    /// Whatever it says: the specification has it that this is final.
    pub(super) fn answer_too_large(answer: Answer) -> Self {
        Self::Permanent { answer, reason: format!("the answer is larger than {} MiB", ANSWER_MAX >> 20) }
    }

    /// From a gRPC response, with its code: its status is in `trailers`, or in `headers` if there was nothing else.
    pub(crate) fn from_grpc(
        http: StatusCode,
        headers: &HeaderMap,
        trailers: Option<&HeaderMap>,
        message: &[u8],
        sent: Compression,
    ) -> (Self, Code) {
        let status = trailers.and_then(GrpcStatus::parse).or_else(|| GrpcStatus::parse(headers));
        let status = status.unwrap_or_else(|| GrpcStatus::infer(http));
        (Self::from_status(&status, headers, trailers, message, sent), status.code)
    }

    fn from_status(
        status: &GrpcStatus,
        headers: &HeaderMap,
        trailers: Option<&HeaderMap>,
        message: &[u8],
        sent: Compression,
    ) -> Self {
        if status.code == Code::Ok {
            return Self::accepted(message, Response::from_protobuf);
        }
        let reason = status.to_string();
        match status.code {
            // Tonic's servers say it with a code that the table takes for transient.
            Code::OutOfRange if status.message.contains("message length too large") => Self::TooLarge { reason },
            Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss => Self::Retry { after: status.retry_info().and_then(|info| info.retry_delay), reason },
            Code::ResourceExhausted => match status.retry_info() {
                Some(info) => Self::Retry { after: info.retry_delay, reason },
                None if status.says_too_large() => Self::TooLarge { reason },
                // A quota: the table forbids to send it again, in halves too.
                None => Self::Permanent { answer: Answer::Grpc(status.code.into()), reason },
            },
            Code::Unimplemented if sent != Compression::None && status.refuses_encoding(headers, trailers, sent) => {
                Self::EncodingRefused { reason }
            }
            Code::Unimplemented => Self::Unimplemented { reason },
            Code::Ok
            | Code::Unknown
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::Internal
            | Code::Unauthenticated => Self::Permanent { answer: Answer::Grpc(status.code.into()), reason },
        }
    }

    /// From an HTTP response to protobuf or JSON.
    pub(crate) fn from_http(status: StatusCode, headers: &HeaderMap, body: &[u8], sent: Compression) -> Self {
        if status.is_success() {
            let json = headers
                .get(header::CONTENT_TYPE)
                .is_some_and(|value| value.as_bytes().to_ascii_lowercase().starts_with(b"application/json"));
            return Self::accepted(body, if json { Response::from_json } else { Response::from_protobuf });
        }
        let mut reason = format!("HTTP {status}");
        let said = printable(&String::from_utf8_lossy(body));
        // A body in protobuf is no text.
        if !said.is_empty() && !said.contains('\u{fffd}') {
            reason = format!("{reason}: {said}");
        }
        match status {
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Self::Retry { after: retry_after(headers, SystemTime::now()), reason },
            // A proxy's word: the collector has not seen the request.
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => Self::unanswered(reason),
            StatusCode::PAYLOAD_TOO_LARGE => Self::TooLarge { reason },
            StatusCode::NOT_FOUND => Self::Unimplemented { reason },
            StatusCode::UNSUPPORTED_MEDIA_TYPE if sent != Compression::None => Self::EncodingRefused { reason },
            _ => Self::Permanent { answer: Answer::Http(status.as_u16()), reason },
        }
    }

    fn accepted(body: &[u8], decode: fn(&[u8]) -> Option<Response>) -> Self {
        // Loki answers 204 with nothing.
        if body.is_empty() {
            return Self::Accepted;
        }
        let Some(response) = decode(body) else {
            return Self::Partial { rejected: 0, message: "the answer is a success, but not one of OTLP".into() };
        };
        match response.partial_success {
            Some(partial) if partial.rejected > 0 || !partial.error_message.is_empty() => Self::Partial {
                rejected: partial.rejected.try_into().unwrap_or(0),
                message: printable(&partial.error_message),
            },
            Some(_) | None => Self::Accepted,
        }
    }
}

/// `grpc-status` and what comes with it. Not tonic's, which panics on details that are no base64.
struct GrpcStatus {
    code: Code,
    message: String,
    details: Vec<u8>,
}

impl GrpcStatus {
    /// What receivers say of a message over their limit, as grpc-go, tonic and grpc-java word it.
    fn says_too_large(&self) -> bool {
        let message = self.message.to_ascii_lowercase();
        ["larger than", "too large", "exceeds max", "message size", "message length"]
            .iter()
            .any(|word| message.contains(word))
    }

    fn parse(headers: &HeaderMap) -> Option<Self> {
        let code = Code::from_bytes(headers.get("grpc-status")?.as_bytes());
        let message = headers
            .get("grpc-message")
            .map_or_else(String::new, |message| printable(&percent_decode(message.as_bytes()).decode_utf8_lossy()));
        // Senders may leave the padding out.
        let base64 = GeneralPurpose::new(
            &STANDARD,
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
        );
        let details = headers.get("grpc-status-details-bin").and_then(|details| base64.decode(details.as_bytes()).ok());
        Some(Self { code, message, details: details.unwrap_or_default() })
    }

    /// Of an answer without `grpc-status`: the mapping that gRPC prescribes; it has no success.
    fn infer(http: StatusCode) -> Self {
        let code = match http {
            StatusCode::BAD_REQUEST => Code::Internal,
            StatusCode::UNAUTHORIZED => Code::Unauthenticated,
            StatusCode::FORBIDDEN => Code::PermissionDenied,
            StatusCode::NOT_FOUND => Code::Unimplemented,
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Code::Unavailable,
            _ => Code::Unknown,
        };
        Self { code, message: format!("no grpc-status, HTTP {http}"), details: Vec::new() }
    }

    fn retry_info(&self) -> Option<RetryInfo> {
        let status = tonic::Status::with_details(self.code, "", self.details.clone().into());
        status.get_details_retry_info()
    }

    fn refuses_encoding(&self, headers: &HeaderMap, trailers: Option<&HeaderMap>, sent: Compression) -> bool {
        let message = self.message.to_ascii_lowercase();
        if message.contains("compress") || message.contains("encoding") {
            return true;
        }
        let name = super::encoding_name(sent).unwrap_or_default();
        let accepted = trailers.and_then(|trailers| trailers.get(ACCEPT_ENCODING)).or(headers.get(ACCEPT_ENCODING));
        accepted
            .and_then(|accepted| accepted.to_str().ok())
            .is_some_and(|accepted| !accepted.split(',').any(|one| one.trim() == name))
    }
}

const ACCEPT_ENCODING: &str = "grpc-accept-encoding";

impl std::fmt::Display for GrpcStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = usize::try_from(i32::from(self.code)).ok().and_then(|code| GRPC_CODES.get(code));
        f.write_str(name.unwrap_or(&"UNKNOWN"))?;
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}

/// `ExportLogsServiceResponse` and `ExportTraceServiceResponse`: on the wire they are the same.
#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

impl Response {
    fn from_protobuf(body: &[u8]) -> Option<Self> {
        Self::decode(body).ok()
    }

    /// Read field by field: servers differ in whether the 64-bit count is a string.
    fn from_json(body: &[u8]) -> Option<Self> {
        let serde_json::Value::Object(response) = serde_json::from_slice(body).ok()? else { return None };
        let partial_success = response.get("partialSuccess").map(|partial| {
            let count = partial.get("rejectedLogRecords").unwrap_or(&partial["rejectedSpans"]);
            PartialSuccess {
                rejected: count.as_i64().or_else(|| count.as_str()?.parse().ok()).unwrap_or(0),
                error_message: partial["errorMessage"].as_str().unwrap_or_default().into(),
            }
        });
        Some(Self { partial_success })
    }
}

/// `Retry-After` in either form; a date in the past is now.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// Short and on one line: this text is a stranger's, and goes to our log.
fn printable(text: &str) -> String {
    let clean: String =
        text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_MAX + 1).collect();
    match clean.char_indices().nth(MESSAGE_MAX) {
        Some((end, _)) => format!("{}…", &clean[..end]),
        None => clean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let parse = |value: &'static str| {
            let headers = HeaderMap::from_iter([(header::RETRY_AFTER, header::HeaderValue::from_static(value))]);
            retry_after(&headers, now)
        };
        assert_eq!(parse("120"), Some(Duration::from_secs(120)));
        assert_eq!(parse(" 0 "), Some(Duration::ZERO));
        assert_eq!(parse("Sun, 06 Nov 1994 08:49:47 GMT"), Some(Duration::from_secs(10)));
        assert_eq!(parse("Sun, 06 Nov 1994 08:49:30 GMT"), Some(Duration::ZERO));
        for garbage in ["", "-1", "soon", "1.5", "99999999999999999999999"] {
            assert_eq!(parse(garbage), None, "{garbage:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn a_strangers_text_is_short_and_on_one_line() {
        assert_eq!(printable(" a\r\nb\x1b[31m "), "a  b [31m");
        assert_eq!(printable(&"é".repeat(300)).chars().count(), MESSAGE_MAX + 1);
    }

    #[test]
    fn a_json_count_is_a_string_or_a_number() {
        for count in ["rejectedLogRecords", "rejectedSpans"] {
            for body in [
                format!(r#"{{"partialSuccess":{{"{count}":"3"}}}}"#),
                format!(r#"{{"partialSuccess":{{"{count}":3}}}}"#),
            ] {
                let partial = Response::from_json(body.as_bytes()).unwrap().partial_success.unwrap();
                assert_eq!(partial.rejected, 3, "{body}");
            }
        }
        assert_eq!(Response::from_json(b"{}").unwrap().partial_success, None);
        assert!(Response::from_json(b"[]").is_none());
    }

    #[test]
    fn details_that_are_no_base64_do_no_harm() {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-status", header::HeaderValue::from_static("8"));
        headers.insert("grpc-status-details-bin", header::HeaderValue::from_static("%%%"));
        let (outcome, code) = Outcome::from_grpc(StatusCode::OK, &headers, None, b"", Compression::None);
        assert_eq!(code, Code::ResourceExhausted);
        let refused = Outcome::Permanent { answer: Answer::Grpc(8), reason: "RESOURCE_EXHAUSTED".into() };
        assert_eq!(outcome, refused);
    }
}
