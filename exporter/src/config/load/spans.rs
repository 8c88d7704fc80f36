//! What is told of the lifetimes of processes as spans.

use super::Sources;
use crate::config::error::ConfigError;
use crate::config::given::{Given, OrDefault, switch};
use crate::config::parse;
use crate::config::{RootSampler, Sampler, Spans, Trust};

impl Sources<'_> {
    pub(super) fn spans(&self) -> Result<Spans, ConfigError> {
        let (file, default) = (&self.file, Spans::default());
        let spans = &file.schema.spans;
        Ok(Spans {
            sampler: self.sampler(default.sampler)?,
            max_duration: file
                .parse("spans.max_duration", &spans.max_duration, parse::positive_duration)?
                .or_default(default.max_duration),
            max_per_trace: file
                .parse("spans.max_per_trace", &spans.max_per_trace, parse::max_per_trace)?
                .or_default(default.max_per_trace),
            boundaries: file
                .list("spans.boundaries", &spans.boundaries, usize::MAX, parse::executable)?
                .or_default(default.boundaries),
            env_context: self.env_context()?.or_default(default.env_context),
            ok_exit_codes: file
                .lists("spans.ok_exit_codes", &spans.ok_exit_codes, parse::executable, parse::exit_code)?
                .unwrap_or(default.ok_exit_codes),
        })
    }

    fn sampler(&self, default: Sampler) -> Result<Sampler, ConfigError> {
        let (env, file) = (&self.env, &self.file);
        let spans = &file.schema.spans;
        let sampler = env
            .parse("OTEL_TRACES_SAMPLER", parse::sampler)?
            .or(file.parse("spans.sampler", &spans.sampler, parse::sampler)?)
            .or_default(default);
        let in_file = file.parse("spans.sampler_arg", &spans.sampler_arg, parse::ratio)?;
        match sampler.root {
            RootSampler::Below(_) => {
                let ratio = env.parse("OTEL_TRACES_SAMPLER_ARG", parse::ratio)?.or(in_file);
                Ok(Sampler { root: ratio.or_default(sampler.root), ..sampler })
            }
            // The variable may hold what another sampler of another program wants.
            RootSampler::On | RootSampler::Off => Ok(sampler),
        }
    }

    fn env_context(&self) -> Result<Option<Given<Vec<Trust>>>, ConfigError> {
        let in_file =
            self.file.list("spans.env_context", &self.file.schema.spans.env_context, usize::MAX, parse::trust)?;
        let in_file = match in_file {
            Some(Given { value, origin }) if value.len() > 1 && value.contains(&None) => {
                let expected = "alone: leave out it or the other entries".to_owned();
                return Err(ConfigError::Invalid { origin, value: "none".to_owned(), expected });
            }
            Some(Given { value, origin }) => Some(Given { value: value.into_iter().flatten().collect(), origin }),
            None => None,
        };
        Ok(switch("--no-env-context", self.run.probes.no_env_context, Vec::new()).or(in_file))
    }
}
