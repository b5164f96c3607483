//! `mobula memory`: who refers to which objects, and what memory they take, node by node.

use crate::args::MemoryArgs;
use crate::commands::ask::{failed, looking};
use crate::commands::table::aligned;
use crate::config::Settings;
use crate::exit::{self, Outcome};
use crate::output::{Output, bytes};
use crate::say;
use mobula_look::Look;
use mobula_look::gather::silent;
use mobula_look::names;
use mobula_proto::{LookReply, LookRequest, NodeView, ObjectRow};
use serde::Serialize;

/// An object on a node.
#[derive(Serialize)]
struct Held {
    node: String,
    object: String,
    size: u64,
    /// `memory`, `disk`, `inline`, or none of them.
    place: &'static str,
    /// Why it stays.
    kinds: Vec<&'static str>,
    clients: u32,
    tasks: u32,
    used: u32,
}

/// What a node has.
#[derive(Serialize)]
struct OfNode {
    node: String,
    store_bytes: u64,
    store_bytes_used: u64,
    /// Of the daemon.
    resident_bytes: u64,
    objects: usize,
    bytes: u64,
    spilled_bytes: u64,
    /// Copies that nobody there has a use for.
    idle_bytes: u64,
}

#[derive(Serialize)]
struct Json<'a> {
    nodes: &'a [OfNode],
    objects: &'a [Held],
    silent: &'a [String],
}

/// Prints nodes, then the largest objects.
pub fn run(settings: &Settings, args: &MemoryArgs) -> Outcome {
    let output = settings.output;
    looking(settings, async |look: Look| {
        let view = look.view().await.map_err(failed)?;
        let answers = look.nodes(&view, &LookRequest { objects: true, ..LookRequest::default() }).await;
        let (mut nodes, mut objects, mut more) = (Vec::new(), Vec::new(), false);
        for answer in &answers {
            let Ok(reply) = &answer.reply else { continue };
            nodes.push(of_node(&answer.node, reply));
            objects
                .extend(reply.objects.iter().filter(|row| is_held(row)).map(|row| held(row, &answer.node)));
            more |= reply.more;
        }
        objects.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.object.cmp(&b.object)));
        let all = objects.len();
        objects.truncate(args.limit);
        let silent = silent(&answers);
        print(output, &nodes, &objects, all);
        if more {
            say!(output, "nodes have more objects than they tell at once: these are the first of each");
        }
        silent.iter().for_each(|why| say!(output, "{why}"));
        output.data(&Json { nodes: &nodes, objects: &objects, silent: &silent });
        Ok(exit::OK)
    })
}

/// Whether a node has it, or somebody there refers to it.
fn is_held(row: &ObjectRow) -> bool {
    matches!(row.state.as_str(), "here" | "inline") || row.clients + row.tasks + row.used > 0
}

fn place(row: &ObjectRow) -> &'static str {
    match row.state.as_str() {
        "here" if row.spilled => "disk",
        "here" => "memory",
        "inline" => "inline",
        _ => "",
    }
}

/// Kinds as users of Ray know them.
fn kinds(row: &ObjectRow) -> Vec<&'static str> {
    let kinds = [
        (row.clients > 0, "LOCAL_REFERENCE"),
        (row.tasks > 0, "USED_BY_PENDING_TASK"),
        (row.used > 0, "PINNED_IN_MEMORY"),
        (row.waiting > 0, "WAITED_FOR"),
        (row.idle, "IDLE"),
    ];
    kinds.into_iter().filter(|(is_so, _)| *is_so).map(|(_, kind)| kind).collect()
}

fn held(row: &ObjectRow, node: &NodeView) -> Held {
    Held {
        node: node.name.clone(),
        object: names::object(&row.object),
        size: row.size,
        place: place(row),
        kinds: kinds(row),
        clients: row.clients,
        tasks: row.tasks,
        used: row.used,
    }
}

fn of_node(node: &NodeView, reply: &LookReply) -> OfNode {
    let sum = |which: &dyn Fn(&&ObjectRow) -> bool| {
        reply.objects.iter().filter(|row| !place(row).is_empty()).filter(which).map(|row| row.size).sum()
    };
    OfNode {
        node: node.name.clone(),
        store_bytes: node.store_bytes,
        store_bytes_used: node.store_bytes_used,
        resident_bytes: reply.resident_bytes,
        objects: reply.objects.iter().filter(|row| !place(row).is_empty()).count(),
        bytes: sum(&|_| true),
        spilled_bytes: sum(&|row| row.spilled),
        idle_bytes: sum(&|row| row.idle),
    }
}

fn print(output: Output, nodes: &[OfNode], objects: &[Held], all: usize) {
    let heading = ["NODE", "DAEMON", "STORE USED", "OF", "OBJECTS", "BYTES", "ON DISK", "IDLE"];
    let mut cells = vec![heading.map(str::to_owned).to_vec()];
    cells.extend(nodes.iter().map(|node| {
        vec![
            node.node.clone(),
            bytes(node.resident_bytes),
            bytes(node.store_bytes_used),
            bytes(node.store_bytes),
            node.objects.to_string(),
            bytes(node.bytes),
            bytes(node.spilled_bytes),
            bytes(node.idle_bytes),
        ]
    }));
    aligned(&cells).iter().for_each(|line| say!(output, "{line}"));
    if objects.is_empty() {
        return;
    }
    say!(output);
    let heading = ["OBJECT", "NODE", "SIZE", "IN", "PROGRAMS", "TASKS", "ATTEMPTS", "WHY IT STAYS"];
    let mut cells = vec![heading.map(str::to_owned).to_vec()];
    cells.extend(objects.iter().map(|held| {
        vec![
            held.object.clone(),
            held.node.clone(),
            bytes(held.size),
            held.place.to_owned(),
            held.clients.to_string(),
            held.tasks.to_string(),
            held.used.to_string(),
            held.kinds.join(" "),
        ]
    }));
    aligned(&cells).iter().for_each(|line| say!(output, "{line}"));
    if all > objects.len() {
        say!(output, "and {} smaller ones: raise --limit", all - objects.len());
    }
}
