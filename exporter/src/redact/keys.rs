//! Names of flags, variables, headers and fields: do they name a secret?

/// Keys of signed URLs, as the semantic conventions list them.
const SIGNED_URL_KEYS: [&[u8]; 7] = [
    b"X-Amz-Signature",
    b"X-Amz-Credential",
    b"X-Amz-Security-Token",
    b"AWSAccessKeyId",
    b"Signature",
    b"sig",
    b"X-Goog-Signature",
];

/// Secret wherever they stand within a word.
const WITHIN: [&[u8]; 6] = [b"password", b"passwd", b"passphrase", b"passcode", b"secret", b"credential"];

/// Secret at the end of a word: `authtoken`, but not `tokenizer`.
const ENDINGS: [&[u8]; 15] = [
    b"token",
    b"apikey",
    b"accesskey",
    b"privatekey",
    b"authkey",
    b"signingkey",
    b"encryptionkey",
    b"creds",
    b"authorization",
    b"cookie",
    b"cookies",
    b"pass",
    b"passin",
    b"passout",
    b"pwd",
];

const NO_SECRETS: [&[u8]; 4] = [b"bypass", b"compass", b"trespass", b"encompass"];

/// What makes the next word `key` a secret: `api-key`, `AccessKeyId`.
const KEY_KINDS: [&[u8]; 12] = [
    b"api",
    b"access",
    b"private",
    b"auth",
    b"signing",
    b"signature",
    b"encryption",
    b"account",
    b"master",
    b"session",
    b"shared",
    b"storage",
];

/// Secret as the last word of a name.
const LAST: [&[u8]; 4] = [b"auth", b"bearer", b"jwt", b"otp"];

/// A name that ends so tells where or what kind the secret is: `--password-file`, `TOKEN_TTL`.
const ABOUT: [&[u8]; 28] = [
    b"file",
    b"files",
    b"filename",
    b"path",
    b"dir",
    b"stdin",
    b"fd",
    b"prompt",
    b"policy",
    b"length",
    b"len",
    b"ttl",
    b"type",
    b"name",
    b"url",
    b"uri",
    b"endpoint",
    b"issuer",
    b"provider",
    b"method",
    b"mode",
    b"store",
    b"helper",
    b"limit",
    b"expiry",
    b"timeout",
    b"algorithm",
    b"enabled",
];

/// Bytes of which names are made.
#[must_use]
pub(super) fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

/// Whether the name's value is a secret; upper and lower case, `-`, `_`, `.` and camelCase are all the same.
#[must_use]
pub(super) fn is_secret(name: &[u8]) -> bool {
    // The working directory.
    if name == b"PWD" || name == b"OLDPWD" {
        return false;
    }
    let mut secret = false;
    let mut last: &[u8] = b"";
    for word in words(name) {
        let is_key = word.eq_ignore_ascii_case(b"key") || word.eq_ignore_ascii_case(b"keys");
        secret |= is_secret_word(word) || (is_key && KEY_KINDS.iter().any(|kind| ends_with(last, kind)));
        last = word;
    }
    let last_is = |list: &[&[u8]]| list.iter().any(|word| last.eq_ignore_ascii_case(word));
    (secret && !last_is(&ABOUT)) || last_is(&LAST)
}

/// As [`is_secret`], of what is assigned with `=`: keys of signed URLs too.
#[must_use]
pub(super) fn is_secret_assigned(name: &[u8]) -> bool {
    is_secret(name) || SIGNED_URL_KEYS.contains(&name)
}

/// Whether the argument is a flag whose value is a secret and follows as the next argument.
#[must_use]
pub(super) fn takes_secret(arg: &[u8]) -> bool {
    let Some(name) = arg.strip_prefix(b"-") else { return false };
    let name = name.strip_prefix(b"-").unwrap_or(name);
    name.len() > 1 && !starts_with(name, b"no-") && name.iter().copied().all(is_name) && is_secret(name)
}

/// Whether a PEM private key is in it, or the head of one.
#[must_use]
pub(super) fn is_private_key(text: &[u8]) -> bool {
    const MARK: &[u8] = b"PRIVATE KEY-----";
    text.len() > MARK.len() && text.windows(MARK.len()).any(|window| window == MARK)
}

/// One word, or a header: `password:x` is a secret, `my-token:1.2` an image.
#[must_use]
pub(super) fn is_unmistakable(name: &[u8]) -> bool {
    let headers: [&[u8]; 6] =
        [b"authorization", b"cookie", b"api-key", b"auth-token", b"private-token", b"access-token"];
    words(name).count() == 1 || headers.iter().any(|header| ends_with(name, header))
}

fn is_secret_word(word: &[u8]) -> bool {
    let digits = word.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let word = &word[..word.len() - digits];
    WITHIN.iter().any(|part| contains(word, part))
        || (ENDINGS.iter().any(|ending| ends_with(word, ending))
            && !NO_SECRETS.iter().any(|other| word.eq_ignore_ascii_case(other)))
}

/// Words between separators, and at the humps of camelCase.
fn words(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    name.split(|byte| !byte.is_ascii_alphanumeric())
        .flat_map(|part| part.chunk_by(|left, right| !(left.is_ascii_lowercase() && right.is_ascii_uppercase())))
}

fn ends_with(word: &[u8], ending: &[u8]) -> bool {
    word.len().checked_sub(ending.len()).is_some_and(|start| word[start..].eq_ignore_ascii_case(ending))
}

pub(super) fn starts_with(word: &[u8], start: &[u8]) -> bool {
    word.len() >= start.len() && word[..start.len()].eq_ignore_ascii_case(start)
}

fn contains(word: &[u8], part: &[u8]) -> bool {
    word.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets_are_known_in_any_spelling() {
        for name in [
            "password",
            "PGPASSWORD",
            "MYSQL_PWD",
            "db.password",
            "dbPassword",
            "--api-key",
            "--apikey",
            "API_KEY",
            "apiKey",
            "APIKey",
            "AWS_SECRET_ACCESS_KEY",
            "AccessKeyId",
            "--access-key",
            "GITHUB_TOKEN",
            "authToken",
            "client_secret",
            "SSHPASS",
            "REDISCLI_AUTH",
            "--auth",
            "--credentials",
            "--credential",
            "passwd",
            "passphrase",
            "private-key",
            "Authorization",
            "Proxy-Authorization",
            "Cookie",
            "X-Api-Key",
            "-Dx.password",
            "-passin",
            "password2",
            "ACCOUNT_KEY",
            "--otp",
            "_authToken",
            "pwd",
            "secrets",
            "Dpassword",
        ] {
            assert!(is_secret(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn names_of_other_things_are_left_alone() {
        for name in [
            "PWD",
            "OLDPWD",
            "--password-file",
            "--password-stdin",
            "TOKEN_TTL",
            "--max-tokens",
            "tokenizer",
            "--author",
            "bypass",
            "key",
            "--sort-key",
            "--public-key",
            "keyboard",
            "PATH",
            "HOME",
            "",
            "-",
            "---",
            "--compass",
            "authority",
            "monkey",
            "passenger",
        ] {
            assert!(!is_secret(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn only_whole_flags_announce_a_secret() {
        assert!(takes_secret(b"--password") && takes_secret(b"-token") && takes_secret(b"--API_KEY"));
        assert!(!takes_secret(b"--password=x") && !takes_secret(b"--no-password") && !takes_secret(b"password"));
        assert!(!takes_secret(b"-p") && !takes_secret(b"--") && !takes_secret(b"--password x"));
    }
}
