//! Asks the heads and all nodes at once, each within a deadline: whoever does not answer is named, not waited for.

use crate::observe::observe;
use crate::verdict::{Observed, newest_view};
use mobula_gcs::{Client, Error};
use mobula_net::grpc;
use mobula_net::seam::SharedNet;
use mobula_proto::StatusReply;
use mobula_proto::log_client::LogClient;
use mobula_proto::node_client::NodeClient;
use mobula_proto::{
    ClusterView, ExplainReply, ExplainRequest, LogReply, LogRequest, LookReply, LookRequest, NodeView,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A node must answer within this.
pub const NODE_DEADLINE: Duration = Duration::from_secs(3);
/// Some head must say which cluster it is of within this.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// A shard must answer within this.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Who the heads are is asked anew because of a strange address so often at most.
const HEADS_ANEW: Duration = Duration::from_secs(1);

type Node = NodeClient<grpc::Channel>;

/// What a node said, or why it said nothing.
pub struct Answer<T> {
    /// Who was asked.
    pub node: NodeView,
    /// What came back.
    pub reply: Result<T, String>,
}

/// Somebody who looks at a cluster. Cheap to clone; connections are kept.
#[derive(Clone)]
pub struct Look {
    /// Towards the heads.
    pub client: Client,
    net: SharedNet,
    /// Heads that are asked how they are.
    heads: Arc<Mutex<Vec<String>>>,
    /// Towards nodes, and to the logs of all, by address.
    channels: Arc<Mutex<BTreeMap<String, grpc::Channel>>>,
    /// When heads were last asked for because of an address that is none's.
    asked: Arc<Mutex<Option<Instant>>>,
}

impl Look {
    /// Looks through a client that is connected, or will be.
    pub fn new(net: SharedNet, client: Client, heads: Vec<String>) -> Look {
        Look {
            client,
            net,
            heads: Arc::new(Mutex::new(heads)),
            channels: Arc::default(),
            asked: Arc::default(),
        }
    }

    /// Knows which cluster it looks at, from the first question on that a head answers.
    pub(crate) async fn connected(&self) -> Result<(), Error> {
        if self.client.cluster() != 0 { Ok(()) } else { self.client.connect(CONNECT_DEADLINE).await }
    }

    /// The cluster's view, from any head.
    ///
    /// # Errors
    /// No head answers.
    pub async fn view(&self) -> Result<ClusterView, Error> {
        self.connected().await?;
        self.client.watch(0, Duration::ZERO, DEADLINE).await
    }

    /// The view as the leader of shard 0 has it, who alone knows how busy nodes are; any head's, if that does not answer.
    ///
    /// # Errors
    /// No head answers.
    pub async fn busy_view(&self) -> Result<ClusterView, Error> {
        match newest_view(&self.heads().await) {
            Some(view) => Ok(view.clone()),
            None => self.view().await,
        }
    }

    /// What every head says of itself, those included that joined since.
    pub async fn heads(&self) -> Vec<Observed> {
        let known = self.heads.lock().expect("nothing panics under this lock").clone();
        let mut observed = observe(&self.client, known).await;
        let members = members(&observed);
        if !members.is_empty() {
            // One that was removed is not missing, and one that has two addresses is not two.
            observed.retain(|head| members.contains(&head.address));
            *self.heads.lock().expect("nothing panics under this lock") = members;
        }
        observed
    }

    /// Whether a head is reached at this address. Heads that joined since are asked for, once in a while.
    pub async fn knows_head(&self, address: &str) -> bool {
        let is_known = || {
            self.heads.lock().expect("nothing panics under this lock").iter().any(|known| known == address)
        };
        if !is_known() && self.may_ask_anew() {
            self.heads().await;
        }
        is_known()
    }

    /// Strangers must not make heads ask each other again and again.
    fn may_ask_anew(&self) -> bool {
        let mut asked = self.asked.lock().expect("nothing panics under this lock");
        let may = asked.is_none_or(|at| at.elapsed() >= HEADS_ANEW);
        if may {
            *asked = Some(Instant::now());
        }
        may
    }

    /// Asks every living node of a view to show what is asked for.
    pub async fn nodes(&self, view: &ClusterView, asked: &LookRequest) -> Vec<Answer<LookReply>> {
        self.all(view, |mut node| {
            let asked = asked.clone();
            async move { node.look(asked).await.map(tonic::Response::into_inner) }
        })
        .await
    }

    /// Asks every living node of a view what tasks wait for.
    pub async fn explanations(&self, view: &ClusterView, prefix: &str) -> Vec<Answer<ExplainReply>> {
        self.all(view, |mut node| {
            let prefix = prefix.to_owned();
            async move { node.explain(ExplainRequest { prefix }).await.map(tonic::Response::into_inner) }
        })
        .await
    }

    async fn all<T: Send + 'static, F: Future<Output = Result<T, tonic::Status>> + Send + 'static>(
        &self,
        view: &ClusterView,
        ask: impl Fn(Node) -> F,
    ) -> Vec<Answer<T>> {
        let alive: Vec<&NodeView> = view.nodes.iter().filter(|node| node.alive).collect();
        self.forget_all_but(&alive);
        let mut asking = JoinSet::new();
        for node in alive.into_iter().cloned() {
            let asked = self.node(&node.address).map(&ask);
            asking.spawn(async move {
                let reply = match asked {
                    Ok(asked) => tokio::time::timeout(NODE_DEADLINE, asked).await,
                    Err(why) => return Answer { node, reply: Err(why) },
                };
                let reply = match reply {
                    Ok(reply) => reply.map_err(|status| status.message().to_owned()),
                    Err(_) => Err(format!("not within {NODE_DEADLINE:?}")),
                };
                Answer { node, reply }
            });
        }
        let mut answers = asking.join_all().await;
        answers
            .sort_by(|a, b| a.node.name.cmp(&b.node.name).then(a.node.incarnation.cmp(&b.node.incarnation)));
        answers
    }

    /// What the daemon at an address has logged after a line of this number: the last so many lines, 0 for all it keeps.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn log(&self, address: &str, after: u64, lines: u32) -> Result<LogReply, String> {
        let mut log = LogClient::new(self.channel(address)?).max_decoding_message_size(grpc::MESSAGE_MAX);
        match tokio::time::timeout(NODE_DEADLINE, log.read(LogRequest { after, lines })).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) => Err(status.message().to_owned()),
            Err(_) => Err(format!("not within {NODE_DEADLINE:?}")),
        }
    }

    fn forget_all_but(&self, alive: &[&NodeView]) {
        let mut channels = self.channels.lock().expect("nothing panics under this lock");
        channels.retain(|address, _| alive.iter().any(|node| node.address == *address));
    }

    fn node(&self, address: &str) -> Result<Node, String> {
        Ok(NodeClient::new(self.channel(address)?).max_decoding_message_size(grpc::MESSAGE_MAX))
    }

    fn channel(&self, address: &str) -> Result<grpc::Channel, String> {
        let mut channels = self.channels.lock().expect("nothing panics under this lock");
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let channel = grpc::channel(self.net.clone(), address).map_err(|error| error.to_string())?;
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }
}

/// The heads that there are, as the one says that knows most.
fn members(observed: &[Observed]) -> Vec<String> {
    let replies = observed.iter().filter_map(|head| head.reply.as_ref().ok());
    let version = |reply: &&StatusReply| reply.view.as_ref().map_or(0, |view| view.version);
    let newest = replies.filter(|reply| !reply.heads.is_empty()).max_by_key(version);
    newest.map_or_else(Vec::new, |reply| reply.heads.clone())
}

/// Who did not answer, for people.
pub fn silent<T>(answers: &[Answer<T>]) -> Vec<String> {
    let why = |answer: &Answer<T>| {
        let why = answer.reply.as_ref().err()?;
        Some(format!("node {} at {} does not answer: {why}", answer.node.name, answer.node.address))
    };
    answers.iter().filter_map(why).collect()
}
