//! What the guard has decided about an exec and what is known about it in, the bytes of one OTLP `LogRecord` out.

use namespan_ebpf::guard_wire::{Mask, result};

use crate::config::{Arguments, AttributeLimits};
use crate::event::{EnvContext, Event, Exec, ExecFailed, Kind};
use crate::guard::decision::{Action, Decision, Hook, Origin, Outcome};
use crate::guard::spec::{Mode, Policy};
use crate::model::attributes::Attributes;
use crate::model::log::{end, field};
use crate::model::process::{
    Context, comm, credentials, exec_attributes, first_filled, identity, lineage, provenance, surroundings,
};
use crate::model::text::Line;
use crate::model::{args, names, proto, semconv};
use crate::redact::Redactor;

/// `EPERM` of include/uapi/asm-generic/errno-base.h: what a refused exec ends with.
const EPERM: u32 = 1;
/// The least severity of what should have been stopped, and could not be: OTLP's ERROR3.
const FAILED: u8 = 19;

/// A decision, and what is known about it, but not by the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    pub decision: &'a Decision<'a>,
    pub policy: &'a Policy,
    /// The policy's rule that holds.
    pub rule: &'a str,
    /// Names of all policies that fired, if there were several.
    pub fired: &'a [&'a str],
    pub mode: Mode,
    /// Its span and trace are those of the nearest process above that is known.
    pub context: Context<'a>,
}

impl Told<'_> {
    fn severity(&self) -> u8 {
        let severity = self.policy.severity;
        if matches!(self.decision.outcome, Outcome::Failed { .. }) { severity.max(FAILED) } else { severity }
    }
}

/// The exec that it is about. At [`Hook::Check`] its process still runs what it ran.
#[must_use]
pub fn exec<'a>(decision: &Decision<'a>) -> Exec<'a> {
    let Decision { path, script, args, ancestor, .. } = *decision;
    Exec { path, script, args, ancestor, env: EnvContext::default() }
}

/// As an event, for whoever asks whose it is: what was refused is as an exec that failed.
#[must_use]
pub fn event<'a>(decision: &Decision<'a>) -> Event<'a> {
    let Decision { process, nodename, tty, cgroup, cgroup_v1, .. } = *decision;
    let kind = match decision.hook {
        Hook::Exec => Kind::Exec(exec(decision)),
        Hook::Check => {
            let errno = EPERM;
            Kind::ExecFailed(ExecFailed { path: decision.path, errno, image: decision.ancestor })
        }
    };
    Event { process, nodename, tty, cgroup, cgroup_v1, kind }
}

/// As records have it.
#[must_use]
pub fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Observed => "observed",
        Outcome::Killed => "killed",
        Outcome::Denied => "denied",
        Outcome::Failed { .. } => "failed",
        Outcome::Disarmed => "disarmed",
        Outcome::LeaseExpired => "lease_expired",
    }
}

/// Each result as the kernel counts it, and as records have it.
pub const RESULTS: [(u8, &str); result::COUNT] = [
    (result::OBSERVED, "observed"),
    (result::KILLED, "killed"),
    (result::DENIED, "denied"),
    (result::FAILED, "failed"),
    (result::DISARMED, "disarmed"),
    (result::LEASE_EXPIRED, "lease_expired"),
];

fn hook_name(hook: Hook) -> &'static str {
    match hook {
        Hook::Exec => "sched_process_exec",
        Hook::Check => "bprm_check_security",
    }
}

fn origin_name(origin: Origin) -> &'static str {
    match origin {
        Origin::Image => "image",
        Origin::Upper => "changed",
        Origin::Mount => "mounted",
        Origin::Memfd => "memfd",
        Origin::Deleted => "deleted",
        Origin::Unknown => "unknown",
    }
}

/// What a line says that was done.
#[must_use]
pub fn verb(decision: &Decision<'_>) -> &'static str {
    match (decision.outcome, decision.intended) {
        (Outcome::Killed, _) => "killed",
        (Outcome::Denied, _) => "denied",
        (Outcome::Failed { .. }, _) => "could not stop",
        (Outcome::Disarmed, _) => "is disarmed and let through",
        (Outcome::LeaseExpired, _) => "has no lease and let through",
        (Outcome::Observed, Action::Observe) => "observed",
        (Outcome::Observed, Action::Kill) => "would kill",
        (Outcome::Observed, Action::Deny) => "would deny",
    }
}

/// Policies by their bits, in their order.
pub fn by_bit(policies: &[Policy], bits: Mask) -> impl Iterator<Item = &Policy> {
    policies.iter().enumerate().filter(move |(index, _)| bits >> index & 1 == 1).map(|(_, policy)| policy)
}

/// Writes records; keeps its buffers.
#[derive(Debug)]
pub struct Encoder {
    arguments: Arguments,
    limits: AttributeLimits,
    redactor: Redactor,
    body: Line,
    args: args::Encoded,
    scratch: Vec<u8>,
}

impl Encoder {
    #[must_use]
    pub fn new(arguments: Arguments, limits: AttributeLimits) -> Self {
        Self {
            arguments,
            limits,
            redactor: Redactor::new(),
            body: Line::default(),
            args: args::Encoded::default(),
            scratch: Vec::new(),
        }
    }

    /// From now on arguments leave the host like this.
    pub fn arguments(&mut self, arguments: Arguments) {
        self.arguments = arguments;
    }

    /// Appends the fields of one `LogRecord`, without tag and length of the record itself.
    pub fn encode(&mut self, told: &Told<'_>, out: &mut Vec<u8>) {
        let Told { decision, context, .. } = told;
        let exec = exec(decision);
        let event = &Event { kind: Kind::Exec(exec.clone()), ..event(decision) };
        self.prepare(told, &exec);
        proto::fixed64_field(out, field::TIME, context.time_unix_ns);
        proto::varint_field(out, field::SEVERITY, told.severity().into());
        proto::any_field(out, field::BODY, proto::Value::Text(self.body.as_bytes()));
        let mut attributes = Attributes::new(out, field::ATTRIBUTES, self.limits, &mut self.scratch);
        identity(&mut attributes, event, context);
        if let Some(uid) = &context.uid {
            attributes.id(semconv::LOG_RECORD_UID, uid.as_bytes());
        }
        enforcement(&mut attributes, told);
        exec_attributes(&mut attributes, event, &exec, &self.args, self.arguments);
        attributes.text(semconv::PARENT_EXECUTABLE_PATH, decision.parent_path);
        provenance(&mut attributes, event, context);
        credentials(&mut attributes, &event.process);
        surroundings(&mut attributes, event);
        lineage(&mut attributes, event, context);
        let dropped = attributes.dropped();
        let of = (context.trace, context.span);
        end(out, dropped, of, context.observed_unix_ns, semconv::EVENT_ENFORCEMENT);
    }

    /// Fills `body` and `args`: `no-shells killed /bin/sh sh -c id`.
    fn prepare(&mut self, told: &Told<'_>, exec: &Exec<'_>) {
        let Self { body, args, .. } = self;
        body.clear();
        args.clear();
        for part in [told.policy.name.as_bytes(), b" ", verb(told.decision).as_bytes(), b" "] {
            body.push(part);
        }
        // At a check the process still runs what it ran.
        let named = match told.decision.hook {
            Hook::Exec => comm(&told.decision.process),
            Hook::Check => b"",
        };
        body.push(first_filled([exec.path, named, b"?"]));
        let limits = args::Limits { value_length: self.limits.value_length, ..args::Limits::NONE };
        args.fill(exec.args, self.arguments, limits, &mut self.redactor, body);
    }
}

fn enforcement(attributes: &mut Attributes<'_>, told: &Told<'_>) {
    let Told { decision, policy, .. } = told;
    attributes.text(semconv::SECURITY_RULE_NAME, policy.name.as_bytes());
    attributes.text(semconv::ENFORCEMENT_ACTION, decision.intended.name().as_bytes());
    attributes.text(semconv::ENFORCEMENT_RESULT, outcome_name(decision.outcome).as_bytes());
    if let Outcome::Failed { errno } = decision.outcome {
        attributes.named(semconv::ERROR_TYPE, names::errno(errno), "", errno);
    }
    attributes.text(semconv::ENFORCEMENT_RULE, told.rule.as_bytes());
    attributes.text(semconv::ENFORCEMENT_MODE, told.mode.name().as_bytes());
    attributes.text(semconv::ENFORCEMENT_HOOK, hook_name(decision.hook).as_bytes());
    attributes.text(semconv::SECURITY_RULE_DESCRIPTION, policy.description.as_bytes());
    let mut fired = Vec::new();
    for name in told.fired {
        proto::element(&mut fired, proto::Value::Text(name.as_bytes()));
    }
    if !fired.is_empty() {
        attributes.array(semconv::ENFORCEMENT_FIRED, &fired);
    }
    attributes.text(semconv::EXECUTABLE_ORIGIN, origin_name(decision.origin).as_bytes());
}
