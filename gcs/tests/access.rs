//! One port, one door: what a caller with and without the cluster token gets, and that what
//! Prometheus reads is well-formed.

use mobula_base::disk::RealDisk;
use mobula_gcs::{Client, Head, HeadConfig, Parts, in_scope};
use mobula_net::auth::{NEEDED, Token};
use mobula_net::grpc;
use mobula_net::seam::SharedNet;
use mobula_net::tcp::TcpNet;
use mobula_net::tls::Guarded;
use mobula_proto as proto;
use proto::control_store_client::ControlStoreClient;
use proto::raft_client::RaftClient;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

const LONG: Duration = Duration::from_secs(20);
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn net(token: Option<&str>) -> SharedNet {
    let token = token.map(|text| Token::new(text).expect("good"));
    Arc::new(Guarded::new(TcpNet, token, None))
}

async fn head(name: &str, token: Option<&str>) -> (Head, std::path::PathBuf) {
    let dir = std::env::temp_dir().join(format!("mobula-access-{name}-{}", std::process::id()));
    let disk = Arc::new(RealDisk::new(&dir).expect("temporary directory"));
    let config = HeadConfig { shards: 2, ..HeadConfig::default() };
    (Head::start(config, Parts::new(net(token), disk)).await.expect("alone"), dir)
}

/// Speaks HTTP/1.1 as curl does; status line, headers and body.
async fn get(address: &str, path: &str, header: &str) -> String {
    request("GET", address, path, header).await
}

async fn request(method: &str, address: &str, path: &str, header: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("listening");
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{header}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("open");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("text");
    answer
}

#[tokio::test]
async fn a_caller_without_the_token_learns_only_that_it_needs_one() {
    in_scope(1, async {
        let (head, dir) = head("token", Some(TOKEN)).await;
        let address = head.address().to_owned();
        let client = Client::new(net(Some(TOKEN)), vec![address.clone()], 1);
        client.connect(LONG).await.expect("it knows the token");
        for wrong in [None, Some("0123456789abcdef0123456789abcdeg")] {
            let channel = || grpc::channel(net(wrong), &address).expect("an address");
            let mut refusals = Vec::new();
            let status = ControlStoreClient::new(channel()).status(proto::StatusRequest {}).await;
            refusals.push(status.map(|_| ()).expect_err("status"));
            let probe = RaftClient::new(channel()).probe(proto::ProbeRequest {}).await;
            refusals.push(probe.map(|_| ()).expect_err("probe"));
            let nothing = futures::stream::iter([proto::RaftMany::default()]);
            let append = RaftClient::new(channel()).append(nothing).await.map(|_| ());
            refusals.push(append.map(|_| ()).expect_err("append"));
            let health = HealthClient::new(channel()).check(HealthCheckRequest::default()).await;
            refusals.push(health.map(|_| ()).expect_err("health"));
            let asked = tokio_stream::iter(Vec::new());
            let reflection = ServerReflectionClient::new(channel()).server_reflection_info(asked).await;
            refusals.push(reflection.map(|_| ()).expect_err("reflection"));
            for refusal in refusals {
                assert_eq!((refusal.code(), refusal.message()), (Code::Unauthenticated, NEEDED));
            }
        }
        for path in ["/metrics", "/readyz", "/api/v0/state", "/uix", "/mobula.v1.Raft/Append", "/nothing"] {
            let answer = get(&address, path, "").await;
            assert!(answer.starts_with("HTTP/1.1 401") && answer.contains(NEEDED), "{path}: {answer}");
        }
        assert!(get(&address, "/healthz", "").await.ends_with("ok\n"));
        // What asks whether it may ask does not get in by that.
        for path in ["/mobula.v1.Admin/Heads", "/mobula.v1.ControlStore/Status", "/metrics"] {
            let asked = request("OPTIONS", &address, path, "").await;
            assert!(asked.starts_with("HTTP/1.1 401"), "{path}: {asked}");
        }
        // The page says nothing of the cluster: it asks for the token itself.
        for path in ["/", "/ui/app.js"] {
            assert!(!get(&address, path, "").await.contains(NEEDED), "{path}");
        }
        let shown = format!("Authorization: Bearer {TOKEN}\r\n");
        let elected = async {
            while !get(&address, "/readyz", &shown).await.starts_with("HTTP/1.1 200") {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, elected).await.expect("it leads its shards in time");
        assert!(get(&address, "/metrics", &shown).await.contains("mobula_raft_term"));
        let health = HealthClient::new(grpc::channel(net(Some(TOKEN)), &address).expect("an address"))
            .check(HealthCheckRequest::default())
            .await;
        health.expect("it knows the token");
        head.shutdown().await;
        std::fs::remove_dir_all(dir).ok();
    })
    .await;
}

/// What one `# TYPE` block says.
#[derive(Default)]
struct Block {
    kind: String,
    has_help: bool,
    samples: Vec<(String, f64)>,
}

/// Reads an exposition, and fails on what OpenMetrics does not allow.
fn parse(text: &str) -> BTreeMap<String, Block> {
    let mut blocks: BTreeMap<String, Block> = BTreeMap::new();
    let mut current = String::new();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.last(), Some(&"# EOF"));
    for line in &lines[..lines.len() - 1] {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a name and a text");
            assert!(!help.is_empty() && !blocks.contains_key(name), "{line}");
            current = name.to_owned();
            blocks.entry(current.clone()).or_default().has_help = true;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            assert_eq!(name, current, "HELP comes first");
            blocks.get_mut(name).expect("opened by HELP").kind = kind.to_owned();
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').expect("a sample and its value");
            assert!(name.starts_with(&current), "{line} in the block of {current}");
            let value = value.parse().expect("a number");
            blocks.get_mut(&current).expect("opened").samples.push((name.to_owned(), value));
        }
    }
    blocks
}

#[tokio::test]
async fn prometheus_reads_well_formed_metrics_from_the_same_port() {
    in_scope(2, async {
        let (head, dir) = head("metrics", None).await;
        let address = head.address().to_owned();
        let client = Client::new(net(None), vec![address.clone()], 1);
        client.connect(LONG).await.expect("up");
        client.kv_put(b"key", "value".into(), false, LONG).await.expect("stored");
        let answer = get(&address, "/metrics", "").await;
        assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"));
        let blocks = parse(answer.split_once("\r\n\r\n").expect("a body").1);
        for (name, kind) in [
            ("mobula_raft_is_leader", "gauge"),
            ("mobula_raft_term", "gauge"),
            ("mobula_raft_commit_index", "gauge"),
            ("mobula_raft_applied_index", "gauge"),
            ("mobula_raft_replication_lag_entries", "gauge"),
            ("mobula_raft_elections", "counter"),
            ("mobula_raft_proposals", "counter"),
            ("mobula_raft_propose_seconds", "histogram"),
            ("mobula_raft_fsyncs", "counter"),
            ("mobula_raft_fsync_seconds", "histogram"),
            ("mobula_raft_log_bytes", "gauge"),
            ("mobula_raft_snapshot_bytes", "gauge"),
            ("mobula_raft_snapshot_seconds", "histogram"),
            ("mobula_stale_epoch_rejected", "counter"),
            ("mobula_shard_unavailable_seconds", "counter"),
            ("mobula_store_keys", "gauge"),
            ("mobula_rpc_seconds", "histogram"),
        ] {
            let block = blocks.get(name).unwrap_or_else(|| panic!("{name} is missing: {answer}"));
            assert!(block.has_help && block.kind == kind, "{name} is a {}", block.kind);
        }
        let value = |block: &str, sample: &str| {
            let found = blocks[block].samples.iter().find(|(name, _)| name == sample);
            found.unwrap_or_else(|| panic!("no {sample}: {answer}")).1
        };
        assert!((value("mobula_raft_is_leader", "mobula_raft_is_leader{shard=\"0\"}") - 1.0).abs() < 0.1);
        assert!(value("mobula_raft_applied_index", "mobula_raft_applied_index{shard=\"0\"}") >= 1.0);
        let applied: f64 = blocks["mobula_raft_proposals"].samples.iter().map(|(_, value)| value).sum();
        assert!(applied >= 1.0, "{answer}");
        assert!(value("mobula_raft_fsync_seconds", "mobula_raft_fsync_seconds_count") >= 1.0);
        assert!(value("mobula_raft_log_bytes", "mobula_raft_log_bytes") >= 1e6);
        // A made-up method is no label.
        get(&address, "/mobula.v1.ControlStore/Invented", "Content-Type: application/grpc\r\n").await;
        let known = ["shard", "member", "outcome", "table", "method", "code", "le"];
        let again = get(&address, "/metrics", "").await;
        assert!(!again.contains("Invented"));
        for (sample, _) in blocks.values().flat_map(|block| &block.samples) {
            let Some((_, labels)) = sample.split_once('{') else { continue };
            for label in labels.trim_end_matches('}').split("\",").filter_map(|pair| pair.split('=').next()) {
                assert!(known.contains(&label), "{label} in {sample}");
            }
        }
        head.shutdown().await;
        std::fs::remove_dir_all(dir).ok();
    })
    .await;
}
