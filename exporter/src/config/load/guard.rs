//! What should not run: policies of the file, and of files of their own.

use std::path::{Path, PathBuf};
use std::{fs, io};

use namespan_ebpf::guard_wire::dimension;

use super::Sources;
use crate::config::error::ConfigError;
use crate::config::file::{self, Choice, File};
use crate::config::given::{Given, OrDefault, flag, flags};
use crate::config::parse;
use crate::guard::check::{Conflict, Part, check};
use crate::guard::compile::Compiled;
use crate::guard::spec::{
    Allow, Budget, Containers, Guard, POLICIES_MAX, Policy, RULES_MAX, Rule, SELECTORS_MAX, Scope, TEXTS_MAX, UIDS_MAX,
};

/// Most files and folders that are named.
const FILES_MAX: usize = 256;

impl Sources<'_> {
    pub(super) fn guard(&self, notes: &mut Vec<String>) -> Result<Guard, ConfigError> {
        let (file, default) = (&self.file, Guard::default());
        let given = &file.schema.guard;
        let mut guard = Guard {
            mode: flag("--guard-mode", self.run.guard.mode.as_ref(), parse::mode)?
                .or(file.parse("guard.mode", &given.mode, parse::mode)?)
                .or_default(default.mode),
            policies: listed(file, "guard.policies", &given.policies, Vec::new())?,
            allow: Allow {
                executables: file
                    .list("guard.allow.executables", &given.allow.executables, TEXTS_MAX, parse::text(dimension::PATH))?
                    .or_default(Vec::new()),
                containers: file
                    .list("guard.allow.containers", &given.allow.containers, SELECTORS_MAX, parse::selector)?
                    .or_default(Vec::new()),
            },
            budget: self.budget()?,
            lease: file.parse("guard.lease", &given.lease, parse::lease)?.or_default(default.lease),
            persist: file.parse("guard.persist", &given.persist, parse::boolean)?.or_default(default.persist),
            without_lsm: file
                .parse("guard.without_lsm", &given.without_lsm, parse::without_lsm)?
                .or_default(default.without_lsm),
            sources: Vec::new(),
        };
        let path = |text: &str| parse::non_empty(text).map(PathBuf::from);
        let in_file = file.list("guard.files", &given.files, FILES_MAX, path)?;
        let typed = flags("--policy", &self.run.guard.policies, FILES_MAX, path)?;
        let (origin, paths) = if let Some(Given { value, .. }) = typed {
            ("flag --policy", value)
        } else {
            let named = in_file.or_default(Vec::new());
            ("guard.files", named.iter().map(|path| file.beside(path)).collect())
        };
        for path in paths {
            let known = guard.policies.len();
            let read;
            (guard.policies, read) = read_from(&path, origin, guard.policies)?;
            if guard.policies.len() == known {
                notes.push(format!("{origin}: there are no policies in {}", path.display()));
            }
            guard.sources.push(path);
            guard.sources.extend(read);
        }
        // `namespan probe` tells of functions, and of nothing else.
        if self.run.uprobes.is_some() {
            guard = Guard { policies: Vec::new(), sources: Vec::new(), ..guard };
        }
        Compiled::new(&guard, true).map_err(ConfigError::Guard)?;
        Ok(guard)
    }

    fn budget(&self) -> Result<Option<Budget>, ConfigError> {
        let (file, default) = (&self.file, Budget::default());
        let given = &file.schema.guard.budget;
        let window = file.parse("guard.budget.window", &given.window, parse::positive_duration)?;
        let window = window.or_default(default.window);
        let kills = file.parse("guard.budget.kills", &given.kills, parse::kills)?.or_default(Some(default.kills));
        Ok(kills.map(|kills| Budget { kills, window }))
    }
}

/// The policies of a file, or of the files of a folder, and the files that were read.
pub(in crate::config) fn policies(
    path: &Path,
    origin: &'static str,
) -> Result<(Vec<Policy>, Vec<PathBuf>), ConfigError> {
    read_from(path, origin, Vec::new())
}

/// As [`policies`], beside those that are known.
fn read_from(
    path: &Path,
    origin: &'static str,
    mut known: Vec<Policy>,
) -> Result<(Vec<Policy>, Vec<PathBuf>), ConfigError> {
    let unreadable = |source| ConfigError::Policies { origin, path: path.to_owned(), source };
    let files = if path.is_dir() { in_folder(path).map_err(unreadable)? } else { vec![path.to_owned()] };
    for path in &files {
        let file = File::policies(path, origin)?;
        known = listed(&file, "policies", &file.schema.policies, known)?;
    }
    Ok((known, files))
}

/// Those that end as YAML does, in the order of their names.
fn in_folder(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        let is_yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if is_yaml && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Adds policies to those that are known.
fn listed<S>(
    file: &File<S>,
    key: &str,
    given: &[file::Policy],
    mut known: Vec<Policy>,
) -> Result<Vec<Policy>, ConfigError> {
    for (index, given) in given.iter().enumerate() {
        let section = format!("{key}[{index}]");
        let policy = policy(file, &section, given)?;
        if known.len() >= POLICIES_MAX {
            let problem = format!("these are too many policies: at most {POLICIES_MAX} of all files fit");
            return Err(file.refusal(&section, &given.name, &problem));
        }
        if known.iter().any(|other| other.name == policy.name) {
            let problem = format!("`{}` names another policy already: give each a name of its own", policy.name);
            return Err(file.refusal(&format!("{section}.name"), &given.name, &problem));
        }
        known.push(policy);
    }
    Ok(known)
}

fn policy<S>(file: &File<S>, section: &str, given: &file::Policy) -> Result<Policy, ConfigError> {
    let key = |name: &str| format!("{section}.{name}");
    let near = [&given.name, &given.action, &given.description].into_iter().find(|entry| entry.is_some());
    let missing = |problem: &str| file.refusal(section, near.unwrap_or(&None), problem);

    let Some(Given { value: name, .. }) = file.parse(&key("name"), &given.name, parse::uprobe_name)? else {
        return Err(missing("it has no name; give it one, such as name: no-shells"));
    };
    let Some(Given { value: action, .. }) = file.parse(&key("action"), &given.action, parse::action)? else {
        return Err(missing("it has no action; give it one of observe, kill and deny"));
    };
    let description = file.parse(&key("description"), &given.description, parse::description)?;
    let severity = file.parse(&key("severity"), &given.severity, parse::severity)?;
    let policy = Policy {
        name,
        description: description.or_default(String::new()),
        severity: severity.or_default(action.severity()),
        action,
        scope: scope(file, &key("scope"), &given.scope)?,
        rules: rules(file, &key("match"), &given.matches, &given.name)?,
        exceptions: rules(file, &key("except"), &given.except, &given.name)?,
    };
    match check(&policy) {
        Ok(()) => Ok(policy),
        Err(Conflict { part, problem }) => {
            let (name, entry) = match part {
                Part::Scope => ("scope".to_owned(), near.unwrap_or(&None)),
                Part::Match => ("match".to_owned(), near.unwrap_or(&None)),
                Part::Rule(index) => (format!("match[{index}]"), first_of(given.matches.get(index))),
                Part::Exception(index) => (format!("except[{index}]"), first_of(given.except.get(index))),
            };
            Err(file.refusal(&key(&name), entry, &problem))
        }
    }
}

/// Something that has a line; of what is refused about arguments, those.
fn first_of(rule: Option<&file::Rule>) -> &file::Entry {
    let Some(rule) = rule else { return &None };
    let lists = [&rule.argv0, &rule.argv1, &rule.path, &rule.name].into_iter().flatten().flatten();
    lists.into_iter().find(|entry| entry.is_some()).unwrap_or(&None)
}

fn scope<S>(file: &File<S>, key: &str, given: &file::PolicyScope) -> Result<Scope, ConfigError> {
    let of_containers = format!("{key}.containers");
    let containers = match &given.containers {
        Choice::None => Containers::None,
        Choice::Word(word) if word == "all" => Containers::All,
        Choice::Word(word) => {
            let problem = format!("`{word}` is not all, or a list of selectors such as [\"name:web-*\"]");
            return Err(file.refusal(&of_containers, &given.host, &problem));
        }
        Choice::List(list) => match file.list(&of_containers, list, SELECTORS_MAX, parse::selector)? {
            Some(Given { value, .. }) if !value.is_empty() => Containers::Selected(value),
            Some(_) | None => {
                let problem = "the list of containers is empty; for every container there is all";
                return Err(file.refusal(&of_containers, &given.host, problem));
            }
        },
    };
    let host = file.parse(&format!("{key}.host"), &given.host, parse::boolean)?.or_default(false);
    Ok(Scope { containers, host })
}

fn rules<S>(file: &File<S>, key: &str, given: &[file::Rule], near: &file::Entry) -> Result<Vec<Rule>, ConfigError> {
    if given.len() > RULES_MAX {
        let problem = format!("{} rules are too many: at most {RULES_MAX} of all policies fit", given.len());
        return Err(file.refusal(key, near, &problem));
    }
    given.iter().enumerate().map(|(index, given)| rule(file, &format!("{key}[{index}]"), given)).collect()
}

fn rule<S>(file: &File<S>, section: &str, given: &file::Rule) -> Result<Rule, ConfigError> {
    let key = |name: &str| format!("{section}.{name}");
    // As no condition it would hold for everything.
    for (name, list) in [
        ("path", &given.path),
        ("name", &given.name),
        ("argv0", &given.argv0),
        ("argv1", &given.argv1),
        ("parent", &given.parent),
        ("uid", &given.uid),
        ("origin", &given.origin),
    ] {
        if list.as_ref().is_some_and(Vec::is_empty) {
            return Err(file.refusal(&key(name), &None, "the list is empty, and nothing would match: leave it out"));
        }
    }
    let texts = |name: &str, list, dimension| {
        Ok(file.list(&key(name), list, TEXTS_MAX, parse::text(dimension))?.or_default(Vec::new()))
    };
    Ok(Rule {
        path: texts("path", &given.path, dimension::PATH)?,
        name: texts("name", &given.name, dimension::NAME)?,
        argv0: texts("argv0", &given.argv0, dimension::ARGV0)?,
        argv1: texts("argv1", &given.argv1, dimension::ARGV1)?,
        parent: texts("parent", &given.parent, dimension::PARENT)?,
        uid: file.list(&key("uid"), &given.uid, UIDS_MAX, parse::uid)?.or_default(Vec::new()),
        interactive: file.parse(&key("interactive"), &given.interactive, parse::boolean)?.map(|given| given.value),
        script: file.parse(&key("script"), &given.script, parse::boolean)?.map(|given| given.value),
        origin: file
            .list(&key("origin"), &given.origin, crate::guard::spec::Origin::ALL.len(), parse::origin)?
            .or_default(Vec::new()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::evaluate::{Attempt, evaluate};
    use crate::guard::spec::{Action, Mode, Origin, Text, WithoutLsm};

    /// What a file of policies is read as, or the refusal without its path.
    fn read(text: &str) -> Result<Vec<Policy>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.yaml");
        fs::write(&path, text).unwrap();
        let told = |error: ConfigError| error.to_string().replace(&format!("{}/", folder.path().display()), "");
        policies(&path, "test").map(|(policies, _)| policies).map_err(told)
    }

    fn text(text: &str, is_prefix: bool) -> Text {
        Text { text: text.to_owned(), is_prefix }
    }

    const WHOLE: &str = "
policies:
- name: no-shells
  description: Nobody needs a shell here
  severity: fatal
  action: kill
  scope: {containers: ['name:web-*'], host: true}
  match:
  - name: [sh, ba*]
    interactive: true
  - path: [/tmp/*]
    argv0: [a]
    argv1: [b]
    parent: [/usr/sbin/cron]
    uid: [0, 7]
    script: false
    origin: [memfd, changed]
  except:
  - uid: [1000]
";

    #[test]
    fn a_policy_is_read_whole() {
        let policies = read(WHOLE).unwrap();
        let [policy] = &policies[..] else { panic!("{policies:?}") };
        assert_eq!((policy.name.as_str(), policy.severity, policy.action), ("no-shells", 21, Action::Kill));
        assert_eq!(policy.description, "Nobody needs a shell here");
        let selected = Containers::Selected(vec![crate::config::selector("name:web-*").unwrap()]);
        assert_eq!(policy.scope, Scope { containers: selected, host: true });
        let first =
            Rule { name: vec![text("sh", false), text("ba", true)], interactive: Some(true), ..Rule::default() };
        let second = Rule {
            path: vec![text("/tmp/", true)],
            argv0: vec![text("a", false)],
            argv1: vec![text("b", false)],
            parent: vec![text("/usr/sbin/cron", false)],
            uid: vec![0, 7],
            script: Some(false),
            origin: vec![Origin::Memfd, Origin::Changed],
            ..Rule::default()
        };
        assert_eq!(policy.rules, [first, second]);
        assert_eq!(policy.exceptions, [Rule { uid: vec![1000], ..Rule::default() }]);
    }

    #[test]
    fn what_is_wrong_is_named_with_file_line_field_and_remedy() {
        let policy = |rest: &str| format!("policies:\n- name: a\n  action: kill\n{rest}");
        let all = "  scope: {containers: all}\n";
        let cases = [
            ("policies:\n- action: kill\n".to_owned(), "p.yaml line 2: policies[0]: it has no name"),
            ("policies:\n- name: a\n".to_owned(), "p.yaml line 2: policies[0]: it has no action"),
            (
                "policies:\n- name: a\n  action: stop\n".to_owned(),
                "p.yaml line 3: policies[0].action: `stop` is not one of",
            ),
            (policy(""), "p.yaml line 2: policies[0].scope: it concerns nobody: say containers: all"),
            (policy(all), "p.yaml line 2: policies[0].match: it matches nothing"),
            (policy(&format!("{all}  match: [{{}}]\n")), "p.yaml: policies[0].match[0]: it has no condition"),
            (policy("  scope: {containers: some}\n"), "p.yaml: policies[0].scope.containers: `some` is not all"),
            (policy("  scope: {containers: []}\n"), "p.yaml: policies[0].scope.containers: the list"),
            (policy("  scope: {containers: [web]}\n"), "p.yaml line 4: policies[0].scope.containers: `web` is not"),
            (
                policy(&format!("{all}  match:\n  - path: [sh]\n")),
                "p.yaml line 6: policies[0].match[0].path: `sh` is not",
            ),
            (policy(&format!("{all}  match:\n  - name: []\n")), "p.yaml: policies[0].match[0].name: the list is empty"),
            (
                policy(&format!("{all}  match:\n  - origin: [x]\n")),
                "p.yaml line 6: policies[0].match[0].origin: `x` is not one of image",
            ),
            (policy(&format!("{all}  matches: []\n")), "p.yaml line 5: policies.matches: unknown field"),
            (
                format!("policies:\n- name: a\n  action: deny\n{all}  match:\n  - name: [sh]\n    argv0: [sh]\n"),
                "p.yaml line 7: policies[0].match[0]: argv0 and argv1 cannot be matched by a policy that denies",
            ),
            (
                format!("{WHOLE}- name: no-shells\n  action: kill\n{all}  match: [{{name: [a]}}]\n"),
                "p.yaml line 20: policies[1].name: `no-shells` names another",
            ),
        ];
        for (text, start) in cases {
            let refusal = read(&text).expect_err(&text);
            assert!(refusal.starts_with(start), "{refusal}\nfor {text}");
        }
    }

    #[test]
    fn a_folder_is_read_in_the_order_of_names_and_a_flag_goes_before_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let one = |name: &str| {
            format!("policies:\n- {{name: {name}, action: kill, scope: {{host: true}}, match: [{{name: [{name}]}}]}}\n")
        };
        fs::create_dir(folder.path().join("d")).unwrap();
        for (file, name) in [("d/2.yml", "b"), ("d/1.yaml", "a"), ("d/3.txt", "c"), ("e.yaml", "e")] {
            fs::write(folder.path().join(file), one(name)).unwrap();
        }
        let config = folder.path().join("namespan.yaml");
        let text = "guard:\n  mode: enforce\n  files: [d]\n  lease: 3s\n  budget: {kills: none}\n  without_lsm: kill\n  \
                    allow: {executables: [/opt/*], containers: ['label:ci']}\n";
        fs::write(&config, text).unwrap();
        let mut run = crate::cli::Run { config: Some(config.clone()), ..crate::cli::Run::default() };
        let names = |guard: &Guard| guard.policies.iter().map(|policy| policy.name.clone()).collect::<Vec<_>>();
        let guard = super::super::load(&run, &|_| None).unwrap().guard;
        assert_eq!(names(&guard), ["a", "b"]);
        assert_eq!((guard.mode, guard.budget, guard.without_lsm), (Mode::Enforce, None, WithoutLsm::Kill));
        assert_eq!(guard.label_keys().collect::<Vec<_>>(), ["ci"]);
        assert_eq!(guard.sources, ["d", "d/1.yaml", "d/2.yml"].map(|file| folder.path().join(file)));
        run.guard.policies = vec![folder.path().join("e.yaml").display().to_string()];
        run.guard.mode = Some("observe".to_owned());
        let guard = super::super::load(&run, &|_| None).unwrap().guard;
        assert_eq!((names(&guard), guard.mode), (vec!["e".to_owned()], Mode::Observe));
        run.guard.policies = vec!["/nowhere.yaml".to_owned()];
        let refusal = super::super::load(&run, &|_| None).unwrap_err().to_string();
        assert_eq!(refusal, "flag --policy: cannot read /nowhere.yaml");
    }

    #[test]
    fn the_ready_made_policies_are_valid_and_kill_and_would_do_so_for_what_they_name() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../otel-config/policies"));
        let (policies, files) = policies(folder, "test").unwrap();
        assert_eq!((policies.len(), files.len()), (5, 5));
        assert!(policies.iter().all(|policy| policy.action == Action::Kill));
        let guard = Guard { mode: Mode::Enforce, policies, ..Guard::default() };
        let compiled = Compiled::new(&guard, true).unwrap();
        let scope = compiled.tables.settings.containers;
        let stopped = |path: &str, argv0: &str, argv1: &str, origin, interactive| {
            let [path, argv0, argv1] = [path, argv0, argv1].map(|text| text.as_bytes().to_vec());
            let parent = b"/usr/bin/containerd-shim-runc-v2".to_vec();
            let attempt = Attempt { path, argv0, argv1, parent, uid: 0, interactive, script: false, origin };
            let [_, outcome] = evaluate(&compiled, &attempt, scope)[..] else { panic!("none denies") };
            outcome.decided.map(|(policy, _)| guard.policies[usize::from(policy)].name.as_str())
        };
        let shells = Some("no-shells-in-containers");
        let cases = [
            (stopped("/usr/bin/bash", "bash", "", Origin::Image, false), shells),
            (stopped("/bin/busybox", "/bin/sh", "-c", Origin::Image, false), shells),
            (stopped("/bin/busybox", "-sh", "", Origin::Image, false), shells),
            (stopped("/bin/busybox", "busybox", "sh", Origin::Image, false), shells),
            (stopped("/bin/busybox", "ls", "sh2", Origin::Image, false), None),
            (stopped("/bin/busybox", "ls", "/bin/busybox", Origin::Image, false), None),
            (stopped("/usr/bin/apt-get", "apt-get", "", Origin::Image, false), Some("no-package-managers")),
            (
                stopped("/usr/bin/python3.11", "python3", "/usr/bin/pip3", Origin::Image, false),
                Some("no-package-managers"),
            ),
            (stopped("/usr/bin/python3.11", "python3", "app.py", Origin::Image, false), None),
            (stopped("/srv/app", "app", "", Origin::Changed, false), Some("only-from-the-image")),
            (stopped("/dev/init", "init", "--", Origin::Mounted, false), Some("only-from-the-image")),
            (stopped("/srv/app", "app", "", Origin::Unknown, false), Some("only-from-the-image")),
            (stopped("/srv/app", "app", "", Origin::Image, true), Some("no-interactive-exec")),
            (stopped("/srv/app", "app", "", Origin::Image, false), None),
        ];
        for (found, expected) in cases {
            assert_eq!(found, expected);
        }
        assert_eq!(stopped("/memfd:x", "x", "", Origin::Memfd, false), Some("no-memfd"));
    }

    #[test]
    fn the_ready_made_policies_let_no_program_run_another_that_they_forbid() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../otel-config/policies"));
        for file in ["no-shells-in-containers.yaml", "no-package-managers.yaml"] {
            let (policies, _) = policies(&folder.join(file), "test").unwrap();
            let guard = Guard { mode: Mode::Enforce, policies, ..Guard::default() };
            let compiled = Compiled::new(&guard, true).unwrap();
            for (path, argv0, argv1, is_stopped) in [
                // Itself, any number of times, is busybox until it is told to be something else.
                ("/bin/busybox", "busybox", "busybox", true),
                ("/bin/busybox.static", "/x/busyboxy", "/x/busybox2", true),
                ("/bin/toybox", "toybox", "toybox", true),
                ("/bin/busybox", "busybox", "--install", false),
                ("/bin/busybox", "busybox", "ls", false),
                ("/bin/busybox", "ls", "/bin/busybox", false),
                ("/lib/ld-musl-x86_64.so.1", "x", "/bin/anything", true),
                ("/lib/ld-musl-x86_64.so.1", "x", "--library-path=/lib", true),
                ("/lib64/ld-linux-x86-64.so.2", "x", "--argv0", true),
            ] {
                let [path, argv0, argv1] = [path, argv0, argv1].map(|text| text.as_bytes().to_vec());
                let parent = b"/srv/app".to_vec();
                let (interactive, script, origin) = (false, false, Origin::Image);
                let attempt = Attempt { path, argv0, argv1, parent, uid: 0, interactive, script, origin };
                let outcomes = evaluate(&compiled, &attempt, compiled.tables.settings.containers);
                assert_eq!(outcomes.iter().any(|outcome| outcome.decided.is_some()), is_stopped, "{file}: {attempt:?}");
            }
        }
    }
}
