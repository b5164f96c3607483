//! `mobula up`: a development cluster that ends with its terminal.

use crate::args::UpArgs;
use crate::cluster::{LocalCluster, Shape};
use crate::config::Settings;
use crate::demo::plan::cluster_size;
use crate::exit::{Failure, Outcome};
use crate::{limits, say, signals};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Where the cluster can be reached.
#[derive(Serialize)]
struct Reach {
    heads: Vec<String>,
    sockets: Vec<PathBuf>,
    data: PathBuf,
}

/// Reads `[I:]KEY=VALUE`: which nodes have the label.
fn label(text: &str, nodes: usize) -> Result<Vec<(usize, String)>, String> {
    let (node, label) = match text.split_once(':') {
        Some((node, label)) if !node.contains('=') => (Some(node), label),
        Some(_) | None => (None, text),
    };
    crate::commands::daemon::label(label)?;
    let Some(node) = node else { return Ok((1..=nodes).map(|i| (i, label.to_owned())).collect()) };
    let number = node.parse().ok().filter(|number| (1..=nodes).contains(number));
    let number = number
        .ok_or_else(|| format!("\"{text}\" names no node; write I:KEY=VALUE with I from 1 to {nodes}"))?;
    Ok(vec![(number, label.to_owned())])
}

/// Runs the cluster until a signal or the loss of a member nobody killed.
pub fn run(settings: &Settings, args: &UpArgs) -> Outcome {
    cluster_size(args.heads, args.nodes, args.shards, args.workers).map_err(Failure::usage)?;
    let labels = args.label.iter().map(|text| label(text, args.nodes)).collect::<Result<Vec<_>, _>>();
    let labels: Vec<(usize, String)> = labels.map_err(Failure::usage)?.into_iter().flatten().collect();
    limits::raise_open_files()?;
    signals::leave_in_order();
    let shape = Shape {
        heads: args.heads,
        nodes: args.nodes,
        shards: args.shards,
        workers: args.workers,
        store_mb: args.store_mb,
    };
    let cluster = LocalCluster::prepare(args.keep)?;
    for (node, label) in labels {
        cluster.label(node, label);
    }
    cluster.start(shape)?;
    let reach = Reach {
        heads: cluster.head_addresses(),
        sockets: (1..=args.nodes).filter_map(|i| cluster.node(i)?.socket).collect(),
        data: cluster.dir().to_owned(),
    };
    let output = settings.output;
    say!(output, "{} heads, {} nodes with {} workers each", args.heads, args.nodes, args.workers);
    say!(output, "  heads     {}", reach.heads.join(","));
    if let Some(head) = reach.heads.first() {
        say!(output, "  web page  http://{head}/ (every head serves it)");
    }
    for (socket, number) in reach.sockets.iter().zip(1..) {
        say!(output, "  node {number}    {}", socket.display());
    }
    if let Some(socket) = reach.sockets.first() {
        say!(output, "In another terminal:");
        say!(output, "  export MOBULA_SOCKET={} MOBULA_ADDRESS={}", socket.display(), reach.heads.join(","));
        say!(output, "  mobula run example:neardup");
    }
    say!(
        output,
        "Ctrl-C ends it{}.",
        if args.keep { "; data and logs stay" } else { " and removes everything" }
    );
    output.data(&reach);
    // Whatever is killed from outside is told once; the cluster goes on without it.
    let mut told = std::collections::BTreeSet::new();
    loop {
        std::thread::sleep(Duration::from_millis(200));
        if let Some(casualty) = cluster.first_casualty().filter(|c| told.insert(c.clone())) {
            say!(output, "{casualty}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_of_one_node_or_of_all() {
        assert_eq!(label("2:zone=b", 3), Ok(vec![(2, "zone=b".into())]));
        assert_eq!(label("zone=a:b", 2), Ok(vec![(1, "zone=a:b".into()), (2, "zone=a:b".into())]));
        for wrong in ["4:zone=b", "x:zone=b", "2:zone", "zone"] {
            assert!(label(wrong, 3).is_err(), "{wrong}");
        }
    }
}
