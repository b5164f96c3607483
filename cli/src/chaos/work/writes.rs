//! Writes to the control store, one in flight for each shard, read back at the end.

use super::{Done, LOOK, Order};
use crate::chaos::judge::{Class, Judged};
use crate::experiment::lanes::Lanes;
use mobula_gcs::Client;
use mobula_net::tcp::TcpNet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the end may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs it.
///
/// # Errors
/// What was written cannot be read back.
pub fn run(order: &Order<'_>) -> Result<Done, String> {
    let heads = order.cluster.head_addresses();
    let lanes = Lanes::start(&heads, order.shards);
    let shards: Vec<u32> = (0..order.shards).collect();
    let begun = Instant::now();
    lanes.activate(&shards);
    order.pulse.asked(shards.len() as u64);
    let until = order.pulse.began() + order.ends;
    let mut before = 0;
    while Instant::now() < until || !order.shared.is_calm() {
        std::thread::sleep(LOOK);
        let now = lanes.totals().0;
        // Each answer is followed by the next write.
        order.pulse.answered(now - before);
        order.pulse.asked(now - before);
        before = now;
    }
    let ended = Instant::now();
    let longest = lanes.longest_gap(&shards, begun, ended);
    order.pulse.over();
    lanes.activate(&[]);
    let idle = super::until(PATIENCE, || (!lanes.are_idle()).then(|| "a write does not end".to_owned()));
    let (acknowledged, failed) = lanes.totals();
    let lost = read_back(&heads, order.seed, &lanes, &shards)?;
    let judged = vec![
        Judged::of("durable", "R4, S1", Class::Safety, acknowledged).objecting(lost.first().cloned()),
        Judged::of("liveness", "G5, V2", Class::Liveness, acknowledged)
            .objecting(idle.or_else(|| failed.first().cloned()))
            .noting(format!("longest time without a write {:.0} ms", longest.as_secs_f64() * 1e3)),
    ];
    let failures = failed.len() as u64;
    Ok(Done { submitted: acknowledged + failures, values: acknowledged, failures, judged, ..Done::default() })
}

fn read_back(heads: &[String], seed: u64, lanes: &Lanes, shards: &[u32]) -> Result<Vec<String>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("cannot read back: {e}"))?;
    runtime.block_on(async {
        let client = Client::new(Arc::new(TcpNet), heads.to_vec(), seed);
        client.connect(PATIENCE).await.map_err(|e| e.to_string())?;
        lanes.lost(&client, shards).await
    })
}
