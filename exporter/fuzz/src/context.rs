//! `TRACEPARENT` and `TRACESTATE` with NUL between them: what is taken says the same as what was written.

use std::fmt::Write as _;

use namespan::event::EnvContext;
use namespan::trace::Remote;

pub fn check(data: &[u8]) {
    let (traceparent, tracestate) = data.split_at(data.iter().position(|byte| *byte == 0).unwrap_or(data.len()));
    let tracestate = tracestate.strip_prefix(b"\0").unwrap_or_default();
    let Some(Remote { context, state }) = Remote::parse(EnvContext { traceparent, tracestate }) else { return };
    assert!(context.trace_id.0 != [0; 16] && context.span_id.0 != [0; 8] && context.flags & !3 == 0);
    let hex = |bytes: &[u8]| {
        bytes.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        })
    };
    let ids = format!("-{}-{}-", hex(&context.trace_id.0), hex(&context.span_id.0));
    assert_eq!(traceparent.get(2..53), Some(ids.as_bytes()));
    assert!(state.is_empty() || state.as_bytes() == tracestate);
    assert!(state.split(',').filter(|member| !member.trim_matches([' ', '\t']).is_empty()).count() <= 32);
    assert!(state.bytes().all(|byte| matches!(byte, 0x20..=0x7e | b'\t')));
    // Written again, it is the same again.
    let again = format!("00{ids}{:02x}", context.flags);
    let again = Remote::parse(EnvContext { traceparent: again.as_bytes(), tracestate: state.as_bytes() });
    assert_eq!(again, Some(Remote { context, state }));
}
