//! URLs anywhere in a text in, the same without their user names and passwords out.

use super::REDACTED;

const MARK: &[u8] = b"://";

/// `None`: no URL has any.
pub(super) fn without_userinfo(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut done = 0;
    let mut word = Word::default();
    let mut at = 0;
    while let Some(from) = after_mark(text, at) {
        at = from;
        let Some(end) = userinfo_end(text, from, &mut word) else { continue };
        let userinfo = &text[from..end];
        let user_only = !userinfo.contains(&b':');
        if userinfo.is_empty() || (user_only && names_user_only(&text[..from - MARK.len()])) {
            continue;
        }
        out.extend_from_slice(&text[done..from]);
        out.extend_from_slice(REDACTED);
        if !user_only {
            out.push(b':');
            out.extend_from_slice(REDACTED);
        }
        done = end;
        at = end;
    }
    (done > 0).then(|| {
        out.extend_from_slice(&text[done..]);
        out
    })
}

/// In a text of which the end is missing: start of what would be a password, had the `@` been kept.
pub(super) fn cut_userinfo(text: &[u8]) -> Option<usize> {
    let last = text.windows(MARK.len()).rposition(|window| window == MARK)? + MARK.len();
    let rest = &text[last..];
    let authority = &rest[..authority_len(rest)];
    let open = authority.len() == rest.len() || has_odd_port(authority);
    let whole = rest.iter().all(|byte| !ends_word(*byte) && *byte != b'@');
    (open && whole && !rest.is_empty()).then_some(last)
}

fn after_mark(text: &[u8], from: usize) -> Option<usize> {
    let found = text[from..].windows(MARK.len()).position(|window| window == MARK)?;
    Some(from + found + MARK.len())
}

/// Index of the `@` behind the user's name and password. A password with an unescaped `/` makes the URL invalid, and looks
/// like a port that is no number: then the last `@` of the word it is.
fn userinfo_end(text: &[u8], from: usize, word: &mut Word) -> Option<usize> {
    let rest = &text[from..];
    let authority = &rest[..authority_len(rest)];
    if let Some(at) = authority.iter().rposition(|byte| *byte == b'@') {
        return Some(from + if authority[..at].contains(&b':') { last_at(rest).unwrap_or(at) } else { at });
    }
    if !has_odd_port(authority) {
        return None;
    }
    word.at(text, from).filter(|at| *at > from)
}

/// The last `@` of this URL's path: a password may have both `@` and `/` in it, and rather the host's name goes than a part
/// of the password stays.
fn last_at(rest: &[u8]) -> Option<usize> {
    let url = &rest[..rest.windows(MARK.len()).position(|window| window == MARK).unwrap_or(rest.len())];
    let path = url.iter().position(|byte| matches!(byte, b'?' | b'#') || ends_word(*byte)).unwrap_or(url.len());
    url[..path].iter().rposition(|byte| *byte == b'@')
}

fn authority_len(rest: &[u8]) -> usize {
    rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#') || ends_word(*byte)).unwrap_or(rest.len())
}

fn has_odd_port(authority: &[u8]) -> bool {
    let colon = authority.iter().rposition(|byte| *byte == b':');
    let port = colon.map_or(&b""[..], |colon| &authority[colon + 1..]);
    !port.iter().all(u8::is_ascii_digit) && !authority.ends_with(b"]")
}

fn ends_word(byte: u8) -> bool {
    byte.is_ascii_whitespace() || matches!(byte, b'"' | b'\'' | b'`' | b'<' | b'>')
}

/// `ssh://git@host`: a name that is no secret, while `https://<token>@host` is one.
fn names_user_only(before: &[u8]) -> bool {
    before.ends_with(b"ssh") || before.ends_with(b"sftp")
}

/// The last `@` of the word looked at last: found once for all the URLs in it.
#[derive(Default)]
struct Word {
    end: usize,
    last_at: Option<usize>,
}

impl Word {
    fn at(&mut self, text: &[u8], from: usize) -> Option<usize> {
        if from >= self.end {
            let len = text[from..].iter().position(|byte| ends_word(*byte)).unwrap_or(text.len() - from);
            self.end = from + len;
            self.last_at = text[from..self.end].iter().rposition(|byte| *byte == b'@').map(|at| from + at);
        }
        self.last_at
    }
}
