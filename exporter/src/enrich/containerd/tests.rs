use super::*;
use crate::enrich::grpc::tests::{Answer, Followed, Server};
use crate::enrich::runtime::{Link, Update};

fn follow(server: &Server) -> Followed {
    Followed::start(Containerd::new(server.socket(), Labels::default(), NonZeroUsize::new(4).unwrap()))
}

/// With a namespace named `ns`, and nothing else.
fn empty(path: &str) -> Answer {
    match path.rsplit('/').next().unwrap() {
        "Subscribe" => Answer::Stream(Vec::new()),
        "List" if path.contains("Namespaces") => Answer::Message(b"\x0a\x04\x0a\x02ns".to_vec()),
        "Get" => Answer::Status(Code::NotFound),
        _ => Answer::Message(Vec::new()),
    }
}

#[tokio::test]
async fn a_daemon_that_hangs_or_babbles_is_a_lost_one() {
    let hangs = Server::start(|path, _| if path.contains("Namespaces") { Answer::Silence } else { empty(path) });
    let garbage =
        Server::start(
            |path, _| {
                if path.contains("Namespaces") { Answer::Message(b"\xff\xff".to_vec()) } else { empty(path) }
            },
        );
    let deaf =
        Server::start(
            |path, _| {
                if path.contains("Subscribe") { Answer::Status(Code::Unimplemented) } else { empty(path) }
            },
        );
    let http1 = Server::babbling(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    let silent = Server::babbling(b"");
    let followed = [&hangs, &garbage, &deaf, &http1, &silent].map(follow);
    for mut followed in followed {
        assert!(!followed.lost().await.is_empty());
    }
}

#[tokio::test]
async fn an_id_is_unknown_only_where_all_namespaces_say_so() {
    let id = |digit: &str| digit.repeat(64);
    let broken = id("b");
    let server = Server::start(move |path, question| {
        let asked = path.contains("Containers/Get") && question.ends_with(broken.as_bytes());
        if asked { Answer::Status(Code::Internal) } else { empty(path) }
    });
    let mut followed = follow(&server);
    assert!(matches!(followed.next().await, Update::State(Link::Connected)));
    for asked in [id("b"), "web".to_owned(), "containerd/moby/web".to_owned(), "containerd/ns/a/b".to_owned(), id("a")]
    {
        followed.lookups.send(asked).await.unwrap();
    }
    for expected in ["web", "containerd/moby/web", "containerd/ns/a/b", &id("a")] {
        let Update::Unknown { key: unknown } = followed.next().await else { panic!() };
        assert_eq!(unknown, expected);
    }
}
