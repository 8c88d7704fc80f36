//! Errors of the kernel's, which can be a megabyte long, as a line that a person can use.

use std::error::Error;
use std::io;

use aya::programs::ProgramError;

use super::AttachError;

/// What the kernel said, in a line.
#[must_use]
pub fn refusal(error: &AttachError) -> String {
    if let AttachError::Program { source, .. } = error {
        if let ProgramError::LoadError { io_error, verifier_log } = source {
            return not_loaded(io_error, &verifier_log.to_string());
        }
        return shortened(format!("not attached: {}", chain(source)));
    }
    shortened(chain(error))
}

fn not_loaded(error: &io::Error, verifier_log: &str) -> String {
    let detail = last_meaningful_line(verifier_log).map(|line| format!("; verifier: {line}")).unwrap_or_default();
    shortened(format!("not loaded: {error}{detail}"))
}

/// The verifier ends with what it did not like, and then with statistics.
fn last_meaningful_line(log: &str) -> Option<&str> {
    const STATISTICS: [&str; 4] = ["processed ", "verification time ", "stack depth ", "mark_precise: "];
    log.lines().map(str::trim).rfind(|line| !line.is_empty() && !STATISTICS.iter().any(|start| line.starts_with(start)))
}

/// An error and its sources, those left out that the one before already quotes.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.ends_with(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

/// An error of any length, cut to what is worth reading.
#[must_use]
pub fn shortened(mut error: String) -> String {
    const CHARS_MAX: usize = 240;
    if let Some((end, _)) = error.char_indices().nth(CHARS_MAX) {
        error.truncate(end);
        error.push('…');
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
0: R1=ctx() R10=fp0
; let task = ctx.arg(0); @ exec.rs:40
0: (79) r6 = *(u64 *)(r1 +8)
func 'sched_process_exec' arg5 type FWD is not a struct
invalid bpf_context access off=8 size=8
processed 1 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0

";

    #[test]
    fn the_verifier_is_quoted_with_its_complaint_and_no_more() {
        assert_eq!(last_meaningful_line(LOG), Some("invalid bpf_context access off=8 size=8"));
        assert_eq!(last_meaningful_line("processed 1 insns\n\n"), None);
        let said = not_loaded(&rustix::io::Errno::ACCESS.into(), LOG);
        assert!(said.starts_with("not loaded: Permission denied"), "{said}");
        assert!(said.ends_with("verifier: invalid bpf_context access off=8 size=8"), "{said}");
    }

    #[test]
    fn sources_are_quoted_once() {
        let inner = io::Error::from(io::ErrorKind::NotFound);
        let error = AttachError::Pid(inner);
        assert_eq!(chain(&error).matches("not found").count(), 1);
    }

    #[test]
    fn a_long_error_is_cut_between_characters() {
        assert_eq!(shortened("é".repeat(1000)), format!("{}…", "é".repeat(240)));
        assert_eq!(shortened("short".to_owned()), "short");
    }
}
