//! Clients with one write in flight each, a lane for each shard, on a thread of their own. They
//! remember when each write was acknowledged, and what must be there because it was.

use bytes::Bytes;
use mobula_base::ids::shard_of_key;
use mobula_gcs::Client;
use mobula_net::tcp::TcpNet;
use mobula_proto::{KvEntry, KvPut, call, call_reply};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Keys of one lane: they are written in turn. What was acknowledged is checked before it is
/// written over, as long as a cycle has fewer writes.
pub const RING: u64 = 4096;
/// Bytes of a key and of a value, as in figure 10a of the Ray paper.
pub const KEY_BYTES: usize = 25;
/// See [`KEY_BYTES`].
pub const VALUE_BYTES: usize = 512;
/// A write is tried this long. One that fails after all is reported.
const PATIENCE: Duration = Duration::from_secs(60);
/// What all keys start with.
const PREFIX: &[u8] = b"failover/";

/// One acknowledged write.
#[derive(Clone, Copy, Debug)]
pub struct Ack {
    /// When the one before was acknowledged, or writing began.
    pub before: Instant,
    /// When it was sent.
    pub began: Instant,
    /// When it was acknowledged.
    pub ended: Instant,
}

#[derive(Default)]
struct Log {
    acks: Vec<Ack>,
    /// The last acknowledged write to each key.
    expected: Vec<Option<u64>>,
    acknowledged: u64,
    failed: Vec<String>,
    idle: bool,
}

struct Lane {
    shard: u32,
    keys: Vec<Bytes>,
    is_active: watch::Sender<bool>,
    log: Mutex<Log>,
}

impl Lane {
    fn log(&self) -> MutexGuard<'_, Log> {
        // A panic elsewhere is reported there.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All lanes.
pub struct Lanes {
    lanes: Arc<Vec<Lane>>,
    thread: Option<JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

impl Lanes {
    /// Lanes of the cluster of `heads`, all idle.
    pub fn start(heads: &[String], shards: u32) -> Lanes {
        let lane = |shard| Lane {
            shard,
            keys: (0..RING).map(|slot| key(shard, shards, slot)).collect(),
            is_active: watch::Sender::new(false),
            log: Mutex::new(Log { expected: vec![None; RING as usize], idle: true, ..Log::default() }),
        };
        let lanes: Arc<Vec<Lane>> = Arc::new((0..shards).map(lane).collect());
        let (stop, stopped) = watch::channel(false);
        let (heads, theirs) = (heads.to_vec(), lanes.clone());
        let thread = std::thread::Builder::new().name("lanes".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime needs a few file descriptors");
            runtime.block_on(async {
                let mut tasks = tokio::task::JoinSet::new();
                for at in 0..theirs.len() {
                    tasks.spawn(write(heads.clone(), theirs.clone(), at, stopped.clone()));
                }
                while tasks.join_next().await.is_some() {}
            });
        });
        Lanes { lanes, thread: Some(thread.expect("a thread for the writers")), stop }
    }

    /// Has these shards written to, and no others. Forgets earlier times.
    pub fn activate(&self, shards: &[u32]) {
        for lane in self.lanes.iter() {
            lane.log().acks.clear();
            lane.is_active.send_replace(shards.contains(&lane.shard));
        }
    }

    /// Whether no write is under way any more after [`Lanes::activate`] of none.
    pub fn are_idle(&self) -> bool {
        self.lanes.iter().all(|lane| lane.log().idle)
    }

    /// Whether each of these shards has acknowledged `count` writes that began after `since`.
    pub fn have_written(&self, shards: &[u32], count: usize, since: Instant) -> bool {
        shards.iter().all(|shard| {
            let log = self.lanes[*shard as usize].log();
            log.acks.iter().rev().take_while(|ack| ack.began > since).count() >= count
        })
    }

    /// The longest time between two acknowledgements of one of these shards, of those that ended
    /// in the time given. A write that is still out counts with the time it has taken so far.
    pub fn longest_gap(&self, shards: &[u32], from: Instant, to: Instant) -> Duration {
        let gap = |shard: &u32| {
            let log = self.lanes[*shard as usize].log();
            let ended = log.acks.iter().filter(|ack| ack.ended > from && ack.ended <= to);
            let longest = ended.map(|ack| ack.ended - ack.before).max().unwrap_or_default();
            let last = log.acks.iter().rev().find(|ack| ack.ended <= to).map(|ack| to - ack.ended);
            longest.max(last.unwrap_or_default())
        };
        shards.iter().map(gap).max().unwrap_or_default()
    }

    /// Writes that were acknowledged, and what became of those that were not.
    pub fn totals(&self) -> (u64, Vec<String>) {
        let logs = || self.lanes.iter().map(Lane::log);
        (logs().map(|log| log.acknowledged).sum(), logs().flat_map(|log| log.failed.clone()).collect())
    }

    /// Reads these shards' keys back, fresh; what is missing or older than acknowledged.
    ///
    /// # Errors
    /// They cannot be read.
    pub async fn lost(&self, client: &Client, shards: &[u32]) -> Result<Vec<String>, String> {
        let mut lost = Vec::new();
        for shard in shards {
            let lane = &self.lanes[*shard as usize];
            // What is expected first: a write that is acknowledged meanwhile is not due.
            let expected = lane.log().expected.clone();
            let found = client.read_prefix(PREFIX, *shard, PATIENCE).await;
            let found = found.map_err(|e| format!("shard {shard} cannot be read back: {e}"))?;
            lost.extend(missing(&lane.keys, &expected, &found));
        }
        Ok(lost)
    }

    /// Ends all writers.
    pub fn stop(mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // A panic there was printed there.
            let _ = thread.join();
        }
    }
}

fn missing(keys: &[Bytes], expected: &[Option<u64>], found: &[KvEntry]) -> Vec<String> {
    let found: std::collections::BTreeMap<&Bytes, &Bytes> =
        found.iter().map(|e| (&e.key, &e.value)).collect();
    let due = keys.iter().zip(expected).filter_map(|(key, number)| Some((key, (*number)?)));
    due.filter_map(|(key, number)| {
        let shown = String::from_utf8_lossy(key);
        match found.get(key).map(|value| number_of(value)) {
            // A later write may have taken effect without an answer.
            Some(Some(there)) if there >= number => None,
            Some(Some(there)) => {
                Some(format!("{shown}: write {number} was acknowledged, but write {there} is there"))
            }
            Some(None) => Some(format!("{shown}: write {number} was acknowledged, but its value is damaged")),
            None => Some(format!("{shown}: write {number} was acknowledged, but nothing is there")),
        }
    })
    .collect()
}

async fn write(heads: Vec<String>, lanes: Arc<Vec<Lane>>, at: usize, mut stopped: watch::Receiver<bool>) {
    let lane = &lanes[at];
    // Of its own: its connections and what it knows of leaders are those of one client.
    let client = Client::new(Arc::new(TcpNet), heads, 100 + at as u64);
    if let Err(error) = client.connect(PATIENCE).await {
        lane.log().failed.push(error.to_string());
        return;
    }
    let mut active = lane.is_active.subscribe();
    let mut number = 0;
    loop {
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stop| *stop) => return,
            on = active.wait_for(|on| *on) => if on.is_err() { return },
        }
        lane.log().idle = false;
        let mut before = Instant::now();
        while *active.borrow() && !*stopped.borrow() {
            let began = Instant::now();
            let slot = (number % RING) as usize;
            let put = KvPut {
                key: lane.keys[slot].clone(),
                value: value(number),
                only_if_absent: false,
                ..Default::default()
            };
            let answer = client.call(call::Op::KvPut(put), lane.shard, PATIENCE).await;
            let ended = Instant::now();
            let mut log = lane.log();
            match answer.map(|reply| reply.reply) {
                Ok(Some(call_reply::Reply::Revision(_))) => {
                    log.acks.push(Ack { before, began, ended });
                    log.expected[slot] = Some(number);
                    log.acknowledged += 1;
                    before = ended;
                }
                Ok(other) => log.failed.push(format!("write {number}: unexpected answer {other:?}")),
                Err(error) => log.failed.push(format!("write {number}: {error}")),
            }
            number += 1;
        }
        lane.log().idle = true;
    }
}

/// The key of a slot: the first of a row of names that hashes to the shard.
fn key(shard: u32, shards: u32, slot: u64) -> Bytes {
    let mut names = (0u64..).map(|salt| format!("failover/{slot:05}/{salt:010}"));
    let key = names.find(|key| shard_of_key(key.as_bytes(), shards).0 == shard);
    let key = Bytes::from(key.expect("every shard owns slots, so some name hashes to it"));
    debug_assert_eq!(key.len(), KEY_BYTES);
    key
}

/// Write `number`'s value: the number, and bytes that follow from it.
fn value(number: u64) -> Bytes {
    let mut value = number.to_le_bytes().to_vec();
    value.extend((value.len()..VALUE_BYTES).map(|at| filler(number, at)));
    value.into()
}

fn filler(number: u64, at: usize) -> u8 {
    (number.wrapping_mul(31).wrapping_add(at as u64) >> 3) as u8
}

/// Which write a value is of; `None` if it is none's.
fn number_of(value: &[u8]) -> Option<u64> {
    let (number, rest) = value.split_first_chunk::<8>()?;
    let number = u64::from_le_bytes(*number);
    let is_whole = value.len() == VALUE_BYTES;
    (is_whole && rest.iter().zip(8..).all(|(byte, at)| *byte == filler(number, at))).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_have_the_paper_s_sizes_and_belong_where_they_are_sent() {
        for shard in 0..4 {
            let key = key(shard, 4, 4095);
            assert_eq!((key.len(), shard_of_key(&key, 4).0), (KEY_BYTES, shard));
        }
        assert_eq!(value(7).len(), VALUE_BYTES);
        assert_eq!(number_of(&value(123_456)), Some(123_456));
        let mut torn = value(7).to_vec();
        torn[100] ^= 1;
        assert_eq!(number_of(&torn), None);
    }

    #[test]
    fn older_damaged_and_absent_values_are_lost_and_newer_ones_are_not() {
        let keys: Vec<Bytes> = (0..5).map(|slot| key(0, 1, slot)).collect();
        let entry = |slot: usize, value: Bytes| KvEntry { key: keys[slot].clone(), value, revision: 1 };
        let expected = [Some(10), Some(11), Some(12), Some(13), None];
        let found = [entry(0, value(10)), entry(1, value(1)), entry(2, value(99)), entry(4, value(4))];
        let lost = missing(&keys, &expected, &found);
        assert_eq!(lost.len(), 2, "{lost:?}");
        assert!(lost[0].contains("write 11 was acknowledged, but write 1 is there"));
        assert!(lost[1].contains("write 13") && lost[1].contains("nothing"));
    }

    #[test]
    fn a_gap_is_between_acknowledgements_and_an_open_one_counts() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let ack = |before, ended| Ack { before: at(before), began: at(before), ended: at(ended) };
        let lane = Lane {
            shard: 0,
            keys: Vec::new(),
            is_active: watch::Sender::new(false),
            log: Mutex::new(Log {
                acks: vec![ack(0, 50), ack(50, 52), ack(52, 90), ack(90, 91)],
                ..Log::default()
            }),
        };
        let (stop, _) = watch::channel(false);
        let lanes = Lanes { lanes: Arc::new(vec![lane]), thread: None, stop };
        let gap = |from, to| lanes.longest_gap(&[0], at(from), at(to)).as_millis();
        assert_eq!(gap(0, 100), 50);
        assert_eq!(gap(60, 100), 38, "the write that was out counts whole");
        assert_eq!(gap(60, 200), 109, "nothing since 91");
        assert_eq!(gap(90, 91), 1);
    }
}
