//! `put` and `get` against size, beside this machine's `memcpy` of as much (the figure of the object store in Ray's paper).

use super::found::{Cell, Found};
use super::plot::{Axis, Curve, draw};
use super::stats::Estimate;
use super::told::Told;
use super::{harness, repeats, start};
use crate::args::ExperimentArgs;
use crate::bench::table::Aim;
use crate::chaos::work::tasks::connect;
use crate::cluster::Heads;
use crate::exit::Failure;
use bytes::Bytes;
use mobula::{Blob, Client};
use std::time::{Duration, Instant};

/// Sizes, bytes.
const SIZES: [usize; 7] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 256_000_000];
const QUICK_SIZES: [usize; 3] = [1_000, 100_000, 1_000_000];
/// Each round moves about so many bytes of each size, but no more objects than that, and two at the least.
const BYTES: usize = 256_000_000;
const OBJECTS: usize = 2_000;
/// Rounds, all three by turns.
const ROUNDS: usize = 5;
/// Memory of the store, MB: room for two of the largest.
const STORE_MB: u64 = 800;
/// How long a record may take to become durable.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of the largest, over `memcpy`; of the smallest, in a second: what Ray's paper has.
const PUT_SHARE: Aim = Aim::AtLeast(0.8);
const SMALL_RATE: Aim = Aim::AtLeast(18_000.0);

/// GB in a second of each round.
#[derive(Default)]
struct Rates {
    put: Vec<f64>,
    get: Vec<f64>,
    copy: Vec<f64>,
}

/// Runs it.
pub fn run(args: &ExperimentArgs) -> Result<Told, Failure> {
    let cluster = start(args, (1, 1, STORE_MB), &Heads::default())?;
    let client = connect(&cluster, "store").map_err(harness)?;
    let sizes = if args.quick { &QUICK_SIZES[..] } else { &SIZES[..] };
    let rounds = repeats(args, ROUNDS);
    let mut measured = Vec::new();
    for size in sizes {
        let mut rates = Rates::default();
        // The first round touches memory that nobody has used.
        for round in 0..=rounds {
            let [put, get, copy] = once(&client, *size)?;
            if round > 0 {
                rates.put.push(put);
                rates.get.push(get);
                rates.copy.push(copy);
            }
        }
        client.wait_durable(PATIENCE)?;
        client.take_committed();
        measured.push((*size, rates));
    }
    client.end(true)?;
    Ok(found(&measured, rounds).told())
}

/// One value after the other is put, got, copied and dropped: GB in a second of each.
fn once(client: &Client, size: usize) -> Result<[f64; 3], Failure> {
    let count = (BYTES / size).clamp(2, OBJECTS);
    let value = Blob(Bytes::from(vec![7u8; size]));
    let mut to = vec![1u8; size];
    let mut took = [Duration::ZERO; 3];
    for _ in 0..count {
        let at = Instant::now();
        let reference = client.put(&value)?;
        took[0] += at.elapsed();
        let at = Instant::now();
        let got = reference.get()?;
        took[1] += at.elapsed();
        if got != value {
            return Err("an object is not what was put".into());
        }
        let at = Instant::now();
        to.copy_from_slice(std::hint::black_box(&value));
        took[2] += at.elapsed();
        std::hint::black_box(&to);
    }
    Ok(took.map(|took| (size * count) as f64 / took.as_nanos().max(1) as f64))
}

fn found(measured: &[(usize, Rates)], rounds: usize) -> Found {
    let what = format!("one driver, one node, {rounds} rounds; get copies the value out");
    let columns = &["bytes", "put GB/s", "get GB/s", "memcpy GB/s", "puts /s", "gets /s"];
    let mut found = Found::new("store", what, columns);
    let per_second = |rates: &[f64], size: usize| {
        Estimate::of(&rates.iter().map(|rate| rate * 1e9 / size as f64).collect::<Vec<_>>())
    };
    for (size, rates) in measured {
        let mut row = vec![Cell::Count(*size as u64)];
        row.extend([&rates.put, &rates.get, &rates.copy].map(|each| Cell::Repeated(Estimate::of(each))));
        row.extend([&rates.put, &rates.get].map(|each| Cell::Repeated(per_second(each, *size))));
        found.row(row);
    }
    if let (Some((least, small)), Some((_, large))) = (measured.first(), measured.last()) {
        let shares: Vec<f64> = large.put.iter().zip(&large.copy).map(|(put, copy)| put / copy).collect();
        found.aimed("put of the largest, over memcpy", Estimate::of(&shares), "×", PUT_SHARE);
        found.aimed("puts of the smallest", per_second(&small.put, *least), "/s", SMALL_RATE);
        found.figure("gets of the smallest", per_second(&small.get, *least), "/s");
    }
    let curve = |label: &str, of: fn(&Rates) -> &[f64]| {
        let points = measured.iter().map(|(size, rates)| (*size as f64, Estimate::of(of(rates)).mean));
        Curve { label: label.into(), points: points.collect() }
    };
    found.svg = draw(
        "put and get against size",
        [Axis { label: "bytes", is_log: true }, Axis { label: "GB in a second", is_log: true }],
        &[curve("put", |r| &r.put), curve("get", |r| &r.get), curve("memcpy", |r| &r.copy)],
        &[],
    );
    found
}
