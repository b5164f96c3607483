//! The catalogue of planted bugs and the product name the same ones.

#[allow(dead_code)] // The simulator reads all of it; here it is compared with the sources.
#[path = "../src/mutants/catalogue.rs"]
mod catalogue;

use catalogue::{Layer, MUTANTS, Mutant, Place};
use std::collections::BTreeSet;
use std::path::Path;

/// Crates in which bugs can be planted.
const PRODUCT: [&str; 8] = ["base", "proto", "net", "gcs", "scheduler", "objstore", "worker", "node"];

/// Every name in a `mutant!("..")` below `dir`.
fn sites(dir: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).expect("the sources are there") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            sites(&path, names);
        } else if path.extension().is_some_and(|ending| ending == "rs")
            && !path.ends_with("base/src/mutants.rs")
        {
            let text = std::fs::read_to_string(&path).expect("text");
            let after = text.split("mutant!(\"").skip(1);
            names.extend(after.filter_map(|rest| rest.split_once('"')).map(|(name, _)| name.to_owned()));
        }
    }
}

#[test]
fn every_bug_has_a_place_and_every_place_is_in_the_catalogue() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace");
    let mut there = BTreeSet::new();
    for name in PRODUCT {
        sites(&root.join(name).join("src"), &mut there);
    }
    let in_the_product = |mutant: &&Mutant| mutant.place == Place::Product;
    let listed: BTreeSet<String> =
        MUTANTS.iter().filter(in_the_product).map(|mutant| mutant.id.to_owned()).collect();
    assert_eq!(there, listed);
}

#[test]
fn names_are_sorted_and_each_says_who_should_find_it() {
    for pair in MUTANTS.windows(2) {
        // R2 before R10: by letter, then by number, then by what follows.
        assert!(key(pair[0].id) < key(pair[1].id), "{} and {}", pair[0].id, pair[1].id);
    }
    for mutant in MUTANTS {
        assert!(!mutant.layers.is_empty() && !mutant.what.is_empty() && !mutant.breaks.is_empty());
        let planted = mutant.place != Place::Product;
        assert!(!planted || mutant.layers == [Layer::Store], "{}", mutant.id);
    }
}

fn key(id: &str) -> (char, u32, String) {
    let (letter, rest) = id.split_at(1);
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let number = digits.parse().expect("a letter and a number");
    (letter.chars().next().expect("one"), number, rest[digits.len()..].to_owned())
}

#[test]
fn no_manifest_asks_for_bugs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace");
    for name in PRODUCT.into_iter().chain(["cli", "worker/macros", "sim-tests"]) {
        let text = std::fs::read_to_string(root.join(name).join("Cargo.toml")).expect("there");
        for line in text.lines().filter(|line| line.contains("mutants") && !line.starts_with('#')) {
            let within_the_feature = line.starts_with("mutants = ") && ["base", "sim-tests"].contains(&name);
            assert!(within_the_feature, "{name}: {line}");
        }
        assert!(!text.contains("default = "), "{name} has default features");
    }
}
