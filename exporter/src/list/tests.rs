//! Containers that runtimes tell of and those that only processes tell of, printed.

use async_trait::async_trait;
use serde_json::json;

use super::*;
use crate::enrich::container::{Image, Pod};
use crate::enrich::procfs::{self, Cgroups};
use crate::enrich::runtime::{Line, Lost, Runtime, Update};

/// Tells of some containers, and knows those that are asked for or does not.
struct Teller {
    tells: Vec<Container>,
    place: Place,
}

#[async_trait]
impl Runtime for Teller {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn place(&self) -> String {
        "/d.sock".to_owned()
    }

    fn answers_for(&self) -> &'static [&'static str] {
        &["docker"]
    }

    async fn session(&mut self, line: &mut Line) -> Lost {
        let known = |container, how, place| Update::Known { container: Arc::new(container), how, place };
        for container in self.tells.drain(..) {
            if line.tell(known(container, How::RuntimeApi, self.place.clone())).await.is_err() {
                return Lost::Listener;
            }
        }
        if line.connected().await.is_err() {
            return Lost::Listener;
        }
        while let Some(id) = line.lookups.recv().await {
            let update = if id.starts_with('b') {
                known(Container::of_id(id, "docker"), How::RuntimeApi, Place::default())
            } else {
                Update::Unknown { key: id }
            };
            if line.tell(update).await.is_err() {
                break;
            }
        }
        Lost::Listener
    }
}

struct Absent;

#[async_trait]
impl Runtime for Absent {
    fn name(&self) -> &'static str {
        "podman"
    }

    fn place(&self) -> String {
        "/p.sock".to_owned()
    }

    fn answers_for(&self) -> &'static [&'static str] {
        &["podman"]
    }

    async fn session(&mut self, _: &mut Line) -> Lost {
        Lost::Absent("no such file".to_owned())
    }
}

fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn at(pid: u32, path: &str) -> Process {
    Process { pid, cgroups: Cgroups { v2: procfs::walked(path.as_bytes()), v1: Vec::new() } }
}

fn in_docker(pid: u32, digit: char) -> Process {
    at(pid, &format!("/docker/{}", id(digit)))
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

async fn told(place: Place, processes: &[Process]) -> Told {
    let image = Image { name: "nginx".to_owned(), tags: vec!["1".to_owned()], ..Image::default() };
    let web = Container {
        name: Some("web\u{1b}[2J".to_owned()),
        image: Some(image),
        pod: Pod { name: Some("web-0".to_owned()), namespace: Some("shop".to_owned()), ..Pod::default() },
        ..Container::of_id(id('a'), "docker")
    };
    let mut told = Told::start(vec![Box::new(Teller { tells: vec![web], place }), Box::new(Absent)]);
    told.connected(soon()).await;
    let found = processes.iter().filter_map(|process| Some((process.key()?, "docker")));
    told.look_up(&found.collect(), soon()).await;
    told
}

#[tokio::test]
async fn a_container_is_listed_whoever_tells_of_it() {
    // Pids that there are not.
    let processes = [9_000_001, 9_000_002, 9_000_003, 9_000_004].into_iter().zip(['a', 'a', 'b', 'c']);
    let processes: Vec<_> = processes.map(|(pid, digit)| in_docker(pid, digit)).collect();
    let told = told(Place::default(), &processes).await;
    let listed = listed(&told, &processes);
    let found: Vec<_> =
        listed.iter().map(|listed| (listed.container.id.clone(), listed.pids.len(), listed.how)).collect();
    assert_eq!(found, [(id('a'), 2, How::RuntimeApi), (id('b'), 1, How::RuntimeApi), (id('c'), 1, How::CgroupPath)]);

    let mut out = Vec::new();
    print::table(&listed, &mut out).unwrap();
    let wanted = "\
CONTAINER    NAME         IMAGE   RUNTIME CGROUP PIDNS MNTNS NETNS PROCESSES FOUND BY
aaaaaaaaaaaa web\\u{1b}[2J nginx:1 docker       -     -     -     -         2 runtime_api
bbbbbbbbbbbb -            -       docker       -     -     -     -         1 runtime_api
cccccccccccc -            -       docker       -     -     -     -         1 cgroup_path
";
    assert_eq!(String::from_utf8(out).unwrap(), wanted);

    let mut out = Vec::new();
    print::json(&listed[..1], &mut out).unwrap();
    let wanted = json!({"containers": [{
        "id": id('a'), "name": "web\u{1b}[2J", "image": "nginx:1", "runtime": "docker", "pod": "web-0",
        "namespace": "shop", "cgroup_id": null, "namespaces": {"pid": null, "mnt": null, "net": null},
        "processes": 2, "found_by": "runtime_api",
    }]});
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&out).unwrap(), wanted);
}

#[tokio::test]
async fn a_process_is_where_its_runtime_says_if_no_path_tells() {
    let place = Place { cgroup: Some("/mine".to_owned()), pid: Some(9_000_002) };
    let processes = [(1, "/mine/init"), (2, "/elsewhere"), (3, "/mines")];
    let processes = processes.map(|(pid, path)| at(9_000_000 + pid, path));
    let told = told(place, &processes).await;
    assert_eq!(listed(&told, &processes)[0].pids.len(), 2);
}

#[tokio::test]
async fn a_runtime_that_is_not_there_is_told_of_if_it_was_named() {
    let told = told(Place::default(), &[]).await;
    let mut runtimes = crate::config::Runtimes::default();
    assert_eq!(told.silent(&runtimes), Vec::<String>::new());
    runtimes.podman = crate::config::Reach::At("/p.sock".into());
    assert_eq!(told.silent(&runtimes), ["podman does not tell of its containers at /p.sock: no such file"]);
}
