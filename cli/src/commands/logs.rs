//! `mobula logs`: what heads and nodes have logged, asked of each of them.

use crate::args::LogsArgs;
use crate::commands::ask::{failed, looking};
use crate::config::Settings;
use crate::exit::{self, Outcome};
use crate::output::{Output, complain};
use crate::say;
use mobula_look::Look;
use mobula_proto::ClusterView;
use serde::Serialize;
use std::time::Duration;

/// Pause between two questions of `--follow`.
const FOLLOW_EVERY: Duration = Duration::from_millis(300);

/// A daemon that is asked.
struct Daemon {
    name: String,
    address: String,
    /// Number of the last line that was printed.
    last: u64,
    is_silent: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    daemon: &'a str,
    line: &'a str,
}

/// Prints the last lines of each, with `--follow` what comes.
pub fn run(settings: &Settings, args: &LogsArgs) -> Outcome {
    let output = settings.output;
    looking(settings, async |look: Look| {
        let view = look.view().await.map_err(failed)?;
        let mut daemons = daemons(&view, args.name.as_deref());
        if daemons.is_empty() {
            let known: Vec<String> =
                self::daemons(&view, None).into_iter().map(|daemon| daemon.name).collect();
            let name = args.name.as_deref().unwrap_or_default();
            return Err(format!("no head or node is called {name:?}: there are {}", known.join(", ")).into());
        }
        let (mut tail, mut answered) = (args.tail, false);
        loop {
            for daemon in &mut daemons {
                answered |= print(output, &look, daemon, tail).await;
            }
            if !args.follow {
                return if answered { Ok(exit::OK) } else { Err("none of them answers".to_owned().into()) };
            }
            tail = 0;
            tokio::time::sleep(FOLLOW_EVERY).await;
        }
    })
}

/// Heads and living nodes of this name, address or incarnation; all, if none is given.
fn daemons(view: &ClusterView, wanted: Option<&str>) -> Vec<Daemon> {
    let heads = view.heads.iter().map(|head| (format!("head {}", head.head), head.address.clone()));
    let nodes = view.nodes.iter().filter(|node| node.alive);
    let nodes = nodes.map(|node| (node.name.clone(), node.address.clone()));
    let is_wanted = |name: &str, address: &str| {
        wanted.is_none_or(|wanted| {
            wanted == name || wanted == address || name.strip_prefix("head ").is_some_and(|id| id == wanted)
        })
    };
    heads
        .chain(nodes)
        .filter(|(name, address)| is_wanted(name, address))
        .map(|(name, address)| Daemon { name, address, last: 0, is_silent: false })
        .collect()
}

/// Prints what is new; whether the daemon answered.
async fn print(output: Output, look: &Look, daemon: &mut Daemon, tail: u32) -> bool {
    let reply = match look.log(&daemon.address, daemon.last, tail).await {
        Ok(reply) => reply,
        Err(why) => {
            if !std::mem::replace(&mut daemon.is_silent, true) {
                complain(format_args!("{} at {} does not answer: {why}", daemon.name, daemon.address));
            }
            return false;
        }
    };
    daemon.is_silent = false;
    if reply.lost {
        complain(format_args!("{}: lines were forgotten before they were asked for", daemon.name));
    }
    for line in &reply.lines {
        if output.is_json {
            output.record(&Line { daemon: &daemon.name, line });
        } else {
            say!(output, "{:<10} {line}", daemon.name);
        }
    }
    daemon.last = reply.last;
    true
}
