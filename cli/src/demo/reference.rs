//! The single-threaded reference run: the same answer from the files alone.
//!
//! It shares no stage output with the cluster's run. It is given the list of files (so that a file
//! that cargo adds meanwhile does not change the question), reads every file itself, and compares in one go, without blocks, bands dealt to tasks, or merging.

use super::answer;
use super::block::Signed;
use super::input::Input;
use super::lsh::{BANDS, candidates};
use super::minhash;
use super::similarity::{Match, compare};
use super::text::{SHINGLES_MIN, shingles};
use std::fs;

/// The answer for `input`, in order.
///
/// # Errors
/// A file cannot be read.
pub fn run(input: &Input) -> Result<Vec<Match>, String> {
    let mut sets: Vec<Vec<u64>> = Vec::with_capacity(input.files.len());
    let mut signed = Vec::new();
    for file in &input.files {
        let text = fs::read(&file.path).map_err(|e| format!("cannot read {}: {e}", file.path))?;
        let set = shingles(&text);
        if set.len() >= SHINGLES_MIN {
            signed.push(Signed { id: file.id, package: file.package, signature: minhash::signature(&set) });
        }
        sets.push(set);
    }
    let mut matches: Vec<Match> = candidates(&signed, 0..BANDS)
        .into_iter()
        .filter_map(|(a, b)| compare((a, &sets[a as usize]), (b, &sets[b as usize])))
        .collect();
    answer::order(&mut matches);
    Ok(matches)
}

#[cfg(test)]
mod tests {
    use super::super::block::pack;
    use super::super::{corpus, input, steps};
    use super::*;

    /// The cluster's way, stage by stage, with bands dealt to `tasks` tasks.
    fn staged(input: &Input, tasks: u32) -> Vec<Match> {
        let blocks = pack(&input.files);
        let texts: Vec<Vec<u8>> = blocks.iter().map(|b| steps::read(b).expect("readable")).collect();
        let lists: Vec<Vec<u8>> = texts.iter().map(|b| steps::shingle(b).expect("a block")).collect();
        let each = BANDS / tasks;
        let parts = (0..tasks).map(|i| {
            steps::band(lists.iter().map(Vec::as_slice), i * each..(i + 1) * each).expect("signatures")
        });
        let pairs = steps::merge(parts);
        let mut matches = Vec::new();
        for comparison in steps::group(&pairs, &input.block_of(&blocks), 7) {
            let needed = comparison.blocks.iter().map(|b| texts[*b as usize].as_slice());
            matches.extend(steps::verify(needed, &comparison.pairs).expect("all blocks given"));
        }
        answer::order(&mut matches);
        matches
    }

    #[test]
    fn the_reference_and_the_stages_agree_and_find_what_was_planted() {
        let dir = std::env::temp_dir().join(format!("mobula-reference-test-{}", std::process::id()));
        let planted = corpus::write(&dir, 3, 3_000_000).expect("a corpus");
        let input = input::directory(&dir).expect("an input");
        let matches = run(&input);
        let staged: Vec<Vec<Match>> = [1, 4, 16].map(|tasks| staged(&input, tasks)).to_vec();
        std::fs::remove_dir_all(&dir).expect("the corpus was there");

        let matches = matches.expect("readable");
        for other in staged {
            assert_eq!(matches, other);
        }
        let labels: Vec<&str> = input.labels.iter().map(String::as_str).collect();
        assert!(planted.len() >= 5, "{planted:?}");
        for (original, copy) in planted {
            let found = matches.iter().any(|m| {
                let pair = (labels[m.a as usize], labels[m.b as usize]);
                pair == (&original, &copy) || pair == (&copy, &original)
            });
            assert!(found, "{original} and {copy} are near-duplicates");
        }
    }
}
