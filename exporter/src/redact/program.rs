//! Short flags mean what their program says: `-p` is a password to `mysql` and a port to `docker run`.

use super::keys::starts_with;

/// The last program named in the arguments: `sudo mysql -px` is about `mysql`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Program {
    kind: Kind,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Unknown,
    Shell,
    /// `docker`, `podman`, ...; its `-u` is a user and group.
    Engine,
    EngineLogin,
    /// Letters of its secret flags, and where their values stand.
    Flags(&'static [u8], Place),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// `-pSECRET`
    Attached,
    /// `-k SECRET`
    Separate,
    Either,
}

impl Program {
    /// Remembers the program that this argument names, if it does.
    pub(super) fn note(&mut self, arg: &[u8]) {
        if arg.starts_with(b"-") {
            return;
        }
        let name = arg.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        if name == b"login" && self.kind == Kind::Engine {
            self.kind = Kind::EngineLogin;
        } else if let Some(kind) = known(name) {
            self.kind = kind;
        }
    }

    /// The argument is a flag, and its value a secret in the next one.
    pub(super) fn takes_secret(self, arg: &[u8]) -> bool {
        let (letters, place) = self.secret_flags();
        place != Place::Attached && matches!(arg, [b'-', letter] if letters.contains(letter))
    }

    /// Start of the secret in `-pSECRET`.
    pub(super) fn attached_secret(self, arg: &[u8]) -> Option<usize> {
        let (letters, place) = self.secret_flags();
        let attached = matches!(arg, [b'-', letter, _, ..] if letters.contains(letter));
        (attached && place != Place::Separate).then_some(2)
    }

    pub(super) fn takes_user(self, arg: &[u8]) -> bool {
        self.has_users() && matches!(arg, b"-u" | b"-U" | b"--user" | b"--proxy-user")
    }

    /// Start of `user:password` in `-uuser:password` or `--user=user:password`.
    pub(super) fn attached_user(self, arg: &[u8]) -> Option<usize> {
        let long = [&b"--user="[..], b"--proxy-user="].into_iter().find(|flag| arg.starts_with(flag));
        let start = match arg {
            [b'-', b'u' | b'U', _, ..] => Some(2),
            _ => long.map(<[u8]>::len),
        };
        start.filter(|_| self.has_users())
    }

    /// `sh -c`, `bash -lc`
    pub(super) fn takes_script(self, arg: &[u8]) -> bool {
        let [b'-', letters @ .., b'c'] = arg else { return false };
        self.kind == Kind::Shell && letters.iter().all(u8::is_ascii_lowercase)
    }

    fn has_users(self) -> bool {
        !matches!(self.kind, Kind::Engine | Kind::EngineLogin)
    }

    fn secret_flags(self) -> (&'static [u8], Place) {
        match self.kind {
            Kind::Flags(letters, place) => (letters, place),
            Kind::EngineLogin => (b"p", Place::Either),
            Kind::Unknown | Kind::Shell | Kind::Engine => (b"", Place::Separate),
        }
    }
}

fn known(name: &[u8]) -> Option<Kind> {
    // Some of thousands of arguments are long texts; names of programs are not.
    if name.len() > 32 {
        return None;
    }
    Some(match name.strip_suffix(b".exe").unwrap_or(name) {
        b"sh" | b"bash" | b"dash" | b"ash" | b"zsh" | b"ksh" | b"su" => Kind::Shell,
        b"docker" | b"podman" | b"nerdctl" | b"buildah" | b"skopeo" | b"helm" | b"oc" | b"az" => Kind::Engine,
        b"sshpass" | b"cqlsh" | b"rabbitmqadmin" => Kind::Flags(b"p", Place::Either),
        b"redis-cli" | b"valkey-cli" => Kind::Flags(b"a", Place::Either),
        b"sqlcmd" | b"bcp" | b"isql" | b"tsql" | b"mosquitto_pub" | b"mosquitto_sub" | b"ipmitool" | b"zip"
        | b"unzip" => Kind::Flags(b"P", Place::Either),
        b"7z" | b"7za" | b"7zr" | b"7zz" | b"rar" | b"unrar" => Kind::Flags(b"p", Place::Attached),
        b"openssl" => Kind::Flags(b"kK", Place::Separate),
        b"curl" => Kind::Unknown,
        name if starts_with(name, b"mysql") || starts_with(name, b"mariadb") => Kind::Flags(b"p", Place::Attached),
        name if starts_with(name, b"mongo") => Kind::Flags(b"p", Place::Either),
        name if starts_with(name, b"ldap") => Kind::Flags(b"w", Place::Either),
        name if starts_with(name, b"snmp") => Kind::Flags(b"AX", Place::Either),
        _ => return None,
    })
}
