//! `mobula list`: nodes, jobs, workers, tasks or objects, a row each.

use crate::args::{Kind, ListArgs};
use crate::commands::ask::{failed, looking};
use crate::commands::table;
use crate::config::Settings;
use crate::exit::{self, Failure, Outcome};
use crate::output::Output;
use crate::say;
use mobula_base::TaskPrefix;
use mobula_look::Look;
use mobula_look::filter::{Filter, admitted};
use mobula_look::rows::{self, Listed, Row};
use mobula_proto::LookRequest;
use std::time::Duration;

/// Rows of each node that are asked for, where neither a number nor a filter is given; with one, all that it tells at once.
const ROWS: u32 = 1_000;
/// Pause between two lists that are watched.
pub const WATCHED_EVERY: Duration = Duration::from_secs(1);

/// Prints the list, with `--watch` again and again.
pub fn run(settings: &Settings, args: &ListArgs) -> Outcome {
    let _: TaskPrefix = args.prefix.parse().map_err(Failure::usage)?;
    let output = settings.output;
    looking(settings, async |look| {
        loop {
            show(output, &look, args).await?;
            if !args.watch {
                return Ok(exit::OK);
            }
            tokio::time::sleep(WATCHED_EVERY).await;
            say!(output);
        }
    })
}

async fn show(output: Output, look: &Look, args: &ListArgs) -> Result<(), Failure> {
    match args.kind {
        Kind::Nodes => print(output, args, rows::nodes(&look.busy_view().await.map_err(failed)?).into()),
        Kind::Jobs => print(output, args, rows::jobs(&look.view().await.map_err(failed)?).into()),
        Kind::Workers => print(output, args, look.workers().await.map_err(failed)?),
        Kind::Tasks => print(output, args, look.tasks(request(args)).await.map_err(failed)?),
        Kind::Objects => print(output, args, look.objects(request(args)).await.map_err(failed)?),
    }
}

/// What nodes can leave out by themselves: of very many tasks those that are wanted may not be the first.
fn request(args: &ListArgs) -> LookRequest {
    let of = |key: &'static str| args.filter.iter().filter(move |filter| filter.key == key && !filter.not);
    // What all nodes know of one decides where it stands, so who keeps a task has to be told of, too.
    let mut states: Vec<String> = match args.kind {
        Kind::Tasks => of("state").map(|filter| filter.value.clone()).collect(),
        _ => Vec::new(),
    };
    match states.iter().any(|state| state == "placed") {
        true => states.clear(),
        false if states.is_empty() => {}
        false => states.push("placed".into()),
    }
    let rows = if args.filter.is_empty() { ROWS } else { 0 };
    let job = of("job").next().and_then(|filter| u64::from_str_radix(&filter.value, 16).ok());
    let (prefix, limit) = (args.prefix.clone(), args.limit.unwrap_or(rows));
    LookRequest { states, job, prefix, limit, ..LookRequest::default() }
}

fn print<R: Row>(output: Output, args: &ListArgs, listed: Listed<R>) -> Result<(), Failure> {
    let Listed { rows, silent, more } = listed;
    let filters: &[Filter] = &args.filter;
    let rows = admitted(rows, filters).map_err(Failure::usage)?;
    match rows.is_empty() {
        true => say!(output, "none"),
        false => table::lines(&rows, args.detail)?.iter().for_each(|line| say!(output, "{line}")),
    }
    if more {
        say!(output, "there are more: raise --limit, or name the beginning of an id with --prefix");
    }
    silent.iter().for_each(|why| say!(output, "{why}"));
    output.data(&Listed { rows, silent, more });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_leave_out_what_they_can_judge() {
        let of = |kind, filters: &[&str]| ListArgs {
            kind,
            filter: filters.iter().map(|filter| filter.parse().expect("a filter")).collect(),
            limit: None,
            prefix: String::new(),
            detail: false,
            watch: false,
        };
        let asked = request(&of(Kind::Tasks, &["state=running", "job=00000000000000ff", "name!=f"]));
        assert_eq!((asked.states, asked.job), (vec!["running".to_owned(), "placed".into()], Some(255)));
        assert!(
            request(&of(Kind::Tasks, &["state=placed"])).states.is_empty(),
            "who runs it says where it is"
        );
        assert!(request(&of(Kind::Tasks, &["state!=running"])).states.is_empty());
        assert!(request(&of(Kind::Objects, &["state=here"])).states.is_empty());
    }
}
