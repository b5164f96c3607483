//! `mobula explain`: why a task waits or was lost, where an object is, what became of a node.

use crate::args::ExplainArgs;
use crate::commands::ask::{failed, looking};
use crate::config::Settings;
use crate::exit::{self, Failure, Outcome};
use crate::say;
use mobula_look::Look;
use mobula_look::story::{Story, Subject, Told};

/// Asks, and prints what is answered.
pub fn run(settings: &Settings, args: &ExplainArgs) -> Outcome {
    let text = args.subject.as_deref().unwrap_or_default();
    let output = settings.output;
    looking(settings, async |look: Look| {
        let view = look.busy_view().await.map_err(failed)?;
        let subject = Subject::of(text, &view).map_err(Failure::usage)?;
        let Story { told, silent, more } = look.explain(&subject, text, &view).await.map_err(failed)?;
        for Told { what, state, node, because } in &told {
            say!(output, "{what}  {state}  ({node})");
            because.iter().for_each(|line| say!(output, "  {line}"));
        }
        output.data(&told);
        if more {
            say!(output, "there are more: name more digits of the id");
        }
        silent.iter().for_each(|why| say!(output, "{why}"));
        match told.is_empty() {
            false => Ok(exit::OK),
            true if text.is_empty() && silent.is_empty() => {
                say!(output, "no node keeps or runs a task");
                Ok(exit::OK)
            }
            true => Err(unknown(text, &subject).into()),
        }
    })
}

fn unknown(text: &str, subject: &Subject) -> String {
    let tasks = |store: &str| {
        format!("no node that answers keeps or runs a task whose id begins with {text:?}, {store}")
    };
    match subject {
        Subject::Node(_) => format!("no node is called {text:?}, and no event tells of one"),
        Subject::Object(_) => format!("nobody knows of object {text}"),
        Subject::Tasks(prefix) if prefix.whole().is_some() => {
            tasks("and the control store has no record of it: it has been pruned, or never was there")
        }
        Subject::Tasks(_) => {
            tasks("it has ended, or never was there; of a whole id the control store is asked, too")
        }
    }
}
