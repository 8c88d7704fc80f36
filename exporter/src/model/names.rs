//! Signals and errnos by name, as Linux numbers them on x86-64 and arm64 (`asm-generic/signal.h`, `asm-generic/errno.h`).

/// `SIGKILL`; `None` for the real-time signals, whose names depend on the C library.
#[must_use]
pub fn signal(number: u32) -> Option<&'static str> {
    named(&SIGNALS, number.checked_sub(1)?)
}

/// `ENOENT`; `None` for numbers that are no errno of Linux.
#[must_use]
pub fn errno(number: u32) -> Option<&'static str> {
    named(&ERRNOS, number)
}

fn named(names: &[&'static str], index: u32) -> Option<&'static str> {
    names.get(usize::try_from(index).ok()?).copied().filter(|name| !name.is_empty())
}

/// From 1.
#[rustfmt::skip]
const SIGNALS: [&str; 31] = [
    "SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL", "SIGUSR1",
    "SIGSEGV", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGSTKFLT", "SIGCHLD", "SIGCONT", "SIGSTOP", "SIGTSTP",
    "SIGTTIN", "SIGTTOU", "SIGURG", "SIGXCPU", "SIGXFSZ", "SIGVTALRM", "SIGPROF", "SIGWINCH", "SIGIO", "SIGPWR",
    "SIGSYS",
];

/// From 0; unused numbers are empty.
#[rustfmt::skip]
const ERRNOS: [&str; 134] = [
    "", "EPERM", "ENOENT", "ESRCH", "EINTR", "EIO", "ENXIO", "E2BIG", "ENOEXEC", "EBADF", "ECHILD", "EAGAIN",
    "ENOMEM", "EACCES", "EFAULT", "ENOTBLK", "EBUSY", "EEXIST", "EXDEV", "ENODEV", "ENOTDIR", "EISDIR", "EINVAL",
    "ENFILE", "EMFILE", "ENOTTY", "ETXTBSY", "EFBIG", "ENOSPC", "ESPIPE", "EROFS", "EMLINK", "EPIPE", "EDOM",
    "ERANGE", "EDEADLK", "ENAMETOOLONG", "ENOLCK", "ENOSYS", "ENOTEMPTY", "ELOOP", "", "ENOMSG", "EIDRM", "ECHRNG",
    "EL2NSYNC", "EL3HLT", "EL3RST", "ELNRNG", "EUNATCH", "ENOCSI", "EL2HLT", "EBADE", "EBADR", "EXFULL", "ENOANO",
    "EBADRQC", "EBADSLT", "", "EBFONT", "ENOSTR", "ENODATA", "ETIME", "ENOSR", "ENONET", "ENOPKG", "EREMOTE",
    "ENOLINK", "EADV", "ESRMNT", "ECOMM", "EPROTO", "EMULTIHOP", "EDOTDOT", "EBADMSG", "EOVERFLOW", "ENOTUNIQ",
    "EBADFD", "EREMCHG", "ELIBACC", "ELIBBAD", "ELIBSCN", "ELIBMAX", "ELIBEXEC", "EILSEQ", "ERESTART", "ESTRPIPE",
    "EUSERS", "ENOTSOCK", "EDESTADDRREQ", "EMSGSIZE", "EPROTOTYPE", "ENOPROTOOPT", "EPROTONOSUPPORT",
    "ESOCKTNOSUPPORT", "EOPNOTSUPP", "EPFNOSUPPORT", "EAFNOSUPPORT", "EADDRINUSE", "EADDRNOTAVAIL", "ENETDOWN",
    "ENETUNREACH", "ENETRESET", "ECONNABORTED", "ECONNRESET", "ENOBUFS", "EISCONN", "ENOTCONN", "ESHUTDOWN",
    "ETOOMANYREFS", "ETIMEDOUT", "ECONNREFUSED", "EHOSTDOWN", "EHOSTUNREACH", "EALREADY", "EINPROGRESS", "ESTALE",
    "EUCLEAN", "ENOTNAM", "ENAVAIL", "EISNAM", "EREMOTEIO", "EDQUOT", "ENOMEDIUM", "EMEDIUMTYPE", "ECANCELED",
    "ENOKEY", "EKEYEXPIRED", "EKEYREVOKED", "EKEYREJECTED", "EOWNERDEAD", "ENOTRECOVERABLE", "ERFKILL", "EHWPOISON",
];

#[cfg(test)]
mod tests {
    use rustix::io::Errno;
    use rustix::process::Signal;

    use super::*;

    #[test]
    fn signals_have_the_numbers_of_this_system() {
        for (number, name) in [
            (Signal::HUP, "SIGHUP"),
            (Signal::ABORT, "SIGABRT"),
            (Signal::BUS, "SIGBUS"),
            (Signal::KILL, "SIGKILL"),
            (Signal::SEGV, "SIGSEGV"),
            (Signal::TERM, "SIGTERM"),
            (Signal::SYS, "SIGSYS"),
        ] {
            assert_eq!(signal(number.as_raw().cast_unsigned()), Some(name));
        }
        assert_eq!((signal(0), signal(32), signal(64), signal(u32::MAX)), (None, None, None, None));
    }

    #[test]
    fn errnos_have_the_numbers_of_this_system() {
        for (number, name) in [
            (Errno::PERM, "EPERM"),
            (Errno::NOENT, "ENOENT"),
            (Errno::TOOBIG, "E2BIG"),
            (Errno::NOEXEC, "ENOEXEC"),
            (Errno::ACCESS, "EACCES"),
            (Errno::TXTBSY, "ETXTBSY"),
            (Errno::LOOP, "ELOOP"),
            (Errno::LIBBAD, "ELIBBAD"),
            (Errno::HWPOISON, "EHWPOISON"),
        ] {
            assert_eq!(errno(number.raw_os_error().cast_unsigned()), Some(name));
        }
        assert_eq!((errno(0), errno(41), errno(512), errno(u32::MAX)), (None, None, None, None));
    }
}
