//! `Locate`: answered from the leader's tables and soft state without a read-index; parked until there is
//! something to say. What is said is decided in [`crate::core::locate`].

use super::{Service, not_leader};
use crate::core::locate::{Facts, all_wait};
use mobula_proto as proto;
use proto::locate_reply::Result as Where;
use std::time::Duration;
use tokio::time::Instant;

/// No call is parked longer than this.
const MAX_WAIT: Duration = Duration::from_millis(2000);
/// More objects than this are not looked up in one call.
const MAX_OBJECTS: usize = 100_000;

impl Service {
    pub(super) async fn located(&self, request: proto::LocateRequest) -> Where {
        let (running, group) = match self.shard(request.cluster, request.shard) {
            Ok(found) => found,
            Err(_) if self.starting() => return Where::NotLeader(not_leader(None)),
            Err(why) => return Where::Refused(why),
        };
        if request.objects.len() > MAX_OBJECTS {
            return Where::Refused(format!("more than {MAX_OBJECTS} objects in one call"));
        }
        let soft = &running.soft[request.shard as usize];
        let deadline = Instant::now() + Duration::from_millis(request.wait_ms.into()).min(MAX_WAIT);
        let (mut applied, mut root) = (group.replica.applied(), running.root().replica.applied());
        let mut changed = soft.changed();
        loop {
            let leadership = group.leadership();
            if !leadership.here {
                return Where::NotLeader(not_leader(leadership.leader));
            }
            // Seen before looking, so that no change is missed.
            applied.borrow_and_update();
            root.borrow_and_update();
            changed.borrow_and_update();
            let members = running.members();
            let answers = {
                let mut holdings = soft.holdings();
                group.replica.with(|state| {
                    holdings.enter(leadership.term, state.slots.adopted());
                    Facts::new(state, &holdings, &members, request.asker).answers(&request.objects)
                })
            };
            if Instant::now() >= deadline || !all_wait(&answers) {
                return Where::Located(proto::LocatedList { answers, term: leadership.term });
            }
            // An error means that the head is shutting down; the deadline ends the call then.
            tokio::select! {
                biased;
                Ok(()) = applied.changed() => {}
                Ok(()) = changed.changed() => {}
                Ok(()) = root.changed() => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }
}
