//! Following slots: which shard has what, by the newest map that this client has seen.
//!
//! A shard that is asked for a slot it does not own answers `moved`, and names the epoch of the map
//! that says where the slot is. Nothing was done then, nor ever will be under that request's number. So
//! the client waits until some head knows that map, and asks the new owner.

use super::Client;
use crate::error::Error;
use mobula_base::SlotMap;
use mobula_proto as proto;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A request is sent to another shard so often. Each time a later map was waited for, so this many
/// moves of one slot went by meanwhile.
pub(super) const MAX_REDIRECTS: usize = 8;
/// First pause after no head knew the map; pauses double.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(80);

impl Client {
    /// The newest slot map that this client has seen; that of a new cluster before it has seen any.
    pub fn slots(&self) -> Arc<SlotMap> {
        self.state().slots.clone()
    }

    /// Takes over the slot map of a view, if it is newer.
    pub(super) fn learn_slots(&self, view: Option<&proto::ClusterView>) {
        let Some(map) = view.and_then(|view| view.slots.as_ref()) else { return };
        let mut state = self.state();
        if map.epoch > state.slots.epoch()
            && let Ok(map) = map.read()
        {
            state.slots = Arc::new(map);
        }
    }

    /// Returns once this client knows the map of `epoch` or a later one; the view it came with, unless
    /// it was known already. Any head may know it, so all are asked.
    ///
    /// # Errors
    /// No head knew it in time. Whatever was answered `moved` was not done.
    pub async fn follow_slots(
        &self,
        epoch: u64,
        deadline: Duration,
    ) -> Result<Option<proto::ClusterView>, Error> {
        let until = Instant::now() + deadline;
        let mut pause = FIRST_PAUSE;
        let mut last = "no head was asked".to_owned();
        while self.slots().epoch() < epoch {
            for head in self.heads() {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(moving(epoch, &last));
                }
                match tokio::time::timeout(left, self.status_of(&head)).await {
                    Ok(Ok(status)) => {
                        self.learn_slots(status.view.as_ref());
                        if self.slots().epoch() >= epoch {
                            return Ok(status.view);
                        }
                        last = format!("{head} does not know it yet");
                    }
                    Ok(Err(error)) => last = error.to_string(),
                    Err(_) => last = format!("{head} did not answer in time"),
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Ok(None)
    }
}

/// A move that does not come to its end.
pub(super) fn moving(epoch: u64, last: &str) -> Error {
    Error::Moving(format!("slot map {epoch} is awaited (last: {last})"))
}

/// More moves went by than one request follows.
pub(super) fn astray() -> Error {
    Error::Moving(format!("its slot was elsewhere {} times", MAX_REDIRECTS + 1))
}
