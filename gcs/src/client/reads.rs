//! Requests that only look, each in terms of `Client::ask`.

use super::route::{EMPTY, Manner, Said, asking, manner};
use super::slots::{MAX_REDIRECTS, astray};
use super::{ATTEMPT, Client};
use crate::error::Error;
use bytes::Bytes;
use mobula_proto as proto;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

impl Client {
    /// Where objects are; parks up to `wait` (at most 2 s) for the first that is settled.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn locate(
        &self,
        shard: u32,
        asker: u64,
        objects: Vec<Bytes>,
        wait: Duration,
        deadline: Duration,
    ) -> Result<proto::LocatedList, Error> {
        use proto::locate_reply::Result as R;
        let wait_ms = wait.as_millis().min(u128::from(u32::MAX)) as u32;
        let request = proto::LocateRequest { cluster: self.cluster(), shard, asker, objects, wait_ms };
        let ask = asking!(locate, request,
            Some(R::Located(list)) => Said::Answer(list),
            Some(R::NotLeader(to)) => Said::NotLeader(to),
            Some(R::Refused(why)) => Said::Refused(why),
        );
        self.ask(Some(shard), Manner { deadline, attempt: wait + ATTEMPT, changes: false }, ask).await
    }

    /// The cluster's view from any head; parks up to `wait` for a version above `above`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn watch(
        &self,
        above: u64,
        wait: Duration,
        deadline: Duration,
    ) -> Result<proto::ClusterView, Error> {
        use proto::watch_reply::Result as R;
        let wait_ms = wait.as_millis().min(u128::from(u32::MAX)) as u32;
        let request = proto::WatchRequest { cluster: self.cluster(), above, wait_ms };
        let ask = asking!(watch, request,
            Some(R::View(view)) => Said::Answer(view),
            Some(R::Refused(why)) => Said::Refused(why),
        );
        let view = self.ask(None, Manner { deadline, attempt: wait + ATTEMPT, changes: false }, ask).await?;
        self.learn_slots(Some(&view));
        Ok(view)
    }

    async fn read(
        &self,
        shard: u32,
        what: proto::read_request::What,
        deadline: Duration,
    ) -> Result<proto::read_reply::Result, Error> {
        use proto::read_reply::Result as R;
        let map = self.slots().epoch();
        let request = proto::ReadRequest { cluster: self.cluster(), shard, what: Some(what), map };
        let ask = asking!(read, request,
            Some(R::NotLeader(to)) => Said::NotLeader(to),
            Some(R::Busy(why)) => Said::Later(why),
            Some(R::Refused(why)) => Said::Refused(why),
            Some(other) => Said::Answer(other),
        );
        self.ask(Some(shard), manner(deadline, false), ask).await
    }

    /// The value of a key, as fresh as the call.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn read_kv(&self, key: &[u8], deadline: Duration) -> Result<Option<proto::KvEntry>, Error> {
        let until = Instant::now() + deadline;
        let what = proto::read_request::What::Key(Bytes::copy_from_slice(key));
        for _ in 0..=MAX_REDIRECTS {
            let shard = self.slots().of_key(key).0;
            match self.read(shard, what.clone(), left(until)).await? {
                proto::read_reply::Result::Kv(list) => return Ok(list.entries.into_iter().next()),
                proto::read_reply::Result::Moved(epoch) => self.follow_slots(epoch, left(until)).await?,
                _ => return Err(EMPTY),
            };
        }
        Err(astray())
    }

    /// All entries of one shard whose key starts with `prefix`, as fresh as the call.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn read_prefix(
        &self,
        prefix: &[u8],
        shard: u32,
        deadline: Duration,
    ) -> Result<Vec<proto::KvEntry>, Error> {
        Ok(self.list(prefix, shard, deadline).await?.entries)
    }

    /// As [`Client::read_prefix`], with the shard's revision at that moment: a watch from the next
    /// one on misses nothing.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list(&self, prefix: &[u8], shard: u32, deadline: Duration) -> Result<proto::KvList, Error> {
        let until = Instant::now() + deadline;
        let what = proto::read_request::What::Prefix(Bytes::copy_from_slice(prefix));
        for _ in 0..=MAX_REDIRECTS {
            match self.read(shard, what.clone(), left(until)).await? {
                proto::read_reply::Result::Kv(list) => return Ok(list),
                proto::read_reply::Result::Moved(epoch) => self.follow_slots(epoch, left(until)).await?,
                _ => return Err(EMPTY),
            };
        }
        Err(astray())
    }

    /// All entries whose key starts with `prefix`, in the order of their keys, whichever shards have
    /// them. Not of one moment, but whatever was there all the time is on the list.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_all(&self, prefix: &[u8], deadline: Duration) -> Result<Vec<proto::KvEntry>, Error> {
        let until = Instant::now() + deadline;
        for _ in 0..=MAX_REDIRECTS {
            let map = self.slots().epoch();
            let mut found = Vec::new();
            for shard in 0..self.shards() {
                found.extend(self.list(prefix, shard, left(until)).await?.entries);
            }
            // All shards were asked by one map, so each had what that map gives it.
            if self.slots().epoch() == map {
                found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
                return Ok(found);
            }
        }
        Err(astray())
    }

    /// How things stand with tasks, in the order of `tasks`, as fresh as the call. `shard` is where they
    /// are, or were before slots moved.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn read_tasks(
        &self,
        shard: u32,
        tasks: Vec<Bytes>,
        with_spec: bool,
        deadline: Duration,
    ) -> Result<Vec<proto::TaskView>, Error> {
        let until = Instant::now() + deadline;
        let mut views = vec![proto::TaskView::default(); tasks.len()];
        let mut open: Vec<(u32, Vec<usize>)> = vec![(shard, (0..tasks.len()).collect())];
        let mut redirects = 0;
        while let Some((shard, places)) = open.pop() {
            let some = places.iter().map(|at| tasks[*at].clone()).collect();
            let what = proto::read_request::What::Tasks(proto::TaskIds { tasks: some, with_spec });
            match self.read(shard, what, left(until)).await? {
                proto::read_reply::Result::Tasks(found) => {
                    places.into_iter().zip(found.tasks).for_each(|(at, view)| views[at] = view);
                }
                proto::read_reply::Result::Moved(epoch) => {
                    redirects += 1;
                    if redirects > MAX_REDIRECTS * self.shards() as usize {
                        return Err(astray());
                    }
                    self.follow_slots(epoch, left(until)).await?;
                    open.extend(self.by_shard(&tasks, places));
                }
                _ => return Err(EMPTY),
            }
        }
        Ok(views)
    }

    /// Places in a list of tasks, by the shards that have those tasks.
    fn by_shard(&self, tasks: &[Bytes], places: Vec<usize>) -> BTreeMap<u32, Vec<usize>> {
        let map = self.slots();
        let mut shards: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for at in places {
            let home = proto::task_id(&tasks[at]).map_or(0, |id| map.of_run(id.run).0);
            shards.entry(home).or_default().push(at);
        }
        shards
    }
}

/// The time until then.
fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}
