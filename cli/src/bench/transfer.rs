//! Bandwidth between two node daemons: large objects made on node 2 and read on node 1.

use super::table::Figures;
use super::{cluster, driver};
use crate::args::BenchArgs;
use crate::cluster::LocalCluster;
use crate::exit::Failure;
use mobula::ObjectRef;
use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::{Serialize, Serializer};
use std::fmt;
use std::time::{Duration, Instant};

/// Size of one object.
const OBJECT_BYTES: u64 = 62_500_000;
/// Objects moved in one round: a gigabyte.
const OBJECTS: u64 = 16;
/// Rounds; the first touches fresh memory and does not count.
const ROUNDS: u64 = 4;
/// How long making the objects may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Many bytes. Who receives them looks at their number only: the transfer is measured, not what
/// a task does with its argument.
pub enum Bulk {
    /// By the task that made them.
    Made(Vec<u8>),
    /// So many.
    Received(u64),
}

impl Serialize for Bulk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Bulk::Made(bytes) => serializer.serialize_bytes(bytes),
            Bulk::Received(_) => Err(serde::ser::Error::custom("what was received is not sent on")),
        }
    }
}

impl<'de> Deserialize<'de> for Bulk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Count;
        impl Visitor<'_> for Count {
            type Value = Bulk;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bulk, E> {
                Ok(Bulk::Received(bytes.len() as u64))
            }
        }
        deserializer.deserialize_bytes(Count)
    }
}

/// Makes bytes that nothing could shrink.
#[mobula::remote]
pub fn produce(bytes: u64, seed: u64) -> Bulk {
    let mut random = mobula_base::random::Random::new(seed);
    let mut out = Vec::with_capacity(bytes as usize);
    while (out.len() as u64) < bytes {
        out.extend_from_slice(&random.next_u64().to_le_bytes());
    }
    Bulk::Made(out)
}

/// Having the argument here is all that is wanted.
#[mobula::remote]
pub fn consume(object: Bulk) -> u64 {
    match object {
        Bulk::Made(bytes) => bytes.len() as u64,
        Bulk::Received(bytes) => bytes,
    }
}

/// Measures on a cluster of three heads and two nodes.
pub fn run(_args: &BenchArgs) -> Result<Figures, Failure> {
    let mut figures = Figures::new("transfer");
    let rates = rates()?;
    let mean = rates.iter().sum::<f64>() / rates.len() as f64;
    figures.add("node to node, 62.5 MB objects, mean", mean, "GB/s");
    figures.add("node to node, 62.5 MB objects, best round", rates.into_iter().fold(0.0, f64::max), "GB/s");
    Ok(figures)
}

/// GB in a second of each round that counts.
pub fn rates() -> Result<Vec<f64>, Failure> {
    let cluster = cluster(2, OBJECT_BYTES * OBJECTS * 3 / 2 / 1_000_000)?;
    let rates = (0..=ROUNDS).map(|round| transfer(&cluster, round)).collect::<Result<Vec<_>, _>>()?;
    Ok(rates[1..].to_vec())
}

/// One round, in a job of its own so that its memory is free for the next: bytes per nanosecond.
fn transfer(cluster: &LocalCluster, round: u64) -> Result<f64, Failure> {
    let client = driver(cluster)?;
    // Small ones first: workers and connections are there before the clock runs.
    move_objects(&client, 2, 200_000, round << 32)?;
    let (bytes, took) = move_objects(&client, OBJECTS, OBJECT_BYTES, (round << 32) + 1000)?;
    client.end(true)?;
    Ok(bytes as f64 / took.as_nanos() as f64)
}

/// Makes objects on node 2, then reads them on node 1: how much was read in which time.
fn move_objects(
    client: &mobula::Client,
    count: u64,
    bytes: u64,
    seed: u64,
) -> Result<(u64, Duration), Failure> {
    let made: Vec<ObjectRef<Bulk>> =
        (0..count).map(|i| client.submit(produce::task(bytes, seed + i).resource("node-2", 1.0))).collect();
    if client.wait(&made, made.len(), PATIENCE).iter().any(|is_ready| !is_ready) {
        return Err("the objects were not made in time".into());
    }
    let at = Instant::now();
    let read: Vec<ObjectRef<u64>> =
        made.iter().map(|o| client.submit(consume::task(o).resource("node-1", 1.0))).collect();
    let mut moved = 0;
    for reference in &read {
        moved += reference.get()?;
    }
    Ok((moved, at.elapsed()))
}
