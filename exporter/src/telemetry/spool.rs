//! The metrics of the spools: what each queue's snapshot says of its own. A queue without a spool has none.

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Meter};

use crate::queue::{Queue, Spooled};

/// What is called for each queue, with its attributes.
type Visit<'a> = &'a mut dyn FnMut(&[KeyValue], &Queue);

/// `each` visits the queues there are. At rest `namespan.spool.recovered`, and what was given to a queue, is what has left it,
/// is in it or in flight, and `namespan.spool.size`.
pub(super) fn register(meter: &Meter, each: impl Fn(Visit<'_>) + Clone + Send + Sync + 'static) {
    let level = |name, unit, meaning, value: fn(&Spooled) -> u64| {
        let each = each.clone();
        let callback = move |observer: &dyn AsyncInstrument<i64>| {
            each(&mut |attributes, queue| {
                if let Some(spool) = queue.counters().snapshot().spool {
                    observer.observe(value(&spool).try_into().unwrap_or(i64::MAX), attributes);
                }
            });
        };
        let builder = meter.i64_observable_up_down_counter(name).with_unit(unit).with_description(meaning);
        builder.with_callback(callback).build();
    };
    let meaning = "Log records or spans that are on disk and in no memory";
    level("namespan.spool.size", "{record}", meaning, |spool| spool.records);
    let meaning = "Bytes of all that is on disk for a destination";
    level("namespan.spool.usage", "By", meaning, |spool| spool.bytes);
    let meaning = "Files of what is on disk for a destination";
    level("namespan.spool.segments", "{segment}", meaning, |spool| spool.segments);

    let counter = |name, unit, meaning, value: fn(&Spooled) -> u64| {
        let each = each.clone();
        let callback = move |observer: &dyn AsyncInstrument<u64>| {
            each(&mut |attributes, queue| {
                if let Some(spool) = queue.counters().snapshot().spool {
                    observer.observe(value(&spool), attributes);
                }
            });
        };
        let builder = meter.u64_observable_counter(name).with_unit(unit).with_description(meaning);
        builder.with_callback(callback).build();
    };
    let meaning = "Log records or spans that an earlier run had left on disk";
    counter("namespan.spool.recovered", "{record}", meaning, |spool| spool.recovered);
    let meaning = "Reads and writes of the spool that failed";
    counter("namespan.spool.errors", "{error}", meaning, |spool| spool.errors);
    let meaning = "Files that did not end with a whole batch at the start, as after a crash";
    counter("namespan.spool.cuts", "{segment}", meaning, |spool| spool.cuts);
}
