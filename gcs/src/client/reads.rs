//! Requests that only look, each in terms of `Client::ask`.

use super::route::{EMPTY, Manner, Said, asking, manner};
use super::{ATTEMPT, Client};
use crate::error::Error;
use bytes::Bytes;
use mobula_base::ids::shard_of_key;
use mobula_proto as proto;
use std::time::Duration;

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
        self.ask(None, Manner { deadline, attempt: wait + ATTEMPT, changes: false }, ask).await
    }

    async fn read(
        &self,
        shard: u32,
        what: proto::read_request::What,
        deadline: Duration,
    ) -> Result<proto::read_reply::Result, Error> {
        use proto::read_reply::Result as R;
        let request = proto::ReadRequest { cluster: self.cluster(), shard, what: Some(what) };
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
        let shard = shard_of_key(key, self.shards()).0;
        let what = proto::read_request::What::Key(Bytes::copy_from_slice(key));
        match self.read(shard, what, deadline).await? {
            proto::read_reply::Result::Kv(list) => Ok(list.entries.into_iter().next()),
            _ => Err(EMPTY),
        }
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
        let what = proto::read_request::What::Prefix(Bytes::copy_from_slice(prefix));
        match self.read(shard, what, deadline).await? {
            proto::read_reply::Result::Kv(list) => Ok(list),
            _ => Err(EMPTY),
        }
    }

    /// How things stand with tasks of one shard, in the order of `tasks`, as fresh as the call.
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
        let what = proto::read_request::What::Tasks(proto::TaskIds { tasks, with_spec });
        match self.read(shard, what, deadline).await? {
            proto::read_reply::Result::Tasks(views) => Ok(views.tasks),
            _ => Err(EMPTY),
        }
    }
}
