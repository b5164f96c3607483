//! What was found, as lines, as a summary and as JSON.

use super::catalogue::{Layer, MUTANTS, Mutant, Place};
use super::hunt::Found;
use serde_json::{Value, json};
use std::fmt;

/// One bug in one layer.
pub struct Row {
    /// The bug.
    pub mutant: &'static Mutant,
    /// The layer.
    pub layer: Layer,
    /// How the hunt ended.
    pub found: Found,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, layer) = (self.mutant.id, self.layer.name());
        match &self.found {
            Found::At { seed, how } => write!(f, "{id:<5} {layer:<6} {seed:>6}  {how}"),
            Found::Not { seeds, reached } => {
                let why = if *reached { "its place was reached" } else { "its place was never reached" };
                write!(f, "{id:<5} {layer:<6} {:>6}  not found in {seeds} seeds; {why}", "-")
            }
        }
    }
}

impl Row {
    /// As a row of the table of all bugs: by which judge it was found, or how far anybody came.
    pub fn in_table(&self) -> String {
        let Mutant { id, breaks, what, .. } = self.mutant;
        let (seeds, how) = match &self.found {
            Found::At { seed, how } => (seed.to_string(), judge(how)),
            Found::Not { seeds, reached } => {
                let place = if *reached { "was reached" } else { "was not reached" };
                (format!("not in {seeds}"), format!("its place {place}"))
            }
        };
        format!("| `{id}` | {breaks} | {what} | {} | {seeds} | {how} |", self.layer.name())
    }
}

/// Who objected, of what a finding says: `safety: leak (G8, V4): ..` is by `leak`, for those rules.
fn judge(how: &str) -> String {
    let said = how.split_once(": ").map_or(how, |(_, said)| said);
    match said.split_once(" (") {
        Some(("panic", _)) => "an invariant of the core".to_owned(),
        Some((judge, rest)) if !judge.contains(' ') => {
            format!("`{judge}` ({})", rest.split(')').next().unwrap_or_default())
        }
        _ => said.replace('|', "/"),
    }
}

/// Bugs that no layer found.
pub fn survivors(rows: &[Row]) -> Vec<&'static str> {
    let mut open: Vec<&'static str> = rows.iter().map(|row| row.mutant.id).collect();
    open.dedup();
    open.retain(|id| !rows.iter().any(|row| row.mutant.id == *id && seed(row).is_some()));
    open
}

fn seed(row: &Row) -> Option<u64> {
    match row.found {
        Found::At { seed, .. } => Some(seed),
        Found::Not { .. } => None,
    }
}

/// How many were found, and after how many seeds.
pub fn summary(rows: &[Row]) -> String {
    let best = |mutant: &Mutant| rows.iter().filter(|row| row.mutant.id == mutant.id).filter_map(seed).min();
    let mut seeds: Vec<u64> = MUTANTS.iter().filter_map(best).collect();
    seeds.sort_unstable();
    let open = survivors(rows);
    let median = seeds.get(seeds.len() / 2).copied().unwrap_or(0);
    let most = seeds.last().copied().unwrap_or(0);
    let mut text =
        format!("{} found (median {median} seeds, at most {most}), {} not", seeds.len(), open.len());
    if !open.is_empty() {
        text += &format!(": {}", open.join(", "));
    }
    text
}

/// All of it, for programs.
pub fn json(rows: &[Row], max_seeds: u64) -> Value {
    let row = |row: &Row| {
        let (how, reached) = match &row.found {
            Found::At { how, .. } => (Some(how.as_str()), true),
            Found::Not { reached, .. } => (None, *reached),
        };
        json!({
            "id": row.mutant.id, "breaks": row.mutant.breaks, "layer": row.layer.name(),
            "seed": seed(row), "property": how, "reached": reached,
        })
    };
    json!({
        "max_seeds": max_seeds,
        "rows": rows.iter().map(row).collect::<Vec<_>>(),
        "survivors": survivors(rows),
    })
}

/// The catalogue.
pub fn list(as_json: bool) {
    if as_json {
        let entry = |mutant: &Mutant| {
            let place = match mutant.place {
                Place::Product => "product",
                Place::Planted(name) => name,
            };
            let layers: Vec<&str> = mutant.layers.iter().map(|layer| layer.name()).collect();
            json!({
                "id": mutant.id, "breaks": mutant.breaks, "what": mutant.what, "place": place, "layers": layers,
            })
        };
        println!("{}", MUTANTS.iter().map(entry).collect::<Value>());
        return;
    }
    for Mutant { id, breaks, what, layers, .. } in MUTANTS {
        let layers: Vec<&str> = layers.iter().map(|layer| layer.name()).collect();
        println!("{id:<5} {breaks:<12} {:<11} {what}", layers.join(","));
    }
}

#[cfg(test)]
mod tests {
    use super::judge;

    #[test]
    fn a_row_of_the_table_names_the_judge_and_its_rules() {
        assert_eq!(judge("safety: leak (G8, V4): shard 0 still has 3 records"), "`leak` (G8, V4)");
        assert_eq!(judge("safety: panic (-): panicked at 0.4s: assertion"), "an invariant of the core");
        assert_eq!(judge("determinism: two runs differ"), "two runs differ");
    }
}
