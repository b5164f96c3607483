//! The README shows what the demo prints: the same lines in the same order, whatever the figures.

use std::fs;
use std::path::Path;
use std::process::Command;

/// The words that start a line at the margin.
fn headings(text: &str) -> Vec<String> {
    let at_margin = |line: &&str| line.starts_with(|c: char| c.is_ascii_alphabetic());
    let first_word = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
    text.lines().filter(at_margin).map(first_word).collect()
}

#[test]
fn the_console_block_is_what_the_demo_prints() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace");
    let readme = fs::read_to_string(root.join("README.md")).expect("there is a README");
    let block = readme.split("```console").nth(1).and_then(|rest| rest.split("```").next()).expect("a block");
    assert!(block.contains("$ cargo run --release -- demo"), "the block starts with its command");
    assert!(block.contains("acknowledged writes lost: 0"), "{block}");

    // A smaller input, as this binary may be a debug build: two copies of every file.
    let input = std::env::temp_dir().join(format!("mobula-readme-test-{}", std::process::id()));
    fs::create_dir_all(&input).expect("writable");
    for (number, entry) in fs::read_dir(root.join("cli/src/demo")).expect("sources").flatten().enumerate() {
        for copy in ["a", "b"] {
            fs::copy(entry.path(), input.join(format!("{number}{copy}.rs"))).expect("copied");
        }
    }
    let output = Command::new(env!("CARGO_BIN_EXE_mobula"))
        .args(["demo", "--kill", "head:1@40%", "--kill", "node:2@60%", "--input"])
        .arg(&input)
        .output()
        .expect("the binary runs");
    fs::remove_dir_all(&input).expect("it was there");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(headings(block), headings(&printed), "{printed}");
}
