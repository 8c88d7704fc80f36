//! The arguments of an exec, with NUL between them: what is no secret is left as it is, and a secret is not there any more.

use namespan::redact::{REDACTED, Redactor};

pub fn check(data: &[u8]) {
    let mut redactor = Redactor::new();
    let mut changed = false;
    for arg in data.split(|byte| *byte == 0) {
        let shown = redactor.arg(arg);
        changed |= *shown != *arg;
        holds(arg, &shown);
        assert!(redactor.changed() || !changed);
    }
    redactor.start();
    for arg in data.split(|byte| *byte == 0) {
        let shown = redactor.arg_before_gap(arg);
        assert!(*shown == *arg || has_mark(&shown));
        let after = redactor.arg_after_gap(arg);
        assert!(arg.is_empty() || *after == *REDACTED);
    }
    is_hidden_by_its_name(data);
}

fn holds(arg: &[u8], shown: &[u8]) {
    assert!(shown == arg || has_mark(shown));
    // Each replacement is of a byte at least.
    assert!(shown.len() <= arg.len() * REDACTED.len());
}

fn has_mark(shown: &[u8]) -> bool {
    shown.windows(REDACTED.len()).any(|part| part == REDACTED)
}

/// A secret as the value of what names one, in every form.
fn is_hidden_by_its_name(secret: &[u8]) {
    if secret.is_empty() || secret.contains(&0) {
        return;
    }
    for name in ["--password", "--api-key"] {
        let mut redactor = Redactor::new();
        redactor.arg(b"program");
        redactor.arg(name.as_bytes());
        assert_eq!(*redactor.arg(secret), *REDACTED, "{name} VALUE");
        redactor.start();
        let attached = [name.as_bytes(), b"=", secret].concat();
        let expected = [name.as_bytes(), b"=", REDACTED].concat();
        let shown = redactor.arg(&attached).into_owned();
        assert!(shown == expected || shown == REDACTED, "{name}=VALUE: {}", String::from_utf8_lossy(&shown));
    }
}
