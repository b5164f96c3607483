//! `mobula summary`: how many there are of each kind.

use crate::args::{Kind, SummaryArgs};
use crate::commands::ask::{failed, looking};
use crate::commands::list::WATCHED_EVERY;
use crate::commands::table::aligned;
use crate::config::Settings;
use crate::exit::{self, Failure, Outcome};
use crate::output::Output;
use crate::say;
use mobula_look::Look;
use mobula_look::rows;
use mobula_look::state::FunctionState;
use mobula_proto::LookRequest;
use serde::Serialize;
use std::collections::BTreeMap;

/// What is counted by: a name and a state.
type Counts = BTreeMap<(String, String), (u64, u64)>;

/// Prints the counts, with `--watch` again and again.
pub fn run(settings: &Settings, args: &SummaryArgs) -> Outcome {
    let output = settings.output;
    looking(settings, async |look| {
        loop {
            show(output, &look, args.kind).await?;
            if !args.watch {
                return Ok(exit::OK);
            }
            tokio::time::sleep(WATCHED_EVERY).await;
            say!(output);
        }
    })
}

async fn show(output: Output, look: &Look, kind: Kind) -> Result<(), Failure> {
    let mut counts = Counts::new();
    let mut silent = Vec::new();
    let mut add = |name: &str, state: &str, count: u64, bytes: u64| {
        let entry = counts.entry((name.to_owned(), state.to_owned())).or_default();
        *entry = (entry.0 + count, entry.1 + bytes);
    };
    match kind {
        Kind::Nodes => rows::nodes(&look.busy_view().await.map_err(failed)?)
            .iter()
            .for_each(|row| add("nodes", row.state, 1, row.store_bytes_used)),
        Kind::Jobs => {
            rows::jobs(&look.view().await.map_err(failed)?)
                .iter()
                .for_each(|row| add(&row.name, row.state, 1, 0));
        }
        Kind::Workers => {
            let listed = look.workers().await.map_err(failed)?;
            listed.rows.iter().for_each(|row| add(&row.node, &row.state, 1, row.own_bytes));
            silent = listed.silent;
        }
        Kind::Tasks => {
            let listed = look.summary().await.map_err(failed)?;
            for FunctionState { name, states, .. } in &listed.rows {
                states.iter().for_each(|(state, count)| add(name, state, *count, 0));
            }
            silent = listed.silent;
            if listed.more {
                say!(output, "nodes keep more tasks than they count at once: these are some of each");
            }
        }
        Kind::Objects => {
            let listed = look.objects(LookRequest::default()).await.map_err(failed)?;
            listed.rows.iter().for_each(|row| add("objects", &row.state, 1, row.size));
            silent = listed.silent;
            if listed.more {
                say!(output, "nodes have more objects than they tell at once: these are the first of each");
            }
        }
    }
    print(output, &counts);
    silent.iter().for_each(|why| say!(output, "{why}"));
    Ok(())
}

#[derive(Serialize)]
struct Count<'a> {
    name: &'a str,
    state: &'a str,
    count: u64,
    bytes: u64,
}

fn print(output: Output, counts: &Counts) {
    let with_bytes = counts.values().any(|(_, bytes)| *bytes > 0);
    let mut cells = vec![vec!["NAME".to_owned(), "STATE".into(), "COUNT".into()]];
    cells[0].extend(with_bytes.then(|| "BYTES".into()));
    for ((name, state), (count, bytes)) in counts {
        let mut row = vec![name.clone(), state.clone(), count.to_string()];
        row.extend(with_bytes.then(|| crate::output::bytes(*bytes)));
        cells.push(row);
    }
    match counts.is_empty() {
        true => say!(output, "none"),
        false => aligned(&cells).iter().for_each(|line| say!(output, "{line}")),
    }
    let data: Vec<Count<'_>> = counts
        .iter()
        .map(|((name, state), (count, bytes))| Count { name, state, count: *count, bytes: *bytes })
        .collect();
    output.data(&data);
}
