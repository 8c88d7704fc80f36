//! Arguments in, arguments without what looks secret out: the name of a secret stays, its value becomes `REDACTED`.
//!
//! Nothing here can know what is secret. Where a rule is in doubt it redacts, and where it must cut it cuts more rather
//! than less. Every rule looks at each byte a bounded number of times.

mod keys;
mod program;
mod scan;
#[cfg(test)]
mod tests;
mod url;

use std::borrow::Cow;

use self::program::Program;

/// What stands for a value, as the semantic conventions have it for URLs.
pub const REDACTED: &[u8] = b"REDACTED";

/// Looks at the arguments of one exec in their order.
#[derive(Clone, Debug, Default)]
pub struct Redactor {
    next: Next,
    program: Program,
    changed: bool,
}

/// What the argument before tells about the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Next {
    #[default]
    Any,
    Secret,
    /// `user:password`
    UserPassword,
    /// A shell's script: an assignment at its start ends with the word.
    Script,
}

impl Redactor {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the exec before.
    pub fn start(&mut self) {
        *self = Self::default();
    }

    /// Whether anything was replaced since the start.
    #[must_use]
    pub fn changed(&self) -> bool {
        self.changed
    }

    /// The next argument, whole; borrowed if there is nothing secret in it.
    pub fn arg<'a>(&mut self, arg: &'a [u8]) -> Cow<'a, [u8]> {
        let expected = self.step(arg);
        if keys::is_private_key(arg) {
            return self.hidden(arg);
        }
        let redacted = match expected {
            Next::Secret => return self.hidden(arg),
            Next::UserPassword => password_start(arg, false),
            Next::Any | Next::Script => None,
        }
        .or_else(|| attached(arg, self.program, expected))
        .filter(|start| *start < arg.len())
        .map_or_else(|| scan::text(arg, self.program), |start| Cow::Owned([&arg[..start], REDACTED].concat()));
        let redacted = match url::without_userinfo(&redacted) {
            Some(replaced) => Cow::Owned(replaced),
            None => redacted,
        };
        self.changed |= matches!(redacted, Cow::Owned(_));
        redacted
    }

    /// The last argument before a gap, of which the end may be missing: with it the `@` that tells a password from a path.
    pub fn arg_before_gap<'a>(&mut self, arg: &'a [u8]) -> Cow<'a, [u8]> {
        let redacted = self.arg(arg);
        let Some(start) = url::cut_userinfo(&redacted) else { return redacted };
        self.changed = true;
        Cow::Owned([&redacted[..start], REDACTED].concat())
    }

    /// The first argument after a gap, of which the start may be missing: no one knows what it is the rest of.
    pub fn arg_after_gap<'a>(&mut self, arg: &'a [u8]) -> Cow<'a, [u8]> {
        self.step(arg);
        // The end of a flag's name, perhaps: its value is the next argument.
        if arg.iter().copied().all(keys::is_name) {
            self.next = Next::Secret;
        }
        self.hidden(arg)
    }

    fn hidden<'a>(&mut self, arg: &'a [u8]) -> Cow<'a, [u8]> {
        if arg.is_empty() {
            return Cow::Borrowed(arg);
        }
        self.changed = true;
        Cow::Borrowed(REDACTED)
    }

    /// What this argument was expected to be; remembers what it tells about the next one, even if it is a value itself:
    /// `--password --token x` may be either.
    fn step(&mut self, arg: &[u8]) -> Next {
        let next = if keys::takes_secret(arg) || self.program.takes_secret(arg) {
            Next::Secret
        } else if self.program.takes_user(arg) {
            Next::UserPassword
        } else if self.program.takes_script(arg) {
            Next::Script
        } else {
            Next::Any
        };
        self.program.note(arg);
        std::mem::replace(&mut self.next, next)
    }
}

/// Start of a value that goes to the end of the argument.
fn attached(arg: &[u8], program: Program, expected: Next) -> Option<usize> {
    if let Some(start) = program.attached_secret(arg) {
        return Some(start);
    }
    if let Some(start) = program.attached_user(arg)
        && let Some(password) = password_start(&arg[start..], arg[1] == b'U')
    {
        return Some(start + password);
    }
    if expected == Next::Script {
        return None;
    }
    // `--password=a b`, `--env=PASSWORD=a b`, `Cookie: a b`: of one argument, so spaces are part of the value.
    let mut start = 0;
    for (at, byte) in arg.iter().enumerate() {
        match byte {
            b'=' if keys::is_secret_assigned(scan::name_before(&arg[start..at])) => return Some(at + 1),
            b':' if start == 0 && scan::colon_assigns(scan::name_before(&arg[..at]), &arg[at + 1..]) => {
                return Some(at + 1 + arg[at + 1..].iter().take_while(|byte| byte.is_ascii_whitespace()).count());
            }
            b'=' => start = at + 1,
            b'?' | b'&' | b';' | b',' | b'"' | b'\'' | b'`' | b'{' => return None,
            byte if byte.is_ascii_whitespace() => return None,
            _ => {}
        }
    }
    None
}

/// Start of the password in `user:password`, but neither in `1000:1000` nor in `http://host` or a format of `date -u`.
fn password_start(text: &[u8], percent: bool) -> Option<usize> {
    let colon = text.iter().position(|byte| *byte == b':' || (percent && *byte == b'%'))?;
    let (user, password) = (&text[..colon], &text[colon + 1..]);
    let numeric = |part: &[u8]| part.iter().all(u8::is_ascii_digit);
    let ids = !user.is_empty() && numeric(user) && numeric(password);
    (!ids && !password.starts_with(b"//") && !text.starts_with(b"+")).then_some(colon + 1)
}
