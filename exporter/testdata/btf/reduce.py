#!/usr/bin/env python3
"""A kernel's whole BTF comes in, test data goes out: NAME.btf, with no more than the fields of offsets.rs, and
NAME.offsets, what a C compiler makes of the same fields in the header that bpftool writes.

    ./reduce.py /sys/kernel/btf/vmlinux 6.18        # needs bpftool and cc
"""

import pathlib
import re
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
TABLE = HERE / "../../../exporter-ebpf/src/offsets.rs"
VOID, PTR, ARRAY, STRUCT, UNION, ENUM, INT = 0, 2, 3, 4, 5, 6, 1
ALIASES = {8, 9, 10, 11, 18}  # typedef, volatile, const, restrict, type tag
TAIL = {1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12), 17: (4, 0), 19: (0, 12)}


def fields():
    """Slot, struct, alternatives; a size has none."""
    for name, body in re.findall(r"^    (\w+): (?:Required|Optional), \{(.*?)\};", TABLE.read_text(), re.M | re.S):
        if body.startswith("sizeof"):
            yield name, body.split()[1], []
        else:
            yield name, body.split(",")[0], re.findall(r'"([^"]+)"', body)


def parse(data):
    header_len, types_at, types_len, strings_at, strings_len = struct.unpack_from("<5I", data, 4)
    at, end = header_len + types_at, header_len + types_at + types_len
    types = [None]
    while at < end:
        name, info, size_or_id = struct.unpack_from("<3I", data, at)
        fixed, each = TAIL.get(info >> 24 & 31, (0, 0))
        length = fixed + each * (info & 0xFFFF)
        types.append((name, info, size_or_id, list(struct.unpack_from(f"<{length // 4}I", data, at + 12))))
        at += 12 + length
    strings = data[header_len + strings_at :][:strings_len]
    return types, lambda at: strings[at : strings.index(b"\0", at)].decode()


def reduce(data):
    types, text = parse(data)
    owners = {of for _, of, _ in fields()}
    words = {word for _, _, paths in fields() for path in paths for word in re.split(r"[].[]+", path)}
    new_ids, out, strings = {VOID: VOID}, [], bytearray(b"\0")

    def name_of(at):
        if not at:
            return 0
        name = text(at).encode() + b"\0"
        if b"\0" + name not in strings:
            strings.extend(name)
        return strings.index(b"\0" + name) + 1

    def keep(old):
        if old in new_ids:
            return new_ids[old]
        name, info, size_or_id, tail = types[old]
        kind = info >> 24 & 31
        new_ids[old] = len(out) + 1
        out.append(None)
        place = len(out) - 1
        if kind in ALIASES:
            size_or_id = keep(size_or_id)
        elif kind == PTR:
            size_or_id = VOID
        elif kind == ARRAY:
            tail = [keep(tail[0]), keep(tail[1]), tail[2]]
        elif kind in (STRUCT, UNION):
            members = [tail[n : n + 3] for n in range(0, len(tail), 3)]
            members = [m for m in members if not m[0] or text(m[0]) in words]
            tail = [word for m in members for word in (name_of(m[0]), keep(m[1]), m[2])]
            info = info & ~0xFFFF | len(members)
        elif kind == ENUM:
            values = [tail[n : n + 2] for n in range(0, len(tail), 2)]
            values = [v for v in values if text(v[0]) in words]
            tail = [word for v in values for word in (name_of(v[0]), v[1])]
            info = info & ~0xFFFF | len(values)
        elif kind != INT:
            sys.exit(f"a field is of kind {kind}")
        out[place] = struct.pack(f"<{3 + len(tail)}I", name_of(name), info, size_or_id, *tail)
        return new_ids[old]

    for old, (name, info, _, tail) in enumerate(types[1:], 1):
        kind = info >> 24 & 31
        if kind in (STRUCT, UNION) and text(name) in owners:
            keep(old)
        if kind == ENUM and any(text(at) in words for at in tail[::2]):
            keep(old)
    body = b"".join(out)
    return struct.pack("<HBB5I", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(strings)) + body + strings


def offsets(btf):
    """One line a field: its slot and the compiler's number."""
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        with open(scratch / "vmlinux.h", "w") as header:
            subprocess.run(["bpftool", "btf", "dump", "file", btf, "format", "c"], stdout=header, check=True)

        def compiled(lines):
            code = '#include "vmlinux.h"\nint printf(const char *, ...);\nint main(void) {\n' + "\n".join(lines) + "\n}\n"
            (scratch / "main.c").write_text(code)
            done = subprocess.run(["cc", "-w", "-std=gnu11", "-o", scratch / "main", scratch / "main.c"], stderr=subprocess.PIPE)
            return done.returncode == 0

        lines = []
        for name, of, paths in fields():
            numbers = [f"__builtin_offsetof(struct {of}, {path})" for path in paths] or [f"sizeof(struct {of})"]
            tries = [f'printf("{name} %u\\n", (unsigned){number});' for number in numbers]
            lines.append(next((line for line in tries if compiled([line])), f'printf("{name} absent\\n");'))
        if not compiled(lines):
            sys.exit("the compiler refuses the header")
        return subprocess.run([scratch / "main"], stdout=subprocess.PIPE, check=True).stdout


btf, name = sys.argv[1:]
(HERE / f"{name}.btf").write_bytes(reduce(pathlib.Path(btf).read_bytes()))
(HERE / f"{name}.offsets").write_bytes(offsets(btf))
