//! The job's answer in a form that two processes can compare: one hash.

use super::similarity::Match;

/// Sorts matches into the order of the answer: the most similar first, then by file.
pub fn order(matches: &mut Vec<Match>) {
    matches.sort_unstable_by_key(|m| (u32::MAX - m.similar_ppm, m.a, m.b));
    matches.dedup();
}

/// The hash of an answer over canonical bytes: the label of both files and the similarity of
/// every pair, in order. Labels rather than ids, so that the hash also covers what an id means.
pub fn hash(matches: &[Match], labels: &[String]) -> String {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    for m in matches {
        for id in [m.a, m.b] {
            let label = labels.get(id as usize).map_or("?", String::as_str);
            hasher.update(&(label.len() as u32).to_le_bytes());
            hasher.update(label.as_bytes());
        }
        hasher.update(&m.similar_ppm.to_le_bytes());
        hasher.update(&m.shared.to_le_bytes());
    }
    format!("{:032x}", hasher.digest128())
}

/// The pairs worth showing: the largest ones that are not plain copies, at most one for each two
/// packages, then copies to fill up.
pub fn interesting<'a>(matches: &'a [Match], packages: &[u32], count: usize) -> Vec<&'a Match> {
    let mut by_worth: Vec<&Match> = matches.iter().collect();
    by_worth.sort_by_key(|m| (m.similar_ppm == 1_000_000, u32::MAX - m.shared, m.a, m.b));
    let mut seen = std::collections::BTreeSet::new();
    by_worth.retain(|m| {
        let package = |id: u32| packages.get(id as usize).copied().unwrap_or(id);
        seen.insert((package(m.a), package(m.b)))
    });
    by_worth.truncate(count);
    by_worth
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(a: u32, b: u32, similar_ppm: u32, shared: u32) -> Match {
        Match { a, b, similar_ppm, shared }
    }

    #[test]
    fn the_hash_follows_the_set_of_pairs_and_nothing_else() {
        let labels: Vec<String> = ["x/a.rs", "y/a.rs", "z/a.rs"].map(String::from).to_vec();
        let mut one = vec![pair(0, 1, 900_000, 9), pair(0, 2, 950_000, 9), pair(0, 1, 900_000, 9)];
        let mut two = vec![pair(0, 2, 950_000, 9), pair(0, 1, 900_000, 9)];
        order(&mut one);
        order(&mut two);
        assert_eq!(one, two);
        assert_eq!(hash(&one, &labels), hash(&two, &labels));
        assert_eq!(hash(&one, &labels).len(), 32);
        two[0].similar_ppm -= 1;
        assert_ne!(hash(&one, &labels), hash(&two, &labels));
    }

    #[test]
    fn large_near_copies_come_first_and_packages_once() {
        let matches = [
            pair(0, 1, 1_000_000, 500),
            pair(0, 2, 900_000, 50),
            pair(1, 2, 850_000, 80),
            pair(3, 2, 990_000, 70),
        ];
        let packages = [0, 1, 2, 1];
        let shown: Vec<(u32, u32)> = interesting(&matches, &packages, 2).iter().map(|m| (m.a, m.b)).collect();
        assert_eq!(shown, [(1, 2), (0, 2)]);
    }
}
