//! The closing word: what became of every event, and of every span.

use std::collections::BTreeMap;
use std::fmt;

/// What became of everything that was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events that passed the filters, as log records.
    pub events: Fate,
    /// `None`: no spans are made.
    pub spans: Option<Fate>,
}

/// What became of the records of one signal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    pub seen: u64,
    /// Accepted by the collector; `None`: nothing is shipped.
    pub exported: Option<u64>,
    /// Refused by the collector in a partial success.
    pub rejected: u64,
    /// Printed; `None`: not on the console.
    pub printed: Option<u64>,
    /// Lost, by reason.
    pub dropped: BTreeMap<String, u64>,
}

impl Fate {
    /// Counts a loss, if there is one.
    pub(super) fn lose(&mut self, reason: &str, records: u64) {
        if records > 0 {
            *self.dropped.entry(reason.to_owned()).or_default() += records;
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seen {}", self.events)?;
        match &self.spans {
            Some(spans) => write!(f, "; spans {spans}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.seen)?;
        if let Some(exported) = self.exported {
            write!(f, ", exported {exported}, rejected {}", self.rejected)?;
        }
        if let Some(printed) = self.printed {
            write!(f, ", printed {printed}")?;
        }
        write!(f, ", dropped {}", self.dropped.values().sum::<u64>())?;
        for (index, (reason, records)) in self.dropped.iter().enumerate() {
            write!(f, "{}{reason} {records}", if index == 0 { " (" } else { ", " })?;
        }
        if self.dropped.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_names_every_reason() {
        let events = Fate { seen: 10, exported: Some(7), ..Fate::default() };
        let mut summary = Summary { events, spans: None };
        assert_eq!(summary.to_string(), "seen 10, exported 7, rejected 0, dropped 0");
        summary.events.lose("queue_full", 2);
        summary.events.lose("ring_full", 1);
        summary.events.lose("undecodable", 0);
        let events = "seen 10, exported 7, rejected 0, dropped 3 (queue_full 2, ring_full 1)";
        assert_eq!(summary.to_string(), events);
        summary.spans = Some(Fate { seen: 4, exported: Some(4), printed: Some(4), ..Fate::default() });
        assert_eq!(summary.to_string(), format!("{events}; spans 4, exported 4, rejected 0, printed 4, dropped 0"));
        summary = Summary { events: Fate { seen: 4, printed: Some(4), ..Fate::default() }, spans: None };
        assert_eq!(summary.to_string(), "seen 4, printed 4, dropped 0");
    }
}
