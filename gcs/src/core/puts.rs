//! What drivers `put`: small values are kept here, of large ones only that they exist.

use super::ShardState;
use super::format::{NeededDump, PutDump};
use super::refs::Needed;
use super::run::object_ids;
use bytes::Bytes;
use mobula_base::{JobId, ObjectId, TaskId};
use mobula_proto as proto;
use proto::FailureKind;
use proto::item_outcome::Outcome;

/// What there is of a put.
#[derive(Clone, Debug, PartialEq)]
pub enum Stored {
    /// It is named, and has not come yet.
    Coming,
    /// Its bytes.
    Small(Bytes),
    /// They are with its holders.
    Large(Option<proto::Output>),
}

/// A value that a driver `put`.
#[derive(Clone, Debug, PartialEq)]
pub struct Put {
    /// Whose.
    pub job: u64,
    /// What there is of it.
    pub stored: Stored,
    /// Objects that have an edge from it.
    pub contains: Box<[ObjectId]>,
    /// The incarnation that sent it, 0 before it came: that one has a copy until it says otherwise.
    pub by: u64,
    /// References to it are counted.
    pub counts: bool,
    /// Who needs it.
    pub needed: Needed,
}

impl Put {
    fn coming(job: u64) -> Self {
        let (stored, needed) = (Stored::Coming, Needed::default());
        Put { job, stored, contains: Box::default(), by: 0, counts: true, needed }
    }

    /// What `by` sent.
    fn new(put: &proto::SmallPut, by: u64, counts: bool) -> Self {
        let stored = match put.large && counts {
            true => Stored::Large(put.output),
            false => Stored::Small(Bytes::copy_from_slice(&put.value)),
        };
        let contains = if counts { object_ids(&put.contains) } else { Box::default() };
        Put { job: put.job, stored, contains, by, counts, needed: Needed::default() }
    }

    /// Whether nobody needs it.
    pub fn is_over(&self) -> bool {
        self.counts && self.needed.is_empty()
    }

    /// Bytes that its value takes.
    pub fn value(&self) -> Bytes {
        match &self.stored {
            Stored::Small(value) => value.clone(),
            Stored::Coming | Stored::Large(_) => Bytes::new(),
        }
    }

    /// As the first levels have it.
    pub(super) fn plain_dump(&self, object: ObjectId) -> proto::SmallPut {
        let (object, job, value) = (proto::object_bytes(object), self.job, self.value());
        proto::SmallPut { object, job, value, ..Default::default() }
    }

    pub(super) fn dump(&self, object: ObjectId) -> PutDump {
        let put = match &self.stored {
            Stored::Coming => None,
            Stored::Small(_) => Some(proto::SmallPut::default()),
            Stored::Large(output) => {
                Some(proto::SmallPut { large: true, output: *output, ..Default::default() })
            }
        };
        let contains = self.contains.iter().map(|id| proto::object_bytes(*id)).collect();
        let put = put.map(|put| proto::SmallPut { contains, value: self.value(), ..put });
        let needed = Some(self.needed.dump(0, 0));
        PutDump { object: proto::object_bytes(object), job: self.job, put, needed, by: self.by }
    }

    /// What [`Put::dump`] gave; `None` when it is malformed.
    pub(super) fn load(dump: &PutDump) -> Option<(ObjectId, Self)> {
        let needed = Needed::load(dump.needed.as_ref().unwrap_or(&NeededDump::default()))?;
        let put = match &dump.put {
            Some(put) => Put::new(put, dump.by, true),
            None => Put::coming(dump.job),
        };
        Some((ObjectId::from_bytes(&dump.object)?, Put { job: dump.job, needed, ..put }))
    }

    /// What a dump of the first levels gave.
    pub(super) fn load_plain(put: &proto::SmallPut) -> Option<(ObjectId, Self)> {
        Some((ObjectId::from_bytes(&put.object)?, Put::new(put, 0, false)))
    }
}

impl ShardState {
    /// A driver's put. Its sender holds it.
    pub(super) fn put(&mut self, who: u64, put: &proto::SmallPut) -> Option<Outcome> {
        let Some(object) = ObjectId::from_bytes(&put.object) else {
            return Some(super::stream::failed(FailureKind::FailureBadArguments, "malformed object id"));
        };
        if let Some(refused) = self.is_over_for(put.job) {
            return Some(refused);
        }
        if put.large {
            self.count_from_here();
        }
        let counts = self.counting.counts(put.job);
        let known = self.puts.entry(object).or_insert_with(|| Put::new(put, who, counts));
        if known.stored == Stored::Coming {
            let needed = std::mem::take(&mut known.needed);
            *known = Put { needed, ..Put::new(put, who, true) };
        }
        if known.counts {
            known.needed.hold(who);
            self.counting.concerns.add(who, object.task.run, put.job);
        }
        None
    }

    /// The driver's put of that name, made to come when it is not here yet; `None`: it is no such thing.
    pub(super) fn put_named(&mut self, object: ObjectId, job: u64) -> Option<&mut Put> {
        let is_drivers =
            object.is_put() && object.task == TaskId::root(JobId(job)) && self.counting.counts(job);
        if is_drivers {
            return Some(self.puts.entry(object).or_insert_with(|| Put::coming(job)));
        }
        self.puts.get_mut(&object)
    }
}
