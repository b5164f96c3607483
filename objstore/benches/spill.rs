//! What packing costs and saves: an object of 256 MB of zeros, of text, and of noise, written to a file as it is
//! and as [`mobula_objstore::packing`] decides, synced, and read back from the disk, piece by piece on one thread,
//! as a node does.
//!
//! `cargo bench -p mobula-objstore --bench spill -- [DIRECTORY]`

use mobula_objstore::packing::{PIECE, PREFIX, pack, packed_len, pays, samples, unpack};
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes of an object.
const LEN: usize = 256 << 20;
/// Each is measured so often; the fastest counts.
const TIMES: usize = 3;

fn zeros() -> Vec<u8> {
    vec![0; LEN]
}

/// Lines as a log has them.
fn text() -> Vec<u8> {
    let mut state = 1;
    let mut bytes = Vec::with_capacity(LEN + 128);
    for line in 0_u64.. {
        if bytes.len() >= LEN {
            break;
        }
        let (a, b) = (dice(&mut state) % 1000, dice(&mut state) % 100_000);
        writeln!(bytes, "{line:010} node-{} took {b} us for task {:x} of stage {}", a % 32, a * b, a % 7)
            .expect("memory");
    }
    bytes.truncate(LEN);
    bytes
}

fn noise() -> Vec<u8> {
    let mut state = 1;
    (0..LEN / 8).flat_map(|_| dice(&mut state).to_le_bytes()).collect()
}

fn dice(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Writes it and says how many bytes that took.
fn write(path: &Path, bytes: &[u8], packs: bool) -> usize {
    let mut file = File::create(path).expect("the directory takes files");
    let mut crc = crc32fast::Hasher::new();
    let mut stored = 0;
    for piece in bytes.chunks(PIECE) {
        let copied = piece.to_vec();
        crc.update(&copied);
        let out = if packs { pack(&copied) } else { copied };
        file.write_all(&out).expect("there is room");
        stored += out.len();
    }
    file.sync_data().expect("it is durable");
    fadvise(&file, 0, None, Advice::DontNeed).expect("a real file");
    stored
}

fn read(path: &Path, packed: bool) -> Vec<u8> {
    let mut file = File::open(path).expect("written before");
    let mut crc = crc32fast::Hasher::new();
    let mut all = Vec::with_capacity(LEN);
    while all.len() < LEN {
        let len = PIECE.min(LEN - all.len());
        let mut prefix = [0; PREFIX];
        let stored = if packed {
            file.read_exact(&mut prefix).expect("as written");
            packed_len(&prefix, len).expect("as written")
        } else {
            len
        };
        let mut bytes = vec![0; stored];
        file.read_exact(&mut bytes).expect("as written");
        let bytes = if packed { unpack(bytes, len).expect("as written") } else { bytes };
        crc.update(&bytes);
        all.extend(bytes);
    }
    all
}

fn fastest<T>(mut work: impl FnMut() -> T) -> (Duration, T) {
    let once = |_| {
        let from = Instant::now();
        let made = work();
        (from.elapsed(), made)
    };
    (0..TIMES).map(once).min_by_key(|(took, _)| *took).expect("more than none")
}

fn main() {
    let directory = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_else(|| ".".into());
    let path = Path::new(&directory).join("mobula-bench.spill");
    println!("{:<8} {:<10} {:>12} {:>10} {:>10}", "object", "file", "bytes", "write", "read");
    for (name, make) in [("zeros", zeros as fn() -> Vec<u8>), ("text", text), ("noise", noise)] {
        let bytes = make();
        let picked = samples(LEN as u64).into_iter();
        let picked: Vec<_> = picked.map(|(from, to)| bytes[from as usize..to as usize].to_vec()).collect();
        let (decides, packs) = fastest(|| pays(&picked));
        for (how, packs) in [("as it is", false), ("as decided", packs)] {
            let (writing, stored) = fastest(|| write(&path, &bytes, packs));
            let (reading, back) = fastest(|| {
                let file = File::open(&path).expect("written before");
                fadvise(&file, 0, None, Advice::DontNeed).expect("a real file");
                read(&path, packs)
            });
            assert!(back == bytes, "what came back is something else");
            println!(
                "{name:<8} {how:<10} {stored:>12} {:>7} ms {:>7} ms",
                writing.as_millis(),
                reading.as_millis()
            );
        }
        println!("{name:<8} deciding took {decides:?}");
    }
    let _ = std::fs::remove_file(&path);
}
