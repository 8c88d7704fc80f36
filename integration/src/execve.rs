//! `nstest-execve PATH`: runs it with no argument at all, not even `argv[0]`, which nothing else lets one do.

use std::ffi::CString;
use std::os::unix::ffi::OsStringExt as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let path = std::env::args_os().nth(1).and_then(|path| CString::new(path.into_vec()).ok());
    let Some(path) = path else { return ExitCode::from(2) };
    let none: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: the path ends with NUL and both lists with a null pointer; all of them live until the call is over.
    unsafe { libc::execve(path.as_ptr(), none.as_ptr(), none.as_ptr()) };
    ExitCode::from(127)
}
