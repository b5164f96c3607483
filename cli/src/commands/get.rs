//! `mobula get`: all that is known of one thing, found by its name or the beginning of its id.

use crate::args::{GetArgs, Kind};
use crate::commands::ask::{failed, looking};
use crate::config::Settings;
use crate::exit::{self, Failure, Outcome};
use crate::output::Output;
use crate::say;
use mobula_base::TaskPrefix;
use mobula_look::filter::{text, the_one};
use mobula_look::rows::{self, Row};
use mobula_look::story::Subject;
use mobula_look::{Look, story::Story};
use mobula_proto::LookRequest;

/// Finds and prints it.
pub fn run(settings: &Settings, args: &GetArgs) -> Outcome {
    let (output, id) = (settings.output, args.id.as_str());
    looking(settings, async |look| match args.kind {
        Kind::Nodes => {
            print(output, the_one(rows::nodes(&look.busy_view().await.map_err(failed)?), id, "node"))
        }
        Kind::Jobs => print(output, the_one(rows::jobs(&look.view().await.map_err(failed)?), id, "job")),
        Kind::Workers => print(output, the_one(look.workers().await.map_err(failed)?.rows, id, "worker")),
        Kind::Tasks => {
            let rows = look.tasks(of_tasks(id)?).await.map_err(failed)?.rows;
            match rows.is_empty() {
                true => recorded(output, &look, id).await,
                false => print(output, the_one(rows, id, "task")),
            }
        }
        Kind::Objects => {
            let rows =
                look.objects(of_tasks(id.split('#').next().unwrap_or(id))?).await.map_err(failed)?.rows;
            // Nodes may know of other objects of its task only.
            match rows.iter().any(|row| row.object.starts_with(id)) {
                false => recorded(output, &look, id).await,
                true => print(output, the_one(rows, id, "object")),
            }
        }
    })
}

fn of_tasks(prefix: &str) -> Result<LookRequest, Failure> {
    let _: TaskPrefix = prefix.parse().map_err(Failure::usage)?;
    Ok(LookRequest { prefix: prefix.to_owned(), ..LookRequest::default() })
}

/// What no node knows may be on record.
async fn recorded(output: Output, look: &Look, id: &str) -> Outcome {
    let view = look.view().await.map_err(failed)?;
    let subject = Subject::of(id, &view).map_err(Failure::usage)?;
    let Story { told, .. } = look.explain(&subject, id, &view).await.map_err(failed)?;
    let Some(told) = told.into_iter().find(|told| told.state != "unknown") else {
        return Err(format!("no node knows {id:?}, and there is no record of it").into());
    };
    say!(output, "{}  {}", told.what, told.state);
    told.because.iter().for_each(|line| say!(output, "  {line}"));
    output.data(&told);
    Ok(exit::OK)
}

fn print<R: Row>(output: Output, found: Result<R, String>) -> Outcome {
    let row = found?;
    let value = serde_json::to_value(&row).map_err(|error| error.to_string())?;
    for (key, value) in value.as_object().into_iter().flatten() {
        say!(output, "{key:<16}  {}", text(value));
    }
    output.data(&row);
    Ok(exit::OK)
}
