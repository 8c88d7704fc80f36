//! What the guard decided: records of its ring in, log records out.

use namespan::config::{Arguments, AttributeLimits, Signal};
use namespan::guard::decision;
use namespan::guard::spec::{Action, Containers, Mode, Policy, Scope};
use namespan::model::guard::{Encoder, Told};
use namespan::model::log::Context;
use namespan::model::uid::Uids;
use namespan::queue::Class;
use namespan_ebpf::guard_wire::{Decision, action, hook, kind, origin, result, section};
use namespan_ebpf::wire::section::{ARGS_HEAD, PATH, SCRIPT, TTY};

fn decided(intended: u8, result: u8, hook: u8, origin: usize) -> Decision {
    Decision {
        args_len: 9,
        ancestor_start_boot_ns: 4_998_000_000_001,
        rules: 0b10,
        container_cgroup_id: 5231,
        ancestor_tgid: 4200,
        argc: 3,
        fired: 0b11,
        error: if result == self::result::FAILED { 3 } else { 0 },
        policy: 0,
        intended,
        result,
        origin: u8::try_from(origin).unwrap(),
        hook,
        reserved: [0; 2],
    }
}

/// Names, records as they are in the ring, and as they are sent.
pub fn cases() -> Vec<(&'static str, String, Vec<u8>)> {
    let sections = [
        (PATH, &b"/bin/sh"[..]),
        (TTY, b"pts/0"),
        (ARGS_HEAD, b"sh\0-c\0id\0"),
        (section::PARENT_PATH, b"/usr/sbin/nginx"),
    ];
    let script = [(PATH, &b"/bin/sh"[..]), (SCRIPT, b"/opt/run"), (ARGS_HEAD, b"sh\0-c\0id\0")];
    let killed = decided(action::KILL, result::KILLED, hook::EXEC, origin::UPPER);
    let failed = decided(action::KILL, result::FAILED, hook::EXEC, origin::MEMFD);
    let denied = decided(action::DENY, result::DENIED, hook::CHECK, origin::IMAGE);
    [("guard_killed", killed, &sections[..]), ("guard_failed", failed, &sections), ("guard_denied", denied, &script)]
        .into_iter()
        .map(|(name, decision, sections)| {
            let record = super::record(kind::DECISION, 0, &decision, sections);
            (name, otlp(&record), record)
        })
        .collect()
}

fn otlp(record: &[u8]) -> String {
    let decision = decision::decode(record).unwrap();
    let policy = Policy {
        name: "no-shells".to_owned(),
        description: "Nobody needs a shell in here".to_owned(),
        severity: 17,
        action: Action::Kill,
        scope: Scope { containers: Containers::All, host: false },
        rules: Vec::new(),
        exceptions: Vec::new(),
    };
    let uid = Some(Uids::of_boot([1; 16]).of_decision(&decision));
    let context = Context { uid, ..super::context(None) };
    let told = Told {
        decision: &decision,
        policy: &policy,
        rule: "match[0]",
        fired: &["no-shells", "look"],
        mode: Mode::Enforce,
        context,
    };
    let mut encoder = Encoder::new(Arguments::Redacted, AttributeLimits::default());
    super::request(Signal::Logs, Class::Enforcement.scope(), |out| encoder.encode(&told, out))
}
