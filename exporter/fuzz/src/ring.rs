//! A record of the ring: an event whose parts are the record's own bytes, and whose log record is OTLP.

use namespan::config::{Arguments, AttributeLimits};
use namespan::decode;
use namespan::enrich::{Attribution, How, Owner, cgroup};
use namespan::event::{Event, Kind};
use namespan::model::log::{Context, Encoder};
use namespan::model::uid::Uids;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use prost::Message as _;

pub fn check(data: &[u8]) {
    let Ok(event) = decode::event(data) else { return };
    assert!(kept(&event) <= data.len());
    let _container = cgroup::resolve(event.cgroup, event.cgroup_v1);
    let context = Context {
        time_unix_ns: 1,
        observed_unix_ns: 2,
        creation_unix_ns: 0,
        parent_creation_unix_ns: u64::MAX,
        attribution: &Attribution::plain(Owner::Host(None), How::None),
        start_type: "fork",
        uid: Some(Uids::of_boot([1; 16]).of_event(&event)),
        image: None,
        span: None,
        trace: None,
    };
    for arguments in [Arguments::Off, Arguments::Redacted, Arguments::Full] {
        let mut out = Vec::new();
        Encoder::new(arguments, AttributeLimits::default()).encode(&event, &context, &mut out);
        let record = LogRecord::decode(out.as_slice()).unwrap();
        assert_eq!(record.encode_to_vec(), out, "not as prost writes it");
        assert!(record.event_name.starts_with("namespan.process."));
    }
}

/// Bytes of all that an event borrows.
fn kept(event: &Event<'_>) -> usize {
    let Event { nodename, tty, cgroup, cgroup_v1, kind, .. } = event;
    let parts = match kind {
        Kind::Exec(exec) => {
            let (args, env) = (exec.args, exec.env);
            let arguments: usize = args.iter().map(<[u8]>::len).sum();
            assert!(arguments <= args.head.len() + args.tail.len());
            let sections = [exec.path, exec.script, args.head, args.tail, env.traceparent, env.tracestate];
            sections.map(<[u8]>::len).iter().sum()
        }
        Kind::Exit(exit) => {
            assert!(exit.status.code() < 256);
            0
        }
        Kind::ExecFailed(failed) => failed.path.len(),
    };
    nodename.len() + tty.len() + cgroup.0.len() + cgroup_v1.0.len() + parts
}
