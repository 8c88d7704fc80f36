//! The checks come in; text for people or JSON for programs goes out.

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    /// Snake case, and kept from version to version: scripts look for it.
    pub name: String,
    pub status: Status,
    pub found: String,
    /// What it means for Namespan.
    pub consequence: Option<String>,
    pub remedy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Ok,
    /// Namespan runs, with less.
    Warn,
    /// Namespan does not run.
    Fail,
    /// Not looked at, or not to be seen.
    Skip,
}

impl Check {
    pub fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(Status::Ok, name, found)
    }

    pub fn warn(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(Status::Warn, name, found)
    }

    pub fn fail(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(Status::Fail, name, found)
    }

    pub fn skip(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(Status::Skip, name, found)
    }

    /// `Fail` if Namespan was told to do what this is needed for, else `Warn`.
    pub fn lacks(is_required: bool, name: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(if is_required { Status::Fail } else { Status::Warn }, name, found)
    }

    #[must_use]
    pub fn means(self, consequence: impl Into<String>) -> Self {
        Self { consequence: Some(consequence.into()), ..self }
    }

    #[must_use]
    pub fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }

    fn new(status: Status, name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), status, found: found.into(), consequence: None, remedy: None }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Report {
    version: &'static str,
    /// Nothing failed.
    pub ok: bool,
    checks: Vec<Check>,
}

impl Report {
    pub fn new(checks: Vec<Check>) -> Self {
        let ok = checks.iter().all(|check| check.status != Status::Fail);
        Self { version: env!("CARGO_PKG_VERSION"), ok, checks }
    }

    /// One object on one line.
    pub fn json(&self, out: &mut dyn Write) -> io::Result<()> {
        serde_json::to_writer(&mut *out, self)?;
        writeln!(out)?;
        out.flush()
    }

    /// Aligned columns: status, name, what was found; below, indented, what it means and `->` the remedy.
    pub fn text(&self, out: &mut dyn Write, is_colourful: bool) -> io::Result<()> {
        const STATUS_WIDTH: usize = 4;
        let name_width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        let indent = STATUS_WIDTH + 2 + name_width + 2;
        for Check { name, status, found, consequence, remedy } in &self.checks {
            let (word, colour) = match status {
                Status::Ok => ("ok", "32"),
                Status::Warn => ("warn", "33"),
                Status::Fail => ("fail", "31"),
                Status::Skip => ("skip", "2"),
            };
            if is_colourful {
                write!(out, "\x1b[{colour}m{word:STATUS_WIDTH$}\x1b[0m")?;
            } else {
                write!(out, "{word:STATUS_WIDTH$}")?;
            }
            writeln!(out, "  {name:name_width$}  {}", Printable(found))?;
            if let Some(consequence) = consequence {
                writeln!(out, "{:indent$}{}", "", Printable(consequence))?;
            }
            if let Some(remedy) = remedy {
                writeln!(out, "{:indent$}-> {}", "", Printable(remedy))?;
            }
        }
        writeln!(out, "\n{}", self.summary())?;
        out.flush()
    }

    fn summary(&self) -> String {
        let named = |status| {
            let names = self.checks.iter().filter(|check| check.status == status).map(|check| check.name.as_str());
            names.collect::<Vec<_>>().join(", ")
        };
        match (named(Status::Fail), named(Status::Warn)) {
            (fails, _) if !fails.is_empty() => format!("Namespan does not work here as configured: {fails}"),
            (_, warnings) if !warnings.is_empty() => format!("Namespan runs here; look at: {warnings}"),
            _ => "Namespan runs here.".to_owned(),
        }
    }
}

/// Text from outside, with whatever could steer a terminal or reorder its line escaped.
pub(crate) struct Printable<'a>(pub(crate) &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        self.0.chars().try_for_each(|c| match c {
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => {
                write!(f, "{}", c.escape_unicode())
            }
            c if c.is_control() => write!(f, "{}", c.escape_default()),
            c => f.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report::new(vec![
            Check::ok("btf", "79 fields"),
            Check::warn("docker", "no socket").means("ids only").remedy("start it"),
            Check::fail("hook_exec", "refused\x1b[2J").means("nothing is seen").remedy("run as root"),
            Check::skip("collector", "no endpoint"),
        ])
    }

    fn text(report: &Report, is_colourful: bool) -> String {
        let mut out = Vec::new();
        report.text(&mut out, is_colourful).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn people_get_aligned_columns_with_meaning_and_remedy_below() {
        let expected = concat!(
            "ok    btf        79 fields\n",
            "warn  docker     no socket\n",
            "                 ids only\n",
            "                 -> start it\n",
            "fail  hook_exec  refused\\u{1b}[2J\n",
            "                 nothing is seen\n",
            "                 -> run as root\n",
            "skip  collector  no endpoint\n",
            "\n",
            "Namespan does not work here as configured: hook_exec\n",
        );
        assert_eq!(text(&report(), false), expected);
    }

    #[test]
    fn only_our_own_colours_reach_the_terminal() {
        let text = text(&report(), true);
        assert!(text.contains("\x1b[33mwarn\x1b[0m  docker"), "{text:?}");
        assert!(!text.contains("\x1b[2J"), "{text:?}");
    }

    #[test]
    fn what_steers_a_terminal_is_escaped() {
        let shown = Printable("a\u{9b}b\u{202e}c\nd\u{7f}é").to_string();
        assert_eq!(shown, "a\\u{9b}b\\u{202e}c\\nd\\u{7f}é");
    }

    #[test]
    fn programs_get_one_object_with_every_key() {
        let mut out = Vec::new();
        report().json(&mut out).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "version": env!("CARGO_PKG_VERSION"),
                "ok": false,
                "checks": [
                    {"name": "btf", "status": "ok", "found": "79 fields", "consequence": null, "remedy": null},
                    {"name": "docker", "status": "warn", "found": "no socket", "consequence": "ids only",
                     "remedy": "start it"},
                    {"name": "hook_exec", "status": "fail", "found": "refused\u{1b}[2J",
                     "consequence": "nothing is seen", "remedy": "run as root"},
                    {"name": "collector", "status": "skip", "found": "no endpoint", "consequence": null,
                     "remedy": null},
                ],
            })
        );
        assert_eq!(String::from_utf8(out).unwrap().lines().count(), 1);
    }

    #[test]
    fn warnings_and_skipped_checks_are_allowed() {
        let report = Report::new(vec![Check::warn("docker", "none"), Check::skip("collector", "none")]);
        assert!(report.ok);
        assert!(text(&report, false).ends_with("Namespan runs here; look at: docker\n"));
        assert!(Report::new(Vec::new()).ok);
    }
}
