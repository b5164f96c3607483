//! Locality-sensitive hashing: which files are worth comparing at all.
//!
//! A signature is cut into 32 bands of 4 rows. Two files that agree in all rows of some band are
//! a candidate pair: nearly certain at a similarity of 0.8, rare below 0.3.

use super::block::Signed;
use mobula_base::ids::hash64;

/// Bands in a signature.
pub const BANDS: u32 = 32;
/// Signature places in a band.
pub const ROWS: usize = 4;
/// In a bucket with more files than this only neighbours are linked: license headers and tables
/// of constants would otherwise give a quadratic number of pairs.
pub const BUCKET_MAX: usize = 48;

/// Two files to compare, the smaller id first.
pub type Pair = (u32, u32);

/// The candidate pairs of `bands`, sorted and distinct. Only files of different packages pair
/// up. The result depends on the set of signatures, not on their order.
pub fn candidates(signed: &[Signed], bands: std::ops::Range<u32>) -> Vec<Pair> {
    let mut out = Vec::new();
    for band in bands {
        let mut buckets: Vec<(u64, u32, u32)> =
            signed.iter().map(|s| (bucket(s, band), s.id, s.package)).collect();
        buckets.sort_unstable();
        for members in buckets.chunk_by(|left, right| left.0 == right.0) {
            link(members, &mut out);
        }
    }
    out.sort_unstable();
    out.dedup();
    out
}

/// The bucket of a signature in a band.
fn bucket(signed: &Signed, band: u32) -> u64 {
    let from = band as usize * ROWS;
    let mut bytes = [0; ROWS * 4];
    for (place, number) in bytes.chunks_exact_mut(4).zip(&signed.signature[from..from + ROWS]) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    hash64(&[&bytes])
}

/// Adds the pairs among the members of one bucket, which are sorted by file id.
fn link(members: &[(u64, u32, u32)], out: &mut Vec<Pair>) {
    let reach = if members.len() > BUCKET_MAX { 1 } else { members.len() };
    for (at, (_, id, package)) in members.iter().enumerate() {
        for (_, other, other_package) in members[at + 1..].iter().take(reach) {
            if package != other_package {
                out.push((*id, *other));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::minhash::{HASHES, signature};
    use super::*;
    use mobula_base::random::Random;

    /// A signature of `shared` shingles common to all plus `own` ones.
    fn signed(id: u32, package: u32, shared: u64, own: u64) -> Signed {
        let mut common = Random::new(5);
        let mut private = Random::new(1000 + u64::from(id));
        let set: Vec<u64> =
            (0..shared).map(|_| common.next_u64()).chain((0..own).map(|_| private.next_u64())).collect();
        Signed { id, package, signature: signature(&set) }
    }

    #[test]
    fn near_duplicates_pair_up_and_strangers_do_not() {
        // 0 and 1 share 900 of 1000 shingles (Jaccard 0.82), 2 and 3 nothing.
        let all =
            [signed(0, 0, 900, 100), signed(1, 1, 900, 100), signed(2, 2, 0, 1000), signed(3, 3, 0, 1000)];
        assert_eq!(candidates(&all, 0..BANDS), [(0, 1)]);
    }

    #[test]
    fn one_package_has_no_pairs_and_order_does_not_count() {
        let mut all: Vec<Signed> = (0..6).map(|id| signed(id, id / 3, 950, 50)).collect();
        let pairs = candidates(&all, 0..BANDS);
        assert_eq!(pairs.len(), 9, "three times three across the packages: {pairs:?}");
        all.reverse();
        assert_eq!(candidates(&all, 0..BANDS), pairs);
    }

    #[test]
    fn bands_of_several_tasks_add_up() {
        let all: Vec<Signed> = (0..40).map(|id| signed(id, id, 700, 300)).collect();
        let mut parts: Vec<Pair> = (0..BANDS / 2).flat_map(|i| candidates(&all, i * 2..i * 2 + 2)).collect();
        parts.sort_unstable();
        parts.dedup();
        assert_eq!(parts, candidates(&all, 0..BANDS));
    }

    #[test]
    fn a_crowded_bucket_links_neighbours_only() {
        let all: Vec<Signed> =
            (0..200).map(|id| Signed { id, package: id, signature: [1; HASHES] }).collect();
        assert_eq!(candidates(&all, 0..BANDS).len(), 199);
    }
}
