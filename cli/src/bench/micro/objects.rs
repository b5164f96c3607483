//! `put` and `get` of values that fit a message, and of a megabyte.

use super::{Bench, percentiles, settle};
use crate::bench::table::Aim;
use crate::exit::Failure;
use bytes::Bytes;
use mobula::{Blob, Client};
use std::time::{Duration, Instant};

const SMALL: usize = 1_000;
const SMALL_COUNT: usize = 5_000;
const SMALL_US: Aim = Aim::AtMost(5.0);
const LARGE: usize = 1_000_000;
const LARGE_COUNT: usize = 200;
const LARGE_US: Aim = Aim::AtMost(100.0);

/// Values of a kilobyte: how long `put` takes until it returns, and `get` of what was put.
pub fn small(bench: &mut Bench) -> Result<(), Failure> {
    let client = bench.client()?;
    let (mut puts, mut gets) = put_and_get(&client, SMALL, SMALL_COUNT)?;
    let [put, _] = percentiles(&mut puts);
    let [get, _] = percentiles(&mut gets);
    bench.figures.add_aimed("single client put calls, 1 kB, p50", put, "µs", SMALL_US, None);
    bench.figures.add_aimed("single client get calls, 1 kB, p50", get, "µs", SMALL_US, None);
    settle(&client).map(drop)
}

/// A megabyte, which lies in shared memory.
pub fn large(bench: &mut Bench) -> Result<(), Failure> {
    let client = bench.client()?;
    // The first touch memory that nobody has used.
    put_and_get(&client, LARGE, LARGE_COUNT / 4)?;
    let (mut puts, mut gets) = put_and_get(&client, LARGE, LARGE_COUNT)?;
    let [copy, _] = percentiles(&mut copies(LARGE, LARGE_COUNT));
    let [put, _] = percentiles(&mut puts);
    let [get, _] = percentiles(&mut gets);
    bench.figures.add_aimed("single client put 1 MB, p50", put, "µs", LARGE_US, Some(copy));
    bench.figures.add("single client get 1 MB, copied out, p50", get, "µs");
    settle(&client).map(drop)
}

/// One value after the other is put, got and dropped.
fn put_and_get(
    client: &Client,
    size: usize,
    count: usize,
) -> Result<(Vec<Duration>, Vec<Duration>), Failure> {
    let (mut puts, mut gets) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let mut bytes = vec![7u8; size];
    for number in 0..count {
        bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
        let value = Blob(Bytes::copy_from_slice(&bytes));
        let at = Instant::now();
        let reference = client.put(&value)?;
        puts.push(at.elapsed());
        let at = Instant::now();
        let got = reference.get()?;
        gets.push(at.elapsed());
        if got != value {
            return Err("an object is not what was put".into());
        }
    }
    Ok((puts, gets))
}

/// `memcpy` of so many bytes into memory that has been used.
fn copies(size: usize, count: usize) -> Vec<Duration> {
    let (from, mut to) = (vec![7u8; size], vec![1u8; size]);
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let at = Instant::now();
        to.copy_from_slice(std::hint::black_box(&from));
        times.push(at.elapsed());
        std::hint::black_box(&to);
    }
    times
}
