//! The closing word: what became of every event, and of every span.

use std::collections::BTreeMap;
use std::fmt;

use super::guarding;
use crate::model::guard::RESULTS;
use crate::queue::Snapshot;
use crate::uprobe::follow::Totals;

/// What became of everything that was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events that passed the filters, as log records.
    pub events: Fate,
    /// `None`: no spans are made.
    pub spans: Option<Fate>,
    /// `None`: there are no uprobes.
    pub hits: Option<Hits>,
    /// `None`: there is no guard.
    pub guard: Option<Decided>,
}

/// What became of the guard's decisions. Those that are told are among the events, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    /// Read from the ring, and told as events.
    pub told: u64,
    pub totals: guarding::Totals,
}

/// What became of the hits of all uprobes. Those that are told are among the events, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// Read from the ring, and told as events.
    pub told: u64,
    pub totals: Totals,
}

/// What became of the records of one signal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    pub seen: u64,
    /// By destination, of what was not lost before.
    pub shipped: Vec<(String, Snapshot)>,
    /// Printed; `None`: not on the console.
    pub printed: Option<u64>,
    /// Lost before any destination, by reason.
    pub dropped: BTreeMap<String, u64>,
}

impl Fate {
    /// Counts a loss, if there is one.
    pub(super) fn lose(&mut self, reason: &str, records: u64) {
        lose(&mut self.dropped, reason, records);
    }
}

fn lose(dropped: &mut BTreeMap<String, u64>, reason: &str, records: u64) {
    if records > 0 {
        *dropped.entry(reason.to_owned()).or_default() += records;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seen {}", self.events)?;
        if let Some(spans) = &self.spans {
            write!(f, "; spans {spans}")?;
        }
        if let Some(hits) = &self.hits {
            write!(f, "; hits {hits}")?;
        }
        if let Some(guard) = &self.guard {
            write!(f, "; guard {guard}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Hits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, told {}", self.totals.triggered, self.told)?;
        for by_choice in ["filtered", "sampled_out", "unfinished"] {
            let count = self.totals.of(by_choice);
            if count > 0 {
                write!(f, ", {by_choice} {count}")?;
            }
        }
        let mut dropped = BTreeMap::new();
        for (reason, lost) in self.totals.losses() {
            lose(&mut dropped, reason, lost);
        }
        lose(&mut dropped, "unread", self.totals.of("delivered").saturating_sub(self.told));
        losses(f, &dropped)
    }
}

impl fmt::Display for Decided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, told {}", self.totals.decided, self.told)?;
        for (_, result) in RESULTS {
            let count = self.totals.of(result);
            if count > 0 {
                write!(f, ", {result} {count}")?;
            }
        }
        let mut dropped = BTreeMap::new();
        for (reason, lost) in self.totals.losses() {
            lose(&mut dropped, reason, lost);
        }
        lose(&mut dropped, "unread", self.totals.told.saturating_sub(self.told));
        losses(f, &dropped)
    }
}

impl fmt::Display for Fate {
    /// One destination is told of with the rest; of several, each has what was lost on its way.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.seen)?;
        let mut dropped = self.dropped.clone();
        let several = if let [(_, counters)] = &self.shipped[..] {
            shipped(f, counters)?;
            for (reason, lost) in &counters.dropped {
                lose(&mut dropped, &reason.to_string(), *lost);
            }
            &[]
        } else {
            &self.shipped[..]
        };
        if let Some(printed) = self.printed {
            write!(f, ", printed {printed}")?;
        }
        losses(f, &dropped)?;
        for (name, counters) in several {
            write!(f, "; to {name}")?;
            shipped(f, counters)?;
            losses(f, &counters.dropped.iter().map(|(reason, lost)| (reason.to_string(), *lost)).collect())?;
        }
        Ok(())
    }
}

fn shipped(f: &mut fmt::Formatter<'_>, counters: &Snapshot) -> fmt::Result {
    let recovered = counters.spool.map_or(0, |spool| spool.recovered);
    if recovered > 0 {
        write!(f, ", recovered {recovered}")?;
    }
    write!(f, ", exported {}, rejected {}", counters.exported, counters.rejected)?;
    match counters.spool {
        Some(spool) => write!(f, ", spooled {}", spool.records),
        None => Ok(()),
    }
}

fn losses(f: &mut fmt::Formatter<'_>, dropped: &BTreeMap<String, u64>) -> fmt::Result {
    write!(f, ", dropped {}", dropped.values().sum::<u64>())?;
    for (index, (reason, records)) in dropped.iter().enumerate() {
        write!(f, "{}{reason} {records}", if index == 0 { " (" } else { ", " })?;
    }
    if dropped.is_empty() { Ok(()) } else { f.write_str(")") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{Reason, Spooled};

    fn exported(exported: u64) -> Snapshot {
        Snapshot { accepted: exported, exported, ..Snapshot::default() }
    }

    #[test]
    fn the_summary_names_every_reason() {
        let shipped = vec![("main".to_owned(), exported(7))];
        let events = Fate { seen: 10, shipped, ..Fate::default() };
        let mut summary = Summary { events, spans: None, hits: None, guard: None };
        assert_eq!(summary.to_string(), "seen 10, exported 7, rejected 0, dropped 0");
        summary.events.shipped[0].1.dropped.insert(Reason::QueueFull, 2);
        summary.events.lose("ring_full", 1);
        summary.events.lose("undecodable", 0);
        let events = "seen 10, exported 7, rejected 0, dropped 3 (queue_full 2, ring_full 1)";
        assert_eq!(summary.to_string(), events);
        let shipped = vec![("main".to_owned(), exported(4))];
        summary.spans = Some(Fate { seen: 4, shipped, printed: Some(4), ..Fate::default() });
        assert_eq!(summary.to_string(), format!("{events}; spans 4, exported 4, rejected 0, printed 4, dropped 0"));
        summary = Summary {
            events: Fate { seen: 4, printed: Some(4), ..Fate::default() },
            spans: None,
            hits: None,
            guard: None,
        };
        assert_eq!(summary.to_string(), "seen 4, printed 4, dropped 0");
    }

    #[test]
    fn a_spool_has_what_it_found_and_what_it_keeps() {
        let mut shipped = vec![("main".to_owned(), exported(7))];
        shipped[0].1.spool = Some(Spooled { records: 3, ..Spooled::default() });
        let mut summary =
            Summary { events: Fate { seen: 10, shipped, ..Fate::default() }, spans: None, hits: None, guard: None };
        assert_eq!(summary.to_string(), "seen 10, exported 7, rejected 0, spooled 3, dropped 0");
        summary.events.shipped[0].1.spool = Some(Spooled { recovered: 2, records: 5, ..Spooled::default() });
        assert_eq!(summary.to_string(), "seen 10, recovered 2, exported 7, rejected 0, spooled 5, dropped 0");
    }

    #[test]
    fn each_of_several_destinations_has_its_own_numbers() {
        let mut shipped = vec![("main".to_owned(), exported(9)), ("vendor".to_owned(), exported(5))];
        shipped[1].1.dropped.insert(Reason::RetryExpired, 4);
        let mut events = Fate { seen: 10, shipped, ..Fate::default() };
        events.lose("ring_full", 1);
        let text = "seen 10, dropped 1 (ring_full 1); to main, exported 9, rejected 0, dropped 0; to vendor, exported \
                    5, rejected 0, dropped 4 (retry_expired 4)";
        assert_eq!(Summary { events, spans: None, hits: None, guard: None }.to_string(), text);
    }
}
