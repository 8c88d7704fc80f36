//! Programs that the compilers of this machine make, and bytes that nobody made, resolved.

use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::uprobe::spec::Expression;

const C: &str = r#"
#include <stdlib.h>
static __attribute__((noinline)) int hidden(int n) { return n * 3; }
__attribute__((noinline)) int shown(int n) { return hidden(n) + 1; }
int alias(int n) __attribute__((alias("shown")));
static int fast(int n) { return n; }
static int (*choose(void))(int) { return fast; }
int chosen(int n) __attribute__((ifunc("choose")));
int main(int argc, char **argv) { return shown(argc) + chosen(argc) + alias(argc); }
"#;

const CPP: &str = r"
namespace web {
struct Server { int handle(int n); int handle(const char *s); };
__attribute__((noinline)) int Server::handle(int n) { return n + 1; }
__attribute__((noinline)) int Server::handle(const char *s) { return *s; }
template <class T> __attribute__((noinline)) T twice(T t) { return t + t; }
}
int main(int argc, char **argv) {
    web::Server s;
    return s.handle(argc) + s.handle(argv[0]) + web::twice(argc) + (int)web::twice(1.5);
}
";

/// As `sys/sdt.h` writes it.
const USDT: &str = r#"
__asm__(
    ".section .stapsdt.base, \"aG\", \"progbits\", .stapsdt.base, comdat\n"
    ".weak _.stapsdt.base\n_.stapsdt.base: .space 1\n.size _.stapsdt.base, 1\n.previous\n");
unsigned short semaphore __attribute__((section(".probes"), used)) = 0;
#define PROBE(name, semaphore, operands) __asm__ volatile( \
    "990: nop\n.pushsection .note.stapsdt, \"?\", \"note\"\n.balign 4\n" \
    ".4byte 992f-991f, 994f-993f, 3\n991: .asciz \"stapsdt\"\n992: .balign 4\n" \
    "993: .8byte 990b\n.8byte _.stapsdt.base\n.8byte " semaphore "\n" \
    ".asciz \"shop\"\n.asciz \"" name "\"\n.asciz \"" operands "\"\n994: .balign 4\n.popsection\n")
__attribute__((noinline)) int sell(int n) { PROBE("sold", "semaphore", "-4@$7 8f@%xmm0"); return n; }
int main(int argc, char **argv) { PROBE("opened", "0", ""); PROBE("sold", "semaphore", ""); return sell(argc); }
"#;

struct Built {
    _dir: TempDir,
    path: PathBuf,
}

fn run(command: &str, args: &[&str]) {
    let output = Command::new(command).args(args).output().unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(output.status.success(), "{command} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Not every machine that has a C compiler has this too.
fn is_there(command: &str) -> bool {
    Command::new(command).arg("--version").output().is_ok()
}

fn build(compiler: &str, source: &str, args: &[&str]) -> Built {
    let dir = tempfile::tempdir().unwrap();
    let (from, path) = (dir.path().join("source"), dir.path().join("program"));
    std::fs::write(&from, source).unwrap();
    let language = if compiler == "c++" { "c++" } else { "c" };
    let (from, to) = (from.to_str().unwrap(), path.to_str().unwrap());
    run(compiler, &[&["-O1", "-Wl,--build-id", "-o", to], args, &["-x", language, from]].concat());
    Built { _dir: dir, path }
}

fn image(path: &Path) -> Image {
    Image::open(File::open(path).unwrap()).unwrap()
}

fn symbol(name: &str) -> Function {
    Function::Symbol(name.to_owned())
}

fn pattern(regex: &str, limit: u32) -> Function {
    Function::Pattern { regex: Expression::new(regex).unwrap(), limit }
}

fn offset(symbol: Option<&str>, offset: u64) -> Function {
    Function::Offset { symbol: symbol.map(str::to_owned), offset }
}

fn entry(image: &Image, function: &Function) -> Vec<(String, u64)> {
    let places = image.resolve(function, Kind::Entry).unwrap();
    places.into_iter().map(|place| (place.function, place.offset)).collect()
}

fn refusal(image: &Image, function: &Function, kind: Kind) -> String {
    image.resolve(function, kind).unwrap_err().to_string()
}

/// What `nm` says, at its place in the file.
fn address(path: &Path, name: &str) -> u64 {
    let output = Command::new("nm").arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.ends_with(&format!(" {name}"))).unwrap();
    let address = u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap();
    image(path).tables.file_offset(address, true).unwrap().0
}

#[test]
fn functions_are_where_the_linker_says() {
    for args in [&["-pie"][..], &["-no-pie"], &["-static"], &["-no-pie", "-Wl,-Ttext-segment=0x700000"]] {
        let built = build("cc", C, args);
        let image = image(&built.path);
        for name in ["hidden", "shown", "main"] {
            assert_eq!(entry(&image, &symbol(name)), [(name.to_owned(), address(&built.path, name))], "{args:?}");
        }
        assert_eq!(entry(&image, &symbol("alias"))[0].1, address(&built.path, "shown"));
        assert!(!image.is_go() && !image.is_stripped() && image.build_id().is_some_and(|id| id.len() == 20));
    }
}

#[test]
fn a_pattern_takes_each_place_once_and_no_more_than_its_limit() {
    let built = build("cc", C, &[]);
    let image = image(&built.path);
    let found: Vec<_> =
        entry(&image, &pattern("^(shown|alias|hidden)$", 2)).into_iter().map(|(name, _)| name).collect();
    assert_eq!(found.len(), 2);
    assert!(found.contains(&"hidden".to_owned()) && found.contains(&"alias".to_owned()), "{found:?}");
    let message = refusal(&image, &pattern("shown|hidden", 1), Kind::Entry);
    assert!(message.contains("2 functions") && message.contains("at most 1"), "{message}");
    let message = refusal(&image, &pattern("nothing_like_it", 9), Kind::Entry);
    assert_eq!(message, "no function matches `nothing_like_it`");
    assert!(entry(&image, &pattern("^(chosen|main)$", 9)).len() == 1, "an indirect function is left out");
}

#[test]
fn what_cannot_be_probed_says_why_and_what_to_do() {
    let built = build("cc", C, &[]);
    let image = image(&built.path);
    for (function, kind, parts) in [
        (symbol("chosen"), Kind::Entry, &["indirect function", "pattern"][..]),
        (symbol("show"), Kind::Entry, &["no function `show`", "similar: shown"]),
        (symbol("_start"), Kind::Both, &["return of `_start`", "no caller", "probe its entry"]),
        (offset(Some("main"), 1 << 40), Kind::Entry, &["outside of `main`"]),
        (offset(None, 1 << 40), Kind::Entry, &["outside of the program's code"]),
        (offset(None, 1), Kind::Entry, &["outside of the program's code"]),
    ] {
        let message = refusal(&image, &function, kind);
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    let open = |bytes: &[u8]| Image::parse(bytes).err().unwrap().to_string();
    assert!(open(b"#!/bin/sh\n").contains("interpreter"));
    let mut bytes = std::fs::read(&built.path).unwrap();
    bytes[18] = 3;
    assert!(open(&bytes).contains("x86-64"));
    bytes[4] = 1;
    assert!(open(&bytes).contains("32 bits"));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn an_offset_is_taken_only_where_an_instruction_begins() {
    let source =
        "__asm__(\".globl f\\n.type f,@function\\nf: mov $1,%eax\\nret\\n.size f,.-f\\n\"); int main(void){return 0;}";
    let built = build("cc", source, &[]);
    let image = image(&built.path);
    let at = address(&built.path, "f");
    assert_eq!(entry(&image, &offset(Some("f"), 5)), [("f".to_owned(), at + 5)]);
    assert_eq!(entry(&image, &offset(None, at + 5)), [("f".to_owned(), at + 5)]);
    assert!(refusal(&image, &offset(Some("f"), 2), Kind::Entry).contains("beginning of an instruction"));
    assert!(refusal(&image, &offset(None, at + 2), Kind::Entry).contains("beginning of an instruction"));
    assert!(refusal(&image, &offset(Some("f"), 5), Kind::Return).contains("no call"));
    assert_eq!(image.resolve(&offset(None, at), Kind::Both).unwrap()[0].offset, at);
}

#[test]
fn cpp_is_named_as_it_is_written() {
    if !is_there("c++") {
        return;
    }
    let built = build("c++", CPP, &[]);
    let image = image(&built.path);
    assert_eq!(entry(&image, &symbol("web::Server::handle")).len(), 2, "both overloads");
    let [(name, place)] = &entry(&image, &symbol("web::Server::handle(int)"))[..] else { panic!("one expected") };
    assert_eq!((name.as_str(), *place), ("web::Server::handle(int)", address(&built.path, "_ZN3web6Server6handleEi")));
    assert_eq!(entry(&image, &symbol("_ZN3web6Server6handleEi"))[0].1, *place);
    assert_eq!(entry(&image, &pattern(r"web::twice<", 9)).len(), 2);
}

#[test]
fn this_very_program_is_named_as_rust_is_written() {
    let image = image(Path::new("/proc/self/exe"));
    let name = "namespan::uprobe::elf::tests::this_very_program_is_named_as_rust_is_written";
    assert!(!entry(&image, &symbol(name)).is_empty());
}

#[test]
fn a_stripped_program_shows_its_exports_alone() {
    let built = build("cc", C, &["-s", "-rdynamic"]);
    let image = image(&built.path);
    assert!(image.is_stripped());
    assert_eq!(entry(&image, &symbol("shown")).len(), 1);
    let message = refusal(&image, &symbol("hidden"), Kind::Entry);
    assert!(message.contains("stripped") && message.contains("/usr/lib/debug/.build-id/"), "{message}");
    let listed: Vec<_> = image.functions().map(|listing| listing.name).collect();
    assert!(listed.contains(&"alias".to_owned()) && !listed.contains(&"chosen".to_owned()), "{listed:?}");
}

/// The program without its symbols, beside a file with them.
fn split(built: &Built) -> (PathBuf, PathBuf) {
    let (program, symbols) = (built.path.with_extension("bare"), built.path.with_extension("debug"));
    let [from, bare, debug] = [&built.path, &program, &symbols].map(|path| path.to_str().unwrap());
    run("objcopy", &["--only-keep-debug", from, debug]);
    run("strip", &["-o", bare, from]);
    (program, symbols)
}

#[test]
fn symbols_are_found_compressed_within() {
    if !is_there("xz") {
        return;
    }
    let built = build("cc", C, &[]);
    let expected = entry(&image(&built.path), &symbol("hidden"));
    let (program, symbols) = split(&built);
    let [bare, debug] = [&program, &symbols].map(|path| path.to_str().unwrap());
    run("xz", &["-k", debug]);
    run("objcopy", &["--add-section", &format!(".gnu_debugdata={debug}.xz"), bare]);
    let with = image(&program);
    assert!(!with.is_stripped());
    assert_eq!(entry(&with, &symbol("hidden")), expected);
    let zeros = symbols.with_extension("zeros");
    std::fs::write(&zeros, vec![0; 65 << 20]).unwrap();
    run("xz", &[zeros.to_str().unwrap()]);
    run("objcopy", &["--update-section", &format!(".gnu_debugdata={}.xz", zeros.to_str().unwrap()), bare]);
    let refused = Image::open(File::open(&program).unwrap()).err().unwrap();
    assert!(matches!(refused, ElfError::TooLarge { what: "its .gnu_debugdata", .. }), "{refused}");
}

#[test]
fn a_debug_file_counts_by_its_build_id_and_a_container_s_only_where_functions_begin() {
    let built = build("cc", C, &[]);
    let expected = entry(&image(&built.path), &symbol("hidden"));
    let (program, symbols) = split(&built);
    let program = image(&program);
    let bytes = std::fs::read(&symbols).unwrap();
    for trust in [Trust::Host, Trust::Container] {
        let table = debug::from_source(&program.tables, Box::new(bytes.clone()), trust).unwrap().unwrap();
        let found: Vec<_> = table.symbols().filter(|symbol| symbol.name == b"hidden").collect();
        assert_eq!(found.iter().map(|symbol| symbol.offset).collect::<Vec<_>>(), [expected[0].1], "{trust:?}");
    }
    // One byte further, as a container that wishes others harm would have it.
    let own = Tables::read(Box::new(bytes.clone())).unwrap();
    let section = own.sections.iter().find(|section| section.kind == SHT_SYMTAB).unwrap();
    let mut moved = bytes.clone();
    let (from, to) =
        (usize::try_from(section.offset).unwrap(), usize::try_from(section.offset + section.size).unwrap());
    for symbol in moved[from..to].chunks_exact_mut(24) {
        symbol[8] = symbol[8].wrapping_add(1);
    }
    let of = |trust| debug::from_source(&program.tables, Box::new(moved.clone()), trust).unwrap().unwrap();
    assert!(!of(Trust::Host).is_empty() && of(Trust::Container).is_empty());
    let other = image(&build("cc", "int main(void) { return 5; }", &[]).path);
    assert!(debug::from_source(&other.tables, Box::new(bytes), Trust::Host).unwrap().is_none());
}

#[test]
#[cfg(target_arch = "x86_64")]
fn usdt_probes_are_read_with_operands_and_semaphore() {
    for args in [&["-pie"][..], &["-no-pie"]] {
        let built = build("cc", USDT, args);
        let image = image(&built.path);
        let usdt = |name: &str| Function::Usdt { provider: "shop".to_owned(), name: name.to_owned() };
        let places = image.resolve(&usdt("sold"), Kind::Entry).unwrap();
        assert_eq!(places.len(), 2);
        let of_sell = places.iter().find(|place| !place.usdt.as_ref().unwrap().operands.is_empty()).unwrap();
        let sell = address(&built.path, "sell");
        assert!((sell..sell + 16).contains(&of_sell.offset), "{sell:#x} {of_sell:?}");
        assert_eq!(std::fs::read(&built.path).unwrap()[usize::try_from(of_sell.offset).unwrap()], 0x90);
        let Usdt { operands, semaphore_offset } = of_sell.usdt.as_ref().unwrap();
        let constant = Operand { size: 4, is_signed: true, is_float: false, at: Location::Constant(7) };
        assert_eq!(operands[0], Ok(constant));
        assert!(operands[1].as_ref().unwrap_err().contains("vector register"));
        let section = image.tables.section(b".probes").unwrap();
        assert_eq!(*semaphore_offset, Some(section.offset));
        assert_eq!(
            image.resolve(&usdt("opened"), Kind::Entry).unwrap()[0].usdt.as_ref().unwrap().semaphore_offset,
            None
        );
        assert!(refusal(&image, &usdt("closed"), Kind::Entry).contains("similar: shop:opened, shop:sold"));
        assert!(refusal(&image, &usdt("sold"), Kind::Both).contains("point in a function"));
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u64>(), 0..4_usize), 1..12),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        is_go: bool,
    ) {
        let mut bytes = if is_go { go_sample() } else { sample() }.clone();
        for (at, value, width) in edits {
            let width = 1 << width;
            let at = at.index(bytes.len() - 8);
            bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        exercise(&bytes);
    }

    #[test]
    fn no_header_makes_it_panic(edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..24)) {
        // Headers are few of the bytes, and steer all else.
        let mut bytes = sample().clone();
        let table = usize::try_from(read::u64_at(&bytes, 40).unwrap()).unwrap();
        let places: Vec<usize> = (0..64 + 13 * 56).chain(table..bytes.len()).collect();
        for (at, value) in edits {
            bytes[places[at.index(places.len())]] = value;
        }
        exercise(&bytes);
    }
}

/// Three functions without symbols, and the table that Go 1.20 and later write of them.
const GO: &str = r#"
__asm__(
    ".section .go.buildinfo, \"a\"\n.byte 0\n"
    ".text\n.globl entry\nentry: nop\nret\n"
    "twice: test %eax, %eax\nje 1f\nmov $0xc3c3c3c3, %eax\nret\n1: ret\n"
    "wrapper: jmp twice\n"
    "end:\n"
    ".section " SECTION "\n.balign 32\n"
    "table: .4byte 0xfffffff1\n.byte 0, 0, 1, 8\n.8byte 3, 1, " TEXT ", names - table, names_end - table, 0, 0, pairs - table\n"
    "names: .asciz \"_rt0_amd64_linux\"\n.Ltwice: .asciz \"main.twice\"\n.Lwrapper: .asciz \"main.wrapper\"\nnames_end:\n"
    ".balign 8\n"
    "pairs: .4byte entry - entry, .L1 - pairs, twice - entry, .L2 - pairs, wrapper - entry, .L3 - pairs, end - entry\n"
    ".L1: .4byte entry - entry, 0\n.L2: .4byte twice - entry, .Ltwice - names\n.L3: .4byte wrapper - entry, .Lwrapper - names\n"
    ".previous\n");
"#;

#[test]
#[cfg(target_arch = "x86_64")]
fn a_stripped_go_program_is_read_by_its_own_table_and_its_returns_are_instructions() {
    let table = (".gopclntab, \\\"a\\\"", ".data.rel.ro, \\\"aw\\\"");
    for (section, text, link) in [(table.0, "entry", "-static"), (table.0, "0", "-static"), (table.1, "entry", "-pie")]
    {
        let source = format!("#define SECTION \"{section}\"\n#define TEXT \"{text}\"\n{GO}");
        let built = build("cc", &source, &["-nostdlib", "-Wl,-eentry", "-s", link]);
        let image = image(&built.path);
        assert!(image.is_go() && !image.is_stripped(), "{section} {text}");
        let (start, _) = image.tables.file_offset(image.tables.entry, true).unwrap();
        let place = Place {
            function: "main.twice".to_owned(),
            offset: start + 2,
            kind: Kind::Both,
            usdt: None,
            returns: vec![],
        };
        let places = image.resolve(&symbol("main.twice"), Kind::Both).unwrap();
        assert_eq!(places, [Place { returns: vec![start + 11, start + 12], ..place }], "{section} {text}");
        let message = refusal(&image, &symbol("main.wrapper"), Kind::Return);
        assert!(message.contains("main.wrapper") && message.contains("probe its entry"), "{message}");
        assert_eq!(entry(&image, &pattern("^main[.]", 9)).len(), 2);
    }
}

/// A program with something of everything.
fn sample() -> &'static Vec<u8> {
    static SAMPLE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
        let mut bytes = std::fs::read(build("cc", USDT, &["-rdynamic"]).path).unwrap();
        bytes.truncate(1 << 20);
        bytes
    });
    &SAMPLE
}

fn go_sample() -> &'static Vec<u8> {
    static SAMPLE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
        let source = format!("#define SECTION \".data.rel.ro, \\\"aw\\\"\"\n#define TEXT \"entry\"\n{GO}");
        std::fs::read(build("cc", &source, &["-nostdlib", "-Wl,-eentry", "-s", "-pie"]).path).unwrap()
    });
    if cfg!(target_arch = "x86_64") { &SAMPLE } else { sample() }
}

/// All that is done with a file of a container.
fn exercise(bytes: &[u8]) {
    let Ok(image) = Image::parse(bytes) else { return };
    let _starts = unwind::function_starts(&image.tables);
    let _go = go::functions(&image.tables);
    let listed: Vec<_> = image.functions().take(64).collect();
    for listing in &listed {
        for kind in [Kind::Entry, Kind::Both] {
            let _places = image.resolve(&Function::Symbol(listing.symbol.clone()), kind);
            let _place = image.resolve(&offset(None, listing.offset + 3), kind);
        }
    }
    let _places = (image.resolve(&pattern("s", 5), Kind::Both), image.resolve(&symbol("sell"), Kind::Both));
}
