use prost::Message;

use super::api::{Container, ContainerMetadata, ContainerStatus};
use super::*;
use crate::enrich::grpc::tests::{Answer, Followed, Server};
use crate::enrich::runtime::{Link, Update};

fn follow(server: &Server) -> Followed {
    Followed::start(Cri::new("cri-o", server.socket(), Labels::default(), NonZeroUsize::new(4).unwrap()))
}

fn id(digit: &str) -> String {
    digit.repeat(64)
}

/// A CRI-O with one container, `a`, that runs.
fn crio(path: &str, question: &[u8]) -> Answer {
    match path.rsplit('/').next().unwrap() {
        "Version" => Answer::Message(b"\x12\x05cri-o".to_vec()),
        "ListContainers" => Answer::Message([b"\x0a\x44\x0a\x40", id("a").as_bytes(), b"\x30\x01"].concat()),
        "ListPodSandbox" => Answer::Message(Vec::new()),
        "GetContainerEvents" => Answer::Status(Code::Ok),
        "ContainerStatus" => {
            let asked = std::str::from_utf8(&question[2..66]).unwrap().to_owned();
            if asked == id("c") {
                return Answer::Status(Code::NotFound);
            }
            let metadata = Some(ContainerMetadata { name: "web".to_owned() });
            let status = ContainerStatus { id: asked, metadata, state: 1, ..ContainerStatus::default() };
            Answer::Message(Container { status: Some(status), ..Container::default() }.encode_to_vec())
        }
        _ => Answer::Status(Code::NotFound),
    }
}

async fn known(followed: &mut Followed, wanted: &str, source: How) {
    let Update::Known { container, how, .. } = followed.next().await else { panic!() };
    assert_eq!((container.id.as_str(), container.name.as_deref(), how), (wanted, Some("web"), source));
}

#[tokio::test]
async fn a_runtime_without_events_answers_for_its_ids() {
    for code in [Code::Ok, Code::Unimplemented] {
        let server = Server::start(move |path, question| {
            if path.ends_with("GetContainerEvents") { Answer::Status(code) } else { crio(path, question) }
        });
        let mut followed = follow(&server);
        known(&mut followed, &id("a"), How::RuntimeApi).await;
        assert!(matches!(followed.next().await, Update::State(Link::Connected)));
        followed.lookups.send(id("b")).await.unwrap();
        known(&mut followed, &id("b"), How::RuntimeApi).await;
        followed.lookups.send(id("c")).await.unwrap();
        assert!(matches!(followed.next().await, Update::Unknown { key: unknown } if unknown == id("c")));
    }
}

#[tokio::test]
async fn events_tell_of_containers_that_come_and_go() {
    let event = |kind: u8| [b"\x0a\x40", id("b").as_bytes(), &[0x10, kind]].concat();
    let events = [event(0), event(2), event(3)];
    let server = Server::start(move |path, question| {
        if path.ends_with("GetContainerEvents") { Answer::Stream(events.to_vec()) } else { crio(path, question) }
    });
    let mut followed = follow(&server);
    let (mut came, mut went) = (false, false);
    while !(came && went) {
        match followed.next().await {
            Update::Known { container, how, .. } if container.id == id("b") => came = how == How::RuntimeEvent,
            Update::Gone { key } => went = key == id("b"),
            Update::Known { .. } | Update::Unknown { .. } | Update::State(_) => {}
        }
    }
}

#[tokio::test]
async fn a_daemon_that_hangs_or_babbles_is_a_lost_one() {
    let but = |method: &'static str, answer: fn() -> Answer| {
        Server::start(move |path, question| if path.ends_with(method) { answer() } else { crio(path, question) })
    };
    let hangs = but("ListContainers", || Answer::Silence);
    let garbage = but("ListPodSandbox", || Answer::Message(b"\xff\xff".to_vec()));
    let old = but("Version", || Answer::Status(Code::Unimplemented));
    let silent = Server::babbling(b"");
    let followed = [&hangs, &garbage, &old, &silent].map(follow);
    for mut followed in followed {
        assert!(!followed.lost().await.is_empty());
    }
}
