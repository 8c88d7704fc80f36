//! What happens to a hit of a uprobe once it is read, and what is said of the probes.

use std::sync::Arc;
use std::time::Instant;

use namespan_ebpf::wire::CgroupKey;

use super::Work;
use crate::config::Config;
use crate::enrich::container::Container;
use crate::enrich::{Attribution, Owner, Resident, Stand, Unseen};
use crate::event::{Event, Kind, ProcessId};
use crate::model::note::{self, Value};
use crate::model::semconv;
use crate::model::uprobe::Told;
use crate::pipeline::uprobing::{Loaded, Prober, Uprobing};
use crate::queue::Class;
use crate::trace::SpanContext;
use crate::uprobe::follow::{Answer, Sighting, Who};
use crate::uprobe::hit;

/// Processes looked at in one turn.
const SURVEYED: usize = 16;

impl Work {
    /// One hit of a uprobe as the kernel wrote it.
    pub(in crate::pipeline) fn hit(&mut self, record: &[u8]) {
        self.hits += 1;
        let hit = match hit::decode(record) {
            Ok(hit) => hit,
            Err(error) => return self.unreadable("of a uprobe", &error),
        };
        let places = self.prober.as_ref().map(|prober| &prober.places).or(self.places.as_ref());
        let Some(place) = places.and_then(|places| places.get(hit.place)) else {
            // It was forgotten long ago.
            self.undecodable += 1;
            return;
        };
        let process = &hit.process;
        let id = ProcessId { tgid: process.tgid, start_boot_ns: process.start_boot_ns };
        let parent = ProcessId::found(process.parent_tgid, process.parent_start_boot_ns);
        let attribution = self.enricher.whose(&Unseen { process, id, parent }, self.now);
        let time_unix_ns = self.clock.unix_ns(process.time_boot_ns);
        // A fork without an exec runs what its parent does.
        let image = [Some(id), parent].into_iter().flatten().find(|process| self.processes.of(*process).is_some());
        let known = image.and_then(|image| self.processes.of(image));
        let trace = known.and_then(|process| Some(process.span.as_ref()?.context));
        let process_span = self.processes.span_id(image.unwrap_or(id));
        let own = if place.probe.span && matches!(hit.kind, hit::Kind::Call { .. }) && self.traced.spans {
            let sampled = trace.filter(SpanContext::is_sampled);
            self.call_ids.as_ref().zip(sampled).map(|(ids, trace)| SpanContext {
                span_id: ids.call(process.tid, hit.place, process.time_boot_ns),
                ..trace
            })
        } else {
            None
        };
        let told = Told {
            hit: &hit,
            place: &place,
            attribution: &attribution,
            time_unix_ns,
            observed_unix_ns: self.now_unix_ns.max(time_unix_ns),
            creation_unix_ns: self.clock.creation_unix_ns(process.start_boot_ns),
            parent_creation_unix_ns: self.clock.creation_unix_ns(process.parent_start_boot_ns),
            image: known.map(|process| &process.image),
            uid: self.uids.map(|uids| uids.of_hit(&hit)),
            span: own.map(|own| own.span_id).or(process_span),
            trace: trace.map(|trace| (trace.trace_id, trace.flags)),
        };
        if self.console.is_table() {
            self.console.hit(&told);
        }
        if self.logs.is_wanted(&self.console) {
            let (encoder, resource) = (&mut self.probe_encoder, self.resources.of(&attribution.owner));
            self.logs.push(self.now, Class::Probe, resource, &mut self.console, |out| encoder.encode(&told, out));
        }
        if let Some(own) = own {
            self.spans.told += 1;
            let (encoder, resource) = (&mut self.probe_encoder, self.resources.of(&attribution.owner));
            self.spans.lane.push(self.now, Class::Call, resource, &mut self.console, |out| {
                encoder.encode_span(&told, own, process_span, out);
            });
        }
    }

    /// Begins to probe what the settings ask for; where that is not possible it is said, and everything else goes on.
    pub(in crate::pipeline) fn probe(&mut self, config: &Config, residents: Vec<Resident>) -> Option<Uprobing> {
        match Loaded::load().and_then(Loaded::prepare) {
            Ok((uprobing, mut prober)) => {
                prober.begin(&config.uprobes, residents);
                self.prober = Some(prober);
                Some(uprobing)
            }
            Err(error) => {
                tracing::error!("{error}; everything else goes on");
                let reason = error.to_string();
                self.note(semconv::EVENT_UPROBE_REFUSED, note::ERROR, &[(semconv::REASON, Value::Text(&reason))]);
                None
            }
        }
    }

    /// Begins to tell of all who are there, where some of them were missed.
    pub(in crate::pipeline) fn look_again(&mut self) {
        if self.survey.is_none() && self.prober.as_mut().is_some_and(Prober::has_missed) {
            self.begin_survey();
        }
    }

    /// As [`probe`](Self::probe), when there were no uprobes before.
    pub(in crate::pipeline) fn begin_probing(&mut self, mut prober: Prober, config: &Config) {
        prober.settings(&config.uprobes);
        self.prober = Some(prober);
        self.begin_survey();
    }

    fn begin_survey(&mut self) {
        self.survey = Some((self.enricher.begin_survey(), Vec::new()));
    }

    /// Looks at a few of those who are there, as each takes some reads of `/proc` and records go on coming. Whether there are
    /// more.
    pub(in crate::pipeline) fn survey_on(&mut self) -> bool {
        let (Some((mut survey, mut sightings)), Some(prober)) = (self.survey.take(), &self.prober) else {
            return false;
        };
        if let Some(residents) = self.enricher.survey_on(&mut survey, SURVEYED, Instant::now()) {
            sightings.extend(prober.sightings(residents));
            self.survey = Some((survey, sightings));
        } else if let Some(prober) = &mut self.prober {
            prober.residents(sightings);
        }
        self.survey.is_some()
    }

    /// What became of attaching a probe.
    pub(in crate::pipeline) fn probed(&mut self, answer: &Answer) {
        let name_of = |container: &Option<Arc<Container>>| {
            container.as_ref().map(|container| container.name.clone().unwrap_or_else(|| container.id.clone()))
        };
        match answer {
            Answer::Attached { probe, container, binary, places } => {
                let container = name_of(container).unwrap_or_default();
                tracing::info!(probe = probe.name, container, binary, places, "probing");
            }
            Answer::Refused { probe, container, reason } => {
                let name = name_of(container).unwrap_or_default();
                tracing::warn!(probe = probe.name, container = name, reason, "can't be probed");
                let id = container.as_ref().map(|container| container.id.as_str()).unwrap_or_default();
                let attributes = [
                    (semconv::UPROBE_NAME, Value::Text(&probe.name)),
                    (semconv::CONTAINER_ID, Value::Text(id)),
                    (semconv::CONTAINER_NAME, Value::Text(&name)),
                    (semconv::REASON, Value::Text(reason)),
                ];
                self.note(semconv::EVENT_UPROBE_REFUSED, note::WARN, &attributes);
            }
        }
    }

    /// A process that has exec'd: whoever probes its container is told.
    pub(super) fn sight(&mut self, event: &Event<'_>, stand: &Stand, attribution: &Attribution) {
        let Some(prober) = &mut self.prober else { return };
        if !matches!(event.kind, Kind::Exec(_)) || attribution.how.is_doubt() {
            return;
        }
        let container = match &attribution.owner {
            Owner::Container(container) => Some(Arc::clone(container)),
            Owner::Host(_) => None,
        };
        // Where its cgroup does not decide of it, others of that cgroup are not of its container.
        if container.is_none() || stand.by_cgroup {
            let cgroup = CgroupKey { v2: event.process.cgroup_id, v1: event.process.cgroup_v1_id };
            prober.seen(Sighting { container, cgroup, process: Who::Known(event.id()) });
        }
    }
}
