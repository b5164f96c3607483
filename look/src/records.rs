//! What the control store has on record of tasks, and where it knows objects to be.

use crate::gather::{DEADLINE, Look};
use mobula_base::{ObjectId, TaskId, TaskPrefix};
use mobula_gcs::Error;
use mobula_proto::{Event, Located, TaskView, located, object_bytes, object_id, task_bytes};
use std::collections::BTreeMap;
use std::time::Duration;

/// Tasks or objects that are asked for at once; fewer where what they run is wanted, too: arguments of 100 KB lie in it.
const ASKED_MAX: usize = 1000;
const SPECS_MAX: usize = 100;

impl Look {
    /// The records of tasks, with what they run if that is asked for. Those that have none are not among them.
    ///
    /// # Errors
    /// A shard does not answer.
    pub async fn records(
        &self,
        tasks: &[TaskId],
        with_spec: bool,
    ) -> Result<BTreeMap<TaskId, TaskView>, Error> {
        let mut records = BTreeMap::new();
        for (shard, tasks) in self.by_shard(tasks, |task| *task) {
            for some in tasks.chunks(if with_spec { SPECS_MAX } else { ASKED_MAX }) {
                let ids = some.iter().map(|task| task_bytes(*task)).collect();
                let views = self.client.read_tasks(shard, ids, with_spec, DEADLINE).await?;
                let known = some.iter().copied().zip(views).filter(|(_, view)| view.state != 0);
                records.extend(known);
            }
        }
        Ok(records)
    }

    /// Where objects are, as their homes know. Nothing is waited for.
    ///
    /// # Errors
    /// A shard does not answer.
    pub async fn located(&self, objects: &[ObjectId]) -> Result<BTreeMap<ObjectId, located::Answer>, Error> {
        let mut found = BTreeMap::new();
        for (shard, objects) in self.by_shard(objects, |object| object.task) {
            for some in objects.chunks(ASKED_MAX) {
                let ids = some.iter().map(|object| object_bytes(*object)).collect();
                let list = self.client.locate(shard, 0, ids, Duration::ZERO, DEADLINE).await?;
                let answer = |located: Located| Some((object_id(&located.object).ok()?, located.answer?));
                found.extend(list.answers.into_iter().filter_map(answer));
            }
        }
        Ok(found)
    }

    fn by_shard<T: Copy>(&self, all: &[T], task: impl Fn(&T) -> TaskId) -> BTreeMap<u32, Vec<T>> {
        let map = self.client.slots();
        let mut shards: BTreeMap<u32, Vec<T>> = BTreeMap::new();
        for one in all {
            shards.entry(map.of_run(task(one).run).0).or_default().push(*one);
        }
        shards
    }

    /// All events that are kept, oldest first.
    ///
    /// # Errors
    /// No head answers.
    pub async fn events(&self, mut above: u64) -> Result<Vec<Event>, Error> {
        self.connected().await?;
        let mut events = Vec::new();
        loop {
            let reply = self.client.events(above, Duration::ZERO, DEADLINE).await?;
            above = match reply.events.last() {
                Some(last) => last.seq,
                None => return Ok(events),
            };
            events.extend(reply.events);
            if above >= reply.last {
                return Ok(events);
            }
        }
    }
}

/// Reads the id of an object: that of its task, `#`, and its number there in hexadecimal digits.
///
/// # Errors
/// It is something else.
pub fn parse_object(text: &str) -> Result<ObjectId, String> {
    let wrong = || {
        format!(
            "{text:?} is not the id of an object: that is the whole id of its task, a # and a hexadecimal number"
        )
    };
    let (task, slot) = text.split_once('#').ok_or_else(wrong)?;
    let task = task.parse::<TaskPrefix>().ok().and_then(TaskPrefix::whole).ok_or_else(wrong)?;
    let slot = u32::from_str_radix(slot, 16).map_err(|_| wrong())?;
    Ok(ObjectId { task, slot })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_read_as_it_is_written() {
        let object = ObjectId { slot: 0x8000_0003, ..ObjectId::default() };
        assert_eq!(parse_object(&object.to_string()), Ok(object));
        for wrong in
            ["", "ab#0", "00000000000000000000000000000000-001", "00000000000000000000000000000000-001#x"]
        {
            assert!(parse_object(wrong).is_err(), "{wrong}");
        }
    }
}
