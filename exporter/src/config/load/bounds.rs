//! How big attributes, batches and queues may get.

use super::Sources;
use crate::config::error::ConfigError;
use crate::config::given::{Given, OrDefault};
use crate::config::parse;
use crate::config::{AttributeLimits, Batch, Queue};

/// A signal's variables; in the file, the signals have these settings in common.
pub(super) struct Bounds {
    /// What is counted.
    unit: &'static str,
    /// The signal's own, and the general one.
    value_length: [&'static str; 2],
    count: [&'static str; 2],
    batch_size: &'static str,
    queue_size: &'static str,
    delay: &'static str,
}

macro_rules! bounds {
    ($unit:literal, $limits:literal, $processor:literal) => {
        Bounds {
            unit: $unit,
            value_length: [
                concat!("OTEL_", $limits, "_ATTRIBUTE_VALUE_LENGTH_LIMIT"),
                "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
            ],
            count: [concat!("OTEL_", $limits, "_ATTRIBUTE_COUNT_LIMIT"), "OTEL_ATTRIBUTE_COUNT_LIMIT"],
            batch_size: concat!("OTEL_", $processor, "_MAX_EXPORT_BATCH_SIZE"),
            queue_size: concat!("OTEL_", $processor, "_MAX_QUEUE_SIZE"),
            delay: concat!("OTEL_", $processor, "_SCHEDULE_DELAY"),
        }
    };
}

pub(super) const RECORDS: Bounds = bounds!("records", "LOGRECORD", "BLRP");
pub(super) const SPANS: Bounds = bounds!("spans", "SPAN", "BSP");

impl Sources<'_> {
    pub(super) fn limits(&self, bounds: &Bounds) -> Result<AttributeLimits, ConfigError> {
        let (env, file, default) = (&self.env, &self.file, AttributeLimits::default());
        let limits = &file.schema.limits;
        Ok(AttributeLimits {
            value_length: env
                .either(bounds.value_length, parse::limit_count)?
                .or(file.parse("limits.value_length", &limits.value_length, parse::limit_count)?)
                .map(|given| given.value),
            count: env
                .either(bounds.count, parse::limit_count)?
                .or(file.parse("limits.count", &limits.count, parse::limit_count)?)
                .or_default(default.count),
        })
    }

    pub(super) fn batch_and_queue(&self, bounds: &Bounds) -> Result<(Batch, Queue), ConfigError> {
        let (env, file) = (&self.env, &self.file);
        let (batch, queue) = (&file.schema.batch, &file.schema.queue);
        let (batch_default, queue_default) = (Batch::default(), Queue::default());

        let queue_records = env.parse(bounds.queue_size, parse::count)?.or(file.parse(
            "queue.max_records",
            &queue.max_records,
            parse::count,
        )?);
        let most = queue_records.as_ref().map_or(usize::MAX, |given| given.value);
        let batch_records = env
            .parse(bounds.batch_size, parse::count)?
            .or(file.parse("batch.max_records", &batch.max_records, parse::count)?)
            .or_given_default(batch_default.max_records.min(most));
        if let Some(queue_records) = &queue_records {
            fits(bounds.unit, &batch_records, queue_records)?;
        }

        let queue_bytes =
            file.parse("queue.max_bytes", &queue.max_bytes, parse::bytes)?.or_given_default(queue_default.max_bytes);
        let batch_bytes = file
            .parse("batch.max_bytes", &batch.max_bytes, parse::batch_bytes)?
            .or_given_default(batch_default.max_bytes);
        fits("bytes", &batch_bytes, &queue_bytes)?;

        let delay = env
            .parse(bounds.delay, parse::positive_millis)?
            .or(file.parse("batch.delay", &batch.delay, parse::positive_duration)?)
            .or_default(batch_default.delay);
        let drain = file.parse("queue.drain", &queue.drain, parse::duration)?.or_default(queue_default.drain);
        Ok((
            Batch { max_records: batch_records.value, max_bytes: batch_bytes.value, delay },
            Queue { max_bytes: queue_bytes.value, max_records: queue_records.map(|given| given.value), drain },
        ))
    }
}

fn fits(unit: &'static str, batch: &Given<usize>, queue: &Given<usize>) -> Result<(), ConfigError> {
    if batch.value <= queue.value {
        return Ok(());
    }
    Err(ConfigError::BatchOverQueue {
        unit,
        batch: batch.value,
        batch_origin: Box::new(batch.origin.clone()),
        queue: queue.value,
        queue_origin: Box::new(queue.origin.clone()),
    })
}
