//! `namespan symbols`: a program of a container, of a process or of the host comes in; a line for each function and USDT
//! probe of it goes out.

use std::collections::BTreeSet;
use std::io::{self, Write};

use serde::Serialize;

use super::host::Process;
use super::told::Told;
use super::{Listed, ask, listed};
use crate::attach::refusal::chain;
use crate::check::report::Printable;
use crate::cli::Symbols;
use crate::config::Config;
use crate::enrich::selection::Glob;
use crate::uprobe::elf::{Binding, ElfError, Image, Location, Operand, Trust};
use crate::uprobe::root::{OpenError, Opened, Root};
use crate::uprobe::spec::Expression;

/// Most processes that are asked for a library.
const MAX_ASKED: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum SymbolsError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("PATTERN: {0}")]
    Pattern(String),
    #[error("--binary")]
    Open(#[from] OpenError),
    #[error("{path}", path = Printable(path))]
    Elf { path: String, source: ElfError },
    #[error("no container `{name}`; `namespan containers` lists those that there are{}", silence(silent))]
    NoContainer { name: String, silent: Vec<String> },
    #[error("no process of container `{name}` runs; start it", name = Printable(name))]
    NotRunning { name: String },
    #[error("several containers match, and have not the same file; name one of them:{}", lines(found))]
    Ambiguous { found: Vec<(String, String)> },
    #[error("{path}: nothing matches{}", hint(*is_stripped), path = Printable(path))]
    Nothing { path: String, is_stripped: bool },
}

fn silence(silent: &[String]) -> String {
    [&[String::new()], silent].concat().join("; ")
}

fn lines(found: &[(String, String)]) -> String {
    let line = |(name, what): &(String, String)| format!("\n  {}: {}", Printable(name), Printable(what));
    found.iter().map(line).collect()
}

fn hint(is_stripped: bool) -> &'static str {
    if is_stripped { "; the program is stripped, and only what it shows to others is known" } else { "" }
}

/// Prints a table, or one JSON object; what else is to be said comes back, in whole sentences.
pub async fn list(config: &Config, flags: &Symbols, out: &mut dyn Write) -> Result<Vec<String>, SymbolsError> {
    let pattern = flags.pattern.as_deref().map(Expression::new).transpose().map_err(SymbolsError::Pattern)?;
    let (container, found) = match (&flags.container, flags.pid) {
        (Some(name), _) => {
            let (told, processes) = ask(config).await?;
            let silent = told.silent(&config.enrich.runtimes);
            let (name, found) = in_container(name, &listed(&told, &processes), &flags.binary, silent)?;
            (Some(name), found)
        }
        (None, Some(pid)) => (None, Found::of(&[pid], &flags.binary)?),
        (None, None) if flags.binary.starts_with('/') => {
            let root = Root::of_host()?;
            (None, Found::read(root.open(&flags.binary)?, &root, Trust::Host)?)
        }
        (None, None) => {
            let (told, processes) = ask(config).await?;
            (None, Found::of(&outside(&told, &processes), &flags.binary)?)
        }
    };
    let is_wanted = |name: &str| pattern.as_ref().is_none_or(|pattern| pattern.is_match(name));
    let listing = Listing::of(container.as_deref(), &found, is_wanted);
    if listing.functions.is_empty() && listing.usdt.is_empty() {
        return Err(SymbolsError::Nothing { path: found.path, is_stripped: found.image.is_stripped() });
    }
    let printed = if flags.json { json(&listing, out) } else { table(&listing, out) };
    match printed {
        // Whoever reads it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        printed => printed?,
    }
    Ok(found.remarks())
}

/// Processes of no container.
fn outside(told: &Told, processes: &[Process]) -> Vec<u32> {
    let is_outside = |process: &&Process| process.container().is_none() && told.owner(process).is_none();
    processes.iter().filter(is_outside).map(|process| process.pid).collect()
}

/// The file of the first by name of the matching containers, if all have the same.
fn in_container(
    wanted: &str,
    listed: &[Listed],
    binary: &str,
    silent: Vec<String>,
) -> Result<(String, Found), SymbolsError> {
    let glob = Glob::parse(wanted);
    let is_called = |listed: &&Listed| {
        let container = &listed.container;
        let names = [&container.name, &container.pod.name, &container.pod.container];
        names.into_iter().flatten().any(|name| glob.matches(name)) || container.id.starts_with(wanted)
    };
    let matching: Vec<_> = listed.iter().filter(is_called).collect();
    let name = |listed: &Listed| listed.container.name.as_ref().unwrap_or(&listed.container.id).clone();
    let open = |listed: &Listed| match &listed.pids[..] {
        [] => Err(SymbolsError::NotRunning { name: name(listed) }),
        pids => Found::of(pids, binary),
    };
    match matching[..] {
        [] => return Err(SymbolsError::NoContainer { name: wanted.to_owned(), silent }),
        [only] => return Ok((name(only), open(only)?)),
        [_, _, ..] => {}
    }
    let mut first = None;
    let mut what = Vec::new();
    for listed in matching {
        let identity = match open(listed) {
            Err(error) => chain(&error),
            Ok(found) => {
                let identity = found.identity.clone();
                first.get_or_insert((name(listed), found));
                identity
            }
        };
        what.push((name(listed), identity));
    }
    let is_same = what.windows(2).all(|pair| pair[0].1 == pair[1].1);
    first.filter(|_| is_same).ok_or(SymbolsError::Ambiguous { found: what })
}

struct Found {
    path: String,
    image: Image,
    /// The same for the same file, though overlays may have it under several inodes.
    identity: String,
    debug_problem: Option<ElfError>,
}

impl Found {
    /// A path in the root of the first of the processes that is there; a library, of the first that has it.
    fn of(pids: &[u32], binary: &str) -> Result<Self, SymbolsError> {
        let is_path = binary.starts_with('/');
        let mut refused = None;
        for pid in pids.iter().take(MAX_ASKED) {
            let opened = Root::of_pid(*pid).and_then(|root| {
                let opened = if is_path { root.open(binary) } else { root.open_library(binary) };
                opened.map(|opened| (opened, root))
            });
            match opened {
                Ok((opened, root)) => return Self::read(opened, &root, Trust::Container),
                Err(error) if is_path && !matches!(error, OpenError::Gone { .. }) => return Err(error.into()),
                // That no process has it is worth more than that one may not be looked at.
                Err(error @ OpenError::NoLibrary { .. }) => refused = Some(error),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        let refused = refused.unwrap_or_else(|| OpenError::NoLibrary { library: binary.to_owned() });
        Err(refused.into())
    }

    fn read(opened: Opened, root: &Root, trust: Trust) -> Result<Self, SymbolsError> {
        let Opened { file, path, device, inode, .. } = opened;
        let size = file.metadata()?.len();
        let mut image = match Image::open(file) {
            Ok(image) => image,
            Err(source) => return Err(SymbolsError::Elf { path, source }),
        };
        let identity = match image.build_id_hex() {
            Some(id) => format!("{size} bytes, build id {id}"),
            None => format!("{size} bytes, inode {inode} of device {device}"),
        };
        let mut debug_problem = None;
        if image.is_stripped() {
            let host = Root::of_host()?;
            for (root, trust) in [(&host, Trust::Host), (root, trust)] {
                debug_problem = image.add_debug_file(root, trust).err().or(debug_problem);
            }
        }
        Ok(Self { path, image, identity, debug_problem })
    }

    fn remarks(&self) -> Vec<String> {
        let path = Printable(&self.path);
        let mut remarks = Vec::new();
        remarks.extend(self.debug_problem.as_ref().map(|problem| format!("{path}: {}", chain(problem))));
        if self.image.is_stripped() {
            let file =
                self.image.debug_file().map_or(String::new(), |file| format!("; its debug symbols would be {file}"));
            remarks.push(format!("{path} is stripped: only functions that it shows to others are known{file}"));
        }
        if self.image.is_go() {
            remarks.push(format!("{path} is of Go: returns are probed at its `ret` instructions, not by uretprobes"));
        }
        remarks
    }
}

#[derive(Serialize)]
struct Listing<'a> {
    binary: &'a str,
    container: Option<&'a str>,
    build_id: Option<String>,
    go: bool,
    stripped: bool,
    functions: Vec<FunctionLine>,
    usdt: Vec<UsdtLine>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct FunctionLine {
    name: String,
    offset: u64,
    /// `None`: not known.
    size: Option<u64>,
    symbol: String,
    binding: Binding,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct UsdtLine {
    provider: String,
    name: String,
    offset: u64,
    semaphore_offset: Option<u64>,
    arguments: Vec<String>,
}

impl<'a> Listing<'a> {
    /// In the order of the names.
    fn of(container: Option<&'a str>, found: &'a Found, is_wanted: impl Fn(&str) -> bool) -> Self {
        let image = &found.image;
        let functions = image.functions().filter(|known| is_wanted(&known.name) || is_wanted(&known.symbol));
        let mut functions: Vec<_> = functions
            .map(|known| FunctionLine {
                name: known.name,
                offset: known.offset,
                size: Some(known.size).filter(|size| *size > 0),
                symbol: known.symbol,
                binding: known.binding,
            })
            .collect();
        functions.sort_unstable();
        // Two tables may have it.
        functions.dedup_by(|one, other| (&one.symbol, one.offset) == (&other.symbol, other.offset));
        let markers = image.markers().iter();
        let markers = markers.filter(|marker| is_wanted(&format!("{}:{}", marker.provider, marker.name)));
        let usdt: BTreeSet<_> = markers
            .map(|marker| UsdtLine {
                provider: marker.provider.clone(),
                name: marker.name.clone(),
                offset: marker.offset,
                semaphore_offset: marker.usdt.semaphore_offset,
                arguments: marker.usdt.operands.iter().map(argument).collect(),
            })
            .collect();
        Self {
            binary: &found.path,
            container,
            build_id: image.build_id_hex(),
            go: image.is_go(),
            stripped: image.is_stripped(),
            functions,
            usdt: usdt.into_iter().collect(),
        }
    }
}

/// As a note of `sys/sdt.h` has it, but for the registers' names, which are those of all their bits.
fn argument(operand: &Result<Operand, String>) -> String {
    let Operand { size, is_signed, is_float, at } = match operand {
        Ok(operand) => operand,
        Err(refusal) => return format!("not readable: {refusal}"),
    };
    let sign = if *is_signed { "-" } else { "" };
    let float = if *is_float { "f" } else { "" };
    let at = match at {
        Location::Register(register) => register.0.to_owned(),
        Location::Constant(constant) => constant.to_string(),
        Location::Memory { base, index, displacement } => {
            let index = index.map_or(String::new(), |(index, scale)| format!("+{}*{scale}", index.0));
            format!("[{}{index}{displacement:+}]", base.0)
        }
    };
    format!("{sign}{size}{float}@{at}")
}

/// Aligned numbers, and what a probe is called; `-` where something is not known.
fn table(listing: &Listing<'_>, out: &mut dyn Write) -> io::Result<()> {
    let path = Printable(listing.binary);
    let functions = listing
        .functions
        .iter()
        .map(|known| (known.offset, known.size, format!("uprobe:{path}:{}", Printable(&known.name))));
    let usdt = listing.usdt.iter().map(|known| {
        (known.offset, None, format!("usdt:{path}:{}:{}", Printable(&known.provider), Printable(&known.name)))
    });
    let mut out = io::BufWriter::new(out);
    writeln!(out, "{:>12} {:>9} PROBE", "OFFSET", "SIZE")?;
    for (offset, size, probe) in functions.chain(usdt) {
        let size = size.map_or_else(|| "-".to_owned(), |size| size.to_string());
        writeln!(out, "{:>12} {size:>9} {probe}", format!("{offset:#x}"))?;
    }
    out.flush()
}

fn json(listing: &Listing<'_>, out: &mut dyn Write) -> io::Result<()> {
    let mut out = io::BufWriter::new(out);
    serde_json::to_writer(&mut out, listing)?;
    writeln!(out)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::enrich::How;
    use crate::enrich::container::Container;

    /// This process, as if it were a container's.
    fn container(name: &str, pids: &[u32]) -> Listed {
        let container = Container { name: Some(name.to_owned()), ..Container::of_id("ab".repeat(32), "docker") };
        Listed {
            container: Arc::new(container),
            how: How::RuntimeApi,
            cgroup: None,
            namespaces: super::super::Namespaces::default(),
            pids: pids.to_vec(),
        }
    }

    fn own_path() -> String {
        std::fs::read_link("/proc/self/exe").unwrap().to_str().unwrap().to_owned()
    }

    const OWN: &str = "list::symbols::tests::own_path";

    #[test]
    fn a_function_of_a_container_s_program_is_a_line_or_an_object() {
        let own = std::process::id();
        let listed = [container("web-1", &[own]), container("web-2", &[own])];
        let (name, found) = in_container("web-*", &listed, &own_path(), Vec::new()).unwrap();
        let listing = Listing::of(Some(&name), &found, |name| name.ends_with(OWN));
        let mut out = Vec::new();
        table(&listing, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let (head, rest) = text.split_once('\n').unwrap();
        assert_eq!(head, "      OFFSET      SIZE PROBE");
        let expected = format!("uprobe:{}:namespan::{OWN}", own_path());
        assert!(rest.lines().all(|line| line.ends_with(&expected)) && !rest.is_empty(), "{text}");
        let mut out = Vec::new();
        json(&listing, &mut out).unwrap();
        let object: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((&object["container"], &object["go"]), (&"web-1".into(), &false.into()));
        assert_eq!(object["functions"][0]["name"], format!("namespan::{OWN}"));
    }

    #[test]
    fn what_is_not_one_file_is_told_by_container() {
        let own = std::process::id();
        let listed = [container("web", &[own]), container("wed", &[]), container("other", &[u32::MAX])];
        let error =
            |name: &str, binary: &str| match in_container(name, &listed, binary, vec!["docker is silent".to_owned()]) {
                Ok(_) => panic!("{name} must be refused"),
                Err(error) => chain(&error),
            };
        let message = error("we?", &own_path());
        assert!(message.contains("\n  web: ") && message.contains("\n  wed: no process of container"), "{message}");
        assert!(
            error("nope", "/x").contains("no container `nope`") && error("nope", "/x").contains("docker is silent")
        );
        assert!(error("web", "/not/there").contains("no such file"));
        assert!(error("other", "/x").contains("has ended"));
        assert!(in_container("abab", &listed[..1], "libc", Vec::new()).is_ok(), "by id");
    }

    #[test]
    fn hostile_names_do_not_steer_the_terminal() {
        let name = "a\u{1b}[2J\u{202e}b".to_owned();
        let known = FunctionLine { name: name.clone(), offset: 1, size: None, symbol: name, binding: Binding::Local };
        let listing = Listing {
            binary: "/b",
            container: None,
            build_id: None,
            go: false,
            stripped: false,
            functions: vec![known],
            usdt: Vec::new(),
        };
        let mut out = Vec::new();
        table(&listing, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.ends_with("         0x1         - uprobe:/b:a\\u{1b}[2J\\u{202e}b\n"), "{text}");
    }
}
