//! Snapshots: a versioned, canonical dump. Equal states give equal bytes.

use super::format::{ClusterDump, Dump, SessionDump, StreamDump, TaskDump, VERSION};
use super::record::{State, TaskRecord};
use super::session::Session;
use super::stream::Stream;
use super::{KvValue, ShardState};
use bytes::Bytes;
use mobula_base::ids::hash64;
use mobula_base::{ObjectId, TaskId};
use mobula_proto as proto;
use prost::Message;
use std::io;
use std::sync::Arc;

impl ShardState {
    /// Everything, cold specs included.
    ///
    /// # Errors
    /// The store of cold specs cannot be read.
    pub fn snapshot(&self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let encoded = |dump: &Dump, out: &mut Vec<u8>| dump.encode(out).expect("a Vec grows");
        // One small message after the other: concatenated protobuf messages merge into one.
        encoded(&Dump { version: VERSION, ..Default::default() }, &mut out);
        for (id, record) in self.tasks.iter() {
            let tasks = vec![self.dump_task(id, record)?];
            encoded(&Dump { tasks, ..Default::default() }, &mut out);
        }
        let put = |(id, value): (&ObjectId, &Bytes)| proto::SmallPut {
            object: proto::object_bytes(*id),
            job: 0,
            value: value.clone(),
        };
        let stream = |(incarnation, stream): (&u64, &Stream)| StreamDump {
            incarnation: *incarnation,
            mark: stream.mark,
            last_first: stream.last_first,
            last_len: stream.last_len,
            last_ack: Some((*stream.last_ack).clone()),
        };
        let session = |(session, entry): (u64, &Session)| SessionDump {
            session,
            last_seq: entry.last_seq,
            reply: Some(entry.reply.clone()),
            used: entry.used,
        };
        let kv = |(key, entry): (&Bytes, &KvValue)| proto::KvEntry {
            key: key.clone(),
            value: entry.value.clone(),
            revision: entry.revision,
        };
        let cluster = &self.cluster;
        let rest = Dump {
            puts: self.puts.iter().map(put).collect(),
            streams: self.streams.iter().map(stream).collect(),
            fenced: self.fenced.iter().copied().collect(),
            kv: self.kv.iter().map(kv).collect(),
            sessions: self.sessions.iter().map(session).collect(),
            cluster: Some(ClusterDump {
                id: cluster.id,
                shards: cluster.shards,
                slots: cluster.slots,
                last_incarnation: cluster.last_incarnation,
                members: cluster.members.values().cloned().collect(),
                dead: cluster.dead.iter().copied().collect(),
                deaths: cluster.deaths.iter().cloned().collect(),
                jobs: cluster.jobs.clone(),
                version: cluster.version,
            }),
            ..Default::default()
        };
        encoded(&rest, &mut out);
        Ok(out)
    }

    fn dump_task(&self, id: TaskId, record: &TaskRecord) -> io::Result<TaskDump> {
        let spec = match &record.spec {
            Some(hot) => hot.clone(),
            None => self
                .specs
                .get(id)?
                .ok_or_else(|| io::Error::other(format!("cold spec of task {id} is gone")))?,
        };
        let (done, failed) = match &record.state {
            State::Pending => (None, None),
            State::Done { executor, outputs, holders } => {
                let (outputs, holders) = (outputs.to_vec(), holders.to_vec());
                (Some(proto::Done { executor: *executor, outputs, holders, ..Default::default() }), None)
            }
            State::Failed(failure) => (None, Some((**failure).clone())),
        };
        Ok(TaskDump {
            id: proto::task_bytes(id),
            spec,
            digest: record.digest,
            revision: record.revision,
            attempt: record.attempt,
            keeper: record.keeper,
            failures: record.failures,
            max_retries: record.max_retries,
            done,
            failed,
        })
    }

    /// Replaces everything by what [`ShardState::snapshot`] wrote.
    ///
    /// # Errors
    /// The bytes are not a dump of this version.
    pub fn restore(&mut self, bytes: &[u8]) -> io::Result<()> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("snapshot: {what}"));
        let dump = Dump::decode(bytes).map_err(|error| invalid(&error.to_string()))?;
        if dump.version != VERSION {
            return Err(invalid(&format!("version {} (this build reads {VERSION})", dump.version)));
        }
        let hot_limit = self.hot_limit;
        *self = ShardState { hot_limit, ..ShardState::new(self.shard, self.specs.clone()) };
        for task in dump.tasks {
            let id = TaskId::from_bytes(&task.id).ok_or_else(|| invalid("task id"))?;
            self.restore_task(id, task);
            self.cool_down();
        }
        for put in dump.puts {
            let id = ObjectId::from_bytes(&put.object).ok_or_else(|| invalid("object id"))?;
            self.puts.insert(id, Bytes::copy_from_slice(&put.value));
        }
        for stream in dump.streams {
            let last_ack = Arc::new(stream.last_ack.unwrap_or_default());
            let (mark, last_first, last_len) = (stream.mark, stream.last_first, stream.last_len);
            self.streams.insert(stream.incarnation, Stream { mark, last_first, last_len, last_ack });
        }
        self.fenced = dump.fenced.into_iter().collect();
        for entry in dump.kv {
            self.kv.insert(entry.key, KvValue { value: entry.value, revision: entry.revision });
        }
        for session in dump.sessions {
            let (last_seq, used) = (session.last_seq, session.used);
            let reply = session.reply.unwrap_or_default();
            self.sessions.remember(session.session, Session { last_seq, reply, used });
        }
        let cluster = dump.cluster.unwrap_or_default();
        self.cluster = super::Cluster {
            id: cluster.id,
            shards: cluster.shards,
            slots: cluster.slots,
            last_incarnation: cluster.last_incarnation,
            members: cluster.members.into_iter().map(|member| (member.incarnation, member)).collect(),
            dead: cluster.dead.into_iter().collect(),
            deaths: cluster.deaths.into(),
            jobs: cluster.jobs,
            version: cluster.version,
        };
        Ok(())
    }

    fn restore_task(&mut self, id: TaskId, task: TaskDump) {
        let state = match (task.done, task.failed) {
            (Some(done), _) => State::Done {
                executor: done.executor,
                outputs: done.outputs.into(),
                holders: done.holders.into(),
            },
            (None, Some(failure)) => State::Failed(Box::new(failure)),
            (None, None) => State::Pending,
        };
        let over = state != State::Pending;
        let record = TaskRecord {
            spec: Some(Bytes::copy_from_slice(&task.spec)),
            digest: task.digest,
            revision: task.revision,
            attempt: task.attempt,
            keeper: task.keeper,
            failures: task.failures,
            max_retries: task.max_retries,
            state,
        };
        self.tasks.insert(id, record);
        if over {
            self.ended(id);
        }
    }

    /// A hash of everything: equal on replicas that applied the same commands.
    ///
    /// # Errors
    /// As [`ShardState::snapshot`].
    pub fn digest(&self) -> io::Result<u64> {
        Ok(hash64(&[&self.snapshot()?]))
    }
}
