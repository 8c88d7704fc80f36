use namespan_ebpf::offsets::ABSENT;
use proptest::prelude::*;

use super::*;

const STRUCT: u32 = 4;
const UNION: u32 = 5;
const TYPEDEF: u32 = 8;
const CONST: u32 = 10;
const FLAG: u32 = 1 << 31;

/// Writes BTF as a compiler would.
#[derive(Default)]
struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
    last_id: u32,
}

impl Builder {
    fn name(&mut self, name: &str) -> u32 {
        if self.strings.is_empty() {
            self.strings.push(0);
        }
        if name.is_empty() {
            return 0;
        }
        let at = self.strings.len();
        self.strings.extend(name.bytes().chain([0]));
        u32::try_from(at).unwrap()
    }

    fn raw(&mut self, name: &str, info: u32, size_or_id: u32, tail: &[u32]) -> u32 {
        let head = [self.name(name), info, size_or_id];
        self.types.extend(head.iter().chain(tail).flat_map(|word| word.to_ne_bytes()));
        self.last_id += 1;
        self.last_id
    }

    fn int(&mut self, name: &str, size: u32) -> u32 {
        self.raw(name, 1 << 24, size, &[size * 8])
    }

    fn pointer(&mut self, to: u32) -> u32 {
        self.raw("", 2 << 24, to, &[])
    }

    fn array(&mut self, of: u32, count: u32) -> u32 {
        self.raw("", 3 << 24, 0, &[of, 1, count])
    }

    /// A typedef, qualifier or type tag.
    fn alias(&mut self, kind: u32, name: &str, of: u32) -> u32 {
        self.raw(name, kind << 24, of, &[])
    }

    /// Members by name, type and position in bits.
    fn composite(&mut self, kind: u32, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        let tail: Vec<u32> =
            members.iter().flat_map(|(name, id, position)| [self.name(name), *id, *position]).collect();
        self.raw(name, kind << 24 | u32::try_from(members.len()).unwrap(), size, &tail)
    }

    fn enumeration(&mut self, enumerators: &[(&str, u32)]) -> u32 {
        let tail: Vec<u32> = enumerators.iter().flat_map(|(name, value)| [self.name(name), *value]).collect();
        self.raw("", 6 << 24 | u32::try_from(enumerators.len()).unwrap(), 4, &tail)
    }

    fn build(&self) -> Vec<u8> {
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
        let mut bytes = 0xeb9f_u16.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        let header = [24, 0, len(&self.types), len(&self.types), len(&self.strings)];
        bytes.extend(header.iter().flat_map(|word: &u32| word.to_ne_bytes()));
        bytes.extend(self.types.iter().chain(&self.strings));
        bytes
    }
}

/// A small kernel with one of everything.
fn kernel() -> Builder {
    let mut b = Builder::default();
    let int = b.int("int", 4);
    let long = b.int("long", 8);
    let character = b.int("char", 1);
    let pid = b.alias(TYPEDEF, "pid_t", int);
    let qualified = b.alias(CONST, "", pid);
    let comm = b.array(character, 16);
    let pointer = b.pointer(0);
    let tagged = b.alias(18, "user", pointer);
    b.enumeration(&[("PIDTYPE_PID", 0), ("PIDTYPE_PGID", 2), ("PIDTYPE_SID", 3), ("PIDTYPE_MAX", 4)]);
    b.raw("", 19 << 24 | 2, 8, &[0, 0, 0, 0, 0, 0]);
    let wide = b.name("WIDE");
    let huge = b.name("HUGE");
    b.raw("", 19 << 24 | 2, 8, &[wide, 1, 0, huge, 1, 1]);
    let pids = b.array(tagged, 4);
    let inner = b.composite(UNION, "", 8, &[("first", int, 0), ("second", long, 0)]);
    let anonymous = b.composite(STRUCT, "", 16, &[("plain", long, 0), ("", inner, 64)]);
    let constant = b.alias(CONST, "", anonymous);
    let element = b.composite(STRUCT, "element", 24, &[("key", long, 0), ("value", qualified, 128)]);
    let elements = b.array(element, 2);
    let matrix = b.array(elements, 3);
    let flexible = b.array(element, 0);
    let element_alias = b.alias(TYPEDEF, "element_t", element);
    // Every kind that no member has.
    b.raw("forward", 7 << 24, 0, &[]);
    let prototype = b.raw("", 13 << 24 | 2, int, &[0, int, 0, long]);
    let function = b.raw("function", 12 << 24, prototype, &[]);
    b.raw("variable", 14 << 24, int, &[1]);
    b.raw(".data", 15 << 24 | 1, 4, &[0, 0, 4]);
    b.raw("tag", 17 << 24, function, &[u32::MAX]);
    let float = b.raw("float", 16 << 24, 4, &[]);
    let function_pointer = b.pointer(prototype);
    b.alias(TYPEDEF, "btf_trace_sched_process_exec", function_pointer);
    let partial = b.raw("partial", 1 << 24, 4, &[3]);
    b.composite(
        STRUCT,
        "task",
        512,
        &[
            ("tgid", qualified, 32),
            ("comm", comm, 64),
            ("pids", pids, 192),
            ("", constant, 512),
            ("", int, 640),
            ("nested", element_alias, 1024),
            ("elements", elements, 1280),
            ("matrix", matrix, 1664),
            ("ratio", float, 2816),
            ("old_bitfield", partial, 2848),
            ("odd", int, 2849),
            ("flexible", flexible, 2880),
        ],
    );
    b.composite(
        STRUCT | FLAG >> 24,
        "flagged",
        8,
        &[("bits", int, 3 << 24 | 4), ("whole", int, 32), ("", inner, 1 << 24)],
    );
    // Two compilation units' idea of one name.
    b.composite(STRUCT, "twice", 4, &[("one", int, 0)]);
    b.composite(STRUCT, "twice", 8, &[("one", long, 0), ("two", int, 32)]);
    b
}

#[track_caller]
fn assert_member(path: &str, expected: Option<(u32, u32)>) {
    let bytes = kernel().build();
    let btf = Btf::parse(&bytes).unwrap();
    let (of, path) = path.split_once('.').unwrap();
    assert_eq!(btf.member(of, path), expected.map(|(offset, size)| Member { offset, size }), "{of}.{path}");
}

#[test]
fn a_member_is_found_behind_typedefs_qualifiers_and_tags() {
    assert_member("task.tgid", Some((4, 4)));
    assert_member("task.comm", Some((8, 16)));
    assert_member("task.pids", Some((24, 32)));
    assert_member("task.ratio", Some((352, 4)));
    assert_member("task.matrix", Some((208, 144)));
    assert_member("task.flexible", Some((360, 0)));
}

#[test]
fn a_member_is_found_in_nested_and_anonymous_members() {
    assert_member("task.nested.value", Some((144, 4)));
    assert_member("task.plain", Some((64, 8)));
    assert_member("task.first", Some((72, 4)));
    assert_member("task.second", Some((72, 8)));
}

#[test]
fn an_array_element_is_found_by_its_enumerator() {
    assert_member("task.pids[PIDTYPE_PGID]", Some((40, 8)));
    assert_member("task.pids[PIDTYPE_SID]", Some((48, 8)));
    assert_member("task.elements[WIDE]", Some((184, 24)));
    assert_member("task.elements[WIDE].value", Some((200, 4)));
}

#[test]
fn what_is_not_there_is_not_found() {
    for path in [
        "task.absent",
        "task.nested.absent",
        "task.tgid.absent",
        "task.",
        "task..plain",
        "task.pids[PIDTYPE_MAX]",
        "task.pids[ABSENT]",
        "task.pids[]",
        "task.elements[HUGE]",
        "task.flexible[PIDTYPE_PID]",
        "task.tgid[PIDTYPE_PID]",
        "absent.tgid",
        ".tgid",
        "forward.tgid",
    ] {
        assert_member(path, None);
    }
}

#[test]
fn bitfields_are_not_found() {
    assert_member("task.old_bitfield", None);
    assert_member("task.odd", None);
    assert_member("flagged.bits", None);
    assert_member("flagged.first", None);
    assert_member("flagged.whole", Some((4, 4)));
}

#[test]
fn of_two_structs_of_one_name_the_first_with_the_member_counts() {
    assert_member("twice.one", Some((0, 4)));
    assert_member("twice.two", Some((4, 4)));
}

#[test]
fn sizes_are_those_of_structs_and_unions_only() {
    let bytes = kernel().build();
    let btf = Btf::parse(&bytes).unwrap();
    assert_eq!(btf.size_of("element"), Some(24));
    assert_eq!(btf.size_of("task"), Some(512));
    for name in ["absent", "int", "element_t", "forward", ""] {
        assert_eq!(btf.size_of(name), None, "{name}");
    }
}

#[test]
fn a_tracepoint_is_known_by_its_typedef() {
    let bytes = kernel().build();
    let btf = Btf::parse(&bytes).unwrap();
    assert!(btf.has_tracepoint("sched_process_exec"));
    assert!(!btf.has_tracepoint("sched_process_exe"));
    assert!(!btf.has_tracepoint("sched_process_exec2"));
    assert!(!btf.has_tracepoint("pid_t"));
}

#[test]
fn what_attaching_takes_has_the_same_ids_and_nothing_else() {
    let bytes = kernel().build();
    let btf = Btf::parse(&bytes).unwrap();
    let id_in = |btf: &Btf<'_>| {
        btf.all_types().find(|(_, of)| btf.name(of.name) == b"btf_trace_sched_process_exec").map(|(id, _)| id)
    };
    let reduced = btf.of_tracepoints(&["sched_process_exec", "absent"]);
    let reduced = Btf::parse(&reduced).unwrap();
    assert!(id_in(&btf).is_some());
    assert_eq!(id_in(&reduced), id_in(&btf));
    assert_eq!(reduced.all_types().filter(|(_, of)| !reduced.name(of.name).is_empty()).count(), 1);
    assert_eq!(reduced.all_types().last().map(|(id, _)| id), id_in(&btf), "it ends with the last of them");
    assert_eq!(Btf::parse(&btf.of_tracepoints(&["absent"])).unwrap().all_types().count(), 0);
}

fn field(name: &'static str, paths: &'static [&'static str], size: u32, need: Need) -> Field {
    Field { name, place: Place::Member { of: "task", paths, size }, need }
}

fn resolve(fields: &[Field]) -> Result<Resolved, BtfError> {
    let bytes = kernel().build();
    Btf::parse(&bytes).unwrap().resolve_fields(fields)
}

#[test]
fn the_first_alternative_of_the_right_size_is_taken() {
    let resolved = resolve(&[
        field("task_tgid", &["absent", "tgid", "plain"], 4, Need::Required),
        field("task_pid", &["plain", "first"], 4, Need::Required),
        field("signal_sid", &["pids[ABSENT]", "pids[PIDTYPE_SID]"], 8, Need::Required),
        Field {
            name: "pid_level",
            place: Place::Member { of: "twice", paths: &["one"], size: 8 },
            need: Need::Required,
        },
        Field { name: "upid_size", place: Place::Size { of: "element" }, need: Need::Required },
    ])
    .unwrap();
    assert_eq!(resolved.offsets.task_tgid, 4);
    assert_eq!(resolved.offsets.task_pid, 72);
    assert_eq!(resolved.offsets.signal_sid, 48);
    assert_eq!(resolved.offsets.pid_level, 0);
    assert_eq!(resolved.offsets.upid_size, 24);
    assert!(resolved.missing.is_empty());
}

#[test]
fn an_optional_field_that_is_absent_or_of_another_size_stays_absent() {
    let resolved = resolve(&[
        field("tty_name", &["comm"], 0, Need::Optional),
        field("signal_tty", &["absent"], 0, Need::Optional),
        field("inode_nlink", &["tgid"], 8, Need::Optional),
    ])
    .unwrap();
    assert_eq!(resolved.offsets.tty_name, 8);
    assert_eq!(resolved.offsets.signal_tty, ABSENT);
    assert_eq!(resolved.offsets.inode_nlink, ABSENT);
    assert_eq!(resolved.missing, ["signal_tty", "inode_nlink"]);
}

#[test]
fn all_required_fields_that_are_absent_are_named() {
    let error = resolve(&[
        field("task_tgid", &["tgid"], 8, Need::Required),
        field("signal_tty", &["tty"], 8, Need::Optional),
        field("kernfs_parent", &["__parent", "parent"], 8, Need::Required),
        Field { name: "upid_size", place: Place::Size { of: "upid" }, need: Need::Required },
    ])
    .unwrap_err();
    let BtfError::Missing { fields } = error else { panic!("{error}") };
    assert_eq!(fields, ["task.tgid", "task.__parent or task.parent", "struct upid"]);
}

#[test]
fn what_is_not_this_hosts_btf_is_refused() {
    let bytes = kernel().build();
    let changed = |at: usize, to: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        Btf::parse(&bytes).unwrap_err()
    };
    assert!(matches!(changed(0, &0xeb9f_u16.swap_bytes().to_ne_bytes()), BtfError::ForeignByteOrder));
    assert!(matches!(changed(0, b"\x7fE"), BtfError::NotBtf { .. }));
    assert!(matches!(changed(2, &[2]), BtfError::UnknownVersion { version: 2 }));
    assert!(matches!(changed(8, &u32::MAX.to_ne_bytes()), BtfError::Truncated { section: "type", .. }));
    assert!(matches!(changed(20, &u32::MAX.to_ne_bytes()), BtfError::Truncated { section: "string", .. }));

    let mut builder = kernel();
    builder.raw("new", 20 << 24, 0, &[]);
    let error = Btf::parse(&builder.build()).unwrap_err();
    assert!(matches!(error, BtfError::UnknownKind { kind: 20, id } if id == builder.last_id as usize), "{error}");
}

#[test]
fn btf_cut_at_any_byte_is_refused() {
    let bytes = kernel().build();
    for len in 0..bytes.len() {
        let error = Btf::parse(&bytes[..len]).unwrap_err();
        assert!(matches!(error, BtfError::Truncated { .. }), "at {len}: {error}");
    }
    let mut builder = kernel();
    while builder.types.pop().is_some() {
        // Cut between two types it is whole, only smaller.
        match Btf::parse(&builder.build()) {
            Ok(btf) => assert!(btf.starts.len() < builder.last_id as usize),
            Err(error) => assert!(matches!(error, BtfError::Truncated { section: "type", .. }), "{error}"),
        }
    }
}

#[test]
fn cycles_end() {
    let mut b = Builder::default();
    // Ids 1 to 4: a typedef of itself, two that are each other's, an array of itself.
    b.alias(TYPEDEF, "own", 1);
    b.alias(TYPEDEF, "there", 3);
    b.alias(TYPEDEF, "back", 2);
    b.array(4, 1);
    // Id 5 has itself as anonymous member, twice at each level.
    b.composite(
        STRUCT,
        "task",
        8,
        &[("own", 1, 0), ("there", 2, 0), ("array", 4, 0), ("", 5, 8), ("", 5, 8), ("beyond", 99, 0), ("void", 0, 0)],
    );
    let bytes = b.build();
    let btf = Btf::parse(&bytes).unwrap();
    for path in ["own", "own.more", "there", "array", "array.more", "absent", "beyond", "beyond.more", "void"] {
        assert_eq!(btf.member("task", path), None, "{path}");
    }
}

/// Whatever the answers are, there must be some.
fn ask_everything(bytes: &[u8]) {
    let Ok(btf) = Btf::parse(bytes) else { return };
    for path in ["tgid", "first", "nested.value", "pids[PIDTYPE_SID]", "elements[WIDE].value", "matrix", "absent"] {
        if let Some(member) = btf.member("task", path) {
            assert!(member.offset < u32::MAX);
        }
    }
    std::hint::black_box((btf.size_of("element"), btf.has_tracepoint("sched_process_exec")));
    assert!(btf.resolve().is_err(), "the small kernel lacks most fields");
}

proptest! {
    #[test]
    fn changed_bytes_are_survived(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
        let mut bytes = kernel().build();
        for (at, to) in changes {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        ask_everything(&bytes);
    }

    #[test]
    fn changed_words_are_survived(changes in prop::collection::vec((any::<prop::sample::Index>(), 0_u32..64), 1..20)) {
        let mut builder = kernel();
        for (at, to) in changes {
            let at = at.index(builder.types.len() / 4) * 4;
            builder.types[at..at + 4].copy_from_slice(&to.to_ne_bytes());
        }
        ask_everything(&builder.build());
    }

    #[test]
    fn random_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        ask_everything(&bytes);
        ask_everything(&Builder { types: bytes.clone(), strings: bytes, last_id: 0 }.build());
    }
}

#[test]
fn the_running_kernel_has_every_required_field() {
    let Ok(bytes) = read_kernel() else { return };
    let btf = Btf::parse(&bytes).unwrap();
    let resolved = btf.resolve().unwrap();
    println!("missing here: {:?}", resolved.missing);
    assert!(btf.has_tracepoint("sched_process_exec"));
}

/// Made by `testdata/btf/reduce.py`.
#[test]
#[cfg(target_endian = "little")]
fn on_other_kernels_offsets_are_those_of_a_c_compiler() {
    use zerocopy::IntoBytes;

    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/btf");
    for kernel in ["5.10", "6.1", "6.12", "6.18", "7.2"] {
        let bytes = std::fs::read(data.join(format!("{kernel}.btf"))).unwrap();
        let expected = std::fs::read_to_string(data.join(format!("{kernel}.offsets"))).unwrap();

        let resolved = Btf::parse(&bytes).unwrap().resolve().unwrap();
        let offsets = FIELDS.iter().zip(words(resolved.offsets.as_bytes()));
        let found = offsets.map(|(field, [value])| match value {
            ABSENT => format!("{} absent", field.name),
            value => format!("{} {value}", field.name),
        });
        assert_eq!(found.collect::<Vec<_>>(), expected.lines().collect::<Vec<_>>(), "{kernel}");
    }
}
