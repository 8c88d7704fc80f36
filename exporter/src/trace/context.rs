//! W3C Trace Context: what a workload wrote comes in, a context that can be believed in form goes out, or none.
//!
//! <https://www.w3.org/TR/trace-context-2/>, sections 3.2 and 3.3. Anything that is not well-formed counts as not there.

use namespan_ebpf::wire::section;

use crate::event::EnvContext;

/// 16 bytes, not all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId(pub [u8; 16]);

/// 8 bytes, not all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanId(pub [u8; 8]);

/// The trace is recorded.
pub const SAMPLED: u8 = 0x01;
/// At least 7 bytes of the trace id are random (level 2).
pub const RANDOM: u8 = 0x02;

/// Names a span in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanContext {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    /// [`SAMPLED`] and [`RANDOM`].
    pub flags: u8,
}

impl SpanContext {
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

/// A span of another program, as the environment names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    pub context: SpanContext,
    /// `tracestate`; empty: none, or not well-formed.
    pub state: Box<str>,
}

impl Remote {
    /// `None`: no `TRACEPARENT`, or one that is not well-formed.
    #[must_use]
    pub fn parse(env: EnvContext<'_>) -> Option<Self> {
        let context = traceparent(env.traceparent)?;
        let state = tracestate(env.tracestate).unwrap_or_default();
        Some(Self { context, state: state.into() })
    }
}

/// `00-<32 hex>-<16 hex>-<2 hex>`, lower case; later versions may go on after another `-`.
fn traceparent(text: &[u8]) -> Option<SpanContext> {
    let [version] = hex(text.get(..2)?)?;
    let whole = match version {
        0 => text.len() == 55,
        0xff => false,
        1..=0xfe => text.get(55).is_none_or(|byte| *byte == b'-'),
    };
    if !whole || [2, 35, 52].iter().any(|at| text.get(*at) != Some(&b'-')) {
        return None;
    }
    let trace_id = TraceId(hex(text.get(3..35)?)?);
    let span_id = SpanId(hex(text.get(36..52)?)?);
    let [flags] = hex(text.get(53..55)?)?;
    let valid = trace_id.0 != [0; 16] && span_id.0 != [0; 8];
    valid.then_some(SpanContext { trace_id, span_id, flags: flags & (SAMPLED | RANDOM) })
}

/// Lower-case digits only.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

/// Most members of a list.
const MEMBERS: usize = 32;
const KEY_MAX: usize = 256;
const VALUE_MAX: usize = 256;

/// A list of `key=value`, well-formed and not cut off by the kernel side; as it was written.
fn tracestate(text: &[u8]) -> Option<&str> {
    if text.len() >= section::TRACESTATE_MAX as usize {
        return None;
    }
    let text = str::from_utf8(text).ok()?;
    let mut keys: Vec<&str> = Vec::new();
    for member in text.split(',').map(|member| member.trim_matches([' ', '\t'])) {
        // Empty members are allowed.
        if member.is_empty() {
            continue;
        }
        let (key, value) = member.split_once('=')?;
        if !is_key(key) || !is_value(value) || keys.len() == MEMBERS || keys.contains(&key) {
            return None;
        }
        keys.push(key);
    }
    Some(text)
}

fn is_key(key: &str) -> bool {
    let first = key.bytes().next().is_some_and(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9'));
    let rest = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/' | b'@');
    first && key.len() <= KEY_MAX && key.bytes().all(rest)
}

fn is_value(value: &str) -> bool {
    let printable = |byte| matches!(byte, 0x20..=0x7e) && !matches!(byte, b',' | b'=');
    !value.is_empty() && value.len() <= VALUE_MAX && !value.ends_with(' ') && value.bytes().all(printable)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn parsed(parent: &str, state: &str) -> Option<Remote> {
        Remote::parse(EnvContext { traceparent: parent.as_bytes(), tracestate: state.as_bytes() })
    }

    fn state_of(state: &str) -> String {
        parsed(VALID, state).unwrap().state.into()
    }

    #[test]
    fn a_well_formed_context_is_taken_with_its_known_flags() {
        let context = parsed(VALID, "").unwrap().context;
        assert_eq!(context.trace_id.0[..3], [0x4b, 0xf9, 0x2f]);
        assert_eq!(context.span_id.0, [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
        assert_eq!((context.flags, context.is_sampled()), (SAMPLED, true));
        let unsampled = parsed(&VALID.replace("-01", "-fe"), "").unwrap().context;
        assert_eq!((unsampled.flags, unsampled.is_sampled()), (RANDOM, false));
    }

    #[test]
    fn later_versions_may_be_longer_and_version_00_may_not() {
        let later = VALID.replacen("00", "cc", 1);
        assert!(parsed(&later, "").is_some());
        assert!(parsed(&format!("{later}-what comes then"), "").is_some());
        assert!(parsed(&format!("{later}x"), "").is_none());
        assert!(parsed(&format!("{VALID}-x"), "").is_none());
    }

    #[test]
    fn what_is_not_well_formed_is_no_context() {
        for parent in [
            "",
            "00",
            &VALID.to_uppercase(),
            &VALID.replacen("00", "ff", 1),
            &VALID.replace('-', "_"),
            &VALID[..54],
            &format!(" {VALID}"),
            &format!("{VALID} "),
            &VALID.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &VALID.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &VALID.replace("4bf9", "4bg9"),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
        ] {
            assert_eq!(parsed(parent, ""), None, "{parent}");
        }
    }

    #[test]
    fn a_state_is_carried_on_as_it_was_written() {
        for state in ["", "a=1", "rojo=00f067aa0ba902b7, congo=t61rcWkgMzE", "0@t=!~", "a=1,,b=2", "a=b c"] {
            assert_eq!(state_of(state), state);
        }
    }

    #[test]
    fn a_state_that_is_not_well_formed_goes_and_the_parent_stays() {
        let many: Vec<_> = (0..33).map(|n| format!("k{n}=1")).collect();
        for state in
            ["a", "=1", "A=1", "a=", "a=1,a=2", "a=b=c", "a=\u{e9}", "a=\n", &many.join(","), &"a=1 ,".repeat(300)]
        {
            assert_eq!(state_of(state), "", "{state}");
        }
        let cut = EnvContext { traceparent: VALID.as_bytes(), tracestate: &[b'a'; 1023] };
        assert_eq!(&*Remote::parse(cut).unwrap().state, "");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_context_or_none(
            traceparent in prop::collection::vec(any::<u8>(), 0..130),
            tracestate in prop::collection::vec(any::<u8>(), 0..1030),
        ) {
            let env = EnvContext { traceparent: &traceparent, tracestate: &tracestate };
            prop_assert!(Remote::parse(env).is_none_or(|remote| remote.state.is_ascii()));
        }

        #[test]
        fn every_context_written_is_read(trace: [u8; 16], span: [u8; 8], flags in 0..4_u8) {
            prop_assume!(trace != [0; 16] && span != [0; 8]);
            let (trace_number, span_number) = (u128::from_be_bytes(trace), u64::from_be_bytes(span));
            let text = format!("00-{trace_number:032x}-{span_number:016x}-{flags:02x}");
            let context = SpanContext { trace_id: TraceId(trace), span_id: SpanId(span), flags };
            prop_assert_eq!(parsed(&text, "").map(|remote| remote.context), Some(context));
        }
    }
}
