//! BTF of a kernel, however odd: what is resolved lies within its struct, and what is made of it is BTF again.

use namespan::attach::btf::Btf;

const NAMES: [&str; 3] = ["sched_process_exec", "sched_process_exit", "x"];

pub fn check(data: &[u8]) {
    let Ok(btf) = Btf::parse(data) else { return };
    let _offsets = btf.resolve();
    for (of, path) in [("task_struct", "mm"), ("task_struct", "signal.tty"), ("cgroup", "kn")] {
        let _member = btf.member(of, path);
    }
    let _size = btf.size_of("task_struct");
    let reduced = btf.of_tracepoints(&NAMES);
    let reduced = Btf::parse(&reduced).unwrap();
    for name in NAMES {
        assert_eq!(reduced.has_tracepoint(name), btf.has_tracepoint(name), "{name}");
    }
}
