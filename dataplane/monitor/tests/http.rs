//! The HTTP side as its clients meet it: what is answered, and what strangers cannot do to it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::Write as _,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use ringmesh_monitor::{
    COMMIT, CONNECTIONS, Check, LABEL_LIMIT, Monitor, Registry, Series, Subject, Unit, Version, relay,
};
use ringmesh_relay::{NetworkReport, RelayDrops, Report, Traffic};
use ringmesh_tunnel::{DropCounters, key::NetworkId};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::timeout,
};

const LONG: Duration = Duration::from_secs(60);

/// A daemon with a peer that can go away, which measures when it is let.
#[derive(Default)]
struct Daemon {
    peer_gone: AtomicBool,
    sick: AtomicBool,
    measured: AtomicU64,
    /// If there is one, each measuring takes a permit.
    gate: Option<Semaphore>,
    begun: Notify,
}

#[async_trait::async_trait]
impl Subject for Daemon {
    fn version(&self) -> Version {
        Version { daemon: "meshd", version: "0.1.0".into(), commit: COMMIT.into(), backend: "poll".into() }
    }

    async fn measure(&self, registry: &mut Registry) {
        self.begun.notify_one();
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        let measured = self.measured.fetch_add(1, Ordering::Relaxed) + 1;
        registry.register("measurings", "Measurings", Series::counter().count([], measured));
        let mut bytes = Series::counter().count([("path", "udp4")], 5).count([("path", "udp4")], 7);
        bytes.add([("path", "ssh")], 1);
        registry.register_with_unit("rx", "Bytes received", Unit::Bytes, bytes);
        let buckets = vec![(0.1, 1), (1.0, 0), (f64::INFINITY, 2)];
        let seconds = Series::histogram().observed([("role", "initiator")], 3.5, buckets);
        registry.register_with_unit("handshake_duration", "Time of handshakes", Unit::Seconds, seconds);
        let quantiles = Series::quantiles().with([("quantile", "0.5")], 0.02).with([("quantile", "1")], 0.5);
        registry.register_with_unit("path_rtt", "Of all paths", Unit::Seconds, quantiles);
        let mut peers = Series::gauge();
        if !self.peer_gone.load(Ordering::Relaxed) {
            peers.set([("peer", "a\"b\\c\nd\u{1}"), ("zone", &"z".repeat(500))], 0.25);
        }
        registry.register("peer_rtt", "Of one peer", peers);
    }

    async fn live(&self) -> Vec<Check> {
        vec![Check { name: "workers", ok: true, detail: "2 of 2 answer".into() }]
    }

    async fn ready(&self) -> Vec<Check> {
        let ok = !self.sick.load(Ordering::Relaxed);
        vec![Check { name: "map", ok, detail: if ok { "fresh" } else { "no map for 3 h" }.into() }]
    }
}

fn serve(daemon: &Arc<Daemon>) -> SocketAddr {
    let monitor = Monitor::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = monitor.address().unwrap();
    tokio::spawn(monitor.serve(Arc::clone(daemon) as Arc<dyn Subject>, std::future::pending()));
    address
}

/// Sends `request` and reads until the other side closes.
async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Whoever sent too much is reset after the answer.
    let _ = timeout(LONG, stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

async fn get(address: SocketAddr, path: &str, headers: &str) -> (u16, String, String) {
    parts(&exchange(address, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n")).await)
}

fn parts(answer: &str) -> (u16, String, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), body.to_owned())
}

#[tokio::test]
async fn promtool_accepts_what_curl_gets() {
    let address = serve(&Arc::default());
    let (status, head, page) = get(address, "/metrics", "").await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}\n{page}",
        String::from_utf8_lossy(&output.stderr)
    );
    for line in [
        "# TYPE ringmesh_rx_bytes_total counter",
        "ringmesh_rx_bytes_total{path=\"udp4\"} 12",
        "ringmesh_handshake_duration_seconds_bucket{le=\"+Inf\",role=\"initiator\"} 3",
        "ringmesh_handshake_duration_seconds_count{role=\"initiator\"} 3",
        "# TYPE ringmesh_path_rtt_seconds summary",
        "ringmesh_ready{check=\"map\"} 1",
        "ringmesh_path_rtt_seconds{quantile=\"0.5\"} 0.02",
        "# TYPE process_cpu_seconds_total counter",
        "# TYPE process_resident_memory_bytes gauge",
        "# TYPE process_open_fds gauge",
        "# TYPE process_start_time_seconds gauge",
    ] {
        assert!(page.lines().any(|of_page| of_page == line), "{line}\n{page}");
    }
    let build = format!(
        "ringmesh_build_info{{daemon=\"meshd\",version=\"0.1.0\",commit=\"{COMMIT}\",backend=\"poll\"}} 1\n"
    );
    assert!(page.contains(&build), "{page}");
}

#[tokio::test]
async fn prometheus_gets_open_metrics_if_it_asks() {
    let address = serve(&Arc::default());
    let accept = "accept: application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                  text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\n";
    let (status, head, page) = get(address, "/metrics", accept).await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(page.contains("# TYPE ringmesh_rx_bytes counter\n# UNIT ringmesh_rx_bytes bytes\n"), "{page}");
    assert!(page.ends_with("# EOF\n"), "{page}");
}

#[test]
fn a_relay_tells_what_it_passed_on_for_all_networks_together() {
    let network = NetworkReport {
        id: NetworkId::from_bytes([1; 16]),
        clients: Vec::new(),
        pairs: 2,
        taken: Traffic { datagrams: 5, bytes: 500 },
        passed_on: Traffic { datagrams: 4, bytes: 400 },
        drops: RelayDrops::default(),
        session_drops: DropCounters::default(),
    };
    let report = Report {
        networks: vec![network.clone(), network],
        websockets: 1,
        unproven_connections: 0,
        cut_websockets: 3,
        udp_sent: Traffic::default(),
        drops: RelayDrops::default(),
    };
    let mut registry = Registry::with_prefix("ringmesh");
    relay::measure(&mut registry, &report);
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
    for line in [
        "ringmesh_relay_bytes_total{direction=\"in\"} 1000",
        "ringmesh_relay_bytes_total{direction=\"out\"} 800",
        "ringmesh_relay_datagrams_total{direction=\"out\"} 8",
        "ringmesh_relay_clients 0",
        "ringmesh_relay_pairs 4",
        "ringmesh_relay_drops_total{reason=\"away\"} 0",
        "ringmesh_relay_websockets_cut_total 3",
    ] {
        assert!(page.lines().any(|of_page| of_page == line), "{line}\n{page}");
    }
}

#[tokio::test]
async fn a_label_is_bounded_and_escaped() {
    let (_, _, page) = get(serve(&Arc::default()), "/metrics", "").await;
    let row = page.lines().find(|line| line.starts_with("ringmesh_peer_rtt{")).unwrap();
    let zone = "z".repeat(LABEL_LIMIT);
    assert_eq!(row, format!("ringmesh_peer_rtt{{peer=\"a\\\"b\\\\c_d_\",zone=\"{zone}\"}} 0.25"));
}

#[tokio::test]
async fn series_of_what_is_gone_are_gone() {
    let daemon = Arc::<Daemon>::default();
    let address = serve(&daemon);
    assert!(get(address, "/metrics", "").await.2.contains("ringmesh_peer_rtt"));
    daemon.peer_gone.store(true, Ordering::Relaxed);
    assert!(!get(address, "/metrics", "").await.2.contains("ringmesh_peer_rtt"));
}

#[tokio::test]
async fn a_daemon_that_is_not_ready_says_why() {
    let daemon = Arc::<Daemon>::default();
    let address = serve(&daemon);
    for path in ["/readyz", "/healthz", "/livez"] {
        assert_eq!(get(address, path, "").await.0, 200, "{path}");
    }
    daemon.sick.store(true, Ordering::Relaxed);
    for path in ["/readyz", "/healthz"] {
        let (status, head, body) = get(address, path, "").await;
        assert_eq!(status, 503, "{path}");
        assert!(head.contains("content-type: application/json"), "{head}");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        let check = serde_json::json!({ "name": "map", "ok": false, "detail": "no map for 3 h" });
        assert_eq!(body, serde_json::json!({ "ok": false, "checks": [check] }));
    }
    assert_eq!(get(address, "/livez", "").await.0, 200, "what is not ready is not to be restarted");
}

#[tokio::test]
async fn the_version_is_told_as_json() {
    let (status, _, body) = get(serve(&Arc::default()), "/version", "").await;
    assert_eq!(status, 200);
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    let told =
        serde_json::json!({ "daemon": "meshd", "version": "0.1.0", "commit": COMMIT, "backend": "poll" });
    assert_eq!(body, told);
}

#[tokio::test]
async fn only_get_and_head_are_answered() {
    let address = serve(&Arc::default());
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
        let answer =
            exchange(address, &format!("{method} /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n")).await;
        let (status, head, _) = parts(&answer);
        assert_eq!(status, 405, "{method}");
        assert!(head.contains("allow: get,head"), "{head}");
    }
    let (status, head, body) =
        parts(&exchange(address, "HEAD /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await);
    assert_eq!((status, body.as_str()), (200, ""));
    assert!(head.contains("content-type: text/plain"), "{head}");
    for path in ["/", "/metrics/", "/metrics/../livez", "/debug/pprof", "/%6detrics%00"] {
        assert_eq!(get(address, path, "").await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn a_body_is_not_waited_for() {
    let address = serve(&Arc::default());
    let request = "GET /version HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000000\r\n\r\nfirst bytes";
    assert_eq!(parts(&exchange(address, request).await).0, 200);
}

#[tokio::test]
async fn a_head_without_end_is_refused() {
    let address = serve(&Arc::default());
    let long = format!("GET /metrics HTTP/1.1\r\nhost: localhost\r\nx-long: {}\r\n\r\n", "a".repeat(100_000));
    let many = format!("GET /metrics HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "a: b\r\n".repeat(500));
    let uri = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "a".repeat(100_000));
    for request in [&long, &many, &uri] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // It may be closed before all of it is sent.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = timeout(LONG, stream.read_to_end(&mut answer)).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert_eq!(get(address, "/version", "").await.0, 200);
}

#[tokio::test]
async fn what_is_no_http_ends_the_connection() {
    let address = serve(&Arc::default());
    for junk in [
        "\0\0\0\0\0\0\0\0\r\n\r\n",
        "\u{16}\u{3}\u{1}\r\n\r\n",
        "GET\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let answer = exchange(address, junk).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4"),
            "{answer}"
        );
    }
    assert_eq!(get(address, "/version", "").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_finish_a_head_is_cut_off() {
    let address = serve(&Arc::default());
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nhost:").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(LONG, slow.read_to_end(&mut answer)).await.expect("the connection is closed");
}

#[tokio::test]
async fn the_oldest_connection_makes_room_and_nobody_is_kept_out() {
    let address = serve(&Arc::default());
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS {
        held.push(TcpStream::connect(address).await.unwrap());
    }
    assert_eq!(get(address, "/version", "").await.0, 200);
    let mut nothing = [0];
    assert_eq!(
        timeout(LONG, held[0].read(&mut nothing)).await.unwrap().unwrap_or(0),
        0,
        "the oldest is closed"
    );
    held[CONNECTIONS - 1].write_all(b"GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(LONG, held[CONNECTIONS - 1].read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!(parts(&answer).0, 200, "the newest is not");
}

#[tokio::test]
async fn an_answer_that_was_asked_for_is_not_broken_off_by_a_crowd_that_asks_for_nothing() {
    let daemon = Arc::new(Daemon { gate: Some(Semaphore::new(0)), ..Daemon::default() });
    let address = serve(&daemon);
    let scrape = tokio::spawn(async move { get(address, "/metrics", "").await });
    daemon.begun.notified().await;
    let mut silent = Vec::new();
    for _ in 0..2 * CONNECTIONS {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    // Connections are taken in their order.
    assert_eq!(get(address, "/version", "").await.0, 200);
    daemon.gate.as_ref().unwrap().add_permits(100);
    assert_eq!(timeout(LONG, scrape).await.unwrap().unwrap().0, 200);
}

#[tokio::test]
async fn the_page_of_a_stranger_in_a_browser_reads_nothing_of_a_listener_for_this_machine() {
    let address = serve(&Arc::default());
    let ask = async |path: &str, headers: &str| {
        parts(&exchange(address, &format!("GET {path} HTTP/1.1\r\n{headers}\r\n")).await)
    };
    for path in ["/metrics", "/livez", "/readyz", "/healthz", "/version", "/nothing"] {
        for (headers, refused) in [
            ("host: evil.example\r\norigin: http://evil.example\r\n", 421),
            ("host: evil.example:9464\r\n", 421),
            ("host: localhost\r\nhost: evil.example\r\n", 421),
            ("host: 127.0.0.1\r\nsec-fetch-site: cross-site\r\n", 403),
        ] {
            let (status, _, body) = ask(path, headers).await;
            assert_eq!(status, refused, "{path} {headers}");
            assert!(body.starts_with("this listener is "), "{body}");
        }
    }
    assert_eq!(ask("http://evil.example/version", "host: localhost\r\n").await.0, 421);
    for headers in [
        "",
        "host: \r\n",
        "host: localhost:9464\r\n",
        "host: 127.0.0.1:9464\r\n",
        "host: [::1]:9464\r\n",
        "host: 192.0.2.1\r\nsec-fetch-site: none\r\n",
        "host: localhost\r\nsec-fetch-site: same-origin\r\n",
    ] {
        assert_eq!(ask("/version", headers).await.0, 200, "{headers}");
    }
}

#[tokio::test]
async fn a_listener_for_the_neighbours_is_asked_by_its_name() {
    let monitor = Monitor::bind("0.0.0.0:0".parse().unwrap()).unwrap();
    let port = monitor.address().unwrap().port();
    let daemon = Arc::new(Daemon::default());
    tokio::spawn(monitor.serve(daemon as Arc<dyn Subject>, std::future::pending()));
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let answer = exchange(address, "GET /version HTTP/1.1\r\nhost: alice.example:9464\r\n\r\n").await;
    assert_eq!(parts(&answer).0, 200);
}

#[tokio::test]
async fn scrapes_at_once_share_one_measuring() {
    let daemon = Arc::new(Daemon { gate: Some(Semaphore::new(0)), ..Daemon::default() });
    let address = serve(&daemon);
    let mut scrapes = JoinSet::new();
    scrapes.spawn(async move { get(address, "/metrics", "").await });
    daemon.begun.notified().await;
    for _ in 0..30 {
        scrapes.spawn(async move { get(address, "/metrics", "").await });
    }
    let gate = daemon.gate.as_ref().unwrap();
    // Those who came while the first was measured for wait, and get a page that is newer than their request.
    for _ in 0..20 {
        get(address, "/version", "").await;
    }
    gate.add_permits(100);
    let pages: Vec<_> = scrapes.join_all().await;
    assert!(pages.iter().all(|(status, ..)| *status == 200));
    let measured = daemon.measured.load(Ordering::Relaxed);
    assert!((2..8).contains(&measured), "{measured} measurings for {} scrapes", pages.len());
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_does_not_measure_itself_is_not_waited_for() {
    let daemon = Arc::new(Daemon { gate: Some(Semaphore::new(0)), ..Daemon::default() });
    let (status, _, body) = get(serve(&daemon), "/metrics", "").await;
    assert_eq!(status, 503);
    assert_eq!(body, "measuring took more than 5 s\n");
}

#[tokio::test]
async fn a_taken_address_is_named() {
    let taken = Monitor::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let error = Monitor::bind(taken.address().unwrap()).unwrap_err();
    let told = error.to_string();
    assert!(
        told.contains(&taken.address().unwrap().to_string()) && told.contains("false for none"),
        "{told}"
    );
}
