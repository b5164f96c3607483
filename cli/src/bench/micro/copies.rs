//! Large values beside what this machine does without us: `memcpy`, and one TCP stream.

use super::Bench;
use crate::bench::table::Aim;
use crate::bench::{cluster, driver, transfer};
use crate::exit::Failure;
use bytes::Bytes;
use mobula::Blob;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

const GIGABYTE: usize = 1_000_000_000;
/// Room for two of them.
const STORE_MB: u64 = 2_200;
const MEMCPY_SHARE: Aim = Aim::AtLeast(0.95);
const STREAM_SHARE: Aim = Aim::AtLeast(0.8);
/// Bytes written to a TCP stream, and read from it, at a time.
const CHUNK: usize = 1 << 20;
/// Rounds, `memcpy` and `put` by turns; the median counts.
const ROUNDS: usize = 5;

/// A gigabyte into shared memory that has been used before.
pub fn put(bench: &mut Bench) -> Result<(), Failure> {
    bench.stop()?;
    let cluster = cluster(1, STORE_MB)?;
    let client = driver(&cluster)?;
    let mut to = vec![1u8; GIGABYTE];
    let value = Blob(Bytes::from(vec![7u8; GIGABYTE]));
    // Both places of the store are touched for the first time.
    let first = [client.put(&value)?, client.put(&value)?];
    drop(first);
    let (mut copies, mut puts) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let at = Instant::now();
        to.copy_from_slice(std::hint::black_box(&value));
        copies.push(at.elapsed());
        std::hint::black_box(&to);
        let at = Instant::now();
        let reference = client.put(&value)?;
        puts.push(at.elapsed());
        if reference.get()? != value {
            return Err("an object is not what was put".into());
        }
    }
    let [memcpy, put] = [rate(copies), rate(puts)];
    bench.figures.add("memcpy of 1 GB", memcpy, "GB/s");
    bench.figures.add("single client put gigabytes, warm", put, "GB/s");
    bench.figures.add_aimed("the same, of memcpy", put / memcpy, "×", MEMCPY_SHARE, None);
    client.end(true)?;
    Ok(())
}

/// GB in a second; the median of some rounds.
fn rate(mut rounds: Vec<Duration>) -> f64 {
    rounds.sort_unstable();
    GIGABYTE as f64 / rounds[rounds.len() / 2].as_nanos() as f64
}

/// A gigabyte from one node process to another, beside one TCP stream on the loopback interface.
pub fn transfer(bench: &mut Bench) -> Result<(), Failure> {
    bench.stop()?;
    let stream = (0..ROUNDS).map(|_| loopback()).collect::<io::Result<_>>();
    let stream = rate(stream.map_err(|e| format!("the loopback interface: {e}"))?);
    let mut rates = transfer::rates()?;
    rates.sort_by(f64::total_cmp);
    let ours = rates[rates.len() / 2];
    bench.figures.add("one TCP stream on loopback, 1 GB", stream, "GB/s");
    bench.figures.add("transfer of 1 GB between two nodes, checksummed", ours, "GB/s");
    bench.figures.add_aimed("the same, of one TCP stream", ours / stream, "×", STREAM_SHARE, None);
    Ok(())
}

/// How long a gigabyte takes from one thread to another.
fn loopback() -> io::Result<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut to = TcpStream::connect(listener.local_addr()?)?;
    let (mut from, _) = listener.accept()?;
    let at = Instant::now();
    let writer = std::thread::spawn(move || {
        let chunk = vec![7u8; CHUNK];
        let mut left = GIGABYTE;
        while left > 0 {
            let part = left.min(CHUNK);
            to.write_all(&chunk[..part])?;
            left -= part;
        }
        Ok::<_, io::Error>(())
    });
    let (mut chunk, mut read) = (vec![0u8; CHUNK], 0);
    loop {
        match from.read(&mut chunk)? {
            0 => break,
            count => read += count,
        }
    }
    let took = at.elapsed();
    writer.join().map_err(|_| io::Error::other("the writer panicked"))??;
    if read == GIGABYTE { Ok(took) } else { Err(io::Error::other(format!("{read} bytes came"))) }
}
