//! Who is told how placement groups stand.

use crate::core::Core;
use crate::types::{ClientId, Effect};
use mobula_base::{GroupId, JobId};
use mobula_proto::{ClusterView, GroupState, GroupView, InGroup};

/// Groups that one client watches at most: one more takes the place of another. There are no more at a time.
pub const WATCHES_MAX: usize = 1_000;

impl Core {
    /// Whoever watches the job hears why a group of it waits; from the node of its driver, once.
    pub(super) fn say_why(&mut self, group: &GroupView, before: &str, view: &ClusterView) {
        let at = |job: &&mobula_proto::JobView| job.job == group.job;
        let driver =
            view.jobs.iter().find(at).and_then(|job| job.start.as_ref()).map(|start| start.incarnation);
        if !group.why.is_empty() && group.why != before && driver == Some(self.config.incarnation.0) {
            let text = format!("placement group {:016x} cannot be placed: {}", group.group, group.why);
            self.notice(JobId(group.job), "group-waits", text, None, 0);
        }
    }

    /// A client wants to hear how a group stands, now and when that changes.
    pub(crate) fn watch_group(&mut self, client: ClientId, group: InGroup) {
        let watched = self.groups.watched.entry(client).or_default();
        if watched.len() >= WATCHES_MAX {
            watched.pop_first();
        }
        watched.insert(GroupId(group.group), group.since);
        self.tell_watcher(client, group);
    }

    pub(super) fn tell_watchers(&mut self, changed: &[GroupId]) {
        let all: Vec<(ClientId, InGroup)> = self
            .groups
            .watched
            .iter()
            .flat_map(|(client, groups)| groups.iter().map(|(id, since)| (*client, *id, *since)))
            .map(|(client, id, since)| (client, InGroup { group: id.0, since, bundle: None }))
            .filter(|(_, group)| changed.contains(&GroupId(group.group)) || self.groups.is_gone(*group))
            .collect();
        all.into_iter().for_each(|(client, group)| self.tell_watcher(client, group));
    }

    /// Nothing is told of a group of which this node has not heard yet: that follows.
    fn tell_watcher(&mut self, client: ClientId, group: InGroup) {
        let view = self.groups.get(group).map(|known| known.view.clone());
        if view.is_none() {
            if !self.groups.is_gone(group) {
                return;
            }
            // That is the last of it.
            if let Some(watched) = self.groups.watched.get_mut(&client) {
                watched.remove(&GroupId(group.group));
                if watched.is_empty() {
                    self.groups.watched.remove(&client);
                }
            }
        }
        let state = GroupState { group: group.group, since: group.since, view };
        self.effects.push(Effect::Group { client, state });
    }

    /// A client's link has closed.
    pub(crate) fn forget_watches(&mut self, client: ClientId) {
        self.groups.watched.remove(&client);
    }
}
