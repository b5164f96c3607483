//! Planting bugs and looking for them: `mobula-sim mutants list | run | matrix`.
//!
//! A bug is looked for seed after seed, by every layer that should find it. One that is not found
//! within so many seeds is a bug of the simulation: its programs or faults do not go there, or no
//! judge looks.

pub mod catalogue;
mod hunt;
mod report;

use catalogue::{Layer, MUTANTS, Mutant, Place};
use clap::Subcommand;
use std::process::ExitCode;

/// What to do with planted bugs.
#[derive(Subcommand)]
pub enum What {
    /// All bugs that can be planted.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Plants one bug and looks for it.
    Run {
        /// Its name.
        id: String,
        #[command(flatten)]
        how: How,
    },
    /// Plants every bug in turn.
    Matrix {
        /// Only these bugs, with commas.
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        #[command(flatten)]
        how: How,
    },
}

/// How long and where to look.
#[derive(clap::Args)]
pub struct How {
    /// Gives up after so many seeds.
    #[arg(long, default_value_t = 200)]
    max_seeds: u64,
    /// Only this layer: core, full, store or groups. Else every one that should find it.
    #[arg(long, value_parser = parse_layer)]
    layer: Option<Layer>,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// As rows for the table in `docs/mutants.md`.
    #[arg(long, conflicts_with = "json")]
    table: bool,
}

fn parse_layer(name: &str) -> Result<Layer, String> {
    let known = Layer::ALL.into_iter().find(|layer| layer.name() == name);
    known.ok_or_else(|| format!("{name} is no layer; there are core, full, store and groups"))
}

/// Plants a bug of the product in this process, before anything else happens.
///
/// # Errors
/// There is none of this name, or this program was built without them.
pub fn plant(id: &str) -> Result<(), String> {
    match catalogue::find(id) {
        None => Err(format!("no bug is called {id}: `mobula sim mutants list` has all")),
        Some(Mutant { place: Place::Planted(name), .. }) => {
            Err(format!("{id} is planted by `mobula sim store --plant {name}`"))
        }
        Some(_) => plant_in_the_product(id),
    }
}

#[cfg(feature = "mutants")]
fn plant_in_the_product(id: &str) -> Result<(), String> {
    mobula_base::mutants::plant(id);
    Ok(())
}

#[cfg(not(feature = "mutants"))]
fn plant_in_the_product(_id: &str) -> Result<(), String> {
    Err("this simulator was built without bugs: build it with --features mutants".into())
}

/// Whether a run with a planted bug came to its place; nothing to say without one.
pub fn reached() -> Option<bool> {
    #[cfg(feature = "mutants")]
    return mobula_base::mutants::is_any_planted().then(mobula_base::mutants::was_reached);
    #[cfg(not(feature = "mutants"))]
    None
}

/// Runs `what` in a program that has these layers.
pub fn run(what: What, has: &[Layer]) -> ExitCode {
    match what {
        What::List { json } => {
            report::list(json);
            ExitCode::SUCCESS
        }
        What::Run { id, how } => look_for(&[id], &how, has),
        What::Matrix { only, how } => look_for(&only, &how, has),
    }
}

/// Looks for the bugs of these names, or all. The exit code is 2 when one was not found.
fn look_for(only: &[String], how: &How, has: &[Layer]) -> ExitCode {
    if let Some(layer) = how.layer.filter(|layer| !has.contains(layer)) {
        eprintln!("this program has no {} layer: ask `mobula-sim`, which has all", layer.name());
        return ExitCode::from(64);
    }
    if let Some(unknown) = only.iter().find(|id| catalogue::find(id).is_none()) {
        eprintln!("no bug is called {unknown}: `mobula sim mutants list` has all");
        return ExitCode::from(64);
    }
    let chosen = MUTANTS.iter().filter(|mutant| only.is_empty() || only.iter().any(|id| id == mutant.id));
    let mut rows = Vec::new();
    for mutant in chosen {
        let layers: Vec<Layer> = match how.layer {
            Some(layer) if mutant.layers.contains(&layer) => vec![layer],
            Some(_) => continue,
            None => mutant.layers.iter().filter(|layer| has.contains(layer)).copied().collect(),
        };
        for layer in layers {
            let found = hunt::hunt(layer, mutant, how.max_seeds);
            let row = report::Row { mutant, layer, found };
            // As soon as it is known: all of them together take long.
            match (how.json, how.table) {
                (true, _) => {}
                (_, true) => println!("{}", row.in_table()),
                (_, false) => println!("{row}"),
            }
            rows.push(row);
        }
    }
    if how.json {
        println!("{}", report::json(&rows, how.max_seeds));
    } else {
        println!("{}", report::summary(&rows));
    }
    ExitCode::from(if report::survivors(&rows).is_empty() { 0 } else { 2 })
}
