//! `namespan check`: the settings come in; what this kernel and host offer, what it means and the remedy go out.
//!
//! Everything is tried, nothing is concluded from a version. A check that fails stops no other.

mod cgroup;
mod collector;
mod features;
mod guard;
pub mod health;
mod hooks;
mod kernel;
mod listen;
mod privilege;
pub(crate) mod report;
mod runtime;
mod shortfall;
mod spool;

use std::io::{self, IsTerminal as _, Write};

use crate::cli;
use crate::config::Config;
use crate::sandbox::{Plan, is_enforced};
use privilege::Privileges;
pub(crate) use privilege::obstacle;
use report::{Check, Report};
pub(crate) use shortfall::shortfalls;

/// Prints what works here, as JSON if the flags say so. `false`: something that Namespan cannot do without is missing.
pub async fn run(flags: &cli::Check, config: &Config, out: &mut dyn Write) -> io::Result<bool> {
    let report = Report::new(checks(flags, config).await);
    if flags.json {
        report.json(out)?;
    } else {
        let is_colourful =
            io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        report.text(out, is_colourful)?;
    }
    Ok(report.ok)
}

async fn checks(flags: &cli::Check, config: &Config) -> Vec<Check> {
    let privileges = Privileges::of_this_process();
    let mut checks = vec![kernel::release(), privilege::user(&privileges), privilege::capabilities(&privileges)];
    checks.push(kernel::lockdown());
    checks.extend(hooks::checks(&config.probes, &privileges));
    checks.extend(features::checks(config, &privileges));
    checks.extend(guard::checks(&config.guard, &privileges));
    checks.extend([privilege::pid_namespace(), privilege::cgroup_namespace(), cgroup::check()]);
    let (runtimes, collectors) = tokio::join!(runtime::checks(&config.enrich.runtimes), collector::checks(config));
    checks.extend(runtimes);
    checks.extend(collectors);
    checks.extend([spool::check(config), listen::check(config.listen)]);
    checks.extend([sandbox(flags, config), settings(flags, config)]);
    checks
}

/// The filter of system calls is tried; nothing is given up here.
fn sandbox(flags: &cli::Check, config: &Config) -> Check {
    const NAME: &str = "sandbox";
    if !config.sandbox {
        return Check::skip(NAME, "switched off").means("all capabilities and system calls stay with Namespan");
    }
    let plan = match Plan::of(config, flags.config.is_some()) {
        Ok(plan) => plan.to_string(),
        Err(error) => format!("capabilities can't be read: {error}"),
    };
    match is_enforced() {
        Ok(()) => Check::ok(NAME, format!("{plan}; dangerous system calls are refused")),
        Err(error) => Check::warn(NAME, format!("{plan}; seccomp: {error}"))
            .means("dangerous system calls are not refused, unless whoever starts Namespan does; all else is as ever")
            .remedy("allow prctl(2) and seccomp(2), or boot a kernel built with CONFIG_SECCOMP_FILTER=y"),
    }
}

/// An invalid setting has stopped us before this.
fn settings(flags: &cli::Check, config: &Config) -> Check {
    let found = match &flags.config {
        Some(path) => format!("{} is valid, and so are flags and environment", path.display()),
        None => "no file; flags and environment are valid".to_owned(),
    };
    if config.notes.is_empty() {
        return Check::ok("config", found);
    }
    Check::warn("config", found)
        .means(config.notes.join("; "))
        .remedy("change the setting named, if that is not what you want")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Runtimes;

    #[test]
    fn notes_about_the_settings_are_a_warning() {
        let quiet = settings(&cli::Check::default(), &Config::default());
        assert_eq!(quiet.status, report::Status::Ok);
        let config = Config { notes: vec!["one".to_owned(), "two".to_owned()], ..Config::default() };
        let noted = settings(&cli::Check { config: Some("/etc/n.yaml".into()), ..cli::Check::default() }, &config);
        assert_eq!(noted.status, report::Status::Warn);
        assert_eq!(noted.consequence.as_deref(), Some("one; two"));
        assert!(noted.found.contains("/etc/n.yaml"), "{}", noted.found);
    }

    #[tokio::test]
    async fn every_check_has_its_line_whatever_the_privileges_of_the_test() {
        let mut config = Config::default();
        config.enrich.runtimes = Runtimes::OFF;
        let checks = checks(&cli::Check::default(), &config).await;
        let names: Vec<_> = checks.iter().map(|check| check.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "kernel",
                "user",
                "capabilities",
                "lockdown",
                "btf",
                "ring_buffer",
                "hook_sched_process_exec",
                "hook_sched_process_exit",
                "tracefs",
                "hook_sys_enter_execve",
                "hook_sys_enter_execveat",
                "hook_sys_exit_execve",
                "hook_sys_exit_execveat",
                "uprobes",
                "uprobe_inode",
                "guard_kill",
                "guard_deny",
                "pid_namespace",
                "cgroup_namespace",
                "cgroups",
                "docker",
                "containerd",
                "cri_o",
                "podman",
                "runtime_files",
                "collector",
                "spool",
                "listen",
                "sandbox",
                "config",
            ]
        );
        for check in checks {
            let is_fine = matches!(check.status, report::Status::Ok | report::Status::Skip);
            assert!(is_fine || check.remedy.is_some(), "{check:?}");
        }
    }
}
