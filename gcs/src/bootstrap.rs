//! How heads that know nothing but each other's addresses become one cluster.
//!
//! 1. Every head answers `Probe` from its first moment on.
//! 2. The first head of the sorted list waits until all others answer with the same list and the
//!    same number of shards. It then names the cluster and writes its `identity`.
//! 3. The others take the name over and write theirs.
//! 4. When all have written theirs, the first head initializes Raft on every shard.
//!
//! A head that meets a running cluster, or whose list does not name itself, forms none: it waits until
//! the operator adds it, and gets its identity from the leader of shard 0 (see `membership`).
//!
//! So once Raft runs anywhere, every member has an identity file. A head without one that meets a
//! running cluster at its own address has been emptied and forgot its votes: it is taken back under a
//! new id, as one whose disk was damaged, or refused where repair is off. Any head may crash and restart
//! at any point of this.

use crate::error::Error;
use crate::identity::{self, FORMAT, Identity};
use crate::membership::driver;
use crate::raft::group::Group;
use crate::server::Site;
use futures::future::join_all;
use mobula_base::disk::Disk;
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
/// A request to join must be answered within this.
const JOIN_DEADLINE: Duration = Duration::from_secs(2);
/// Pause between rounds.
const ROUND: Duration = Duration::from_millis(50);
/// Pause between the first rounds: mostly all heads are started at once.
const EARLY_ROUND: Duration = Duration::from_millis(5);
/// How many rounds are early: for about half a second.
const EARLY_ROUNDS: u32 = 60;
/// Every so many rounds the log says what is missing.
const SAY_EVERY: u32 = 100;

/// Asks the head at an address how it stands.
pub async fn probe(net: SharedNet, address: &str) -> Option<proto::ProbeReply> {
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

/// Gives a fresh head its identity: names the cluster, takes the name over, or joins a running one.
pub async fn agree(site: &Site, disk: &dyn Disk) -> Result<Identity, Error> {
    let identity = |cluster: u64| Identity {
        format: FORMAT,
        cluster,
        head: site.head,
        shards: site.shards,
        founders: site.founders.clone(),
        ..Identity::default()
    };
    let mut said = String::new();
    // It has met a running cluster before, or was a member of one: it founds none.
    let has_met = disk.list("").map_err(|error| Error::storage(identity::JOINER, error))?;
    let has_met = has_met.iter().any(|name| name == identity::JOINER);
    for round in 1u32.. {
        let answers = ask_all(site).await;
        let running: Vec<&proto::ProbeReply> = answers
            .iter()
            .filter_map(|(_, reply)| reply.as_ref())
            .filter(|reply| reply.initialized)
            .collect();
        let waiting = if !running.is_empty() {
            let mut heads: Vec<String> = answers.iter().map(|(peer, _)| peer.clone()).collect();
            heads.extend(running.iter().flat_map(|reply| reply.join.clone()));
            match join(site, identity::joiner_nonce(disk, site.offer)?, heads).await? {
                Joined::Member(identity) => return Ok(identity),
                Joined::NotYet(why) => why,
            }
        } else if has_met {
            format!(
                "this head is to join its cluster again, and no member of it answers at {:?} yet",
                site.founders
            )
        } else if site.head == 0 {
            format!("this head is to join a cluster, and no member of it answers at {:?} yet", site.founders)
        } else {
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
            format!("the cluster can start when all its heads are there; missing: {missing:?}")
        };
        if waiting != said || round % SAY_EVERY == 0 {
            tracing::info!("{waiting}");
            said = waiting;
        }
        tokio::time::sleep(pause_after(round)).await;
    }
    unreachable!("the loop above only returns")
}

fn pause_after(round: u32) -> Duration {
    if round <= EARLY_ROUNDS { EARLY_ROUND } else { ROUND }
}

enum Joined {
    Member(Identity),
    NotYet(String),
}

/// Asks a running cluster for this head's place in it. That is decided by its operator alone.
async fn join(site: &Site, nonce: u64, mut heads: Vec<String>) -> Result<Joined, Error> {
    let mut why = "no member answers".to_owned();
    let mut at = 0;
    while at < heads.len() {
        let peer = heads[at].clone();
        at += 1;
        if heads[..at - 1].contains(&peer) || peer == site.advertise {
            continue;
        }
        let (address, shards, newest) = (site.advertise.clone(), site.shards, site.formats.newest);
        let request = proto::JoinRequest { address, nonce, shards, newest, repair: site.repair };
        let Some(mut client) = driver::ask(&site.net, &peer) else { continue };
        let asked = tokio::time::timeout(JOIN_DEADLINE, client.join(request)).await;
        let Ok(Ok(reply)) = asked else { continue };
        let reply = reply.into_inner();
        if let Some(elsewhere) = reply.elsewhere {
            why = "the leader of shard 0 does not answer".into();
            heads.extend(Some(elsewhere.leader).filter(|leader| !leader.is_empty()));
            continue;
        }
        if !reply.wait.is_empty() {
            why = reply.wait;
            continue;
        }
        let (address, cluster, head) = (site.advertise.clone(), reply.cluster, reply.head);
        if reply.emptied {
            return Err(Error::Emptied { address, cluster, head });
        }
        if reply.shards != site.shards {
            let (theirs, ours) = (reply.shards, site.shards);
            return Err(Error::ShardMismatch { peer, theirs, ours });
        }
        site.formats.check(reply.level, &reply.program)?;
        let mut founders = reply.members;
        founders.sort();
        let (shards, level, program) = (site.shards, reply.level, reply.program);
        let begun = false;
        let identity = Identity { format: FORMAT, cluster, head, shards, founders, level, program, begun };
        return Ok(Joined::Member(identity));
    }
    Ok(Joined::NotYet(why))
}

/// Answers with which this head may not start.
fn refuse(site: &Site, peer: &str, reply: &proto::ProbeReply) -> Result<(), Error> {
    if reply.shards != site.shards {
        let (theirs, ours) = (reply.shards, site.shards);
        return Err(Error::ShardMismatch { peer: peer.to_owned(), theirs, ours });
    }
    // One that is to join later names no list of founders.
    if reply.join != site.founders && reply.head != 0 {
        let (theirs, ours) = (reply.join.clone(), site.founders.clone());
        return Err(Error::JoinMismatch { peer: peer.to_owned(), theirs, ours });
    }
    Ok(())
}

/// Refuses a join list that names heads of another cluster than this data directory's. Members come
/// and go, so a strange address is no proof; what answers there is.
pub async fn check_strangers(site: &Site, known: &Identity, join: &[String]) -> Result<(), Error> {
    let strangers = join.iter().filter(|peer| !known.founders.contains(peer) && **peer != site.advertise);
    let asked =
        join_all(strangers.map(|peer| async move { (peer, probe(site.net.clone(), peer).await) })).await;
    for (peer, reply) in asked.into_iter().filter_map(|(peer, reply)| Some((peer, reply?))) {
        let waits_for_us = reply.cluster == 0 && reply.join.contains(&site.advertise);
        if waits_for_us || (reply.cluster != 0 && reply.cluster != known.cluster) {
            return Err(foreign(known, peer));
        }
    }
    Ok(())
}

/// A data directory that belongs to another cluster than the join list.
pub fn foreign(known: &Identity, stranger: &str) -> Error {
    Error::Config(format!(
        "this data directory belongs to cluster {:016x} of the heads {:?}, and the join list names {stranger}, \
         which is of another: start it with the list it had, or give the other cluster a data directory of its own",
        known.cluster, known.founders
    ))
}

/// On the first head: initializes Raft once all founders have their identity. Ends when done.
pub async fn initialize(site: Arc<Site>, cluster: u64, groups: Arc<Vec<Arc<Group>>>) {
    let members: BTreeMap<u64, BasicNode> =
        (1..).zip(site.founders.iter().map(|address| BasicNode::new(address.clone()))).collect();
    for round in 1u32.. {
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
            join_all(left.into_iter().map(|group| initialize_one(group, &members))).await;
        }
        tokio::time::sleep(pause_after(round)).await;
    }
}

async fn initialize_one(group: &Group, members: &BTreeMap<u64, BasicNode>) {
    if let Err(error) = group.raft.initialize(members.clone()).await {
        tracing::warn!(shard = group.shard, %error, "shard not initialized yet");
    }
}
