//! True Jaccard similarity, in exact integers, so that every process agrees to the last digit.

use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// Pairs at least this similar are near-duplicates, in parts per million.
pub const SIMILAR_MIN_PPM: u64 = 800_000;

/// A pair of near-duplicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Match {
    /// The smaller file id.
    pub a: u32,
    /// The larger file id.
    pub b: u32,
    /// Jaccard similarity in parts per million, rounded down.
    pub similar_ppm: u32,
    /// Shingles they share.
    pub shared: u32,
}

/// Compares two sorted sets of distinct shingles; `None` below the threshold.
pub fn compare(a: (u32, &[u64]), b: (u32, &[u64])) -> Option<Match> {
    let shared = shared(a.1, b.1);
    let union = (a.1.len() + b.1.len()) as u64 - shared;
    // Without a shingle there is nothing to be similar in.
    let similar_ppm = (shared * 1_000_000).checked_div(union)?;
    (similar_ppm >= SIMILAR_MIN_PPM).then_some(Match {
        a: a.0,
        b: b.0,
        similar_ppm: similar_ppm as u32,
        shared: shared as u32,
    })
}

/// The size of the intersection of two sorted sets.
fn shared(a: &[u64], b: &[u64]) -> u64 {
    let (mut i, mut j, mut count) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            Ordering::Less => i += 1,
            Ordering::Greater => j += 1,
            Ordering::Equal => {
                count += 1;
                i += 1;
                j += 1;
            }
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ppm(a: &[u64], b: &[u64]) -> Option<u32> {
        compare((0, a), (1, b)).map(|m| m.similar_ppm)
    }

    #[test]
    fn similarity_is_exact_at_the_threshold() {
        assert_eq!(ppm(&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5]), Some(1_000_000));
        assert_eq!(ppm(&[1, 2, 3, 4], &[1, 2, 3, 4, 5]), Some(800_000));
        assert_eq!(ppm(&[1, 2, 3], &[1, 2, 3, 4]), None);
        assert_eq!(ppm(&[1, 3, 5], &[2, 4, 6]), None);
        assert_eq!(ppm(&[], &[]), None);
    }
}
