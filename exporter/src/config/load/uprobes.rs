//! Probes of functions: those of the command line, or else of the file.

use super::Sources;
use crate::config::error::ConfigError;
use crate::config::file;
use crate::config::given::{Given, OrDefault, flag, flags};
use crate::config::parse::{self, Expected};
use crate::enrich::selection::Selector;
use crate::uprobe::check::{Conflict, Part, check};
use crate::uprobe::parse as form;
use crate::uprobe::spec::{ARGS_MAX, Capture, Kind, NAME_MAX, PROBES_MAX, Rate, Target, Uprobe};

/// Most container selectors of one probe.
const SELECTORS_MAX: usize = 64;
/// Most expressions of one probe for what is hidden.
const REDACT_MAX: usize = 16;

impl Sources<'_> {
    pub(super) fn uprobes(&self) -> Result<Vec<Uprobe>, ConfigError> {
        // What the file says is checked, also where it is overridden.
        let in_file = self.uprobes_in_file()?;
        Ok(self.typed_uprobes()?.unwrap_or(in_file))
    }

    /// `None`: the command has no probes.
    fn typed_uprobes(&self) -> Result<Option<Vec<Uprobe>>, ConfigError> {
        let Some(typed) = &self.run.uprobes else { return Ok(None) };
        let containers =
            flags("--container", &typed.containers, SELECTORS_MAX, parse::selector)?.or_default(Vec::new());
        let max_string = flag("--max-string", typed.max_string.as_ref(), parse::max_string)?;
        let sample = flag("--sample", typed.sample.as_ref(), parse::sample)?;
        let rate = flag("--rate", typed.rate.as_ref(), parse::rate)?;
        let redact = flags("--redact", &typed.redact, REDACT_MAX, parse::expression)?.or_default(Vec::new());
        let (max_string, sample) = (max_string.or_default(Uprobe::MAX_STRING), sample.or_default(1));
        let rate = match rate {
            Some(Given { value, .. }) => value.map(|per_second| Rate { per_second, burst: per_second }),
            None => Some(Rate::default()),
        };
        if typed.specs.len() > PROBES_MAX {
            return Err(ConfigError::Probe {
                problem: format!("{} probes are too many: at most {PROBES_MAX}", typed.specs.len()),
            });
        }
        let mut probes: Vec<Uprobe> = Vec::with_capacity(typed.specs.len());
        for text in &typed.specs {
            let probe = form::probe(text, &containers)
                .map_err(|refusal| ConfigError::Probe { problem: format!("{refusal}{}", hint(text, &containers)) })?;
            if typed.span && probe.kind != Kind::Both {
                let problem = format!(
                    "`{text}`: --span takes probes of whole calls, such as f() -> ret:i32, as a span lasts from entry to \
                     return"
                );
                return Err(ConfigError::Probe { problem });
            }
            let name = unique(probe.name, &probes);
            probes.push(Uprobe { name, max_string, sample, rate, span: typed.span, redact: redact.clone(), ..probe });
        }
        Ok(Some(probes))
    }

    fn uprobes_in_file(&self) -> Result<Vec<Uprobe>, ConfigError> {
        let listed = &self.file.schema.uprobes;
        let mut probes: Vec<Uprobe> = Vec::with_capacity(listed.len().min(PROBES_MAX));
        for (index, given) in listed.iter().enumerate() {
            let section = format!("uprobes[{index}]");
            let probe = self.uprobe(&section, given)?;
            if index >= PROBES_MAX {
                let problem = format!("{} probes are too many: at most {PROBES_MAX}", listed.len());
                return Err(self.file.refusal("uprobes", &given.name, &problem));
            }
            if probes.iter().any(|known| known.name == probe.name) {
                let problem = format!("`{}` names a probe above already: give each a name of its own", probe.name);
                return Err(self.file.refusal(&format!("{section}.name"), &given.name, &problem));
            }
            probes.push(probe);
        }
        Ok(probes)
    }

    fn uprobe(&self, section: &str, given: &file::Uprobe) -> Result<Uprobe, ConfigError> {
        let file = &self.file;
        let key = |name: &str| format!("{section}.{name}");
        let near = [&given.name, &given.binary, &given.function].into_iter().find(|entry| entry.is_some());
        let missing = |problem: &str| file.refusal(section, near.unwrap_or(&None), problem);

        let Some(Given { value: name, .. }) = file.parse(&key("name"), &given.name, parse::uprobe_name)? else {
            return Err(missing("it has no name; give it one, such as name: readline"));
        };
        let target = self.target(section, given, &missing)?;
        let binary = |text: &str| form::binary(text).map_err(Expected);
        let Some(Given { value: binary, .. }) = file.parse(&key("binary"), &given.binary, binary)? else {
            return Err(missing("it has no binary; give a path such as /usr/bin/bash, or a library such as libssl"));
        };
        let function = |text: &str| form::function(text).map_err(|refusal| at_column("a function", &refusal));
        let Some(Given { value: function, .. }) = file.parse(&key("function"), &given.function, function)? else {
            return Err(missing("it has no function; give its name, /REGEX/, +OFFSET or usdt:PROVIDER:NAME"));
        };
        let args = self.captures(&key("args"), given)?;
        let returned = |text: &str| form::returned(text).map_err(|refusal| at_column("a return value", &refusal));
        let returns = file.parse(&key("returns"), &given.returns, returned)?.map(|given| given.value);
        // As the one-line form has it.
        let kind = match (&returns, args.is_empty()) {
            (None, _) => Kind::Entry,
            (Some(_), true) => Kind::Return,
            (Some(_), false) => Kind::Both,
        };
        let burst = file.parse(&key("burst"), &given.burst, parse::burst)?;
        let rate = match file.parse(&key("rate"), &given.rate, parse::rate)? {
            Some(Given { value: None, .. }) => {
                if let Some(Given { .. }) = burst {
                    return Err(file.refusal(
                        &key("burst"),
                        &given.burst,
                        "there is no rate that it could be over: leave it out",
                    ));
                }
                None
            }
            Some(Given { value: Some(per_second), .. }) => {
                Some(Rate { per_second, burst: burst.or_default(per_second) })
            }
            None => {
                let default = Rate::default();
                Some(Rate { burst: burst.or_default(default.burst), ..default })
            }
        };
        let probe = Uprobe {
            kind: file.parse(&key("kind"), &given.kind, parse::kind)?.or_default(kind),
            args,
            returns,
            max_string: file
                .parse(&key("max_string"), &given.max_string, parse::max_string)?
                .or_default(Uprobe::MAX_STRING),
            sample: file.parse(&key("sample"), &given.sample, parse::sample)?.or_default(1),
            rate,
            severity: file.parse(&key("severity"), &given.severity, parse::severity)?.or_default(Uprobe::SEVERITY),
            span: file.parse(&key("span"), &given.span, parse::boolean)?.or_default(false),
            redact: file.list(&key("redact"), &given.redact, REDACT_MAX, parse::expression)?.or_default(Vec::new()),
            ..Uprobe::new(name, target, binary, function)
        };
        match check(&probe) {
            Ok(()) => Ok(probe),
            Err(Conflict { part, problem }) => Err(self.conflict(section, given, part, &problem)),
        }
    }

    fn target(
        &self,
        section: &str,
        given: &file::Uprobe,
        missing: &dyn Fn(&str) -> ConfigError,
    ) -> Result<Target, ConfigError> {
        const CHOICE: &str = "it takes one of containers: [SELECTOR, ...], host: true and pid: N";
        let file = &self.file;
        let key = |name: &str| format!("{section}.{name}");
        let containers = file.list(&key("containers"), &given.containers, SELECTORS_MAX, parse::selector)?;
        let host = file.parse(&key("host"), &given.host, parse::boolean)?.filter(|host| host.value);
        let pid = file.parse(&key("pid"), &given.pid, parse::pid)?;
        match (containers, host, pid) {
            (Some(Given { value, .. }), None, None) if !value.is_empty() => Ok(Target::Containers(value)),
            (None, Some(_), None) => Ok(Target::Host),
            (None, None, Some(Given { value, .. })) => Ok(Target::Pid(value)),
            (None, None, None) => Err(missing(&format!("it has no target: {CHOICE}"))),
            (Some(_), None, None) => {
                Err(missing("its list of containers is empty; for every container there is [\"name:*\"]"))
            }
            (Some(_), Some(_), _) | (Some(_), _, Some(_)) | (_, Some(_), Some(_)) => {
                Err(missing(&format!("it has more than one target: {CHOICE}")))
            }
        }
    }

    /// Each argument's position is that after the one before, unless it says another.
    fn captures(&self, key: &str, given: &file::Uprobe) -> Result<Vec<Capture>, ConfigError> {
        let texts = self.file.list(key, &given.args, ARGS_MAX, |text| Ok(text.to_owned()))?.or_default(Vec::new());
        let mut captures: Vec<Capture> = Vec::with_capacity(texts.len());
        for (text, entry) in texts.iter().zip(given.args.iter().flatten()) {
            let next = captures.last().map_or(0, |last| last.position.saturating_add(1));
            let read = |text: &str| form::argument(text, next).map_err(|refusal| at_column("an argument", &refusal));
            match self.file.parse(key, entry, read)? {
                Some(Given { value, .. }) => captures.push(value),
                None => return Err(self.file.refusal(key, entry, &format!("`{text}` is no argument"))),
            }
        }
        Ok(captures)
    }

    fn conflict(&self, section: &str, given: &file::Uprobe, part: Part, problem: &str) -> ConfigError {
        let (name, entry) = match part {
            Part::Kind if given.kind.is_none() => ("returns", &given.returns),
            Part::Kind => ("kind", &given.kind),
            Part::Arg(index) => ("args", given.args.iter().flatten().nth(index).unwrap_or(&None)),
            Part::Returns => ("returns", &given.returns),
            Part::Span => ("span", &given.span),
        };
        self.file.refusal(&format!("{section}.{name}"), entry, problem)
    }
}

/// Completes "this is not …" with what was expected at which character.
fn at_column(what: &str, refusal: &form::Refusal) -> Expected {
    Expected(format!("{what}: {} (character {})", refusal.problem, refusal.column + 1))
}

/// With containers from a flag, a target in the line is a mistake that reads as another.
fn hint(text: &str, containers: &[Selector]) -> String {
    if !containers.is_empty() && form::probe(text, &[]).is_ok() && !text.trim_start().starts_with(['/', '"']) {
        return "\n  --container says which containers: leave the target out of the probe".to_owned();
    }
    String::new()
}

/// That name, or with a number after it.
fn unique(name: String, known: &[Uprobe]) -> String {
    let is_free = |name: &str| !known.iter().any(|probe| probe.name == name);
    if is_free(&name) {
        return name;
    }
    (2..=known.len().saturating_add(2))
        .map(|number| {
            let number = format!("-{number}");
            // All of one byte.
            format!("{}{number}", name.get(..NAME_MAX - number.len()).unwrap_or(&name))
        })
        .find(|name| is_free(name))
        .unwrap_or(name)
}
