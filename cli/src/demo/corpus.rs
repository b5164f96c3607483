//! A seeded corpus for machines whose cargo cache holds too little: files that look enough like
//! source code, some of them lightly edited copies of earlier ones.

use mobula_base::random::Random;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

/// Size of the corpus that stands in for the cargo cache.
pub const CORPUS_BYTES: u64 = 40_000_000;

/// Files of one directory.
const FILES_PER_FOLDER: usize = 64;
/// One file in this many is an edited copy.
const COPY_EVERY: u64 = 12;

/// Writes at least `bytes` of files below `dir`, the same for the same seed. Returns the planted
/// pairs, as paths relative to `dir`.
///
/// # Errors
/// A file cannot be written.
pub fn write(dir: &Path, seed: u64, bytes: u64) -> io::Result<Vec<(String, String)>> {
    let mut random = Random::new(seed).fork("corpus");
    let mut planted = Vec::new();
    let mut originals: Vec<(String, Vec<String>)> = Vec::new();
    let mut written = 0;
    for number in 0.. {
        if written >= bytes {
            break;
        }
        let name = format!("part{:03}/file{number:05}.rs", number / FILES_PER_FOLDER);
        let copy_of = (!originals.is_empty() && random.below(COPY_EVERY) == 0)
            .then(|| random.below(originals.len() as u64) as usize);
        let lines = match copy_of {
            Some(original) => {
                planted.push((originals[original].0.clone(), name.clone()));
                edited(&originals[original].1, &mut random)
            }
            None => source(&mut random),
        };
        let text = lines.join("\n");
        let path = dir.join(&name);
        fs::create_dir_all(path.parent().expect("a file in a folder"))?;
        fs::write(&path, &text)?;
        written += text.len() as u64;
        // A few originals are enough to copy from; keeping all would keep the whole corpus.
        if copy_of.is_none() && originals.len() < 200 {
            originals.push((name, lines));
        }
    }
    Ok(planted)
}

/// The lines of a file of its own.
fn source(random: &mut Random) -> Vec<String> {
    let functions = 5 + random.below(60);
    let mut lines = Vec::new();
    for _ in 0..functions {
        lines.push(format!("/// {} the {} of a {}.", word(random), word(random), word(random)));
        lines.push(format!(
            "pub fn {}({}: u64, {}: &str) -> u64 {{",
            word(random),
            word(random),
            word(random)
        ));
        for _ in 0..3 + random.below(20) {
            lines.push(statement(random));
        }
        lines.push("}\n".into());
    }
    lines
}

/// A line of a function body.
fn statement(random: &mut Random) -> String {
    let mut line = String::from("    ");
    let (a, b, c) = (word(random), word(random), word(random));
    let n = random.below(1000);
    let written = match random.below(4) {
        0 => write!(line, "let {a} = {b}.{c}({n});"),
        1 => write!(line, "if {a} > {n} {{ return {b}({c}); }}"),
        2 => write!(line, "{a}.{b} += {c} * {n};"),
        _ => write!(line, "for {a} in {b}..{n} {{ {c}({a}); }}"),
    };
    written.expect("a String takes everything");
    line
}

/// A copy with one line in sixty replaced: a similarity of about 0.9.
fn edited(lines: &[String], random: &mut Random) -> Vec<String> {
    lines.iter().map(|l| if random.below(60) == 0 { statement(random) } else { l.clone() }).collect()
}

/// A name of two or three syllables out of a few thousand.
fn word(random: &mut Random) -> String {
    const SYLLABLES: [&str; 16] =
        ["ba", "co", "de", "fi", "ga", "ho", "ju", "ke", "lo", "mi", "na", "pe", "ro", "su", "ta", "vi"];
    (0..2 + random.below(2)).map(|_| SYLLABLES[random.below(16) as usize]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_corpus_repeats_for_its_seed() {
        let dir = std::env::temp_dir().join(format!("mobula-corpus-test-{}", std::process::id()));
        let read = |seed: u64, name: &str| {
            let to = dir.join(name);
            let planted = write(&to, seed, 200_000).expect("writable");
            (planted, fs::read(to.join("part000/file00003.rs")).expect("a fourth file"))
        };
        let (one, again, other) = (read(1, "one"), read(1, "again"), read(2, "other"));
        fs::remove_dir_all(&dir).expect("it was written");
        assert_eq!(one, again);
        assert_ne!(one.1, other.1);
    }
}
