//! Worker processes: they take what they are given in order, and each task takes its time.

use super::shape::Shape;
use bytes::Bytes;
use mobula_base::TaskId;
use mobula_base::ids::hash64;
use mobula_proto::{TaskSpec, task_id};
use mobula_scheduler::{TaskOutcome, Value};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// The function of a task that makes a small value.
pub const SMALL: u64 = 1;
/// The function of a task that makes a large one.
pub const LARGE: u64 = 2;

/// A worker: the first of its queue is running.
#[derive(Default)]
pub struct Worker {
    pub(super) queue: VecDeque<(Arc<TaskSpec>, u32)>,
}

impl Worker {
    /// How long the running task takes on this node, if there is one.
    pub fn takes(&self, shape: &Shape, node: usize) -> Option<Duration> {
        let (spec, _) = self.queue.front()?;
        let (low, high) = shape.task;
        let span = (high - low).as_nanos() as u64 + 1;
        let elsewhere = low + Duration::from_nanos(hash64(&[b"takes", &spec.id]) % span);
        Some(elsewhere * shape.slowness(node))
    }

    /// The running task has ended.
    pub fn end(&mut self, shape: &Shape, node: usize) -> Option<TaskOutcome> {
        let ran_ns = self.takes(shape, node)?.as_nanos() as u64;
        let (spec, attempt) = self.queue.pop_front()?;
        let task: TaskId = task_id(&spec.id).expect("a driver made it");
        let value = match spec.function {
            LARGE => Value::Shared { offset: 0, len: shape.large_bytes, crc: task.run.slot() },
            _ => Value::Inline(Bytes::from_static(&[1])),
        };
        Some(TaskOutcome {
            elements: Default::default(),
            task,
            attempt,
            value: Ok(value),
            contains: Vec::new(),
            ran_ns,
        })
    }
}
