//! Lineage records that can be made again from their ids, so that what is read back can be compared.

use bytes::{BufMut, Bytes};
use mobula_base::ids::{RUN_LEN, hash64};
use mobula_base::{JobId, RunId, TaskId};
use mobula_proto as proto;
use prost::Message;

/// Bytes of one encoded record.
pub const RECORD_BYTES: usize = 150;
/// Bytes of an encoded record but for its argument: found by encoding one.
const ARGUMENT_LEN: usize = 74;

/// A source of runs that belong to one shard.
pub struct Source {
    job: JobId,
    strand: u64,
    shard: u32,
    shards: u32,
    next: u64,
    template: Vec<u8>,
}

impl Source {
    /// Runs of `strand` of `job` that `shard` of `shards` owns.
    pub fn new(job: u64, strand: u64, shard: u32, shards: u32) -> Self {
        let job = JobId(job);
        Source { job, strand, shard, shards, next: 0, template: template(job) }
    }

    /// The next run.
    pub fn next_run(&mut self) -> RunId {
        loop {
            let run = RunId::new(self.job, TaskId::root(self.job), self.strand, self.next * RUN_LEN);
            self.next += 1;
            if run.shard(self.shards).0 == self.shard {
                return run;
            }
        }
    }

    /// All records of a run, as a node's batch carries them.
    pub fn records(&self, run: RunId) -> proto::RunSpecs {
        let count = RUN_LEN as usize;
        let mut specs = Vec::with_capacity(count * RECORD_BYTES);
        let (mut digests, mut ends) = (Vec::with_capacity(count * 8), Vec::with_capacity(count * 4));
        for place in 0..RUN_LEN as u16 {
            let start = specs.len();
            specs.extend_from_slice(&self.template);
            let digest = self.fill(&mut specs[start..], TaskId { run, place });
            digests.put_u64_le(digest);
            ends.put_u32_le(specs.len() as u32);
        }
        proto::RunSpecs {
            run: Bytes::copy_from_slice(&run.0.to_be_bytes()),
            job: self.job.0,
            first: 0,
            digests: digests.into(),
            ends: ends.into(),
            specs: specs.into(),
            plain: true,
        }
    }

    /// The record of one task.
    pub fn record(&self, id: TaskId) -> proto::TaskSpec {
        let mut bytes = self.template.clone();
        self.fill(&mut bytes, id);
        proto::TaskSpec::decode(&bytes[..]).expect("it was encoded from one")
    }

    /// Puts a task's id, argument and digest into a copy of the template; the digest.
    fn fill(&self, record: &mut [u8], id: TaskId) -> u64 {
        let id_bytes = id.to_bytes();
        let digest = (id.run.0 as u64).wrapping_mul(u64::from(id.place) | 1);
        // Tag and length come before the id, which comes first; the digest comes last.
        record[2..2 + TaskId::LEN].copy_from_slice(&id_bytes);
        let at = record.len();
        record[at - 8..].copy_from_slice(&digest.to_le_bytes());
        digest
    }
}

fn template(job: JobId) -> Vec<u8> {
    let value: Vec<u8> = (0..ARGUMENT_LEN as u64).map(|n| hash64(&[&n.to_le_bytes()]) as u8).collect();
    let spec = proto::TaskSpec {
        id: proto::task_bytes(TaskId::root(job)),
        job: job.0,
        parent: proto::task_bytes(TaskId::root(job)),
        function: 0x0123_4567_89ab_cdef,
        args: vec![proto::Arg { arg: Some(proto::arg::Arg::Value(value.into())) }],
        cpu_milli: 1000,
        max_retries: 3,
        digest: 1,
        ..Default::default()
    };
    spec.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_their_size_and_can_be_made_again() {
        let mut source = Source::new(7, 3, 2, 4);
        let run = source.next_run();
        assert_eq!(run.shard(4).0, 2);
        let batch = source.records(run);
        assert_eq!(batch.specs.len(), RUN_LEN as usize * RECORD_BYTES);
        for place in [0u16, 1, 511] {
            let start = usize::from(place) * RECORD_BYTES;
            let spec = proto::TaskSpec::decode(&batch.specs[start..start + RECORD_BYTES]).expect("a record");
            let id = TaskId { run, place };
            assert_eq!(spec, source.record(id));
            assert_eq!((spec.id, spec.job), (proto::task_bytes(id), 7));
        }
    }
}
