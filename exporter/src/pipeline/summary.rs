//! The closing word: what became of every event.

use std::collections::BTreeMap;
use std::fmt;

/// What became of every event, in log records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events that passed the filters.
    pub seen: u64,
    /// Accepted by the collector; `None`: nothing is shipped.
    pub exported: Option<u64>,
    /// Refused by the collector in a partial success.
    pub rejected: u64,
    /// Printed; `None`: there is no console.
    pub printed: Option<u64>,
    /// Events that were lost, by reason.
    pub dropped: BTreeMap<String, u64>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seen {}", self.seen)?;
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
        let mut summary = Summary { seen: 10, exported: Some(7), ..Summary::default() };
        assert_eq!(summary.to_string(), "seen 10, exported 7, rejected 0, dropped 0");
        summary.dropped = [("queue_full".to_owned(), 2), ("ring_full".to_owned(), 1)].into();
        assert_eq!(summary.to_string(), "seen 10, exported 7, rejected 0, dropped 3 (queue_full 2, ring_full 1)");
        summary = Summary { seen: 4, printed: Some(4), ..Summary::default() };
        assert_eq!(summary.to_string(), "seen 4, printed 4, dropped 0");
    }
}
