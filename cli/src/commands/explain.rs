//! `mobula explain`: what tasks wait for, asked of every node, and of the control store when no node knows.

use crate::args::ExplainArgs;
use crate::commands::ask::{DEADLINE, failed, with_client};
use crate::config::Settings;
use crate::exit::{self, Failure, Outcome};
use crate::say;
use mobula_base::{TaskId, TaskPrefix};
use mobula_gcs::Client;
use mobula_net::grpc;
use mobula_net::seam::SharedNet;
use mobula_proto::node_client::NodeClient;
use mobula_proto::{ExplainReply, ExplainRequest, NodeView, TaskState, TaskView, task_bytes};
use serde::Serialize;
use std::time::Duration;
use tokio::task::JoinSet;

/// A node must answer within this.
const NODE_DEADLINE: Duration = Duration::from_secs(3);

/// What is said of one task.
#[derive(Serialize)]
struct Told {
    /// Its id.
    task: String,
    /// Where it stands.
    state: String,
    /// Who says so.
    node: String,
    /// What it waits for.
    because: Vec<String>,
}

/// Asks, and prints what is answered.
pub fn run(settings: &Settings, args: &ExplainArgs) -> Outcome {
    let text = args.task.as_deref().unwrap_or_default();
    let prefix: TaskPrefix = text.parse().map_err(Failure::usage)?;
    let net = settings.net()?;
    let output = settings.output;
    with_client(settings, async |client| {
        let view = client.watch(0, Duration::ZERO, DEADLINE).await.map_err(failed)?;
        let nodes: Vec<NodeView> = view.nodes.into_iter().filter(|node| node.alive).collect();
        let (mut told, silent, more) = ask_all(&net, nodes, text).await;
        if let (true, Some(task)) = (told.is_empty(), prefix.whole()) {
            told.extend(recorded(&client, task).await?);
        }
        told.sort_by(|a, b| (&a.task, &a.node).cmp(&(&b.task, &b.node)));
        for Told { task, state, node, because } in &told {
            say!(output, "{task}  {state}  ({node})");
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
            true => Err(unknown(text, prefix).into()),
        }
    })
}

fn unknown(text: &str, prefix: TaskPrefix) -> String {
    let store = match prefix.whole() {
        Some(_) => "and the control store has no record of it: it has been pruned, or never was there",
        None => "it has ended, or never was there; of a whole id the control store is asked, too",
    };
    format!("no node that answers keeps or runs a task whose id begins with {text:?}, {store}")
}

/// What all nodes say, who does not answer, and whether any of them has more to say.
async fn ask_all(net: &SharedNet, nodes: Vec<NodeView>, prefix: &str) -> (Vec<Told>, Vec<String>, bool) {
    let mut asked = JoinSet::new();
    for node in nodes {
        let (net, prefix) = (net.clone(), prefix.to_owned());
        asked.spawn(async move {
            let reply = ask(net, &node.address, prefix).await;
            (node, reply)
        });
    }
    let (mut told, mut silent, mut any_more) = (Vec::new(), Vec::new(), false);
    for (node, reply) in asked.join_all().await {
        match reply {
            Ok(ExplainReply { tasks, more }) => {
                any_more |= more;
                told.extend(tasks.into_iter().map(|task| Told {
                    task: task.task,
                    state: task.state,
                    node: node.name.clone(),
                    because: task.because,
                }));
            }
            Err(why) => silent.push(format!("node {} at {} does not answer: {why}", node.name, node.address)),
        }
    }
    silent.sort();
    (told, silent, any_more)
}

async fn ask(net: SharedNet, address: &str, prefix: String) -> Result<ExplainReply, String> {
    let channel = grpc::channel(net, address).map_err(|error| error.to_string())?;
    let mut node = NodeClient::new(channel).max_decoding_message_size(grpc::MESSAGE_MAX);
    match tokio::time::timeout(NODE_DEADLINE, node.explain(ExplainRequest { prefix })).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err(format!("not within {NODE_DEADLINE:?}")),
    }
}

/// What the control store has of a task that no node knows.
async fn recorded(client: &Client, task: TaskId) -> Result<Option<Told>, Failure> {
    let shard = client.slots().of_run(task.run);
    let views = client.read_tasks(shard.0, vec![task_bytes(task)], false, DEADLINE).await.map_err(failed)?;
    let Some(view) = views.into_iter().next() else { return Ok(None) };
    let TaskView { attempt, executor, keeper, keeper_fenced, revision, .. } = view;
    let (state, because) = match view.state() {
        TaskState::TaskUnknown => return Ok(None),
        TaskState::TaskPending if keeper_fenced => (
            "lost",
            format!(
                "attempt {attempt} was kept by node inc-{keeper}, which died; whoever needs what it makes asks for \
                 the next attempt, and nobody has yet"
            ),
        ),
        TaskState::TaskPending => (
            "pending",
            format!("attempt {attempt} is kept by node inc-{keeper}, which has not said how it ended"),
        ),
        TaskState::TaskDone => {
            let size: u64 = view.outputs.iter().map(|output| output.size).sum();
            ("done", format!("attempt {attempt} made {size} bytes on node inc-{executor}"))
        }
        TaskState::TaskFailed => {
            let why = view.failure.map_or_else(String::new, |failure| failure.message);
            ("failed", format!("attempt {attempt}: {why}"))
        }
    };
    let because = vec![because, format!("its record has been in the log of {shard} since entry {revision}")];
    Ok(Some(Told { task: task.to_string(), state: state.into(), node: "the control store".into(), because }))
}
