//! What each stage computes, as plain functions of its inputs: the tasks wrap these, and the
//! tests and the reference run call them without any cluster.

use super::block::{self, FileRef, Signed, Text};
use super::lsh::{self, Pair};
use super::minhash;
use super::similarity::{Match, compare};
use super::text::{SHINGLES_MIN, shingles};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// No more `verify` tasks than this; several pairs of blocks share one where there are more.
pub const VERIFY_TASKS_MAX: usize = 256;

/// `read`: the files of one block, read from disk.
///
/// # Errors
/// A file cannot be read, or is not as long as it was when the input was listed.
pub fn read(files: &[FileRef]) -> Result<Vec<u8>, String> {
    let bytes: u64 = files.iter().map(|f| f.len + 12).sum();
    let mut out = Vec::with_capacity(bytes as usize);
    for file in files {
        let text = fs::read(&file.path)
            .map_err(|e| format!("cannot read {}: {e}; it was there when the input was listed", file.path))?;
        if text.len() as u64 != file.len {
            return Err(format!(
                "{} has {} bytes, but had {} when the input was listed; do not change the input during a run",
                file.path,
                text.len(),
                file.len
            ));
        }
        block::write_text(&mut out, Text { id: file.id, package: file.package, bytes: &text });
    }
    Ok(out)
}

/// `shingle`: the signatures of a block's texts. Texts with too few shingles have none.
///
/// # Errors
/// The bytes are no block.
pub fn shingle(block: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    for text in block::texts(block)? {
        let set = shingles(text.bytes);
        if set.len() >= SHINGLES_MIN {
            let signature = minhash::signature(&set);
            block::write_signed(&mut out, &Signed { id: text.id, package: text.package, signature });
        }
    }
    Ok(out)
}

/// `band`: the candidate pairs of some bands over the signatures of all blocks.
///
/// # Errors
/// A list of signatures is malformed.
pub fn band<'a>(
    lists: impl IntoIterator<Item = &'a [u8]>,
    bands: std::ops::Range<u32>,
) -> Result<Vec<Pair>, String> {
    let mut signed = Vec::new();
    for list in lists {
        signed.append(&mut block::signatures(list)?);
    }
    Ok(lsh::candidates(&signed, bands))
}

/// Merges what the `band` tasks found.
pub fn merge(parts: impl IntoIterator<Item = Vec<Pair>>) -> Vec<Pair> {
    let mut all: Vec<Pair> = parts.into_iter().flatten().collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The input of one `verify` task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The blocks that hold the files, ascending.
    pub blocks: Vec<u32>,
    /// The pairs to compare.
    pub pairs: Vec<Pair>,
}

/// Groups candidate pairs by the two blocks that hold their files, so that each block is fetched
/// by few tasks; at most `tasks_max` groups. `block_of` maps a file id to its block.
pub fn group(pairs: &[Pair], block_of: &[u32], tasks_max: usize) -> Vec<Comparison> {
    let mut by_blocks: BTreeMap<(u32, u32), Vec<Pair>> = BTreeMap::new();
    for (a, b) in pairs {
        let (at, bt) = (block_of[*a as usize], block_of[*b as usize]);
        by_blocks.entry((at.min(bt), at.max(bt))).or_default().push((*a, *b));
    }
    let together = by_blocks.len().div_ceil(tasks_max.max(1)).max(1);
    let grouped: Vec<_> = by_blocks.into_iter().collect();
    grouped
        .chunks(together)
        .map(|chunk| {
            let blocks: BTreeSet<u32> = chunk.iter().flat_map(|((a, b), _)| [*a, *b]).collect();
            let pairs = chunk.iter().flat_map(|(_, pairs)| pairs.iter().copied()).collect();
            Comparison { blocks: blocks.into_iter().collect(), pairs }
        })
        .collect()
}

/// `verify`: the true similarity of the pairs, whose files are in `blocks`.
///
/// # Errors
/// A block is malformed, or a file of a pair is in none of the blocks.
pub fn verify<'a>(blocks: impl IntoIterator<Item = &'a [u8]>, pairs: &[Pair]) -> Result<Vec<Match>, String> {
    let wanted: BTreeSet<u32> = pairs.iter().flat_map(|(a, b)| [*a, *b]).collect();
    let mut sets: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for block in blocks {
        for text in block::texts(block)? {
            if wanted.contains(&text.id) {
                sets.insert(text.id, shingles(text.bytes));
            }
        }
    }
    let set = |id: &u32| sets.get(id).ok_or(format!("file {id} is in none of the blocks given"));
    let mut out = Vec::new();
    for (a, b) in pairs {
        out.extend(compare((*a, set(a)?), (*b, set(b)?)));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_grouped_by_blocks_and_never_into_too_many_tasks() {
        // Files 0..8 in blocks of two.
        let block_of = [0, 0, 1, 1, 2, 2, 3, 3];
        let pairs = [(0, 2), (0, 3), (1, 4), (2, 5), (6, 7)];
        let groups = group(&pairs, &block_of, 100);
        assert_eq!(groups.len(), 4);
        assert_eq!(groups[0], Comparison { blocks: vec![0, 1], pairs: vec![(0, 2), (0, 3)] });
        assert_eq!(groups[3], Comparison { blocks: vec![3], pairs: vec![(6, 7)] });

        let few = group(&pairs, &block_of, 2);
        assert_eq!(few.len(), 2);
        assert_eq!(few[0].blocks, [0, 1, 2]);
        let total: usize = few.iter().map(|g| g.pairs.len()).sum();
        assert_eq!(total, pairs.len(), "no pair is lost by grouping");
        assert!(group(&[], &block_of, 2).is_empty());
    }

    #[test]
    fn a_pair_without_its_block_is_an_error() {
        let mut block = Vec::new();
        block::write_text(&mut block, Text { id: 0, package: 0, bytes: b"a b c d e f" });
        let error = verify([&block[..]], &[(0, 9)]).expect_err("file 9 is missing");
        assert!(error.contains("file 9"), "{error}");
    }

    #[test]
    fn a_file_that_changed_or_vanished_is_an_error() {
        let gone = FileRef { id: 0, package: 0, len: 1, path: "/nonexistent/a.rs".into() };
        assert!(read(&[gone]).expect_err("no such file").contains("/nonexistent/a.rs"));
    }
}
