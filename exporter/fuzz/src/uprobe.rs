//! A probe's line: written again it is read as the same probe, and a refusal points into the line.

use namespan::uprobe::parse;

pub fn check(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    match parse::probe(text, &[]) {
        Ok(probe) => {
            let printed = probe.to_string();
            // Quotes and defaults make it longer than what was written, perhaps too long.
            if printed.len() <= parse::TEXT_MAX {
                assert_eq!(parse::probe(&printed, &[]).as_ref(), Ok(&probe), "{printed}");
            }
        }
        Err(refusal) => {
            assert!(refusal.column <= refusal.text.chars().count() && !refusal.problem.is_empty());
            assert_eq!(refusal.to_string().lines().count(), 3, "{refusal}");
        }
    }
    let _parts = (parse::function(text), parse::binary(text), parse::argument(text, 0), parse::returned(text));
}
