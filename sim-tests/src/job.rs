//! The work of a simulated cluster: rounds of small programs whose answers an interpreter knows.
//!
//! Each round is a shuffle of large and small objects, two levels deep, and a tree of nested
//! tasks. Every function mixes bytes by hashing, so a wrong, stale or doubled input shows in the
//! answer.

use crate::trace;
use mobula::{Blob, Client, Error, Many, remote};
use mobula_base::ids::hash64;
use mobula_base::random::Random;
use std::time::Duration;

/// Bytes of a large object: beyond what travels inline.
const LARGE: usize = 150_000;

fn bytes_of(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..len).map(|_| random.next_u64() as u8).collect()
}

async fn work(name: &str, id: u64) {
    trace::note(format!("runs {name} {id:016x}"));
    // The functions take simulated time, so that faults land in the middle of them.
    tokio::time::sleep(Duration::from_millis(20 + id % 80)).await;
}

#[remote]
async fn make(seed: u64, len: usize) -> Blob {
    work("make", seed).await;
    bytes_of(seed, len).into()
}

#[remote]
async fn shuffle(parts: Many<Blob>, column: u64) -> Blob {
    work("shuffle", column).await;
    column_of(&parts.0.iter().map(|b| &b[..]).collect::<Vec<_>>(), column).into()
}

fn column_of(parts: &[&[u8]], column: u64) -> Vec<u8> {
    let mixed = parts.iter().fold(column, |at, part| hash64(&[&at.to_le_bytes(), part]));
    // Every other column is large.
    bytes_of(mixed, if column.is_multiple_of(2) { LARGE } else { 100 })
}

#[remote]
async fn pair(a: Blob, b: Blob) -> u64 {
    let mixed = hash64(&[&a, &b]);
    work("pair", mixed).await;
    mixed
}

#[remote]
async fn tree(seed: u64, depth: u32) -> Result<u64, Error> {
    work("tree", seed ^ u64::from(depth)).await;
    if depth == 0 {
        return Ok(hash64(&[&seed.to_le_bytes()]));
    }
    let left = tree::remote(seed * 2, depth - 1);
    let right = tree::remote(seed * 2 + 1, depth - 1);
    Ok(left.get_async().await?.rotate_left(7) ^ right.get_async().await?)
}

fn tree_answer(seed: u64, depth: u32) -> u64 {
    match depth {
        0 => hash64(&[&seed.to_le_bytes()]),
        _ => tree_answer(seed * 2, depth - 1).rotate_left(7) ^ tree_answer(seed * 2 + 1, depth - 1),
    }
}

/// One round's shape.
#[derive(Clone, Copy)]
pub struct Round {
    seed: u64,
    parts: u64,
    columns: u64,
}

impl Round {
    /// Round `number` of a seed.
    pub fn new(seed: u64, number: u64) -> Self {
        let mut random = Random::new(seed).fork(&format!("round {number}"));
        Round { seed: random.next_u64() >> 8, parts: 4 + random.below(6), columns: 2 + random.below(4) }
    }

    fn part_len(self, part: u64) -> usize {
        if part.is_multiple_of(3) { LARGE } else { 1000 }
    }

    /// What the round must come to.
    pub fn answer(self) -> u64 {
        let parts: Vec<Vec<u8>> =
            (0..self.parts).map(|p| bytes_of(self.seed + p, self.part_len(p))).collect();
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let columns: Vec<Vec<u8>> = (0..self.columns).map(|c| column_of(&slices, c)).collect();
        let pairs = columns.windows(2).map(|w| hash64(&[&w[0], &w[1]]));
        pairs.fold(tree_answer(self.seed >> 20, 2), |at, pair| at.rotate_left(9) ^ pair)
    }

    /// Runs the round on the cluster.
    ///
    /// # Errors
    /// Whatever the cluster answers instead.
    pub async fn run(self, client: &Client) -> Result<u64, Error> {
        let nested = client.submit(tree::task(self.seed >> 20, 2));
        let parts: Vec<_> =
            (0..self.parts).map(|p| client.submit(make::task(self.seed + p, self.part_len(p)))).collect();
        let columns: Vec<_> = (0..self.columns).map(|c| client.submit(shuffle::task(&parts, c))).collect();
        let pairs: Vec<_> = columns.windows(2).map(|w| client.submit(pair::task(&w[0], &w[1]))).collect();
        let mut at = nested.get_async().await?;
        for pair in &pairs {
            at = at.rotate_left(9) ^ pair.get_async().await?;
        }
        Ok(at)
    }
}
