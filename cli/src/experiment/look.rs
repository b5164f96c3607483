//! What the heads say of themselves, put side by side.

use mobula_gcs::Client;
use mobula_proto::StatusReply;
use std::time::{Duration, Instant};

/// A replica this many entries behind still counts as caught up while writes go on.
const CLOSE: u64 = 64;
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// One head's own view.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its place in the cluster, from 1.
    pub number: usize,
    /// What it said.
    pub status: StatusReply,
}

/// What the heads at `addresses` say now, but for those in `without`.
pub async fn look(client: &Client, addresses: &[String], without: &[usize]) -> Vec<Seen> {
    let mut seen = Vec::new();
    for (number, address) in (1..).zip(addresses) {
        if !without.contains(&number)
            && let Ok(status) = client.status_of(address).await
        {
            seen.push(Seen { number, status });
        }
    }
    seen
}

/// The leader of each shard as (place, term), where all that were seen agree on one of them.
pub fn leaders(seen: &[Seen]) -> Option<Vec<(usize, u64)>> {
    let first = seen.first()?;
    let mut leaders = Vec::new();
    for (at, shard) in first.status.shards.iter().enumerate() {
        let agree = seen.iter().all(|s| {
            s.status.shards.get(at).is_some_and(|o| o.leader == shard.leader && o.term == shard.term)
        });
        let place = seen.iter().find(|s| s.status.head == shard.leader && shard.leader != 0)?.number;
        if !agree {
            return None;
        }
        leaders.push((place, shard.term));
    }
    (!leaders.is_empty()).then_some(leaders)
}

/// Why `heads` heads are not all there, of one opinion and caught up; `None` if they are.
pub fn lacking(seen: &[Seen], heads: usize) -> Option<String> {
    if seen.len() < heads {
        return Some(format!("only {} of {heads} heads answer", seen.len()));
    }
    if let Some((number, shard)) = seen
        .iter()
        .flat_map(|s| s.status.shards.iter().map(|shard| (s.number, shard)))
        .find(|(_, s)| !s.stopped.is_empty())
    {
        return Some(format!("head {number} stopped shard {}: {}", shard.shard, shard.stopped));
    }
    if leaders(seen).is_none() {
        return Some("the heads do not agree on who leads".into());
    }
    let shards = seen.first().map_or(0, |s| s.status.shards.len());
    for at in 0..shards {
        let longest = seen.iter().map(|s| s.status.shards[at].last_log).max().unwrap_or(0);
        if let Some(behind) = seen.iter().find(|s| s.status.shards[at].applied + CLOSE < longest) {
            let applied = behind.status.shards[at].applied;
            return Some(format!(
                "head {} has applied {applied} of {longest} entries of shard {at}",
                behind.number
            ));
        }
    }
    None
}

/// Whether leaderships are spread as evenly as their number allows.
pub fn is_spread(leaders: &[(usize, u64)], heads: usize) -> bool {
    let counts = (1..=heads).map(|head| leaders.iter().filter(|(leader, _)| *leader == head).count());
    let counts: Vec<usize> = counts.collect();
    counts.iter().max().zip(counts.iter().min()).is_none_or(|(most, least)| most - least <= 1)
}

/// Waits until all heads are there and caught up, and with `spread` until leaders are spread; what
/// was seen then.
///
/// # Errors
/// It does not come to that within `patience`, and why not.
pub async fn settled(
    client: &Client,
    addresses: &[String],
    spread: bool,
    patience: Duration,
) -> Result<Vec<Seen>, String> {
    let until = Instant::now() + patience;
    loop {
        let seen = look(client, addresses, &[]).await;
        let why = match (lacking(&seen, addresses.len()), leaders(&seen)) {
            (None, Some(leaders)) if !spread || is_spread(&leaders, addresses.len()) => return Ok(seen),
            (None, leaders) => format!("leaderships are not spread: {leaders:?} (head, term)"),
            (Some(why), _) => why,
        };
        if Instant::now() >= until {
            return Err(format!("the cluster was not whole again within {patience:?}: {why}"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_proto::ShardStatus;

    fn seen(number: usize, shards: &[(u64, u64, u64)]) -> Seen {
        let shards = shards.iter().zip(0..).map(|((leader, term, applied), shard)| ShardStatus {
            shard,
            leader: *leader,
            term: *term,
            applied: *applied,
            last_log: *applied,
            ..Default::default()
        });
        let status = StatusReply { head: number as u64 * 10, shards: shards.collect(), ..Default::default() };
        Seen { number, status }
    }

    #[test]
    fn leaders_count_only_where_all_agree() {
        let whole = [seen(1, &[(20, 3, 9), (10, 1, 9)]), seen(2, &[(20, 3, 9), (10, 1, 9)])];
        assert_eq!(leaders(&whole), Some(vec![(2, 3), (1, 1)]));
        assert_eq!(lacking(&whole, 2), None);
        assert!(lacking(&whole, 3).expect("one is missing").contains("2 of 3"));
        let torn = [seen(1, &[(20, 3, 9)]), seen(2, &[(20, 4, 9)])];
        assert_eq!(leaders(&torn), None);
        let foreign = [seen(1, &[(30, 3, 9)]), seen(2, &[(30, 3, 9)])];
        assert_eq!(leaders(&foreign), None, "a leader that was not asked");
        let behind = [seen(1, &[(20, 3, 900)]), seen(2, &[(20, 3, 9)])];
        assert!(lacking(&behind, 2).expect("behind").contains("head 2 has applied 9 of 900"));
    }

    #[test]
    fn spread_is_as_even_as_the_numbers_allow() {
        let lead = |heads: &[usize]| heads.iter().map(|h| (*h, 1)).collect::<Vec<_>>();
        assert!(is_spread(&lead(&[1, 2, 3, 1]), 3));
        assert!(!is_spread(&lead(&[1, 2, 2, 1]), 3));
        assert!(is_spread(&lead(&[2]), 3));
    }
}
