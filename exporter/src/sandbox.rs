//! The settings come in; this process gives up what it will never need, before it has a second thread, and what came of it
//! goes out.
//!
//! Every thread inherits it from the one that started it. What is needed later stays: programs are loaded again and uprobes
//! attached when settings change, and `/proc` of others is read for as long as it runs.
//!
//! Landlock is no part of it: the kernel lets no process that is confined by it, in whatever way, look at those that are not
//! (`hook_ptrace_access_check`), and that is `/proc/PID/ns` and `/proc/PID/root`, by which containers are told apart and probed.

mod calls;
mod held;

use std::fmt;

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};

use crate::attach::{mount_tracefs, raise_locked_memory};
use crate::config::Config;
use crate::guard::persist::mount_bpffs;
pub(crate) use calls::is_enforced;
use held::{Held, names};

/// What came of it.
#[derive(Debug)]
pub struct Sandbox {
    held: Vec<Held>,
    dropped: CapabilitySet,
    /// What could not be given up, with the kernel's word.
    refused: Vec<(&'static str, String)>,
    /// Calls that are answered with `EPERM`.
    calls: usize,
}

/// Gives up what will not be needed, for ever. Call it while there is one thread. What the kernel refuses is told of, and
/// stops nothing. `may_change`: other settings can be taken up later.
#[must_use]
pub fn enter(config: &Config, may_change: bool) -> Sandbox {
    // Only a capability that is given up below can do these.
    raise_locked_memory();
    if config.probes.failed_execs {
        // Whoever attaches them tries again, and says what is wrong.
        let _tried = mount_tracefs();
    }
    if config.guard.persist {
        let _tried = mount_bpffs();
    }
    let mut refused = Vec::new();
    let mut note = |what, error: Option<String>| refused.extend(error.map(|error| (what, error)));
    let (held, dropped) = match capabilities(None) {
        Ok(sets) => {
            let held = held::held(config, may_change, sets.permitted);
            let kept = held::set(&held);
            let (dropped, error) = give_up(&sets, kept);
            note("capabilities", error.err().map(|error| error.to_string()));
            (held, dropped)
        }
        Err(error) => {
            note("capabilities", Some(error.to_string()));
            (Vec::new(), CapabilitySet::empty())
        }
    };
    note("no_new_privs", set_no_new_privs(true).err().map(|error| error.to_string()));
    let calls = match calls::refuse(may_change || !config.guard.policies.is_empty()) {
        Ok(calls) => calls,
        Err(error) => {
            note("seccomp", Some(error));
            0
        }
    };
    Sandbox { held, dropped, refused, calls }
}

/// Nothing is asked of the kernel that would change nothing: systemd's filter of calls refuses to be asked at all.
fn give_up(sets: &CapabilitySets, kept: CapabilitySet) -> (CapabilitySet, Result<(), Errno>) {
    let dropped = sets.permitted - kept;
    // Ahead of the others, as it takes CAP_SETPCAP. Without that, `no_new_privs` has to do.
    for capability in (CapabilitySet::all() - kept).iter() {
        let _refused = remove_capability_from_bounding_set(capability);
    }
    let _unknown = clear_ambient_capability_set();
    if dropped.is_empty() && sets.inheritable.is_empty() {
        return (dropped, Ok(()));
    }
    let effective = sets.effective & kept;
    let changed = CapabilitySets { effective, permitted: sets.permitted & kept, inheritable: CapabilitySet::empty() };
    match set_capabilities(None, changed) {
        Ok(()) => (dropped, Ok(())),
        Err(error) => (CapabilitySet::empty(), Err(error)),
    }
}

impl Sandbox {
    /// What an operator who looks closely wants to know.
    pub fn tell(&self) {
        for Held { capability, reason } in &self.held {
            tracing::debug!(capability = names(*capability), reason, "sandbox: kept");
        }
        if !self.dropped.is_empty() {
            tracing::debug!(capabilities = names(self.dropped), "sandbox: given up");
        }
        if self.calls > 0 {
            tracing::debug!(calls = self.calls, "sandbox: system calls that are refused from now on");
        }
        for (what, error) in &self.refused {
            tracing::debug!(what, error, "sandbox: the kernel, or whoever started us, refuses to confine us further");
        }
    }
}

/// What would be kept here, for `namespan check`.
pub(crate) struct Plan(Vec<Held>);

impl Plan {
    pub fn of(config: &Config, may_change: bool) -> Result<Self, Errno> {
        Ok(Self(held::held(config, may_change, capabilities(None)?.permitted)))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no capability is kept");
        }
        f.write_str("kept: ")?;
        for (index, Held { capability, reason }) in self.0.iter().enumerate() {
            write!(f, "{}{} ({reason})", if index == 0 { "" } else { ", " }, names(*capability))?;
        }
        Ok(())
    }
}
