//! Whether a span is told of: the samplers of the specification (`trace/sdk.md`, Built-in samplers).

use super::TraceId;
use super::context::SAMPLED;
use crate::config::{RootSampler, Sampler};

/// The decision for a span of this trace; `parent`: the flags of its parent, of this program or another.
#[must_use]
pub fn is_sampled(sampler: Sampler, trace: TraceId, parent: Option<u8>) -> bool {
    match parent {
        Some(flags) if sampler.parent_based => flags & SAMPLED != 0,
        Some(_) | None => match sampler.root {
            RootSampler::On => true,
            RootSampler::Off => false,
            RootSampler::Below(bound) => last_63_bits(trace) < bound,
        },
    }
}

/// As other SDKs compare them with a ratio, so that they decide alike.
fn last_63_bits(TraceId(id): TraceId) -> u64 {
    let (_, last) = id.split_last_chunk().unwrap_or((&[], &[0; 8]));
    u64::from_be_bytes(*last) >> 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENTED: Option<u8> = Some(SAMPLED);
    const UNSAMPLED: Option<u8> = Some(0);

    fn trace(last: u64) -> TraceId {
        TraceId((u128::from(last) | 1 << 127).to_be_bytes())
    }

    fn decisions(parent_based: bool, root: RootSampler) -> [bool; 3] {
        let sampler = Sampler { parent_based, root };
        [None, PARENTED, UNSAMPLED].map(|parent| is_sampled(sampler, trace(1 << 62), parent))
    }

    #[test]
    fn a_parent_decides_only_where_the_sampler_says_so() {
        assert_eq!(decisions(true, RootSampler::On), [true, true, false]);
        assert_eq!(decisions(true, RootSampler::Off), [false, true, false]);
        assert_eq!(decisions(false, RootSampler::On), [true, true, true]);
        assert_eq!(decisions(false, RootSampler::Off), [false, false, false]);
    }

    #[test]
    fn a_ratio_divides_trace_ids_at_its_bound() {
        let below = |bound, last| {
            is_sampled(Sampler { parent_based: true, root: RootSampler::Below(bound) }, trace(last), None)
        };
        assert!(!below(0, 0));
        assert!(below(1 << 63, u64::MAX));
        assert!(below(1 << 62, (1 << 63) - 1));
        assert!(!below(1 << 62, 1 << 63));
    }
}
