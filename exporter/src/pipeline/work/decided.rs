//! What the guard has decided becomes a record, once its container has a name, and an alarm where it is one.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use super::guarding::Totals;
use super::{Waits, Work};
use crate::enrich::{Attribution, Owner, Verdict};
use crate::guard::compile::Compiled;
use crate::guard::decision::{self, Decision, Outcome};
use crate::model::guard::{self, Told, by_bit};
use crate::model::log::Context;
use crate::model::note::{self, Value};
use crate::model::semconv;
use crate::queue::Class;

/// What is wrong with the guard, as a decision tells.
enum Alarm {
    /// A policy is disarmed in a container.
    Disarmed { name: String, container_id: String, container_name: String },
    /// More are disarmed than are told of.
    Full,
    /// It was not told to go on in time.
    LeaseExpired,
}

/// Policies and containers of which it is remembered that they were told of as disarmed.
const DISARMED_MAX: usize = 1024;

/// Each alarm once, until what it tells of may be over.
#[derive(Default)]
pub(in crate::pipeline) struct Alarms {
    waiting: Vec<Alarm>,
    /// Policies that are disarmed, with the container's cgroup.
    disarmed: HashSet<(u16, u64)>,
    /// The policies at work, by which these were decided.
    policies: Option<Arc<Compiled>>,
    /// Those that were not told, as there was no room for more; some twice.
    pub(in crate::pipeline) untold: u64,
    full: bool,
    /// That it has expired was told then, when it had been renewed so often.
    expired: Option<(u64, u64)>,
    /// How often the lease was renewed.
    pub(in crate::pipeline) renewals: u64,
}

impl Alarms {
    /// These policies begin, none of them disarmed.
    pub(in crate::pipeline) fn rearm(&mut self, policies: Option<Arc<Compiled>>) {
        self.disarmed.clear();
        self.full = false;
        self.policies = policies;
    }

    /// Whether it is to be told that a policy is disarmed.
    fn disarmed(&mut self, policies: &Compiled, policy: u16, container_cgroup: u64) -> bool {
        // Of those that were at work before, few can still come.
        let are_old = self.policies.as_deref().is_none_or(|at_work| !std::ptr::eq(at_work, policies));
        if are_old || self.disarmed.contains(&(policy, container_cgroup)) {
            return false;
        }
        if self.disarmed.len() >= DISARMED_MAX {
            self.untold += 1;
            if !std::mem::replace(&mut self.full, true) {
                self.waiting.push(Alarm::Full);
            }
            return false;
        }
        self.disarmed.insert((policy, container_cgroup))
    }

    /// Whether it is to be told that the lease had expired then, which is known now.
    fn has_expired(&mut self, at_boot_ns: u64, now_boot_ns: u64) -> bool {
        let is_known = self.expired.is_some_and(|(told, renewals)| at_boot_ns <= told || self.renewals == renewals);
        if !is_known {
            self.expired = Some((now_boot_ns, self.renewals));
        }
        !is_known
    }
}

impl Work {
    /// One decision of the guard as the kernel wrote it.
    pub(in crate::pipeline) fn decision(&mut self, record: &[u8], policies: &Arc<Compiled>) {
        let decision = match decision::decode(record) {
            Ok(decision) => decision,
            Err(error) => return self.unreadable("of the guard", &error),
        };
        if let Some(relief) = &mut self.relief
            && !relief.takes(&decision)
        {
            let policy = policies.policy(decision.policy).map(|policy| policy.name.as_str()).unwrap_or_default();
            self.twice += &Totals::of_one(policy, guard::outcome_name(decision.outcome));
            return;
        }
        let stand = self.enricher.stand(&guard::event(&decision), self.now);
        match self.enricher.attribute(&stand, self.now) {
            Verdict::Ready(attribution) => self.decided(&decision, policies, &attribution, self.now_unix_ns),
            Verdict::Wait { until } if self.waiting.has_room(record.len(), &stand) => {
                let (record, policies) = (record.into(), Some(Arc::clone(policies)));
                self.waiting.push(Waits { observed_unix_ns: self.now_unix_ns, stand, record, policies }, until);
            }
            Verdict::Wait { .. } => {
                let attribution = self.enricher.settle(&stand);
                self.decided(&decision, policies, &attribution, self.now_unix_ns);
            }
        }
    }

    /// As [`Work::release`] does with events.
    pub(super) fn release_decision(&mut self, waits: Waits, now: Instant, all: bool) {
        // It was one when it came.
        let (Some(policies), Ok(decision)) = (&waits.policies, decision::decode(&waits.record)) else { return };
        let attribution = match self.enricher.attribute(&waits.stand, now) {
            Verdict::Ready(attribution) => attribution,
            Verdict::Wait { until } if !all => {
                self.waiting.push(waits, until);
                return;
            }
            Verdict::Wait { .. } => self.enricher.settle(&waits.stand),
        };
        self.decided(&decision, policies, &attribution, waits.observed_unix_ns);
    }

    fn decided(
        &mut self,
        decision: &Decision<'_>,
        policies: &Compiled,
        attribution: &Attribution,
        observed_unix_ns: u64,
    ) {
        let Some(policy) = policies.policy(decision.policy) else {
            self.undecodable += 1;
            return;
        };
        self.decisions += 1;
        self.alarm(decision, policies, &policy.name, attribution);
        let process = &decision.process;
        let time_unix_ns = self.clock.unix_ns(process.time_boot_ns);
        // The would-be process has no span of its own.
        let known = decision.ancestor.and_then(|ancestor| self.processes.of(ancestor));
        let context = Context {
            time_unix_ns,
            observed_unix_ns: observed_unix_ns.max(time_unix_ns),
            creation_unix_ns: self.clock.creation_unix_ns(process.start_boot_ns),
            parent_creation_unix_ns: self.clock.creation_unix_ns(process.parent_start_boot_ns),
            attribution,
            start_type: super::start_type(&guard::event(decision), self.began_boot_ns),
            uid: self.uids.map(|uids| uids.of_decision(decision)),
            image: None,
            span: decision.ancestor.and_then(|ancestor| self.processes.span_id(ancestor)),
            trace: known.and_then(|process| {
                let span = process.span.as_ref()?;
                Some((span.context.trace_id, span.context.flags))
            }),
        };
        let rule = policies.rule(decision.policy, decision.rules).unwrap_or_default();
        let mut fired: Vec<_> =
            by_bit(policies.policies(), decision.fired.into()).map(|policy| policy.name.as_str()).collect();
        if fired.len() < 2 {
            fired.clear();
        }
        let told = Told { decision, policy, rule: &rule, fired: &fired, mode: policies.guard().mode, context };
        if self.console.is_table() {
            self.console.decision(&told);
        }
        if self.logs.is_wanted(&self.console) {
            let (encoder, resource) = (&mut self.guard_encoder, self.resources.of(&attribution.owner));
            self.logs.push(self.now, Class::Enforcement, resource, &mut self.console, |out| encoder.encode(&told, out));
        }
    }

    fn alarm(&mut self, decision: &Decision<'_>, policies: &Compiled, name: &str, attribution: &Attribution) {
        match decision.outcome {
            Outcome::Disarmed => {
                let container_cgroup = decision.container_cgroup_id.unwrap_or(0);
                if !self.alarms.disarmed(policies, decision.policy, container_cgroup) {
                    return;
                }
                let (container_id, container_name) = match &attribution.owner {
                    Owner::Container(container) => (container.id.clone(), container.name.clone().unwrap_or_default()),
                    Owner::Host(_) => (String::new(), String::new()),
                };
                self.alarms.waiting.push(Alarm::Disarmed { name: name.to_owned(), container_id, container_name });
            }
            Outcome::LeaseExpired => {
                if self.alarms.has_expired(decision.process.time_boot_ns, self.now_boot_ns) {
                    self.alarms.waiting.push(Alarm::LeaseExpired);
                }
            }
            Outcome::Observed | Outcome::Killed | Outcome::Denied | Outcome::Failed { .. } => {}
        }
    }

    /// What is in force of the guard.
    pub(in crate::pipeline) fn note_guard(&mut self, severity: u8, status: &str, more: &[(&'static str, Value<'_>)]) {
        let mut attributes = vec![(semconv::GUARD_STATUS, Value::Text(status))];
        attributes.extend_from_slice(more);
        self.note(semconv::EVENT_GUARD_STATUS, severity, &attributes);
    }

    /// The guard at work, or that there is none any more.
    pub(in crate::pipeline) fn note_guarding(&mut self, at_work: Option<(&'static str, usize, &'static str)>) {
        let Some((status, policies, deny)) = at_work else {
            tracing::info!("the guard has ended: there are no policies any more");
            return self.note_guard(note::INFO, "ended", &[]);
        };
        tracing::info!(policies, deny, "the guard is {status}");
        // Nobody should take a weaker action for the one that was asked for.
        let severity = if deny == "kill" { note::WARN } else { note::INFO };
        let more = [(semconv::GUARD_POLICIES, Value::Count(policies as u64)), (semconv::GUARD_DENY, Value::Text(deny))];
        self.note_guard(severity, status, &more);
    }

    /// Says aloud what is new of what the guard could not do.
    pub(in crate::pipeline) fn tell_alarms(&mut self) {
        for alarm in std::mem::take(&mut self.alarms.waiting) {
            self.tell_alarm(&alarm);
        }
    }

    /// That there is no room for a container among those that policies tell apart.
    pub(in crate::pipeline) fn note_overflow(&mut self) {
        tracing::error!(
            "more containers run than the guard can tell apart: selectors do not hold for the others; they are counted \
             (namespan.guard.untold)"
        );
        self.note_guard(note::ERROR, "containers_full", &[]);
    }

    /// That some runtimes did not answer in time: their containers are not known yet.
    pub(in crate::pipeline) fn note_silent(&mut self) {
        let silent = self.silent().collect::<Vec<_>>().join(", ");
        tracing::warn!(
            "the guard begins before these have said which containers run, in which selectors do not hold yet: {silent}"
        );
        self.note_guard(note::WARN, "runtimes_silent", &[(semconv::REASON, Value::Text(&silent))]);
    }

    fn tell_alarm(&mut self, alarm: &Alarm) {
        match alarm {
            Alarm::Full => {
                tracing::error!(
                    "policies are disarmed in more containers than are told of; they are counted \
                     (namespan.guard.untold)"
                );
                self.note_guard(note::ERROR, "disarmed_full", &[]);
            }
            Alarm::Disarmed { name, container_id, container_name } => {
                let (policy, container) = (name, container_name);
                tracing::error!(
                    policy,
                    container,
                    id = container_id,
                    "the policy's budget of kills is used up: it is disarmed in this container until policies are \
                     loaded anew"
                );
                let more = [
                    (semconv::SECURITY_RULE_NAME, Value::Text(name)),
                    (semconv::CONTAINER_ID, Value::Text(container_id)),
                    (semconv::CONTAINER_NAME, Value::Text(container_name)),
                ];
                self.note_guard(note::ERROR, "disarmed", &more);
            }
            Alarm::LeaseExpired => {
                tracing::error!("the guard was not told to go on within guard.lease: programs were let through");
                self.note_guard(note::ERROR, "lease_expired", &[]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::spec;

    fn policies() -> Arc<Compiled> {
        Arc::new(Compiled::new(&spec::Guard::default(), false).unwrap())
    }

    #[test]
    fn a_policy_is_told_to_be_disarmed_in_a_container_once_until_it_is_armed_again() {
        let (mut alarms, of, next) = (Alarms::default(), policies(), policies());
        alarms.rearm(Some(Arc::clone(&of)));
        assert!(alarms.disarmed(&of, 0, 1) && !alarms.disarmed(&of, 0, 1));
        assert!(alarms.disarmed(&of, 1, 1) && alarms.disarmed(&of, 0, 2));
        alarms.rearm(Some(Arc::clone(&next)));
        assert!(!alarms.disarmed(&of, 0, 1), "those policies are gone");
        assert!(alarms.disarmed(&next, 0, 1) && alarms.waiting.is_empty());
    }

    #[test]
    fn more_than_there_is_room_for_are_told_once_and_counted() {
        let (mut alarms, of) = (Alarms::default(), policies());
        alarms.rearm(Some(Arc::clone(&of)));
        let told = (0..DISARMED_MAX as u64 + 3).filter(|cgroup| alarms.disarmed(&of, 0, *cgroup)).count();
        assert_eq!((told, alarms.untold), (DISARMED_MAX, 3));
        assert!(matches!(alarms.waiting[..], [Alarm::Full]));
    }

    #[test]
    fn each_time_that_the_lease_expires_is_told_once() {
        let mut alarms = Alarms { renewals: 1, ..Alarms::default() };
        // Read when it has been renewed again.
        assert!(alarms.has_expired(100, 200));
        assert!(!alarms.has_expired(150, 210));
        // It can't be renewed: the next are of the same time without a lease.
        assert!(!alarms.has_expired(300, 310));
        alarms.renewals = 2;
        assert!(!alarms.has_expired(190, 400), "it came late");
        assert!(alarms.has_expired(500, 510) && !alarms.has_expired(505, 520));
    }
}
