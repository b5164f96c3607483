//! A bit flips in one replica's files: it takes no part any more, its peers go on.

use mobula_base::disk::RealDisk;
use mobula_gcs::{Client, Error, Head, HeadConfig, Parts, damage, in_scope};
use mobula_net::tcp::TcpNet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(20);

async fn start(root: &Path, all: &[String], n: usize) -> Result<Head, Error> {
    let disk = Arc::new(RealDisk::new(root.join(n.to_string())).expect("temporary directory"));
    let config = HeadConfig {
        address: all[n].clone(),
        join: all.to_vec(),
        shards: 1,
        seed: n as u64 + 1,
        repair: false,
        ..HeadConfig::default()
    };
    let parts = Parts::new(Arc::new(TcpNet), disk);
    tokio::time::timeout(LONG, Head::start(config, parts)).await.expect("in time")
}

fn addresses() -> Vec<String> {
    // Below the range that outgoing connections take theirs from.
    let from = 10_000 + std::process::id() * 7 % 20_000;
    let mut all: Vec<String> = (from..)
        .map(|port| format!("127.0.0.1:{port}"))
        .filter(|address| std::net::TcpListener::bind(address).is_ok())
        .take(3)
        .collect();
    all.sort();
    all
}

#[tokio::test]
async fn a_flipped_bit_keeps_the_replica_out_and_the_files_are_kept() {
    in_scope(3, async {
        let root = std::env::temp_dir().join(format!("mobula-damage-{}", std::process::id()));
        let all = addresses();
        let heads = futures::future::join_all((0..3).map(|n| start(&root, &all, n))).await;
        let mut heads: Vec<Option<Head>> =
            heads.into_iter().map(|head| Some(head.expect("starts"))).collect();
        let client = Client::new(Arc::new(TcpNet), all.clone(), 99);
        client.connect(LONG).await.expect("connects");
        for key in 0..20u32 {
            let done = client.kv_put(&key.to_le_bytes(), "value".into(), false, LONG).await;
            assert!(done.expect("written"));
        }
        heads[2].take().expect("runs").shutdown().await;
        let segment = root.join("2/log/0000000001.seg");
        let mut bytes = std::fs::read(&segment).expect("readable");
        bytes[300] ^= 4;
        std::fs::write(&segment, bytes).expect("writable");
        // The first start finds it; the second must not take the emptied directory for a fresh one.
        for _ in 0..2 {
            let refused = async {
                loop {
                    match start(&root, &all, 2).await.err().expect("it must not vote with that") {
                        // The attempt before is only now letting its listener go.
                        Error::Listen { .. } => tokio::task::yield_now().await,
                        other => return other,
                    }
                }
            };
            let error = tokio::time::timeout(LONG, refused).await.expect("in time");
            assert!(matches!(error, Error::MustRejoin { .. }), "{error}");
            let said = error.to_string();
            assert!(said.contains("0000000001.seg") && said.contains("damaged-1"), "{said}");
        }
        assert!(root.join("2").join(damage::MARK).exists());
        assert!(root.join("2/damaged-1/log/0000000001.seg").exists(), "kept for a look");
        let done = client.kv_put(b"after", "value".into(), false, LONG).await;
        assert!(done.expect("two of three are a majority"));
        for head in heads.into_iter().flatten() {
            head.shutdown().await;
        }
        std::fs::remove_dir_all(root).expect("it is ours");
    })
    .await;
}
