//! Our YAML file: text comes in, the values it has go out, each with its line. Its structure is that of the settings.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::{DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::{Spanned, UserMessageFormatter};

use super::error::{ConfigError, Origin};
use super::given::{self, Given};
use super::parse::{self, Expected, Headers};

/// One value, still as text: all layers are parsed alike.
pub(super) type Entry = Option<Spanned<String>>;
type List = Option<Vec<Entry>>;
type Map = Option<BTreeMap<String, Entry>>;
type Lists = Option<BTreeMap<String, List>>;

/// Lists by name.
type Named<T> = Vec<(String, Vec<T>)>;

/// The file's schema; what it leaves out is `None`.
#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Schema {
    pub console: Entry,
    pub run_for: Entry,
    pub log_level: Entry,
    pub log_format: Entry,
    pub sandbox: Entry,
    pub listen: Entry,
    #[serde(deserialize_with = "section")]
    pub probes: Probes,
    pub arguments: Entry,
    #[serde(deserialize_with = "section")]
    pub enrich: Enrich,
    #[serde(deserialize_with = "section")]
    pub resource: Resource,
    #[serde(deserialize_with = "section")]
    pub spans: Spans,
    #[serde(deserialize_with = "section")]
    pub limits: Limits,
    #[serde(deserialize_with = "section")]
    pub batch: Batch,
    #[serde(deserialize_with = "section")]
    pub queue: Queue,
    #[serde(deserialize_with = "section")]
    pub spool: Spool,
    #[serde(deserialize_with = "section")]
    pub export: Export,
    #[serde(deserialize_with = "section")]
    pub logs: Signal,
    #[serde(deserialize_with = "section")]
    pub traces: Signal,
    #[serde(deserialize_with = "section")]
    pub destinations: Vec<Destination>,
    #[serde(deserialize_with = "section")]
    pub metrics: Metrics,
    #[serde(deserialize_with = "section")]
    pub uprobes: Vec<Uprobe>,
    #[serde(deserialize_with = "section")]
    pub guard: Guard,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Probes {
    pub failed_execs: Entry,
    pub exits: Entry,
    pub args_limit: Entry,
    pub ring_bytes: Entry,
    pub ring_delay: Entry,
    #[serde(deserialize_with = "section")]
    pub filters: Filters,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Filters {
    pub scope: Entry,
    pub uids: List,
    pub comms: List,
    pub paths: List,
    #[serde(deserialize_with = "section")]
    pub containers: Containers,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Containers {
    pub include: List,
    pub exclude: List,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Enrich {
    #[serde(deserialize_with = "section")]
    pub runtimes: Runtimes,
    pub runtime_files: Entry,
    pub cache_entries: Entry,
    pub cache_grace: Entry,
    pub cache_negative: Entry,
    pub wait: Entry,
    pub wait_bytes: Entry,
    pub labels: List,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Runtimes {
    pub docker: Entry,
    pub containerd: Entry,
    #[serde(rename = "cri-o")]
    pub crio: Entry,
    pub podman: Entry,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Resource {
    pub service_name: Entry,
    pub attributes: Map,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Spans {
    pub sampler: Entry,
    pub sampler_arg: Entry,
    pub max_duration: Entry,
    pub max_per_trace: Entry,
    pub boundaries: List,
    pub env_context: List,
    pub ok_exit_codes: Lists,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    pub value_length: Entry,
    pub count: Entry,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Batch {
    pub max_records: Entry,
    pub max_bytes: Entry,
    pub delay: Entry,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Queue {
    pub max_bytes: Entry,
    pub max_records: Entry,
    pub drain: Entry,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Spool {
    pub directory: Entry,
    pub max_bytes: Entry,
    pub max_age: Entry,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Export {
    pub endpoint: Entry,
    pub insecure: Entry,
    pub protocol: Entry,
    pub headers: Map,
    pub compression: Entry,
    pub timeout: Entry,
    pub retry_max_elapsed: Entry,
    pub ca_file: Entry,
    pub client_certificate: Entry,
    pub client_key: Entry,
}

/// What is of one signal alone.
#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Signal {
    pub exporter: Entry,
    pub endpoint: Entry,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Metrics {
    pub exporter: Entry,
    pub endpoint: Entry,
    pub interval: Entry,
}

/// A function that is probed.
#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Uprobe {
    pub name: Entry,
    pub containers: List,
    pub host: Entry,
    pub pid: Entry,
    pub binary: Entry,
    pub function: Entry,
    pub kind: Entry,
    pub args: List,
    pub returns: Entry,
    pub max_string: Entry,
    pub sample: Entry,
    pub rate: Entry,
    pub burst: Entry,
    pub severity: Entry,
    pub span: Entry,
    pub redact: List,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Guard {
    pub mode: Entry,
    #[serde(deserialize_with = "section")]
    pub policies: Vec<Policy>,
    pub files: List,
    #[serde(deserialize_with = "section")]
    pub allow: Allow,
    #[serde(deserialize_with = "section")]
    pub budget: Budget,
    pub lease: Entry,
    pub persist: Entry,
    pub without_lsm: Entry,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Allow {
    pub executables: List,
    pub containers: List,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Budget {
    pub kills: Entry,
    pub window: Entry,
}

/// A file of policies.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Policies {
    #[serde(deserialize_with = "section")]
    pub policies: Vec<Policy>,
}

/// What should not run.
#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Policy {
    pub name: Entry,
    pub description: Entry,
    pub severity: Entry,
    pub action: Entry,
    #[serde(deserialize_with = "section")]
    pub scope: PolicyScope,
    #[serde(rename = "match", deserialize_with = "section")]
    pub matches: Vec<Rule>,
    #[serde(deserialize_with = "section")]
    pub except: Vec<Rule>,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct PolicyScope {
    pub containers: Choice,
    pub host: Entry,
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Rule {
    pub path: List,
    pub name: List,
    pub argv0: List,
    pub argv1: List,
    pub parent: List,
    pub uid: List,
    pub interactive: Entry,
    pub script: Entry,
    pub origin: List,
}

/// A word, or a list.
#[derive(Default)]
#[cfg_attr(test, derive(serde::Serialize))]
#[cfg_attr(test, serde(untagged))]
pub(super) enum Choice {
    #[default]
    None,
    Word(String),
    List(List),
}

impl<'de> Deserialize<'de> for Choice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Chosen;
        impl<'de> Visitor<'de> for Chosen {
            type Value = Choice;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a word or a list")
            }

            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<Choice, E> {
                Ok(Choice::Word(word.to_owned()))
            }

            fn visit_unit<E: serde::de::Error>(self) -> Result<Choice, E> {
                Ok(Choice::None)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Choice, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Choice::List(Some(list)))
            }
        }
        // An untagged enum would lose the lines of a list.
        deserializer.deserialize_any(Chosen)
    }
}

/// What else is shipped to: a name, and the three sections above of its own.
#[derive(Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(from = "FlatDestination")]
pub(super) struct Destination {
    pub name: Entry,
    pub export: Export,
    pub logs: Signal,
    pub traces: Signal,
}

/// As it stands in the file. Serde cannot both flatten and deny unknown fields.
#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
struct FlatDestination {
    name: Entry,
    endpoint: Entry,
    insecure: Entry,
    protocol: Entry,
    headers: Map,
    compression: Entry,
    timeout: Entry,
    retry_max_elapsed: Entry,
    ca_file: Entry,
    client_certificate: Entry,
    client_key: Entry,
    #[serde(deserialize_with = "section")]
    logs: Signal,
    #[serde(deserialize_with = "section")]
    traces: Signal,
}

impl From<FlatDestination> for Destination {
    fn from(flat: FlatDestination) -> Self {
        Self {
            name: flat.name,
            export: Export {
                endpoint: flat.endpoint,
                insecure: flat.insecure,
                protocol: flat.protocol,
                headers: flat.headers,
                compression: flat.compression,
                timeout: flat.timeout,
                retry_max_elapsed: flat.retry_max_elapsed,
                ca_file: flat.ca_file,
                client_certificate: flat.client_certificate,
                client_key: flat.client_key,
            },
            logs: flat.logs,
            traces: flat.traces,
        }
    }
}

/// A section whose every line is commented out is null.
fn section<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A file's values are asked for by key, so that errors can name it.
pub(super) struct File<S = Schema> {
    path: Arc<Path>,
    pub schema: S,
}

impl File<Policies> {
    /// `origin`: who names the file.
    pub fn policies(path: &Path, origin: &'static str) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parsed(path, &text),
            Err(source) => Err(ConfigError::Policies { origin, path: path.to_owned(), source }),
        }
    }
}

impl File {
    /// No file: no values.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = path else { return Ok(Self { path: Path::new("").into(), schema: Schema::default() }) };
        match std::fs::read_to_string(path) {
            Ok(text) => Self::read(path, &text),
            Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
        }
    }

    /// What the file names is beside it, if it does not say where.
    pub fn beside(&self, path: &Path) -> PathBuf {
        self.path.parent().map_or_else(|| path.to_owned(), |folder| folder.join(path))
    }

    fn read(path: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::parsed(path, text)
    }
}

impl<S> File<S> {
    fn parsed(path: &Path, text: &str) -> Result<Self, ConfigError>
    where
        S: DeserializeOwned,
    {
        // A snippet could show the value of a header.
        let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
        match serde_saphyr::from_str_with_options(text, options) {
            Ok(schema) => Ok(Self { path: path.into(), schema }),
            Err(error) => {
                let line = error.location().map(|location| location.line()).filter(|line| *line > 0);
                Err(ConfigError::File {
                    path: path.to_owned(),
                    line,
                    key: line.map(|line| key_at(text, line)).unwrap_or_default(),
                    problem: problem(&error),
                })
            }
        }
    }

    pub fn text(&self, key: &str, entry: &Entry) -> Option<Given> {
        entry.as_ref().map(|entry| Given { value: entry.value.clone(), origin: self.origin(key, entry) })
    }

    pub fn parse<T>(
        &self,
        key: &str,
        entry: &Entry,
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> Result<Option<Given<T>>, ConfigError> {
        self.text(key, entry).map(|given| given.parse(parse)).transpose()
    }

    pub fn list<T>(
        &self,
        key: &str,
        list: &List,
        most: usize,
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> Result<Option<Given<Vec<T>>>, ConfigError> {
        let Some(list) = list else { return Ok(None) };
        let origin = list.iter().flatten().next().map_or(Origin::Default, |first| self.origin(key, first));
        let items = list.iter().map(|entry| {
            let Given { value, origin } = self.present(key, entry)?;
            Ok((value, origin))
        });
        given::list(origin, items, most, parse).map(Some)
    }

    /// In the order of the names.
    pub fn lists<T>(
        &self,
        key: &str,
        lists: &Lists,
        name: impl Fn(&str) -> Result<String, Expected>,
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> Result<Option<Named<T>>, ConfigError> {
        let Some(lists) = lists else { return Ok(None) };
        let named = lists.iter().map(|(text, list)| {
            let refused = |problem| ConfigError::File {
                path: self.path.to_path_buf(),
                line: list.iter().flatten().flatten().next().map(|first| first.referenced.line()),
                key: key.to_owned(),
                problem,
            };
            let name = name(text).map_err(|Expected(expected)| refused(format!("`{text}` is not {expected}")))?;
            match self.list(&format!("{key}.{text}"), list, usize::MAX, &parse)? {
                Some(Given { value, .. }) => Ok((name, value)),
                None => Err(refused(format!("a list is missing for `{text}`; write [] for an empty one"))),
            }
        });
        named.collect::<Result<_, _>>().map(Some)
    }

    /// Attributes in the order of their keys.
    pub fn attributes(&self, key: &str, map: &Map) -> Result<Vec<(String, Given)>, ConfigError> {
        let entries = map.iter().flatten();
        entries
            .map(|(name, entry)| {
                let given = self.present(&format!("{key}.{name}"), entry)?;
                if name.trim().is_empty() {
                    let expected = "the value of an attribute: its key is empty".to_owned();
                    return Err(ConfigError::Invalid { origin: given.origin, value: given.value, expected });
                }
                Ok((name.clone(), given))
            })
            .collect()
    }

    pub fn headers(&self, key: &str, map: &Map) -> Result<Option<Given<Headers>>, ConfigError> {
        let Some(map) = map else { return Ok(None) };
        let mut headers = Headers::new();
        let mut first = None;
        for (name, entry) in map {
            let Given { value, origin } = self.present(&format!("{key}.{name}"), entry)?;
            match parse::headers([(name, value)]) {
                Ok(header) => header.into_iter().for_each(|(name, value)| parse::put(&mut headers, name, value)),
                Err(problem) => return Err(ConfigError::Secret { origin, problem }),
            }
            first.get_or_insert(origin);
        }
        Ok(Some(Given { value: headers, origin: first.unwrap_or(Origin::Default) }))
    }

    /// Of what stands near that entry, and is missing or wrong.
    pub fn refusal(&self, key: &str, near: &Entry, problem: &str) -> ConfigError {
        ConfigError::File {
            path: self.path.to_path_buf(),
            line: near.as_ref().map(|entry| entry.referenced.line()).filter(|line| *line > 0),
            key: key.to_owned(),
            problem: problem.to_owned(),
        }
    }

    fn present(&self, key: &str, entry: &Entry) -> Result<Given, ConfigError> {
        let missing = || self.refusal(key, entry, "a value is missing; write '' for an empty one");
        self.text(key, entry).ok_or_else(missing)
    }

    fn origin(&self, key: &str, entry: &Spanned<String>) -> Origin {
        Origin::File { path: Arc::clone(&self.path), line: entry.referenced.line(), key: key.to_owned() }
    }
}

/// The place stands before the message already.
fn problem(error: &serde_saphyr::Error) -> String {
    let message = error.render_with_formatter(&UserMessageFormatter);
    match message.rsplit_once(" at line ") {
        Some((message, _)) => message.to_owned(),
        None => message,
    }
}

/// The dotted key of a line in block style, as far as its keys look like ours: anything else may be part of a secret.
fn key_at(text: &str, line: u64) -> String {
    let Ok(line) = usize::try_from(line) else { return String::new() };
    let mut keys = Vec::new();
    let mut inside = usize::MAX;
    let lines: Vec<_> = text.lines().take(line).collect();
    for (at, line) in lines.iter().enumerate().rev() {
        let indent = line.len() - line.trim_start().len();
        let Some((key, _)) = line.trim_start().split_once(':') else { continue };
        if indent >= inside || key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
            // Only a parent's line may be passed over: an error's own line without a key has none.
            if at + 1 == lines.len() && indent < inside {
                inside = indent;
            }
            continue;
        }
        inside = indent;
        keys.push(key);
        if indent == 0 {
            break;
        }
    }
    keys.reverse();
    keys.join(".")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn refusal(text: &str) -> String {
        File::read(Path::new("otel.yaml"), text).err().expect("must be refused").to_string()
    }

    #[test]
    fn what_is_not_our_schema_is_refused_with_line_and_key() {
        let cases = [
            ("probes:\n  filters:\n    uid: [0]\n", "otel.yaml line 3: probes.filters.uid: unknown field `uid`"),
            ("exports: {}\n", "otel.yaml line 1: exports: unknown field `exports`"),
            ("batch:\n  delay: [1s]\n", "otel.yaml line 2: batch.delay: expected"),
            ("probes:\n  filters:\n    uids: 7\n", "otel.yaml line 3: probes.filters.uids: expected"),
            ("queue: 5\n", "otel.yaml line 1: queue: expected"),
            ("destinations:\n  - name: a\n    url: b\n", "otel.yaml line 3: destinations.url: unknown field `url`"),
            ("destinations:\n  - name: [a]\n", "otel.yaml line 2: destinations: expected"),
            ("destinations: {name: a}\n", "otel.yaml line 1: destinations: expected"),
            ("destinations: [null]\n", "otel.yaml line 1: destinations: expected"),
            ("uprobes:\n  - name: a\n    func: b\n", "otel.yaml line 3: uprobes.func: unknown field `func`"),
            ("uprobes:\n  - name: a\n    args: b\n", "otel.yaml line 3: uprobes.args: expected"),
            ("uprobes: {a: b}\n", "otel.yaml line 1: uprobes: expected"),
            ("guard:\n  mod: a\n", "otel.yaml line 2: guard.mod: unknown field `mod`"),
            ("guard:\n  policies:\n  - matches: []\n", "otel.yaml line 3: guard: unknown field `matches`"),
            ("queue:\n  drain: 5s\n  drain: 6s\n", "otel.yaml line 3: queue.drain: duplicate mapping key `drain`"),
            ("queue: {drain: 5s\n", "otel.yaml line"),
            ("- a\n", "otel.yaml line 1: "),
            ("console: table\n---\nconsole: none\n", "otel.yaml line "),
        ];
        for (text, start) in cases {
            let message = refusal(text);
            assert!(message.starts_with(start), "{message} for {text}");
            assert!(!message.contains(", column"), "{message}");
        }
    }

    #[test]
    fn a_misplaced_header_is_never_shown() {
        for text in [
            "export:\n  headers: hunter2\n",
            "export:\n  headers: [hunter2]\n",
            "export:\n  headers:\n    k: [hunter2]\n",
            "export:\n  headers:\n    k: {hunter2: x}\n",
            "export:\n  headers:\n    k: hunter2: x\n",
            "export:\n  headers:\n    k: \"\\q hunter2\"\n",
            "export:\n  headers:\n    k: 'hunter2\n",
            "destinations:\n  - headers: hunter2\n",
            "destinations:\n  - headers:\n      k: [hunter2]\n",
            "destinations:\n  - headers:\n      hunter2: {x: y}\n",
            "destinations:\n  - {headers: {k: [hunter2]}}\n",
            "destinations:\n  hunter2: x\n",
        ] {
            let message = refusal(text);
            assert!(!message.contains("hunter2"), "{message}");
            assert!(message.contains("otel.yaml line "), "{message}");
        }
    }

    #[test]
    fn empty_files_and_sections_have_no_values() {
        for text in ["", "# nothing\n", "probes:\n", "probes:\n  filters:\n", "probes: {}\nexport: ~\n"] {
            assert!(File::read(Path::new("otel.yaml"), text).is_ok(), "{text}");
        }
    }

    /// A map whose keys are the user's is a leaf.
    fn leaves(value: &Value, at: &str, found: &mut Vec<String>) {
        let is_ours = |map: &&serde_json::Map<_, _>| !map.is_empty() && !at.ends_with(".ok_exit_codes");
        match value.as_object().filter(is_ours) {
            Some(map) => {
                for (key, value) in map {
                    leaves(value, &format!("{at}.{key}"), found);
                }
            }
            None => found.push(at.to_owned()),
        }
    }

    #[test]
    fn every_key_of_the_schema_stands_in_the_sample_file() {
        let sample: Value = serde_saphyr::from_str(include_str!("../../../otel-config/namespan.yaml")).unwrap();
        let schema = serde_json::to_value(Schema::default()).unwrap();
        let (mut in_sample, mut in_schema) = (Vec::new(), Vec::new());
        leaves(&sample, "", &mut in_sample);
        leaves(&schema, "", &mut in_schema);
        in_sample.sort();
        in_schema.sort();
        assert_eq!(in_sample, in_schema);
    }

    /// What stands in the sample file as comments, from this line on.
    fn example(from: &str) -> String {
        let lines = include_str!("../../../otel-config/namespan.yaml").lines().skip_while(|line| *line != from);
        lines.map_while(|line| line.strip_prefix("#   ")).fold(String::new(), |text, line| text + line + "\n")
    }

    #[test]
    fn every_key_of_a_destination_stands_in_the_example() {
        let text = example("#   destinations:");
        let example: Value = serde_saphyr::from_str(&text).unwrap();
        let schema = serde_json::to_value(FlatDestination::default()).unwrap();
        let keys =
            |value: &Value| value.as_object().unwrap().keys().cloned().collect::<std::collections::BTreeSet<_>>();
        let destinations = example["destinations"].as_array().unwrap();
        let in_example: std::collections::BTreeSet<_> = destinations.iter().flat_map(keys).collect();
        assert_eq!(in_example, keys(&schema));
        let read = File::read(Path::new("otel.yaml"), &text).map_err(|error| error.to_string()).unwrap();
        assert_eq!(read.schema.destinations.len(), 2);
    }

    #[test]
    fn every_key_of_a_probe_stands_in_the_example() {
        let text = example("#   uprobes:");
        let example: Value = serde_saphyr::from_str(&text).unwrap();
        let schema = serde_json::to_value(Uprobe::default()).unwrap();
        let keys =
            |value: &Value| value.as_object().unwrap().keys().cloned().collect::<std::collections::BTreeSet<_>>();
        let probes = example["uprobes"].as_array().unwrap();
        let in_example: std::collections::BTreeSet<_> = probes.iter().flat_map(keys).collect();
        assert_eq!(in_example, keys(&schema));
    }

    #[test]
    fn every_key_of_a_policy_stands_in_the_example() {
        let text = example("#   guard:");
        let example: Value = serde_saphyr::from_str(&text).unwrap();
        let keys = |value: &Value| {
            value
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, _)| key.clone())
                .collect::<std::collections::BTreeSet<_>>()
        };
        let policies = example["guard"]["policies"].as_array().unwrap();
        let in_example: std::collections::BTreeSet<_> = policies.iter().flat_map(keys).collect();
        assert_eq!(in_example, keys(&serde_json::to_value(Policy::default()).unwrap()));
        let rules = policies.iter().flat_map(|policy| policy["match"].as_array().unwrap());
        let in_example: std::collections::BTreeSet<_> = rules.flat_map(keys).collect();
        assert_eq!(in_example, keys(&serde_json::to_value(Rule::default()).unwrap()));
    }

    #[test]
    fn a_scope_is_a_word_or_a_list_whose_lines_are_known() {
        let read = |text: &str| {
            File::<Policies>::parsed(Path::new("p.yaml"), text)
                .map(|file| file.schema.policies.into_iter().next().unwrap().scope.containers)
        };
        assert!(matches!(read("policies:\n- scope: {containers: all}\n"), Ok(Choice::Word(word)) if word == "all"));
        assert!(matches!(read("policies:\n- scope:\n"), Ok(Choice::None)));
        assert!(matches!(read("policies:\n- scope: {containers: ~}\n"), Ok(Choice::None)));
        let Ok(Choice::List(Some(list))) = read("policies:\n- scope:\n    containers:\n    - name:a\n") else {
            panic!("a list expected")
        };
        assert_eq!(list[0].as_ref().unwrap().referenced.line(), 4);
        let refusal = read("policies:\n- scope: {containers: {a: b}}\n").err().unwrap().to_string();
        assert!(refusal.starts_with("p.yaml line 2: "), "{refusal}");
    }

    #[test]
    fn every_key_in_the_sample_file_has_a_comment_and_a_value() {
        const UNSET: [&str; 12] = [
            "console",
            "run_for",
            "listen",
            "scope",
            "service_name",
            "value_length",
            "max_records",
            "directory",
            "endpoint",
            "ca_file",
            "client_certificate",
            "client_key",
        ];
        let mut commented = false;
        for line in include_str!("../../../otel-config/namespan.yaml").lines() {
            let line = line.trim();
            if line.starts_with('#') {
                commented = true;
            } else if let Some((key, value)) = line.split_once(':') {
                assert!(commented, "{key} has no comment");
                commented = false;
                assert!(value.trim() != "null" || UNSET.contains(&key), "{key} has a default");
            }
        }
    }

    #[test]
    fn keys_are_found_by_line() {
        let text = "a:\n  b: 1\n\n  # c: no\n  c:\n    - 1\n    X-Y: s\nd: 2\n";
        for (line, key) in [(1, "a"), (2, "a.b"), (5, "a.c"), (6, "a.c"), (7, "a.c"), (8, "d"), (99, "d"), (0, "")] {
            assert_eq!(key_at(text, line), key, "line {line}");
        }
    }
}
