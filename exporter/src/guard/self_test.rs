//! Proves on a child of ours that what policies ask for can be done, before anybody says that it will be.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use namespan_ebpf::guard_wire::action;

use super::load::{Guard, GuardError, of_map};

const SIGKILL: i32 = 9;

impl Guard {
    /// Stops a child of ours by each action that some policy has. It works before [`Guard::take_over`] and without a lease;
    /// for as long as it takes, every other child of ours is stopped from executing anything too.
    pub fn self_test(&mut self) -> Result<(), GuardError> {
        if self.acts.kills {
            self.prove("kill", action::KILL, |child| child.status().map(|status| status.signal() == Some(SIGKILL)))?;
        }
        if self.acts.denies {
            self.prove("deny", action::DENY, |child| match child.status() {
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(true),
                Err(error) => Err(error),
                Ok(_) => Ok(false),
            })?;
        }
        Ok(())
    }

    fn prove(
        &mut self,
        action: &'static str,
        code: u8,
        is_stopped: impl FnOnce(&mut Command) -> io::Result<bool>,
    ) -> Result<(), GuardError> {
        // Not 0: there is a test; then the number of children that were stopped.
        self.set_test([u64::from(std::process::id()) | u64::from(code) << 32, 0])?;
        // What it would do if nobody stopped it.
        let mut child = Command::new("/proc/self/exe");
        child.arg("--help").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let stopped = is_stopped(&mut child);
        let counted = self.maps.self_test.get(&0, 0).map_err(of_map("GUARD_SELF_TEST"));
        self.set_test([0; 2])?;
        let is_counted = counted?[1] > 0;
        if stopped.map_err(|source| GuardError::SelfTestRun { action, source })? && is_counted {
            Ok(())
        } else {
            Err(GuardError::SelfTest { action })
        }
    }

    fn set_test(&mut self, test: [u64; 2]) -> Result<(), GuardError> {
        self.maps.self_test.set(0, test, 0).map_err(of_map("GUARD_SELF_TEST"))
    }
}
