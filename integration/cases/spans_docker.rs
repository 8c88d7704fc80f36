//! Spans of containers of a real Docker daemon: traces that end at its walls, or come through on purpose.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use namespan_integration::attribute::Value;
use namespan_integration::docker::{Container, Docker};
use namespan_integration::namespan::traced;
use namespan_integration::needs::{Need, met};
use namespan_integration::span::{Span, names, only_child, started_by};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
const BUSYBOX: &str = "/bin/busybox";

fn ready() -> bool {
    met(&[Need::Namespan, Need::Docker])
}

/// Spans of a container's own programs, the first first.
fn of<'a>(container: &Container, spans: &'a [Span]) -> Vec<&'a Span> {
    let ours = |span: &&Span| *span.get("process.executable.path") == BUSYBOX.into() && is_in(container, span);
    let mut found: Vec<_> = spans.iter().filter(ours).collect();
    found.sort_by_key(|span| span.start_ns);
    found
}

fn is_in(container: &Container, span: &Span) -> bool {
    *span.of_resource("container.id") == container.id.as_str().into()
}

/// A container that has run this under these options, and all spans.
fn run(docker: &Docker, options: &[&str], script: &str) -> (Container, Vec<Span>) {
    let mut container = None;
    let (_, spans) = traced(&[], || container = Some(docker.run("spans", options, &["sh", "-c", script])));
    (container.unwrap(), spans)
}

#[test]
fn a_container_begins_a_trace_and_so_does_what_its_init_starts() {
    if !ready() {
        return;
    }
    let docker = Docker::new();
    // By their paths, or busybox would run them within the shell.
    let (container, spans) = run(&docker, &[], "/bin/true; /bin/sh -c '/bin/false; :'; :");
    let ours = of(&container, &spans);
    assert_eq!(names(&ours), ["busybox sh", "busybox true", "busybox sh", "busybox false"]);
    for span in &ours {
        assert_eq!(*span.of_resource("container.name"), container.name.as_str().into());
        assert_eq!(*span.of_resource("container.image.name"), docker.image.as_str().into());
        assert_eq!(*span.get("namespan.container.attribution"), "runtime_event".into());
    }
    let init = ours[0];
    init.assert_root("container");
    assert_eq!(*init.get("process.vpid"), 1.into());
    init.assert_exited(0, None);
    let children = started_by(&spans, init.pid());
    assert_eq!(names(&children), ["busybox true", "busybox sh"]);
    for child in &children {
        child.assert_spawned_by(init, "namespace_init");
    }
    let inner = only_child(&spans, children[1].pid());
    inner.assert_child_of(children[1]);
    inner.assert_exited(1, Some("1"));
}

#[test]
fn no_parent_is_in_another_container_than_its_child() {
    if !ready() {
        return;
    }
    let docker = Docker::new();
    let mut containers = Vec::new();
    let (_, spans) = traced(&[], || {
        let script = "/bin/sh -c '/bin/true; :'; :";
        // The second shares the host's PID namespace: there its first process is no init.
        for (name, options) in [("one", &[][..]), ("other", &["--pid=host"])] {
            containers.push(docker.run(name, options, &["sh", "-c", script]));
        }
    });
    let container_of = |span: &Span| span.of_resource("container.id").clone();
    for span in spans.iter().filter(|span| !span.parent_span_id.is_empty() && !span.is_remote()) {
        let parent = spans.iter().find(|parent| parent.span_id == span.parent_span_id).unwrap();
        assert_eq!(container_of(span), container_of(parent), "{span:#?}\nbelow {parent:#?}");
    }
    for container in &containers {
        assert_eq!(of(container, &spans).len(), 3);
        of(container, &spans)[0].assert_root("container");
    }
    let [first, inner, last] = of(&containers[1], &spans)[..] else { panic!("three") };
    inner.assert_child_of(first);
    last.assert_child_of(inner);
}

#[test]
fn what_is_executed_in_a_running_container_begins_a_trace() {
    if !ready() {
        return;
    }
    let docker = Docker::new();
    let container = docker.run("running", &["--detach"], &["sleep", "600"]);
    let (_, spans) = traced(&[], || {
        let script = ["exec", &container.name, "sh", "-c", "/bin/true; :"];
        assert!(Command::new("docker").args(script).status().is_ok_and(|status| status.success()));
    });
    let [shell, inner] = of(&container, &spans)[..] else { panic!("two") };
    // Its parent at the exec is runc, or if that has ended already the container's shim, which ran before.
    let boundary = shell.get("namespan.trace.boundary").text();
    assert!(["container", "unknown_parent"].contains(&boundary), "{shell:#?}");
    shell.assert_root(boundary);
    inner.assert_child_of(shell);
}

#[test]
fn a_container_that_is_given_a_context_joins_its_trace() {
    if !ready() {
        return;
    }
    let docker = Docker::new();
    let context = format!("TRACEPARENT=00-{TRACE}-{SPAN}-01");
    let (container, spans) = run(&docker, &["--env", &context], "/bin/true; /bin/sh -c '/bin/false; :'; :");
    let ours = of(&container, &spans);
    assert_eq!(names(&ours), ["busybox sh", "busybox true", "busybox sh", "busybox false"]);
    ours[0].assert_remote(TRACE, SPAN, 1);
    assert!(ours.iter().all(|span| span.trace_id == TRACE), "{ours:#?}");
    ours[3].assert_child_of(ours[2]);
}

#[test]
fn a_process_that_is_killed_for_its_memory_says_so() {
    if !ready() {
        return;
    }
    let docker = Docker::new();
    let limits = ["--memory", "16m", "--memory-swap", "16m"];
    let (container, spans) = run(&docker, &limits, "/bin/tail /dev/zero; echo $?");
    assert_eq!(container.stdout, "137\n");
    let ours = of(&container, &spans);
    assert_eq!(names(&ours), ["busybox sh", "busybox tail"]);
    ours[0].assert_exited(0, None);
    ours[1].assert_ended(137, Some("OOMKilled"), "oom_killed", &["", "killed by SIGKILL"]);
    assert_eq!(*ours[1].get("namespan.process.exit.signal.name"), "SIGKILL".into());
}

#[test]
fn the_name_that_a_container_gives_its_service_is_on_its_spans() {
    if !ready() {
        return;
    }
    let docker = Docker::new();
    let (container, spans) = run(&docker, &["--env", "OTEL_SERVICE_NAME=shop"], "/bin/true; :");
    let ours = of(&container, &spans);
    assert_eq!(ours.len(), 2);
    for span in ours {
        assert_eq!(*span.of_resource("service.name"), Value::from("shop"), "{span:#?}");
    }
}
