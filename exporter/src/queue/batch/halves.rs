//! One encoded OTLP request comes in, two with about half of its items each go out.

use bytes::Bytes;
use prost::{DecodeError, Message};

#[derive(Debug)]
pub(super) struct Halves {
    /// Items in the left half.
    pub(super) left_items: usize,
    pub(super) left: Vec<u8>,
    pub(super) right: Vec<u8>,
}

/// `None` where there are not two items.
pub(super) fn halves(protobuf: Bytes) -> Result<Option<Halves>, DecodeError> {
    let request = Request::decode(protobuf)?;
    let total: usize =
        request.resources.iter().flat_map(|resource| &resource.scopes).map(|scope| scope.items.len()).sum();
    if total < 2 {
        return Ok(None);
    }
    let left_items = total / 2;
    let (left, right) = request.split_at(left_items);
    Ok(Some(Halves { left_items, left: left.encode_to_vec(), right: right.encode_to_vec() }))
}

/// An `ExportLogsServiceRequest` or `ExportTraceServiceRequest`: on the wire they differ in their items alone, which are
/// not looked into.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<OfResource>,
}

/// `ResourceLogs` or `ResourceSpans`.
#[derive(Clone, PartialEq, Message)]
struct OfResource {
    #[prost(bytes = "bytes", optional, tag = "1")]
    resource: Option<Bytes>,
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<OfScope>,
    #[prost(string, tag = "3")]
    schema_url: String,
}

/// `ScopeLogs` or `ScopeSpans`.
#[derive(Clone, PartialEq, Message)]
struct OfScope {
    #[prost(bytes = "bytes", optional, tag = "1")]
    scope: Option<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    items: Vec<Bytes>,
    #[prost(string, tag = "3")]
    schema_url: String,
}

impl Request {
    /// The first `left` items, and the others; groups that lie on both sides get their resource and scope twice.
    fn split_at(self, left: usize) -> (Self, Self) {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        let mut room = left;
        for OfResource { resource, scopes, schema_url } in self.resources {
            let (mut first_scopes, mut second_scopes) = (Vec::new(), Vec::new());
            for OfScope { scope, mut items, schema_url } in scopes {
                let rest = items.split_off(room.min(items.len()));
                room -= items.len();
                for (items, side) in [(items, &mut first_scopes), (rest, &mut second_scopes)] {
                    if !items.is_empty() {
                        side.push(OfScope { scope: scope.clone(), items, schema_url: schema_url.clone() });
                    }
                }
            }
            for (scopes, side) in [(first_scopes, &mut first), (second_scopes, &mut second)] {
                if !scopes.is_empty() {
                    side.push(OfResource { resource: resource.clone(), scopes, schema_url: schema_url.clone() });
                }
            }
        }
        (Self { resources: first }, Self { resources: second })
    }
}
