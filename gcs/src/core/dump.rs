//! Snapshots: a versioned, canonical dump. Equal states give equal bytes.

use super::counting::Counting;
use super::events::{Events, EventsDump};
use super::format::{
    ClusterDump, CountingDump, Dump, FIRST_VERSION, HotRun, JobDump, SessionDump, StreamDump,
};
use super::groups::Groups;
use super::heads::Heads;
use super::kv::{Kv, KvValue};
use super::run::Run;
use super::session::{Session, Sessions};
use super::slot_table::SlotTable;
use super::slots::Owned;
use super::stream::Stream;
use super::tasks::JobSum;
use super::watch::History;
use super::{Put, ShardState};
use crate::cold::Manifest;
use crate::error::Error;
use crate::level;
use bytes::Bytes;
use mobula_base::ids::hash64;
use mobula_base::{RunId, mutant};
use mobula_proto as proto;
use prost::Message;
use std::io;
use std::sync::Arc;

impl ShardState {
    /// Everything but the cold runs, which lie in the files of the manifest of the same moment; at a
    /// level of formats.
    pub fn snapshot(&self, level: u32) -> Vec<u8> {
        // Room for the runs, which are most of it: growing would copy them again and again.
        let mut out = Vec::with_capacity(self.tasks.hot_bytes());
        let encoded = |dump: &Dump, out: &mut Vec<u8>| dump.encode(out).expect("a Vec grows");
        // One small message after the other: concatenated protobuf messages merge into one.
        // One who has not noted the level yet may have applied what came after.
        let has_moved = self.slots.dump().is_some() || self.cluster.slots_table.dump().is_some();
        let level = level.max(if has_moved { level::MOVES_SLOTS } else { 1 });
        let level = level.max(if self.counting.is_on() { level::COUNTS_REFERENCES } else { 1 });
        let level = level.max(if self.cluster.groups.dump().is_some() { level::PLACES_GROUPS } else { 1 });
        let writer = match level >= level::NAMES_WRITER {
            true => self.formats.program.clone(),
            false => String::new(),
        };
        encoded(&Dump { version: FIRST_VERSION + level - 1, writer, ..Default::default() }, &mut out);
        for (id, run) in self.tasks.hot() {
            let run = HotRun { run: Bytes::copy_from_slice(&id.0.to_be_bytes()), bytes: run.encode() };
            encoded(&Dump { hot: vec![run], ..Default::default() }, &mut out);
        }
        encoded(&self.dump_rest(), &mut out);
        out
    }

    /// All tables but that of the tasks.
    fn dump_rest(&self) -> Dump {
        let (counted, plain): (Vec<_>, Vec<_>) = self.puts.iter().partition(|(_, put)| put.counts);
        let counting = self.counting.dump().map(|dump| CountingDump {
            puts: counted.into_iter().map(|(id, put)| put.dump(*id)).collect(),
            ..dump
        });
        let job = |(job, sum): (u64, JobSum)| JobDump {
            job,
            tasks: sum.tasks,
            cold_runs: sum.cold_runs,
            cold_digest: sum.cold_digest,
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
        let (last_session, session_uses) = self.sessions.counters();
        Dump {
            puts: plain.into_iter().map(|(id, put)| put.plain_dump(*id)).collect(),
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
                heads: Some(cluster.heads.table().clone()),
                level: cluster.raised.0,
                program: cluster.raised.1.clone(),
                slots_table: cluster.slots_table.dump(),
                events: Some(cluster.events.dump()).filter(|events| *events != EventsDump::default()),
                groups: cluster.groups.dump(),
            }),
            jobs: self.tasks.jobs().map(job).collect(),
            forgotten: self.forgotten.iter().copied().collect(),
            history: Some(self.kv.history().dump()),
            last_session,
            session_uses,
            slots: self.slots.dump(),
            counting,
            ..Default::default()
        }
    }

    /// Replaces everything by what [`ShardState::snapshot`] wrote. The files of `cold` must be there.
    ///
    /// # Errors
    /// The bytes are no dump that this program reads, or a file is missing or damaged.
    pub fn restore(&mut self, bytes: Bytes, cold: &Manifest) -> io::Result<()> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("snapshot: {what}"));
        let dump = Dump::decode(bytes).map_err(|error| invalid(&error.to_string()))?;
        let Some(level) = dump.version.checked_sub(FIRST_VERSION - 1).filter(|level| *level > 0) else {
            return Err(invalid(&format!("version {} is older than all that are read", dump.version)));
        };
        self.formats.check(level, &dump.writer).map_err(Error::into_io)?;
        let hot_limit = self.tasks.hot_limit();
        let careless = (self.sessions.repeats, self.differs);
        let formats = self.formats.clone();
        *self = ShardState::new(self.shard, self.tasks.cold().clone());
        self.tasks.set_hot_limit(hot_limit);
        self.formats = formats;
        self.tasks.cold().adopt(cold)?;
        for hot in dump.hot {
            let id = hot.run[..].try_into().map_err(|_| invalid("run id"))?;
            self.tasks.restore_hot(RunId(u128::from_be_bytes(id)), Run::decode(hot.bytes)?)?;
        }
        let sum = |job: JobDump| {
            let (tasks, cold_runs, cold_digest) = (job.tasks, job.cold_runs, job.cold_digest);
            (job.job, JobSum { tasks, cold_runs, cold_digest, hot_runs: 0 })
        };
        self.tasks.restore_jobs(dump.jobs.into_iter().map(sum).collect());
        self.forgotten = dump.forgotten.into();
        let counted = dump.counting.iter().flat_map(|dump| dump.puts.iter().map(Put::load));
        for put in dump.puts.iter().map(Put::load_plain).chain(counted) {
            let (id, put) = put.ok_or_else(|| invalid("a put"))?;
            self.puts.insert(id, put);
        }
        self.counting = Counting::restored(dump.counting).ok_or_else(|| invalid("references"))?;
        for stream in dump.streams {
            let last_ack = Arc::new(stream.last_ack.unwrap_or_default());
            let (mark, last_first, last_len) = (stream.mark, stream.last_first, stream.last_len);
            let last_len = if mutant!("R12b") { 0 } else { last_len };
            self.streams.insert(stream.incarnation, Stream { mark, last_first, last_len, last_ack });
        }
        self.fenced = dump.fenced.into_iter().collect();
        self.slots = Owned::restored(dump.slots).map_err(|error| invalid(&error.to_string()))?;
        self.kv = Kv::restored(dump.kv, History::restored(dump.history.unwrap_or_default()));
        let session = |entry: SessionDump| {
            let reply = entry.reply.unwrap_or_default();
            (entry.session, Session { last_seq: entry.last_seq, reply, used: entry.used })
        };
        let counters = (dump.last_session, dump.session_uses);
        self.sessions = Sessions::restored(dump.sessions.into_iter().map(session), counters);
        self.set_careless(careless.0, careless.1);
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
            heads: Heads::restored(cluster.heads.unwrap_or_default()),
            raised: (cluster.level, cluster.program),
            slots_table: SlotTable::restored(cluster.slots_table)
                .map_err(|error| invalid(&error.to_string()))?,
            events: Events::restored(cluster.events.unwrap_or_default()),
            groups: Groups::restored(cluster.groups),
        };
        let (level, program) = self.cluster.level();
        self.formats.check(level, &program).map_err(Error::into_io)
    }

    /// A hash of everything: equal on replicas that applied the same commands.
    pub fn digest(&self) -> u64 {
        let rest = Dump { jobs: Vec::new(), ..self.dump_rest() };
        hash64(&[&rest.encode_to_vec(), &self.tasks.digest().to_le_bytes()])
    }
}
