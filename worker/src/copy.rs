//! Bytes into shared memory, and their checksum on the way.

use crc32fast::Hasher;
use mobula_objstore::Region;
use std::thread;

/// Bytes that are counted and then copied: while they are in the processor's cache.
const STRIDE: usize = 64 << 10;
/// From here on several threads take part: one alone does not use what the memory can do.
const SHARED_FROM: usize = 16 << 20;
/// Threads that take part at most.
const THREADS_MAX: usize = 4;

/// Copies `bytes` to `offset` of a region, if there is one; their checksum.
pub(crate) fn copy_in(region: Option<&Region>, offset: u64, bytes: &[u8]) -> Hasher {
    let threads = match bytes.len() {
        ..SHARED_FROM => 1,
        SHARED_FROM.. => thread::available_parallelism().map_or(1, |n| n.get().min(THREADS_MAX)),
    };
    let share = bytes.len().div_ceil(threads).next_multiple_of(STRIDE);
    if bytes.len() <= share {
        return copy_share(region, offset, bytes);
    }
    let mut crc = Hasher::new();
    thread::scope(|scope| {
        let share_of = |(n, part)| scope.spawn(move || copy_share(region, offset + (n * share) as u64, part));
        let (first, rest) = bytes.split_at(share);
        let rest: Vec<_> = rest.chunks(share).enumerate().map(|(n, part)| share_of((n + 1, part))).collect();
        crc = copy_share(region, offset, first);
        for part in rest {
            crc.combine(&part.join().expect("copies do not panic"));
        }
    });
    crc
}

fn copy_share(region: Option<&Region>, offset: u64, bytes: &[u8]) -> Hasher {
    let mut crc = Hasher::new();
    for (n, stride) in bytes.chunks(STRIDE).enumerate() {
        crc.update(stride);
        if let Some(region) = region {
            region.write(offset + (n * STRIDE) as u64, stride);
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_arrives_and_the_checksum_is_that_of_the_whole() {
        let region = Region::heap(64 << 20);
        for len in [0, 1, STRIDE - 1, STRIDE + 1, SHARED_FROM - 1, SHARED_FROM, SHARED_FROM + 3 * STRIDE + 5]
        {
            let bytes: Vec<u8> = (0..len).map(|n| (n ^ (n >> 9)) as u8).collect();
            let crc = copy_in(Some(&region), 7, &bytes);
            assert_eq!(crc.finalize(), crc32fast::hash(&bytes), "{len} bytes");
            assert!(region.view(7, len as u64) == bytes, "{len} bytes");
            assert_eq!(copy_in(None, 0, &bytes).finalize(), crc32fast::hash(&bytes));
        }
    }
}
