//! MinHash signatures: 128 numbers that stand for a set of shingles.
//!
//! For each of 128 hash functions the signature keeps the smallest hash over the set. Two sets
//! agree in a place with a probability equal to their Jaccard similarity.

use mobula_base::random::Random;
use std::sync::LazyLock;

/// Hash functions in a signature.
pub const HASHES: usize = 128;

/// A signature.
pub type Signature = [u32; HASHES];

/// The hash functions `x -> a*x + b` modulo 2^32 with odd `a`: a permutation of the 32-bit
/// numbers whose high bits, which decide a minimum, depend on all of `x`.
struct Functions {
    a: [u32; HASHES],
    b: [u32; HASHES],
}

static FUNCTIONS: LazyLock<Functions> = LazyLock::new(|| {
    // Fixed: signatures of different processes must be comparable.
    let mut random = Random::new(0).fork("minhash");
    let mut functions = Functions { a: [0; HASHES], b: [0; HASHES] };
    for i in 0..HASHES {
        functions.a[i] = random.next_u64() as u32 | 1;
        functions.b[i] = random.next_u64() as u32;
    }
    functions
});

/// Hash functions worked on at a time: their running minima stay in registers while the whole
/// set streams past.
const LANES: usize = 16;

/// The signature of a set of shingles. An empty set gives `u32::MAX` everywhere.
pub fn signature(shingles: &[u64]) -> Signature {
    let functions = &*FUNCTIONS;
    let folded: Vec<u32> = shingles.iter().map(|s| (s >> 32) as u32).collect();
    let mut out = [u32::MAX; HASHES];
    for group in 0..HASHES / LANES {
        let lanes = group * LANES..(group + 1) * LANES;
        let a: [u32; LANES] = functions.a[lanes.clone()].try_into().expect("LANES numbers");
        let b: [u32; LANES] = functions.b[lanes.clone()].try_into().expect("LANES numbers");
        let mut least = [u32::MAX; LANES];
        for x in &folded {
            for i in 0..LANES {
                least[i] = least[i].min(a[i].wrapping_mul(*x).wrapping_add(b[i]));
            }
        }
        out[lanes].copy_from_slice(&least);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agreement(left: &[u64], right: &[u64]) -> f64 {
        let (left, right) = (signature(left), signature(right));
        left.iter().zip(&right).filter(|(l, r)| l == r).count() as f64 / HASHES as f64
    }

    #[test]
    fn agreement_estimates_jaccard() {
        let mut random = Random::new(1);
        let all: Vec<u64> = (0..3000).map(|_| random.next_u64()).collect();
        for (shared, expected) in [(2000, 1.0), (1600, 0.667), (1000, 0.333), (0, 0.0)] {
            // Two sets of 2000, sharing `shared`: Jaccard = shared / (4000 - shared).
            let left: Vec<u64> = all[..2000].to_vec();
            let right: Vec<u64> = all[2000 - shared..].iter().copied().take(2000).collect();
            let right = if right.len() < 2000 {
                right.into_iter().chain((0..).map(|i| i * 7919 + 13)).take(2000).collect()
            } else {
                right
            };
            let got = agreement(&left, &right);
            assert!((got - expected).abs() < 0.15, "{shared} shared: {got} for {expected}");
        }
    }

    #[test]
    fn order_does_not_count_and_the_empty_set_is_fixed() {
        assert_eq!(signature(&[1 << 40, 2 << 40, 3 << 40]), signature(&[3 << 40, 1 << 40, 2 << 40]));
        assert_eq!(signature(&[]), [u32::MAX; HASHES]);
    }
}
