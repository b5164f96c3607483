//! What an `async` task does without blocking its thread, and what it may ask about itself.

use crate::client::Client;
use crate::error::Error;
use crate::reference::ObjectRef;
use mobula_base::{ObjectId, TaskId};
use serde::Serialize;

impl Client {
    /// As [`Client::put`], without blocking the thread.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn put_async<T: Serialize>(&self, value: &T) -> Result<ObjectRef<T>, Error> {
        self.put_with(value).store_async().await
    }

    /// Waits until `count` of `refs` exist or failed, without blocking the thread: which are ready.
    ///
    /// # Errors
    /// The connection to the daemon ended.
    pub async fn wait_refs_async<T>(&self, refs: &[ObjectRef<T>], count: usize) -> Result<Vec<bool>, Error> {
        let ids: Vec<ObjectId> = refs.iter().map(ObjectRef::id).collect();
        let _taken = self.take_up_strangers(&ids);
        self.ask(&ids, false);
        let all = || ids.iter().map(|id| self.is_ready(*id)).collect::<Vec<bool>>();
        let enough = |ready: &[bool]| ready.iter().filter(|ready| **ready).count() >= count.min(ids.len());
        let now = all();
        if enough(&now) {
            return Ok(now);
        }
        self.block(false);
        let result = self
            .wait_async(|state| {
                let ready = |id| state.slots.get(id).is_some_and(|slot| slot.ready.is_some());
                let ready: Vec<bool> = ids.iter().map(ready).collect();
                enough(&ready).then_some(ready)
            })
            .await;
        self.unblock();
        result
    }

    /// The task that this client acts for; a driver's is the root of its job. It is the same in every
    /// attempt, so it names what the task does outside: an idempotency key.
    pub fn task(&self) -> TaskId {
        self.context.task
    }

    /// Which attempt of the task runs, from 1; 0 for a driver.
    pub fn attempt(&self) -> u32 {
        self.context.attempt
    }

    /// Numbers of the GPUs that the task may use ([`crate::Task::gpus`]). With less than one it shares that one.
    pub fn devices(&self) -> &[u32] {
        &self.context.devices
    }

    /// The same as CUDA's libraries read it from `CUDA_VISIBLE_DEVICES`, for the environment of a process that
    /// the task starts. Without GPUs it is empty: then they see none.
    pub fn visible_devices(&self) -> String {
        self.devices().iter().map(u32::to_string).collect::<Vec<_>>().join(",")
    }
}
