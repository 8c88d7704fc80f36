//! Numbers, times and raw bytes as text, appended to a buffer without allocating.

/// Most characters of a record's display line.
const DISPLAY_MAX: usize = 256;
const ELLIPSIS: &str = "…";

const NS_PER_MS: u64 = 1_000_000;
const MS_PER_DAY: u64 = 86_400_000;

pub fn decimal(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [b'0'; 20];
    let mut start = digits.len() - 1;
    digits[start] += (value % 10) as u8;
    while value >= 10 {
        value /= 10;
        start -= 1;
        digits[start] += (value % 10) as u8;
    }
    out.extend_from_slice(&digits[start..]);
}

/// `0x7f3a10`
pub fn hexadecimal(out: &mut Vec<u8>, value: u64) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(b"0x");
    let digits = (64 - (value | 1).leading_zeros()).div_ceil(4);
    for digit in (0..digits).rev() {
        out.push(DIGITS[(value >> (4 * digit) & 0xf) as usize]);
    }
}

/// `2026-11-22T18:44:04.120Z` of nanoseconds since the Unix epoch.
pub fn iso_8601(out: &mut Vec<u8>, unix_ns: u64) {
    let since_epoch = unix_ns / NS_PER_MS;
    let (days, ms) = (since_epoch / MS_PER_DAY, since_epoch % MS_PER_DAY);
    let (year, month, day) = civil(days);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let parts = [
        (0..4, year),
        (5..7, month),
        (8..10, day),
        (11..13, ms / 3_600_000),
        (14..16, ms / 60_000 % 60),
        (17..19, ms / 1000 % 60),
        (20..23, ms % 1000),
    ];
    for (place, mut value) in parts {
        for digit in text[place].iter_mut().rev() {
            *digit = b'0' + (value % 10) as u8;
            value /= 10;
        }
    }
    out.extend_from_slice(&text);
}

/// Year, month and day of days since 1970-01-01, by Howard Hinnant's `civil_from_days`: years start in March, so that
/// the leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// A line for people: control characters and what is not UTF-8 are escaped, and it ends with `…` when too long.
#[derive(Debug, Default)]
pub struct Line {
    text: String,
    chars: usize,
}

impl Line {
    pub fn clear(&mut self) {
        self.text.clear();
        self.chars = 0;
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.text.as_bytes()
    }

    pub fn push(&mut self, bytes: &[u8]) {
        // A character is at most four bytes: what is beyond cannot be shown.
        let shown = &bytes[..bytes.len().min(4 * DISPLAY_MAX + 4)];
        if self.chars + shown.len() <= DISPLAY_MAX
            && let Ok(plain) = str::from_utf8(shown)
            && plain.bytes().all(|byte| (b' '..=b'~').contains(&byte))
        {
            self.text.push_str(plain);
            self.chars += plain.len();
            return;
        }
        for chunk in shown.utf8_chunks() {
            for character in chunk.valid().chars() {
                if character.is_control() || is_bidi(character) {
                    self.put_all(character.escape_default());
                } else {
                    self.put(character);
                }
            }
            for byte in chunk.invalid() {
                self.put_all(byte.escape_ascii().map(char::from));
            }
            if self.full() {
                return;
            }
        }
    }

    fn put_all(&mut self, characters: impl Iterator<Item = char>) {
        characters.for_each(|character| self.put(character));
    }

    fn put(&mut self, character: char) {
        match self.chars {
            0..DISPLAY_MAX => self.text.push(character),
            DISPLAY_MAX => self.text.push_str(ELLIPSIS),
            _ => return,
        }
        self.chars += 1;
    }

    /// Nothing more will be shown.
    #[must_use]
    pub fn full(&self) -> bool {
        self.chars > DISPLAY_MAX
    }
}

impl std::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

/// Marks that make a line look as if it read otherwise.
fn is_bidi(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The last component of a path.
#[must_use]
pub fn base_name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// At most `limit` characters of a text; at most `limit` bytes of what is not UTF-8.
#[must_use]
pub fn shortened(text: &[u8], limit: Option<usize>) -> &[u8] {
    let Some(limit) = limit.filter(|limit| *limit < text.len()) else { return text };
    match std::str::from_utf8(text) {
        Ok(utf8) => utf8.char_indices().nth(limit).map_or(text, |(end, _)| &text[..end]),
        Err(_) => &text[..limit],
    }
}

/// Without the start of a character at the end: a text cut anywhere stays a text.
#[must_use]
pub fn without_cut_end(text: &[u8]) -> &[u8] {
    match std::str::from_utf8(text) {
        Err(error) if error.error_len().is_none() => &text[..error.valid_up_to()],
        Ok(_) | Err(_) => text,
    }
}

/// Without the rest of a character at the start.
#[must_use]
pub fn without_cut_start(text: &[u8]) -> &[u8] {
    let rest = text.iter().take(3).take_while(|byte| **byte & 0xc0 == 0x80).count();
    if std::str::from_utf8(&text[rest..]).is_ok() { &text[rest..] } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn line(bytes: &[u8]) -> String {
        let mut line = Line::default();
        line.push(bytes);
        line.text
    }

    #[test]
    fn numbers_are_decimal() {
        assert_eq!(written(|out| decimal(out, 0)), "0");
        assert_eq!(written(|out| decimal(out, 1_234_567_890)), "1234567890");
        assert_eq!(written(|out| decimal(out, u64::MAX)), u64::MAX.to_string());
    }

    #[test]
    fn addresses_are_hexadecimal() {
        for value in [0, 1, 0xf, 0x10, 0x7f3a_1000, u64::MAX] {
            assert_eq!(written(|out| hexadecimal(out, value)), format!("{value:#x}"));
        }
    }

    #[test]
    fn times_are_iso_8601_with_milliseconds() {
        let time = |seconds: u64, ms: u64| written(|out| iso_8601(out, (seconds * 1000 + ms) * NS_PER_MS));
        assert_eq!(time(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(951_782_400, 7), "2000-02-29T00:00:00.007Z");
        assert_eq!(time(1_709_251_199, 999), "2024-02-29T23:59:59.999Z");
        assert_eq!(time(1_795_373_044, 120), "2026-11-22T18:44:04.120Z");
        assert_eq!(time(4_107_542_400, 0), "2100-03-01T00:00:00.000Z");
        assert_eq!(written(|out| iso_8601(out, u64::MAX)), "2554-07-21T23:34:33.709Z");
    }

    #[test]
    fn every_day_follows_the_day_before() {
        let mut last = civil(0);
        for days in 1..200_000 {
            let next = civil(days);
            let follows = next == (last.0, last.1, last.2 + 1)
                || (next == (last.0, last.1 + 1, 1) && last.2 >= 28)
                || (next == (last.0 + 1, 1, 1) && (last.1, last.2) == (12, 31));
            assert!(follows, "{last:?} {next:?}");
            last = next;
        }
    }

    #[test]
    fn a_display_line_escapes_what_a_terminal_would_obey() {
        assert_eq!(line("a\n\u{1b}[31mé\u{202e}".as_bytes()), "a\\n\\u{1b}[31mé\\u{202e}");
        assert_eq!(line(b"a\xffb"), "a\\xffb");
    }

    #[test]
    fn a_display_line_ends_at_256_characters() {
        let long = line("é".repeat(10_000).as_bytes());
        assert_eq!(long.chars().count(), DISPLAY_MAX + 1);
        assert!(long.ends_with('…'));
        assert_eq!(line(&[b'x'; DISPLAY_MAX]).len(), DISPLAY_MAX);
    }

    #[test]
    fn texts_are_shortened_by_characters_and_bytes_by_bytes() {
        assert_eq!(shortened("ééé".as_bytes(), Some(2)), "éé".as_bytes());
        assert_eq!(shortened("ééé".as_bytes(), Some(3)), "ééé".as_bytes());
        assert_eq!(shortened(b"\xff\xff\xff", Some(2)), b"\xff\xff");
        assert_eq!(shortened(b"abc", Some(0)), b"");
        assert_eq!(shortened(b"abc", None), b"abc");
    }

    #[test]
    fn a_character_cut_by_the_limit_goes_with_it() {
        assert_eq!(without_cut_end("aé".as_bytes().split_last().unwrap().1), b"a");
        assert_eq!(without_cut_end(b"a\xff"), b"a\xff");
        assert_eq!(without_cut_start(&"éa".as_bytes()[1..]), b"a");
        assert_eq!(without_cut_start(b"\x80\x80\xff"), b"\x80\x80\xff");
    }
}
