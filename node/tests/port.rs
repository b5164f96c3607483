//! A node's one port: what other nodes, Prometheus, probes and strangers get there.

use mobula_base::disk::RealDisk;
use mobula_gcs::{Head, HeadConfig, Parts, in_scope};
use mobula_net::auth::{NEEDED, Token};
use mobula_net::frame::{self, FrameReader};
use mobula_net::grpc;
use mobula_net::seam::SharedNet;
use mobula_net::tcp::TcpNet;
use mobula_net::tls::Guarded;
use mobula_node::{NodeConfig, Ready};
use mobula_proto::{MAGIC, PeerAck, PeerHello, ToPeer, WIRE_VERSION};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const LONG: Duration = Duration::from_secs(30);
const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const WRONG: &str = "0123456789abcdef0123456789abcdeg";

fn net(token: Option<&str>) -> SharedNet {
    Arc::new(Guarded::new(TcpNet, token.map(|text| Token::new(text).expect("good")), None))
}

fn directory(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("mobula-port-{name}-{}", std::process::id()))
}

async fn head(dir: &Path, token: Option<&str>) -> Head {
    let disk = Arc::new(RealDisk::new(dir).expect("temporary directory"));
    let config = HeadConfig { shards: 2, ..HeadConfig::default() };
    Head::start(config, Parts::new(net(token), disk)).await.expect("alone")
}

/// A node that runs beside the test.
struct Node {
    ready: Ready,
    stop: oneshot::Sender<()>,
    running: tokio::task::JoinHandle<()>,
}

impl Node {
    async fn start(head: &Head, dir: &Path, token: Option<&str>) -> Self {
        let config = NodeConfig {
            name: "node".into(),
            heads: vec![head.address().to_owned()],
            listen: "127.0.0.1:0".into(),
            socket: dir.join("node.sock"),
            workers: 2,
            resources: Vec::new(),
            labels: Vec::new(),
            store_bytes: 1 << 20,
            linger: mobula_node::LINGER,
            late: Duration::ZERO,
            spill_dir: None,
            packages_dir: None,
            memory_full: 1.0,
            pages: Default::default(),
            seed: 3,
        };
        let ((tell, told), (stop, stopped)) = (oneshot::channel(), oneshot::channel());
        let net = net(token);
        let running = tokio::task::spawn_local(async move {
            let tell = move |ready| _ = tell.send(ready);
            let node = mobula_node::run(config, net, tell, async { drop(stopped.await) });
            node.await.expect("the node runs");
        });
        let ready = tokio::time::timeout(LONG, told).await.expect("in time").expect("it joins");
        Node { ready, stop, running }
    }

    async fn end(self) {
        self.stop.send(()).expect("it still runs");
        self.running.await.expect("it ends cleanly");
    }
}

/// Speaks HTTP/1.1 as curl does; status line, headers and body.
async fn get(address: &str, path: &str, header: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("listening");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{header}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("open");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("text");
    answer
}

async fn until_status(address: &str, path: &str, header: &str, status: &str) -> String {
    let asked = async {
        loop {
            let answer = get(address, path, header).await;
            if answer.starts_with(&format!("HTTP/1.1 {status}")) {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, asked).await.expect("in time")
}

/// What a stranger, or another node, is answered to an empty frame after its hello.
async fn peer(node: &Ready, cluster: u64, token: &str) -> Option<PeerAck> {
    let hello = PeerHello {
        magic: MAGIC,
        version: WIRE_VERSION,
        cluster,
        incarnation: 1 << 40,
        to: node.incarnation,
        data: false,
        token: token.to_owned(),
    };
    let stream = tokio::net::TcpStream::connect(&node.address).await.expect("listening");
    let (read, mut write) = tokio::io::split(stream);
    frame::send(&mut write, &hello).await.expect("open");
    // Turned away already, perhaps.
    frame::send(&mut write, &ToPeer { first_seq: 1, msgs: Vec::new() }).await.ok();
    FrameReader::new(read).next::<PeerAck>().await.ok().flatten()
}

/// Runs a story on a thread of its own kind, as daemons do.
async fn story(seed: u64, tell: impl Future<Output = ()>) {
    in_scope(seed, tokio::task::LocalSet::new().run_until(tell)).await;
}

#[tokio::test]
async fn with_a_token_only_the_probe_of_life_is_open() {
    story(1, async {
        let dir = directory("token");
        let head = head(&dir, Some(TOKEN)).await;
        let node = Node::start(&head, &dir, Some(TOKEN)).await;
        let address = &node.ready.address;
        assert!(get(address, "/healthz", "").await.ends_with("ok\n"));
        let wrong = format!("Authorization: Bearer {WRONG}\r\n");
        for header in ["", &wrong] {
            for path in ["/metrics", "/readyz", "/api/v0/state", "/nothing"] {
                let answer = get(address, path, header).await;
                assert!(answer.starts_with("HTTP/1.1 401") && answer.contains(NEEDED), "{path}: {answer}");
            }
        }
        for wrong in [None, Some(WRONG)] {
            let channel = grpc::channel(net(wrong), address).expect("an address");
            let refusal = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
            let refusal = refusal.expect_err("a stranger");
            assert_eq!((refusal.code(), refusal.message()), (Code::Unauthenticated, NEEDED));
        }
        let shown = format!("Authorization: Bearer {TOKEN}\r\n");
        until_status(address, "/readyz", &shown, "200").await;
        assert!(get(address, "/metrics", &shown).await.contains("mobula_object_store_used_bytes 0"));
        let channel = grpc::channel(net(Some(TOKEN)), address).expect("an address");
        let health = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
        assert_eq!(health.expect("known").into_inner().status(), ServingStatus::Serving);
        // The same port, the same token, the other protocol.
        let cluster = head.cluster_id();
        assert_eq!(peer(&node.ready, cluster, TOKEN).await, Some(PeerAck { mark: 0 }));
        assert_eq!(peer(&node.ready, cluster, WRONG).await, None);
        assert_eq!(peer(&node.ready, cluster, "").await, None);
        node.end().await;
        head.shutdown().await;
        std::fs::remove_dir_all(dir).ok();
    })
    .await;
}

#[tokio::test]
async fn prometheus_reads_what_a_node_has_and_readiness_follows_the_heads() {
    story(2, async {
        let dir = directory("metrics");
        let head = head(&dir, None).await;
        let node = Node::start(&head, &dir, None).await;
        let address = &node.ready.address;
        until_status(address, "/readyz", "", "200").await;
        let answer = get(address, "/metrics", "").await;
        assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"));
        assert!(answer.ends_with("# EOF\n"), "{answer}");
        for (name, kind) in [
            ("tasks", "gauge"),
            ("task_attempts", "gauge"),
            ("infeasible_tasks", "gauge"),
            ("workers", "gauge"),
            ("drivers", "gauge"),
            ("workers_ended_for_memory", "counter"),
            ("objects_replicated", "gauge"),
            ("objects_short_of_copies", "gauge"),
            ("object_copies_awaited", "gauge"),
            ("lineage_unacknowledged", "gauge"),
            ("node_cpus", "gauge"),
            ("object_store_capacity_bytes", "gauge"),
            ("objects", "gauge"),
            ("object_transfers", "gauge"),
            ("rpc_retries", "counter"),
            ("resident_bytes", "gauge"),
        ] {
            let line = format!("# TYPE mobula_{name} {kind}\n");
            assert!(answer.contains(&line) && answer.contains(&format!("# HELP mobula_{name} ")), "{answer}");
        }
        for line in [
            "mobula_tasks{state=\"placed\"} 0\n",
            "mobula_workers{state=\"busy\"} 0\n",
            "mobula_node_cpus 2.0\n",
            "mobula_object_store_capacity_bytes 1048576\n",
            "mobula_rpc_retries_total{method=\"ControlStore/Heartbeat\"} ",
        ] {
            assert!(answer.contains(line), "no {line}: {answer}");
        }
        // Without a head that answers it is alive, and of no use.
        head.shutdown().await;
        let why = until_status(address, "/readyz", "", "503").await;
        assert!(why.contains("not ready: no head has answered"), "{why}");
        assert!(get(address, "/healthz", "").await.ends_with("ok\n"));
        let channel = grpc::channel(net(None), address).expect("an address");
        let mut health = HealthClient::new(channel);
        let not_serving = async {
            let asked = async |health: &mut HealthClient<_>| {
                health.check(HealthCheckRequest::default()).await.expect("it answers").into_inner().status()
            };
            while asked(&mut health).await != ServingStatus::NotServing {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, not_serving).await.expect("gRPC health says so, too");
        let retried = get(address, "/metrics", "").await;
        let heartbeats = "mobula_rpc_retries_total{method=\"ControlStore/Heartbeat\"} ";
        let again = retried.split_once(heartbeats).expect("counted").1.lines().next().expect("a number");
        assert!(again.parse::<u64>().expect("a number") > 0, "{retried}");
        node.end().await;
        std::fs::remove_dir_all(dir).ok();
    })
    .await;
}
