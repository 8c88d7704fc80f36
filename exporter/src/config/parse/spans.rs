//! Samplers, patterns of names, and exit codes.

use super::{Expected, expected, one_of};
use crate::config::{RootSampler, Sampler, Trust};

/// A sampler by ratio takes every trace until it is told a ratio.
pub(in crate::config) fn sampler(text: &str) -> Result<Sampler, Expected> {
    const EVERY: RootSampler = RootSampler::Below(1 << 63);
    let alone = |root| Sampler { parent_based: false, root };
    let parent_based = |root| Sampler { parent_based: true, root };
    one_of(
        text,
        &[
            ("always_on", alone(RootSampler::On)),
            ("always_off", alone(RootSampler::Off)),
            ("traceidratio", alone(EVERY)),
            ("parentbased_always_on", parent_based(RootSampler::On)),
            ("parentbased_always_off", parent_based(RootSampler::Off)),
            ("parentbased_traceidratio", parent_based(EVERY)),
        ],
    )
}

pub(in crate::config) fn ratio(text: &str) -> Result<RootSampler, Expected> {
    match text.trim().parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "from 0 to 2^63; a fraction of one trace is none"
            )]
            let below = (ratio * 2f64.powi(63)) as u64;
            Ok(RootSampler::Below(below))
        }
        _ => expected("a ratio from 0 to 1, such as 0.1"),
    }
}

pub(in crate::config) fn max_per_trace(text: &str) -> Result<u32, Expected> {
    match text.trim().parse() {
        Ok(value @ 1..) => Ok(value),
        _ => expected("a whole number from 1 to 4294967295"),
    }
}

/// The name of an executable, or of many.
pub(in crate::config) fn executable(text: &str) -> Result<String, Expected> {
    const WHAT: &str = "the name of an executable without its folder";
    let pattern = pattern(text, WHAT)?;
    if pattern.contains('/') { expected(WHAT) } else { Ok(pattern) }
}

/// `None`: nobody's.
pub(in crate::config) fn trust(text: &str) -> Result<Option<Trust>, Expected> {
    const CHOICES: &str = "one of all, host, containers, none, name:PATTERN, image:PATTERN";
    let trust = match text {
        "none" => return Ok(None),
        "all" => Trust::All,
        "host" => Trust::Host,
        "containers" => Trust::Containers,
        _ => match text.split_once(':') {
            Some(("name", name)) => Trust::Name(pattern(name, "name: and the name of a container")?),
            Some(("image", name)) => Trust::Image(image(name)?),
            _ => return expected(CHOICES),
        },
    };
    Ok(Some(trust))
}

fn image(text: &str) -> Result<String, Expected> {
    const WHAT: &str = "image: and the name of an image without tag or digest";
    let pattern = pattern(text, WHAT)?;
    // A colon before the last slash is that of a registry's port.
    let last = pattern.rsplit('/').next().unwrap_or_default();
    let has_version = last.contains([':', '@']) && !last.ends_with('*');
    if has_version { expected(WHAT) } else { Ok(pattern) }
}

/// A text, with any rest where `*` ends it.
pub(super) fn pattern(text: &str, what: &str) -> Result<String, Expected> {
    let stem = text.strip_suffix('*').unwrap_or(text);
    if text.trim().is_empty() || stem.contains('*') {
        return Err(Expected(format!("{what}, with `*` nowhere but at its end")));
    }
    Ok(text.to_owned())
}

/// Of a process that may have failed.
pub(in crate::config) fn exit_code(text: &str) -> Result<u8, Expected> {
    match text.trim().parse() {
        Ok(value @ 1..) => Ok(value),
        _ => expected("an exit code from 1 to 255; 0 is never an error"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn samplers_are_those_of_the_specification() {
        let cases = [
            ("always_on", false, RootSampler::On),
            ("always_off", false, RootSampler::Off),
            ("traceidratio", false, RootSampler::Below(1 << 63)),
            ("parentbased_always_on", true, RootSampler::On),
            ("parentbased_always_off", true, RootSampler::Off),
            ("parentbased_traceidratio", true, RootSampler::Below(1 << 63)),
        ];
        for (text, parent_based, root) in cases {
            assert_eq!(sampler(text), Ok(Sampler { parent_based, root }), "{text}");
        }
        for text in ["", "ALWAYS_ON", "jaeger_remote", "parentbased_jaeger_remote", "xray"] {
            let Err(Expected(phrase)) = sampler(text) else { panic!("{text} must be refused") };
            assert!(phrase.contains("always_off") && phrase.contains("parentbased_traceidratio"), "{phrase}");
        }
    }

    #[test]
    fn a_ratio_is_a_share_of_all_traces() {
        let cases = [("0", 0), ("0.0", 0), ("1", 1 << 63), ("1.0", 1 << 63), ("0.5", 1 << 62), (" .25 ", 1 << 61)];
        for (text, below) in cases {
            assert_eq!(ratio(text), Ok(RootSampler::Below(below)), "{text}");
        }
        for text in ["", "-0.1", "1.0000001", "2", "10%", "1/10", "NaN", "inf", "0,1"] {
            assert!(ratio(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_pattern_has_its_asterisk_at_the_end() {
        for text in ["sshd", "conmon*", "*", "["] {
            assert_eq!(executable(text), Ok(text.to_owned()));
        }
        for text in ["", " ", "*d", "a*b", "**", "/usr/sbin/sshd", "bin/*"] {
            assert!(executable(text).is_err(), "{text}");
        }
    }

    #[test]
    fn trust_is_in_a_place_or_in_a_container_by_name_or_image() {
        let cases = [
            ("none", None),
            ("all", Some(Trust::All)),
            ("host", Some(Trust::Host)),
            ("containers", Some(Trust::Containers)),
            ("name:web", Some(Trust::Name("web".to_owned()))),
            ("name:web-*", Some(Trust::Name("web-*".to_owned()))),
            ("image:nginx", Some(Trust::Image("nginx".to_owned()))),
            ("image:r.example:5000/a/b*", Some(Trust::Image("r.example:5000/a/b*".to_owned()))),
            ("image:localhost:5*", Some(Trust::Image("localhost:5*".to_owned()))),
        ];
        for (text, wanted) in cases {
            assert_eq!(trust(text), Ok(wanted), "{text}");
        }
        for text in ["", "web", "names:web", "name:", "name:a*b", "image:", "image:nginx:1.27", "image:r/a@sha256:00"] {
            assert!(trust(text).is_err(), "{text}");
        }
    }

    #[test]
    fn exit_codes_and_counts_are_within_bounds() {
        assert_eq!((exit_code("1"), exit_code("255")), (Ok(1), Ok(255)));
        assert_eq!((max_per_trace("1"), max_per_trace("4294967295")), (Ok(1), Ok(u32::MAX)));
        for text in ["", "0", "-1", "4294967296", "x"] {
            assert!(exit_code(text).is_err() && max_per_trace(text).is_err(), "{text}");
        }
        assert!(exit_code("256").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "(name:|image:)?.*") {
            drop((sampler(&text), ratio(&text), max_per_trace(&text), exit_code(&text)));
            drop((executable(&text), trust(&text)));
        }

        #[test]
        fn a_greater_ratio_never_takes_fewer_traces(some in 0.0..=1.0f64, other in 0.0..=1.0f64) {
            let below = |share: f64| match ratio(&share.to_string()) {
                Ok(RootSampler::Below(below)) => below,
                found => panic!("{share}: {found:?}"),
            };
            prop_assert_eq!(below(some.min(other)) <= below(some.max(other)), true);
        }
    }
}
