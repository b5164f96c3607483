//! What every head says of itself.

use crate::verdict::Observed;
use mobula_gcs::{Client, Error};
use mobula_net::auth::NEEDED;
use mobula_proto::StatusReply;
use std::collections::BTreeMap;

/// Asks the heads at `addresses`, and those that they name. Those that were named together are asked together.
pub async fn observe(client: &Client, addresses: Vec<String>) -> Vec<Observed> {
    let (mut asked, mut next) = (addresses.clone(), addresses);
    let mut observed = BTreeMap::new();
    while !next.is_empty() {
        let mut asking = tokio::task::JoinSet::new();
        for address in next.drain(..) {
            let client = client.clone();
            asking.spawn(async move { observe_one(&client, address).await });
        }
        for one in asking.join_all().await {
            for head in one.reply.iter().flat_map(|reply: &StatusReply| &reply.heads) {
                if !asked.contains(head) {
                    asked.push(head.clone());
                    next.push(head.clone());
                }
            }
            observed.insert(one.address.clone(), one);
        }
    }
    asked.iter().filter_map(|address| observed.remove(address)).collect()
}

async fn observe_one(client: &Client, address: String) -> Observed {
    let mut wants_token = None;
    let reply = client.status_of(&address).await.map_err(|error| match error {
        Error::NeedsToken { shown, .. } => {
            wants_token = Some(shown);
            NEEDED.to_owned()
        }
        // The address stands beside it anyway.
        Error::Unreachable { last, .. } => last,
        other => other.to_string(),
    });
    Observed { address, reply, wants_token }
}
