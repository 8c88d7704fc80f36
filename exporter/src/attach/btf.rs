//! The bytes of a kernel's BTF come in, the offsets and sizes that the programs need go out.
//!
//! Format: <https://docs.kernel.org/bpf/btf.html>. Nothing is copied but where each type begins. Names, ids and sizes are
//! checked where they are followed, so any bytes are safe to parse.

use std::collections::BTreeMap;
use std::ffi::CStr;

use namespan_ebpf::offsets::{ABSENT, FIELDS, Field, Need, Offsets, Place, guard};

const KERNEL: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
const HEADER_LEN: usize = 24;
/// Before a tracepoint's name in that of its type.
const TRACEPOINT: &[u8] = b"btf_trace_";
/// Every kernel that runs BPF programs of this size has 64-bit pointers.
const POINTER_LEN: u32 = 8;
/// Longest chain of typedefs, qualifiers and array dimensions that is followed: kernels stay far below, a cycle does not.
const HOPS_MAX: usize = 64;
/// Most members looked at in search of one, those of anonymous members included: twice what the largest struct can have.
const STEPS_MAX: u32 = 2 * 0xffff;

#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    #[error("cannot read {path}: sysfs must be mounted on /sys, and the kernel built with CONFIG_DEBUG_INFO_BTF=y")]
    Read { path: &'static str, source: std::io::Error },
    #[error("this is not BTF: it begins with {magic:#06x}")]
    NotBtf { magic: u16 },
    #[error("this is the BTF of a host with the other byte order")]
    ForeignByteOrder,
    #[error("BTF of version {version} is unknown, only version 1 is")]
    UnknownVersion { version: u8 },
    #[error("the BTF is cut short: its {section} section ends at byte {end} of {len}")]
    Truncated { section: &'static str, end: u64, len: usize },
    #[error("BTF type {id} is of unknown kind {kind}: the kernel is newer than this build supports")]
    UnknownKind { id: usize, kind: u32 },
    #[error("the kernel's BTF lacks {}: this build does not support the kernel", fields.join(", "))]
    Missing { fields: Vec<String> },
}

/// Reads the running kernel's BTF, some 5 MiB.
pub fn read_kernel() -> Result<Vec<u8>, BtfError> {
    std::fs::read(KERNEL).map_err(|source| BtfError::Read { path: KERNEL, source })
}

/// Parsed BTF, borrowed from its bytes.
#[derive(Debug)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins in `types`. The first has id 1: id 0 is `void`, which is not stored.
    starts: Vec<u32>,
}

/// Where a member lies in its struct and how large it is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub offset: u32,
    pub size: u32,
}

#[derive(Clone, Debug)]
pub struct Resolved {
    pub offsets: Offsets,
    /// [`Field::name`] of each optional field that the kernel lacks.
    pub missing: Vec<&'static str>,
}

impl<'a> Btf<'a> {
    /// One pass over all types.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let (types, strings) = sections(bytes)?;
        let mut starts = Vec::new();
        let mut at = 0;
        while (at as usize) < types.len() {
            let kernel_type = Type::read(types, at, starts.len() + 1)?;
            starts.push(at);
            at += kernel_type.len;
        }
        Ok(Self { types, strings, starts })
    }

    /// Every field of [`FIELDS`]; an error if the kernel lacks a required one.
    pub fn resolve(&self) -> Result<Resolved, BtfError> {
        self.resolve_fields(FIELDS)
    }

    /// Every field that only the guard reads; the distance of `__upperdentry` is made that from the inode.
    pub fn resolve_guard(&self) -> Result<guard::Offsets, BtfError> {
        let mut offsets = guard::Offsets::ABSENT;
        self.resolve_into(guard::FIELDS, |name, value| offsets.set(name, value))?;
        offsets.ovl_upper = match (offsets.ovl_upper, offsets.ovl_vfs_inode) {
            (ABSENT, _) | (_, ABSENT) => offsets.inode_size,
            (upper, inode) => upper.wrapping_sub(inode),
        };
        Ok(offsets)
    }

    /// The member at `path`, written as [`Place::Member`] describes. `None` for bitfields too.
    #[must_use]
    pub fn member(&self, of: &str, path: &str) -> Option<Member> {
        let index = self.index(&[of], &[path]);
        index.structs(of).find_map(|id| self.member_of(&index, id, path))
    }

    /// Bytes of a struct or union.
    #[must_use]
    pub fn size_of(&self, name: &str) -> Option<u32> {
        self.index(&[name], &[]).structs(name).find_map(|id| self.size_of_type(id))
    }

    /// Whether `tp_btf` programs can attach to the tracepoint.
    #[must_use]
    pub fn has_tracepoint(&self, name: &str) -> bool {
        self.all_types().any(|(_, kernel_type)| {
            kernel_type.kind == Kind::Typedef
                && self.name(kernel_type.name).strip_prefix(TRACEPOINT) == Some(name.as_bytes())
        })
    }

    /// Whether the kernel has a function of that name that programs can attach to.
    #[must_use]
    pub fn has_function(&self, name: &str) -> bool {
        self.all_types().any(|(_, kernel_type)| {
            kernel_type.kind == Kind::Function && self.name(kernel_type.name) == name.as_bytes()
        })
    }

    /// As [`Self::of_hooks`], of tracepoints only.
    #[must_use]
    pub fn of_tracepoints(&self, names: &[&str]) -> Vec<u8> {
        self.of_hooks(names, &[])
    }

    /// BTF in which the types of these tracepoints and functions have the ids that they have here, and nothing else has a
    /// name: all that attaching to them takes, as the whole of it would fill tens of MiB.
    #[must_use]
    pub fn of_hooks(&self, tracepoints: &[&str], functions: &[&str]) -> Vec<u8> {
        const NAMELESS: [u32; 3] = [0, 7 << 24, 0];
        let (mut types, mut strings) = (Vec::new(), vec![0]);
        let mut last = 0;
        for (_, kernel_type) in self.all_types() {
            let name = self.name(kernel_type.name);
            let is_among = |name: &[u8], names: &[&str]| names.iter().any(|wanted| wanted.as_bytes() == name);
            let tracepoint = name.strip_prefix(TRACEPOINT).filter(|_| kernel_type.kind == Kind::Typedef);
            let kind: u32 = if tracepoint.is_some_and(|name| is_among(name, tracepoints)) {
                8
            } else if kernel_type.kind == Kind::Function && is_among(name, functions) {
                12
            } else {
                types.push(NAMELESS);
                continue;
            };
            let at = u32::try_from(strings.len()).unwrap_or(u32::MAX);
            strings.extend(name.iter().chain(&[0]));
            types.push([at, kind << 24, 0]);
            last = types.len();
        }
        types.truncate(last);
        let types: Vec<u8> = types.as_flattened().iter().flat_map(|word| word.to_ne_bytes()).collect();
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let header = [len(&[0; HEADER_LEN]), 0, len(&types), len(&types), len(&strings)];
        let mut bytes = Vec::with_capacity(HEADER_LEN + types.len() + strings.len());
        bytes.extend(MAGIC.to_ne_bytes());
        // Version and flags.
        bytes.extend([1, 0]);
        bytes.extend(header.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    fn resolve_fields(&self, fields: &[Field]) -> Result<Resolved, BtfError> {
        let mut offsets = Offsets::ABSENT;
        let missing = self.resolve_into(fields, |name, value| offsets.set(name, value))?;
        Ok(Resolved { offsets, missing })
    }

    /// Hands each field's place to `set`; the optional ones that the kernel lacks.
    fn resolve_into(
        &self,
        fields: &[Field],
        mut set: impl FnMut(&str, u32) -> bool,
    ) -> Result<Vec<&'static str>, BtfError> {
        let structs: Vec<_> = fields.iter().map(|field| owner(&field.place)).collect();
        let paths: Vec<_> = fields.iter().flat_map(|field| paths(&field.place)).copied().collect();
        let index = self.index(&structs, &paths);

        let mut missing = Vec::new();
        let mut lacking = Vec::new();
        for field in fields {
            match (self.locate(&index, &field.place), field.need) {
                (Some(value), _) => {
                    let has_slot = set(field.name, value);
                    debug_assert!(has_slot, "no slot for {}", field.name);
                }
                (None, Need::Optional) => missing.push(field.name),
                (None, Need::Required) => lacking.push(describe(&field.place)),
            }
        }
        if lacking.is_empty() { Ok(missing) } else { Err(BtfError::Missing { fields: lacking }) }
    }

    fn locate(&self, index: &Index<'_>, place: &Place) -> Option<u32> {
        match *place {
            Place::Size { of } => index.structs(of).find_map(|id| self.size_of_type(id)),
            Place::Member { of, paths, size } => paths.iter().find_map(|path| {
                index
                    .structs(of)
                    .filter_map(|id| self.member_of(index, id, path))
                    .find(|member| size == 0 || member.size == size)
                    .map(|member| member.offset)
            }),
        }
    }

    /// Finds the named structs, and the enumerators that `paths` have as subscripts, in one pass over all types.
    fn index<'n>(&self, structs: &[&'n str], paths: &[&'n str]) -> Index<'n> {
        let enumerators = paths.iter().flat_map(|path| path.split('.')).filter_map(|segment| subscript(segment).1);
        let mut index = Index {
            structs: structs.iter().map(|name| (name.as_bytes(), Vec::new())).collect(),
            enumerators: enumerators.map(|name| (name.as_bytes(), None)).collect(),
        };
        // Anonymous types and enumerators must not answer to an empty name.
        index.structs.remove(&b""[..]);
        index.enumerators.remove(&b""[..]);
        for (id, kernel_type) in self.all_types() {
            if kernel_type.kind == Kind::Composite
                && let Some(ids) = index.structs.get_mut(self.name(kernel_type.name))
            {
                ids.push(id);
            }
            if !index.enumerators.is_empty() {
                for (name, value) in kernel_type.enumerators() {
                    if let Some(slot) = index.enumerators.get_mut(self.name(name)) {
                        slot.get_or_insert(value);
                    }
                }
            }
        }
        index
    }

    fn member_of(&self, index: &Index<'_>, root: u32, path: &str) -> Option<Member> {
        let (mut offset, mut id) = (0_u32, root);
        for segment in path.split('.') {
            let (name, enumerator) = subscript(segment);
            let (member_offset, member_id) = self.named_member(id, name)?;
            offset = offset.checked_add(member_offset)?;
            id = member_id;
            if let Some(enumerator) = enumerator {
                let nth = (*index.enumerators.get(enumerator.as_bytes())?)?;
                let (element_id, count) = self.unqualified(id)?.array()?;
                if nth >= u64::from(count) {
                    return None;
                }
                let nth = u32::try_from(nth).ok()?;
                offset = offset.checked_add(nth.checked_mul(self.size_of_type(element_id)?)?)?;
                id = element_id;
            }
        }
        Some(Member { offset, size: self.size_of_type(id)? })
    }

    /// Byte offset and type of a member of the struct or of its anonymous members.
    fn named_member(&self, root: u32, name: &str) -> Option<(u32, u32)> {
        if name.is_empty() {
            return None;
        }
        let mut steps_left = STEPS_MAX;
        let mut open = vec![(0_u32, root)];
        while let Some((base, id)) = open.pop() {
            let Some(composite) = self.unqualified(id).filter(|found| found.kind == Kind::Composite) else { continue };
            for [member_name, member_id, position] in words(composite.tail) {
                steps_left = steps_left.checked_sub(1)?;
                let member_name = self.name(member_name);
                let is_named = member_name == name.as_bytes();
                if !is_named && !member_name.is_empty() {
                    continue;
                }
                let offset = self.byte_offset(composite.has_flag, position, member_id);
                let at = offset.and_then(|offset| Some((base.checked_add(offset)?, member_id)));
                if is_named {
                    return at;
                }
                open.extend(at);
            }
        }
        None
    }

    /// `None` for bitfields.
    fn byte_offset(&self, has_flag: bool, position: u32, member_id: u32) -> Option<u32> {
        let (bit_size, bits) = if has_flag { (position >> 24, position & 0x00ff_ffff) } else { (0, position) };
        let is_partial = self.unqualified(member_id).is_some_and(|member| member.is_partial_int());
        (bit_size == 0 && bits % 8 == 0 && !is_partial).then_some(bits / 8)
    }

    fn size_of_type(&self, mut id: u32) -> Option<u32> {
        let mut count = 1_u32;
        for _ in 0..HOPS_MAX {
            let kernel_type = self.unqualified(id)?;
            match kernel_type.kind {
                Kind::Int | Kind::Composite | Kind::Enum | Kind::Enum64 | Kind::Float => {
                    return count.checked_mul(kernel_type.size_or_id);
                }
                Kind::Pointer => return count.checked_mul(POINTER_LEN),
                Kind::Array => {
                    let (element_id, dimension) = kernel_type.array()?;
                    count = count.checked_mul(dimension)?;
                    id = element_id;
                }
                Kind::Typedef | Kind::Qualifier | Kind::Function | Kind::Sizeless => return None,
            }
        }
        None
    }

    /// The type behind typedefs and qualifiers.
    fn unqualified(&self, mut id: u32) -> Option<Type<'a>> {
        for _ in 0..HOPS_MAX {
            let kernel_type = self.type_of(id)?;
            if !matches!(kernel_type.kind, Kind::Typedef | Kind::Qualifier) {
                return Some(kernel_type);
            }
            id = kernel_type.size_or_id;
        }
        None
    }

    fn type_of(&self, id: u32) -> Option<Type<'a>> {
        let nth = (id as usize).checked_sub(1)?;
        Type::read(self.types, *self.starts.get(nth)?, id as usize).ok()
    }

    fn all_types(&self) -> impl Iterator<Item = (u32, Type<'a>)> {
        (1..).zip(&self.starts).filter_map(|(id, start)| Some((id, Type::read(self.types, *start, id as usize).ok()?)))
    }

    /// Empty for what has no name.
    fn name(&self, at: u32) -> &'a [u8] {
        let name = self.strings.get(at as usize..).and_then(|rest| CStr::from_bytes_until_nul(rest).ok());
        name.map(CStr::to_bytes).unwrap_or_default()
    }
}

/// What one pass over all types found of the names asked for.
struct Index<'n> {
    /// Ids in the BTF's order: the kernel may have several structs of one name, in different compilation units.
    structs: BTreeMap<&'n [u8], Vec<u32>>,
    enumerators: BTreeMap<&'n [u8], Option<u64>>,
}

impl Index<'_> {
    fn structs(&self, name: &str) -> impl Iterator<Item = u32> {
        self.structs.get(name.as_bytes()).into_iter().flatten().copied()
    }
}

/// Kinds by what is done with them, each with the fixed or repeated data behind its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Int,
    Pointer,
    Array,
    /// Struct or union.
    Composite,
    Enum,
    Enum64,
    Float,
    Typedef,
    /// `const`, `volatile`, `restrict` or a type tag.
    Qualifier,
    Function,
    /// A variable, or whatever else no member can be.
    Sizeless,
}

#[derive(Clone, Copy, Debug)]
struct Type<'a> {
    name: u32,
    kind: Kind,
    /// In composites: member positions carry the width of bitfields.
    has_flag: bool,
    size_or_id: u32,
    tail: &'a [u8],
    /// Bytes of the whole.
    len: u32,
}

impl<'a> Type<'a> {
    fn read(types: &'a [u8], at: u32, id: usize) -> Result<Self, BtfError> {
        const HEAD_LEN: u32 = 12;
        let truncated =
            |len: u32| BtfError::Truncated { section: "type", end: u64::from(at) + u64::from(len), len: types.len() };
        let rest = types.get(at as usize..).unwrap_or_default();
        let Some((head, tail)) = rest.split_at_checked(HEAD_LEN as usize) else { return Err(truncated(HEAD_LEN)) };
        let Some([name, info, size_or_id]) = words(head).next() else { return Err(truncated(HEAD_LEN)) };

        let count = info & 0xffff;
        let (kind, tail_len) = match info >> 24 & 0x1f {
            1 => (Kind::Int, 4),
            2 => (Kind::Pointer, 0),
            3 => (Kind::Array, 12),
            4 | 5 => (Kind::Composite, 12 * count),
            6 => (Kind::Enum, 8 * count),
            8 => (Kind::Typedef, 0),
            // volatile, const, restrict, type tag
            9..=11 | 18 => (Kind::Qualifier, 0),
            12 => (Kind::Function, 0),
            // forward declaration
            7 => (Kind::Sizeless, 0),
            // prototype
            13 => (Kind::Sizeless, 8 * count),
            // variable, declaration tag
            14 | 17 => (Kind::Sizeless, 4),
            // section of variables
            15 => (Kind::Sizeless, 12 * count),
            16 => (Kind::Float, 0),
            19 => (Kind::Enum64, 12 * count),
            kind => return Err(BtfError::UnknownKind { id, kind }),
        };
        let len = HEAD_LEN + tail_len;
        let tail = tail.get(..tail_len as usize).ok_or_else(|| truncated(len))?;
        Ok(Self { name, kind, has_flag: info >> 31 == 1, size_or_id, tail, len })
    }

    /// Element type and number of elements.
    fn array(&self) -> Option<(u32, u32)> {
        let [element_id, _, count] = words(self.tail).next().filter(|_| self.kind == Kind::Array)?;
        Some((element_id, count))
    }

    /// Before member positions carried widths, a bitfield was an integer of fewer bits than its bytes have.
    fn is_partial_int(&self) -> bool {
        let Some([encoding]) = words(self.tail).next().filter(|_| self.kind == Kind::Int) else { return false };
        let (shift, bits) = (encoding >> 16 & 0xff, encoding & 0xff);
        shift != 0 || u64::from(bits) != u64::from(self.size_or_id) * 8
    }

    /// Names and values; negative values become large ones.
    fn enumerators(&self) -> impl Iterator<Item = (u32, u64)> + use<'a> {
        let (narrow, wide): (&[u8], &[u8]) = match self.kind {
            Kind::Enum => (self.tail, &[]),
            Kind::Enum64 => (&[], self.tail),
            Kind::Int
            | Kind::Pointer
            | Kind::Array
            | Kind::Composite
            | Kind::Float
            | Kind::Typedef
            | Kind::Qualifier
            | Kind::Function
            | Kind::Sizeless => (&[], &[]),
        };
        let narrow = words(narrow).map(|[name, value]| (name, u64::from(value)));
        narrow.chain(words(wide).map(|[name, low, high]| (name, u64::from(high) << 32 | u64::from(low))))
    }
}

/// The type section and the string section.
fn sections(bytes: &[u8]) -> Result<(&[u8], &[u8]), BtfError> {
    let truncated = |section, end| BtfError::Truncated { section, end, len: bytes.len() };

    let header: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or_else(|| truncated("header", HEADER_LEN as u64))?;
    let [m0, m1, version, ..] = *header;
    match u16::from_ne_bytes([m0, m1]) {
        MAGIC => {}
        magic if magic == MAGIC.swap_bytes() => return Err(BtfError::ForeignByteOrder),
        magic => return Err(BtfError::NotBtf { magic }),
    }
    if version != 1 {
        return Err(BtfError::UnknownVersion { version });
    }
    let Some([_, header_len, types_at, types_len, strings_at, strings_len]) = words(header).next() else {
        return Err(truncated("header", HEADER_LEN as u64));
    };
    let section = |name, at: u32, len: u32| {
        let start = u64::from(header_len) + u64::from(at);
        let end = start + u64::from(len);
        usize::try_from(start)
            .ok()
            .zip(usize::try_from(end).ok())
            .and_then(|(start, end)| bytes.get(start..end))
            .ok_or_else(|| truncated(name, end))
    };
    Ok((section("type", types_at, types_len)?, section("string", strings_at, strings_len)?))
}

/// Groups of `N` words in the host's byte order; an incomplete last one is left out.
fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u32; N]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let mut group = [0; N];
        for word in &mut group {
            let (first, behind) = rest.split_first_chunk()?;
            *word = u32::from_ne_bytes(*first);
            rest = behind;
        }
        Some(group)
    })
}

/// A path's segment such as `pids[PIDTYPE_SID]`: the member's name and the enumerator.
fn subscript(segment: &str) -> (&str, Option<&str>) {
    let bracketed = segment.strip_suffix(']').and_then(|open| open.split_once('['));
    bracketed.map_or((segment, None), |(name, enumerator)| (name, Some(enumerator)))
}

fn owner(place: &Place) -> &'static str {
    match *place {
        Place::Member { of, .. } | Place::Size { of } => of,
    }
}

fn paths(place: &Place) -> &'static [&'static str] {
    match *place {
        Place::Member { paths, .. } => paths,
        Place::Size { .. } => &[],
    }
}

/// `struct.path`, with every alternative.
fn describe(place: &Place) -> String {
    match *place {
        Place::Size { of } => format!("struct {of}"),
        Place::Member { of, paths, .. } => {
            paths.iter().map(|path| format!("{of}.{path}")).collect::<Vec<_>>().join(" or ")
        }
    }
}

#[cfg(test)]
mod tests;
