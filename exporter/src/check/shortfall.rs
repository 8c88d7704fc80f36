//! Programs at work come in; what the settings ask for and does not work here goes out, to be told of at the start.

use super::privilege::Privileges;
use super::report::{Check, Status};
use super::{cgroup, features, hooks, kernel, privilege, runtime};
use crate::attach::Attached;
use crate::config::Config;

/// Found in a few milliseconds, and without another try of what works already. What nobody asked for is left to
/// `namespan check`.
pub(crate) fn shortfalls(config: &Config, attached: &Attached) -> Vec<Check> {
    let privileges = Privileges::of_this_process();
    let mut checks = vec![privilege::capabilities(&privileges), kernel::lockdown(), cgroup::check()];
    checks.extend(hooks::fields(&attached.missing));
    checks.extend(attached.failed_execs_refused.as_ref().map(|error| hooks::failed_execs(error, &privileges)));
    if !config.uprobes.is_empty() {
        checks.extend(features::uprobes(config, &privileges));
    }
    checks.extend(runtime::denied_sockets(&config.enrich.runtimes));
    checks.retain(|check| matches!(check.status, Status::Warn | Status::Fail));
    checks
}
