//! How heads that know nothing but each other's addresses become one cluster.
//!
//! 1. Every head answers `Probe` from its first moment on.
//! 2. The first head of the sorted list waits until all others answer with the same list and the
//!    same number of shards. It then names the cluster and writes its `identity`.
//! 3. The others take the name over and write theirs.
//! 4. When all have written theirs, the first head initializes Raft on every shard.
//!
//! So once Raft runs anywhere, every member has an identity file. A head without one that meets a
//! running cluster at its own address has been emptied, forgot its votes, and is refused. Any head
//! may crash and restart at any point of this.

use crate::error::Error;
use crate::identity::{FORMAT, Identity};
use crate::raft::group::Group;
use crate::server::Site;
use futures::future::join_all;
use mobula_base::ids::hash64;
use mobula_net::grpc;
use mobula_net::seam::SharedNet;
use mobula_proto as proto;
use openraft::BasicNode;
use proto::raft_client::RaftClient;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A probe must be answered within this.
const PROBE_DEADLINE: Duration = Duration::from_millis(300);
/// Pause between rounds.
const ROUND: Duration = Duration::from_millis(50);
/// Every so many rounds the log says what is missing.
const SAY_EVERY: u32 = 100;

async fn probe(net: SharedNet, address: &str) -> Option<proto::ProbeReply> {
    // A channel per probe: one that failed to connect must not be waited for.
    let mut client = RaftClient::new(grpc::channel(net, address).ok()?);
    let asked = tokio::time::timeout(PROBE_DEADLINE, client.probe(proto::ProbeRequest {}));
    asked.await.ok()?.ok().map(tonic::Response::into_inner)
}

/// What the other founders say, in the order of their addresses.
async fn ask_all(site: &Site) -> Vec<(String, Option<proto::ProbeReply>)> {
    let others = site.founders.iter().filter(|address| **address != site.advertise);
    join_all(others.map(|address| async move { (address.clone(), probe(site.net.clone(), address).await) }))
        .await
}

/// Gives a fresh head its identity: names the cluster, or takes the name over.
pub async fn agree(site: &Site) -> Result<Identity, Error> {
    let identity = |cluster: u64| Identity {
        format: FORMAT,
        cluster,
        head: site.head,
        shards: site.shards,
        founders: site.founders.clone(),
    };
    for round in 1u32.. {
        let answers = ask_all(site).await;
        let mut named = None;
        for (peer, reply) in answers.iter().filter_map(|(peer, reply)| Some((peer, reply.as_ref()?))) {
            refuse(site, peer, reply)?;
            if reply.cluster != 0 {
                named = Some(reply.cluster);
            }
        }
        if let Some(cluster) = named {
            return Ok(identity(cluster));
        }
        let missing: Vec<&String> =
            answers.iter().filter(|(_, r)| r.is_none()).map(|(peer, _)| peer).collect();
        if site.head == 1 && missing.is_empty() {
            let mut parts: Vec<&[u8]> = site.founders.iter().map(|address| address.as_bytes()).collect();
            let offer = site.offer.to_le_bytes();
            parts.push(&offer);
            // 0 stands for "no cluster".
            return Ok(identity(hash64(&parts).max(1)));
        }
        if round % SAY_EVERY == 0 {
            tracing::info!(?missing, "waiting for the other heads before the cluster can start");
        }
        tokio::time::sleep(ROUND).await;
    }
    unreachable!("the loop above only returns")
}

/// Answers with which this head may not start.
fn refuse(site: &Site, peer: &str, reply: &proto::ProbeReply) -> Result<(), Error> {
    let (address, cluster) = (site.advertise.clone(), reply.cluster);
    if reply.initialized {
        return Err(if reply.join.contains(&address) {
            Error::Emptied { address, cluster }
        } else {
            Error::JoinNotSupported { peer: peer.to_owned(), address, cluster }
        });
    }
    if reply.shards != site.shards {
        let (theirs, ours) = (reply.shards, site.shards);
        return Err(Error::ShardMismatch { peer: peer.to_owned(), theirs, ours });
    }
    if reply.join != site.founders {
        let (theirs, ours) = (reply.join.clone(), site.founders.clone());
        return Err(Error::JoinMismatch { peer: peer.to_owned(), theirs, ours });
    }
    Ok(())
}

/// On the first head: initializes Raft once all founders have their identity. Ends when done.
pub async fn initialize(site: Arc<Site>, cluster: u64, groups: Arc<Vec<Arc<Group>>>) {
    let members: BTreeMap<u64, BasicNode> =
        (1..).zip(site.founders.iter().map(|address| BasicNode::new(address.clone()))).collect();
    loop {
        // Only this head initializes, so what it has not initialized nobody has.
        let mut left = Vec::new();
        for group in groups.iter() {
            match group.raft.is_initialized().await {
                Ok(true) => {}
                Ok(false) => left.push(group),
                Err(_) => return,
            }
        }
        if left.is_empty() {
            return;
        }
        let ready = |(_, reply): &(String, Option<proto::ProbeReply>)| {
            reply.as_ref().is_some_and(|reply| reply.cluster == cluster)
        };
        let some_run = left.len() < groups.len();
        if some_run || ask_all(&site).await.iter().all(ready) {
            for group in left {
                if let Err(error) = group.raft.initialize(members.clone()).await {
                    tracing::warn!(shard = group.shard, %error, "shard not initialized yet");
                }
            }
        }
        tokio::time::sleep(ROUND).await;
    }
}
