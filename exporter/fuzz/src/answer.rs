//! What a collector answers: its words are short and on one line, and protobuf and JSON mean the same.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use namespan::config::Compression;
use namespan::fuzz::{self, Answer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsPartialSuccess, ExportLogsServiceResponse};
use prost::Message as _;

use crate::{byte, part};

pub fn check(mut data: &[u8]) {
    let data = &mut data;
    let choice = byte(data);
    let status = StatusCode::from_u16(100 + u16::from(byte(data)) * 2).unwrap_or(StatusCode::OK);
    let sent = if choice & 1 == 0 { Compression::None } else { Compression::Gzip };
    let value = |bytes: &[u8]| HeaderValue::from_bytes(bytes).ok();
    let mut headers = HeaderMap::new();
    let named = ["grpc-status", "grpc-message", "grpc-status-details-bin", "grpc-accept-encoding", "retry-after"];
    for name in named.map(HeaderName::from_static) {
        if let Some(value) = value(part(data)).filter(|value| !value.is_empty()) {
            headers.insert(name, value);
        }
    }
    let json = HeaderValue::from_static("application/json");
    let mut http_headers = headers.clone();
    if choice & 2 != 0 {
        http_headers.insert(header::CONTENT_TYPE, json.clone());
    }
    for status in [status, StatusCode::OK, StatusCode::TOO_MANY_REQUESTS] {
        is_short(&fuzz::http_answer(status, &http_headers, data, sent));
        is_short(&fuzz::grpc_answer(status, &headers, None, data, sent));
        is_short(&fuzz::grpc_answer(status, &HeaderMap::new(), Some(&headers), data, sent));
    }
    means_the_same(data, &json);
}

fn is_short(answer: &Answer) {
    // A name or a status and 200 characters of the collector's.
    assert!(answer.text.chars().count() <= 300, "{answer:?}");
    assert!(!answer.text.contains(char::is_control), "{answer:?}");
}

fn means_the_same(mut data: &[u8], json: &HeaderValue) {
    let rejected = i64::from(byte(&mut data)) - 3;
    let response = ExportLogsServiceResponse {
        partial_success: Some(ExportLogsPartialSuccess {
            rejected_log_records: rejected,
            error_message: String::from_utf8_lossy(data).into_owned(),
        }),
    };
    let protobuf = fuzz::http_answer(StatusCode::OK, &HeaderMap::new(), &response.encode_to_vec(), Compression::None);
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, json.clone())]);
    let body = serde_json::to_vec(&response).unwrap();
    assert_eq!(protobuf, fuzz::http_answer(StatusCode::OK, &headers, &body, Compression::None));
    assert!(protobuf.rejected <= rejected.try_into().unwrap_or(0));
}
