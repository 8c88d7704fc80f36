//! Collectors that only a proxy can find: by a name that nobody else resolves.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::tls::{Authority, NAMES};
use super::*;

/// Leads to one collector, whatever the name.
#[derive(Clone)]
struct Proxy {
    address: std::net::SocketAddr,
    /// The request line and headers of each connection.
    heads: Arc<Mutex<Vec<String>>>,
    refusals: Arc<AtomicUsize>,
}

impl Proxy {
    async fn start(collector: std::net::SocketAddr, tls: Option<TlsAcceptor>, refusals: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = Self { address, heads: Arc::default(), refusals: Arc::new(AtomicUsize::new(refusals)) };
        let serving = proxy.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (proxy, tls) = (serving.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => proxy.serve(stream, collector).await,
                        Some(tls) => proxy.serve(tls.accept(stream).await?, collector).await,
                    }
                });
            }
        });
        proxy
    }

    async fn serve(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        collector: std::net::SocketAddr,
    ) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let tunnels = head.starts_with("CONNECT ");
        self.heads.lock().unwrap().push(head.clone());
        if self.refusals.try_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
            let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n";
            return stream.write_all(refusal.as_bytes()).await;
        }
        let mut onwards = TcpStream::connect(collector).await?;
        if tunnels {
            stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
        } else {
            onwards.write_all(head.as_bytes()).await?;
        }
        tokio::io::copy_bidirectional(&mut stream, &mut onwards).await?;
        Ok(())
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

fn by(proxy: String) -> Proxies {
    Proxies::of(Matcher::builder().all(proxy).build())
}

#[tokio::test]
async fn a_proxy_leads_to_the_collector_with_and_without_credentials_and_tls() {
    let authority = Authority::new();
    for protocol in PROTOCOLS {
        for (scheme, credentials, proxy_scheme) in [
            ("http", "", "http"),
            ("http", "user:se%2Fcret@", "http"),
            ("https", "", "http"),
            ("https", "user:se%2Fcret@", "http"),
            ("https", "user:se%2Fcret@", "https"),
            ("http", "", "https"),
        ] {
            let case = format!("{protocol:?} {scheme} {credentials} {proxy_scheme}");
            let collector = match scheme {
                "https" => Collector::start_tls(authority.server(&NAMES, &["h2", "http/1.1"], None), []).await,
                _ => Collector::start([]).await,
            };
            let tls = (proxy_scheme == "https").then(|| authority.server(&NAMES, &["http/1.1"], None));
            let proxy = Proxy::start(collector.address, tls, 0).await;
            let mut ship = Ship::to(collector.address, protocol);
            ship.export.endpoint = format!("{scheme}://collector.test:4318/v1/logs").parse().unwrap();
            ship.export.ca_file = Some(authority.file.path().into());
            ship.proxies = by(format!("{proxy_scheme}://{credentials}localhost:{}", proxy.address.port()));
            super::super::probe_by(&ship.export, &ship.proxies).await.unwrap();
            let shipping = ship.start();
            shipping.push(4);
            let counts = shipping.finish().await;
            assert_eq!((counts.exported, counts.retries), (4, 0), "{case}");
            assert_eq!(collector.received().last().unwrap().records(), 4);
            for head in proxy.heads() {
                if scheme == "https" || protocol == Protocol::Grpc {
                    assert!(head.starts_with("CONNECT collector.test:4318 HTTP/1.1\r\n"), "{case} {head}");
                    assert!(!head.contains("x-tenant"), "{case} {head}");
                }
                // user:se/cret
                let authorized = head.to_ascii_lowercase().contains("proxy-authorization: basic dxnlcjpzzs9jcmv0");
                assert_eq!(authorized, !credentials.is_empty(), "{case} {head}");
            }
        }
    }
}

#[tokio::test]
async fn a_proxy_that_refuses_costs_no_record_and_gives_no_secret_away() {
    for protocol in PROTOCOLS {
        for scheme in ["http", "https"] {
            let logged = Logged::start();
            let authority = Authority::new();
            let collector = match scheme {
                "https" => Collector::start_tls(authority.server(&NAMES, &["h2"], None), []).await,
                _ => Collector::start([]).await,
            };
            let proxy = Proxy::start(collector.address, None, 3).await;
            let mut ship = Ship::to(collector.address, protocol);
            ship.export.endpoint = format!("{scheme}://collector.test:4318/v1/logs").parse().unwrap();
            ship.export.ca_file = Some(authority.file.path().into());
            ship.proxies = by(format!("http://user:secret@{}", proxy.address));
            let error = super::super::probe_by(&ship.export, &ship.proxies).await.unwrap_err().to_string();
            assert!(error.contains("proxy") && !error.contains("secret"), "{error}");
            let shipping = ship.start();
            shipping.push(4);
            poll("delivered", || shipping.queue.counters().snapshot().exported == 4).await;
            let counts = shipping.finish().await;
            assert_eq!((counts.exported, counts.dropped_total()), (4, 0), "{protocol:?} {scheme}");
            assert_eq!(counts.retries, 2, "{protocol:?} {scheme}");
            let lines = logged.lines();
            assert!(!lines.is_empty() && lines.iter().all(|line| !line.contains("secret")), "{lines:#?}");
        }
    }
}

#[tokio::test]
async fn a_proxy_that_is_not_there_loses_nothing_before_its_time() {
    for protocol in PROTOCOLS {
        let mut ship = Ship::to("127.0.0.1:1".parse().unwrap(), protocol);
        ship.export.endpoint = "http://collector.test:4318/v1/logs".parse().unwrap();
        ship.export.retry_max_elapsed = Duration::from_millis(100);
        let absent = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        ship.proxies = by(format!("http://{absent}"));
        let shipping = ship.start();
        shipping.push(4);
        poll("given up", || shipping.queue.counters().snapshot().dropped_total() == 4).await;
        let counts = shipping.finish().await;
        assert_eq!(dropped(&counts), [(Reason::RetryExpired, 4)]);
        assert!(counts.retries > 1, "{protocol:?}");
    }
}

#[tokio::test]
async fn what_is_on_this_host_needs_no_proxy() {
    for protocol in PROTOCOLS {
        let collector = Collector::start([]).await;
        let mut ship = Ship::to(collector.address, protocol);
        ship.proxies = by("http://proxy.test:3128".into());
        let shipping = ship.start();
        shipping.push(4);
        assert_eq!(shipping.finish().await.retries, 0);
        assert_eq!(collector.received().len(), 1);
    }
}
