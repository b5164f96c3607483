//! Placement groups with real heads: whoever leads shard 0 when a node says that it has reserved goes on with the
//! attempt that another one began.

mod heads;

use heads::{LONG, Place, addresses, client, until};
use mobula_gcs::{Client, Head, HeadConfig, in_scope};
use mobula_proto as proto;
use proto::call::Op as Call;
use proto::{Bundle, Claim, Claims, ClusterView, GroupCreate, GroupStrategy, call_reply, heartbeat_reply};
use std::time::Duration;

/// A node as the control store sees one: it beats, and says which bundles it has reserved.
struct Node {
    incarnation: u64,
    /// Whether it reserves what it is to.
    reserves: bool,
}

async fn join(client: &Client, name: &str) -> Node {
    let join =
        proto::NodeJoin { name: name.into(), address: name.into(), cpu_milli: 4000, ..Default::default() };
    match call(client, Call::NodeJoin(join)).await {
        call_reply::Reply::Incarnation(incarnation) => Node { incarnation, reserves: true },
        other => panic!("{other:?}"),
    }
}

async fn call(client: &Client, op: Call) -> call_reply::Reply {
    client.call(op, 0, LONG).await.expect("answered").reply.expect("with something")
}

async fn view(client: &Client) -> ClusterView {
    client.watch(0, Duration::ZERO, LONG).await.expect("seen")
}

impl Node {
    async fn beat(&self, client: &Client) {
        let view = view(client).await;
        let bundles =
            view.groups.iter().flat_map(|group| (0..).zip(&group.bundles).map(move |(n, b)| (group, n, b)));
        let mine = bundles.filter(|(_, _, bundle)| bundle.node == self.incarnation && !bundle.placed);
        let claims = mine.map(|(group, number, bundle)| Claim {
            group: group.group,
            bundle: number,
            attempt: bundle.attempt,
            held: self.reserves,
        });
        let beat = proto::HeartbeatRequest {
            incarnation: self.incarnation,
            cpu_milli_free: 4000,
            claims: Some(Claims { claims: claims.collect(), free: vec![] }),
            ..Default::default()
        };
        let answer = client.heartbeat(beat, LONG).await;
        assert!(!matches!(answer, Ok(heartbeat_reply::Result::Fenced(_))), "it lives");
    }
}

/// Beats for all nodes until the group is as it should be.
async fn until_group(
    client: &Client,
    nodes: &[Node],
    what: &str,
    is_so: impl Fn(&[proto::BundleView]) -> bool,
) {
    let come = async {
        loop {
            for node in nodes {
                node.beat(client).await;
            }
            if view(client).await.groups.iter().any(|group| is_so(&group.bundles)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, come).await.unwrap_or_else(|_| panic!("{what} never comes"));
}

fn leads(head: &Head) -> bool {
    head.offices().iter().any(|(shard, _)| *shard == 0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_placed_whoever_leads() {
    let place = Place::new("groups");
    in_scope(1, async {
        let all = addresses(3);
        // Nodes here say something only now and then.
        let start = |address: &String| {
            place.start_with(HeadConfig { node_silence_ms: 600_000, ..place.config(address, &all) })
        };
        let heads = futures::future::join_all(all.iter().map(start)).await;
        let mut heads: Vec<Head> = heads.into_iter().map(|head| head.expect("starts")).collect();
        until("all write what this program reads", || heads.iter().all(|head| head.writes() == 4)).await;
        let client = client(&all).await;
        let mut nodes = vec![join(&client, "a").await, join(&client, "b").await];
        call(
            &client,
            Call::JobStart(proto::JobStart {
                job: 1,
                incarnation: nodes[0].incarnation,
                ..Default::default()
            }),
        )
        .await;
        let bundles = vec![Bundle { cpu_milli: 3000, ..Default::default() }; 2];
        let strategy = GroupStrategy::GroupStrictSpread as i32;
        let wanted = GroupCreate { group: 7, job: 1, name: "pair".into(), strategy, bundles };
        let made = call(&client, Call::GroupCreate(wanted.clone())).await;
        assert_eq!(call(&client, Call::GroupCreate(wanted)).await, made, "the same again");
        // One of them has not reserved when the leader dies.
        nodes[1].reserves = false;
        until_group(&client, &nodes, "an attempt", |bundles| bundles.iter().all(|bundle| bundle.node != 0))
            .await;
        until("shard 0 is led", || heads.iter().any(leads)).await;
        let leader = heads.iter().position(leads).expect("just seen");
        heads.remove(leader).shutdown().await;
        until("another leads", || heads.iter().any(leads)).await;
        nodes[1].reserves = true;
        until_group(&client, &nodes, "its place", |bundles| bundles.iter().all(|bundle| bundle.placed)).await;

        // A member leaves: its bundle alone is placed again, once there is a node for it.
        let gone = nodes.remove(1);
        call(&client, Call::NodeLeave(proto::NodeLeave { incarnation: gone.incarnation })).await;
        let stays = nodes[0].incarnation;
        until_group(&client, &nodes, "word of the loss", |bundles| {
            bundles.iter().filter(|bundle| bundle.node == stays && bundle.placed).count() == 1
                && bundles.iter().any(|bundle| bundle.node == 0)
        })
        .await;
        let because = async {
            while view(&client).await.groups[0].why.is_empty() {
                nodes[0].beat(&client).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LONG, because).await.expect("it says why it waits");
        let why = view(&client).await.groups[0].why.clone();
        assert!(why.contains("strict spread asks for 2 nodes"), "{why}");
        nodes.push(join(&client, "c").await);
        until_group(&client, &nodes, "its place", |bundles| bundles.iter().all(|bundle| bundle.placed)).await;
        call(&client, Call::JobEnd(proto::JobEnd { job: 1, succeeded: true })).await;
        let gone = async {
            while !view(&client).await.groups.is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LONG, gone).await.expect("it ends with its job");
        for head in heads {
            head.shutdown().await;
        }
    })
    .await;
}
