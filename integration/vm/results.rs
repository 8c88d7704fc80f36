//! What `init` told of one machine comes in; its tests, its checks and its figures go out.

use std::collections::BTreeMap;
use std::fmt;

#[derive(Debug, Default)]
pub struct Results {
    pub release: String,
    pub tests: Vec<Test>,
    /// By name: status, and what was found.
    pub checks: BTreeMap<String, (String, String)>,
    pub measured: BTreeMap<String, String>,
}

#[derive(Debug)]
pub struct Test {
    pub name: String,
    pub outcome: Outcome,
    seconds: String,
    /// Why it failed without a word, or was skipped.
    pub reason: String,
    printed: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    Failed,
    /// It says why.
    Skipped,
    /// Only for people, on demand.
    Ignored,
}

impl Results {
    pub fn parse(told: &str) -> Result<Self, String> {
        let mut results = Self::default();
        let mut is_whole = false;
        for line in told.lines() {
            let (key, rest) = line.split_once(' ').unwrap_or((line, ""));
            match key {
                "release" => rest.clone_into(&mut results.release),
                "check" => results.checks = checks(rest)?,
                "test" => results.tests.push(Test::parse(rest).ok_or_else(|| format!("no result: {line:?}"))?),
                "|" => {
                    let test = results.tests.last_mut().ok_or("text before any test")?;
                    test.printed.push(rest.to_owned());
                }
                "measured" => {
                    let (name, value) = rest.split_once(' ').ok_or_else(|| format!("no figure: {line:?}"))?;
                    results.measured.insert(name.to_owned(), value.to_owned());
                }
                "end" => is_whole = true,
                _ => return Err(format!("no result: {line:?}")),
            }
        }
        if is_whole { Ok(results) } else { Err("it stopped before its last test (did the kernel panic?)".to_owned()) }
    }

    /// Whatever of it may not be.
    pub fn failures(&self) -> impl Iterator<Item = String> {
        let failed = self.tests.iter().filter(|test| test.outcome == Outcome::Failed);
        let none = (!self.tests.iter().any(|test| test.outcome == Outcome::Ok)).then(|| "no test ran".to_owned());
        failed.map(|test| format!("{} failed {}\n{}", test.name, test.reason, test.printed.join("\n"))).chain(none)
    }
}

impl fmt::Display for Results {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(to, "{}", self.release)?;
        for Test { name, outcome, seconds, reason, .. } in &self.tests {
            writeln!(to, "  {outcome:?} {name} ({seconds} s) {reason}")?;
        }
        Ok(())
    }
}

impl Test {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.splitn(4, ' ');
        let name = words.next()?.to_owned();
        let outcome = match words.next()? {
            "ok" => Outcome::Ok,
            "failed" => Outcome::Failed,
            "skipped" => Outcome::Skipped,
            "ignored" => Outcome::Ignored,
            _ => return None,
        };
        let seconds = words.next()?.to_owned();
        let reason = words.next().unwrap_or_default().trim().to_owned();
        Some(Self { name, outcome, seconds, reason, printed: Vec::new() })
    }
}

/// Of `namespan check --json`.
fn checks(json: &str) -> Result<BTreeMap<String, (String, String)>, String> {
    let report: serde_json::Value =
        serde_json::from_str(json).map_err(|error| format!("`namespan check` printed {json:?}: {error}"))?;
    let text = |check: &serde_json::Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
    let checks = report["checks"].as_array().ok_or("`namespan check` lists no checks")?;
    Ok(checks.iter().map(|check| (text(check, "name"), (text(check, "status"), text(check, "found")))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: &str = "release 5.10\n\
        check {\"checks\":[{\"name\":\"kill\",\"status\":\"ok\",\"found\":\"it\"}]}\n\
        test a::b ok 1.02 \n\
        measured load 20 ms\n\
        test a::c failed 3.00 not done in 300 s\n\
        | panicked\n\
        test a::d skipped 0.10 no such thing\n\
        end\n";

    #[test]
    fn results_that_end_early_are_none() {
        let results = Results::parse(TOLD).unwrap();
        let outcomes: Vec<_> = results.tests.iter().map(|test| test.outcome).collect();
        assert_eq!(outcomes, [Outcome::Ok, Outcome::Failed, Outcome::Skipped]);
        assert_eq!(results.failures().collect::<Vec<_>>(), ["a::c failed not done in 300 s\npanicked"]);
        assert_eq!(results.tests[2].reason, "no such thing");
        assert_eq!(results.checks["kill"], ("ok".to_owned(), "it".to_owned()));
        assert_eq!(results.measured["load"], "20 ms");
        let early = Results::parse(TOLD.strip_suffix("end\n").unwrap()).unwrap_err();
        assert!(early.contains("panic"), "{early}");
        assert!(Results::parse("test a::b\nend\n").is_err());
        assert!(Results::parse("garbage\nend\n").is_err());
    }
}
