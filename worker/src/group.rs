//! Placement groups: resources of one or several nodes, reserved together, for tasks that are to run there.
//!
//! ```no_run
//! # #[mobula::remote]
//! # fn train(part: u64) -> u64 { part }
//! # fn main() -> Result<(), mobula::Error> {
//! # let client = mobula::Client::connect(mobula::ConnectOptions::default())?;
//! use mobula::{Bundle, Strategy};
//! let group = client.placement_group([Bundle::cpus(2.0).gpus(1.0), Bundle::cpus(2.0).gpus(1.0)], Strategy::StrictSpread)?;
//! group.ready(Some(std::time::Duration::from_secs(60)))?;
//! let parts: Vec<_> = (0..2).map(|i| client.submit(train::task(i).cpus(2.0).gpus(1.0).in_bundle(&group, i as u32))).collect();
//! # drop(parts);
//! group.remove()
//! # }
//! ```
//!
//! A group is reserved as a whole or not at all, and stays until it is removed or its job ends. When a node dies, the
//! bundles that were there are placed again, and the others stay where they are.

use crate::client::{Client, State};
use crate::error::Error;
use crate::task::Task;
use mobula_base::ids::hash64;
use mobula_base::resources::{GPU, MEMORY, milli};
use mobula_proto::{
    Failure, FailureKind, GroupAsk, GroupCreate, GroupRemove, GroupState, GroupStrategy, InGroup,
    NamedResource, Placement, client_msg, group_ask,
};
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long the control store may take to note a group; it has none of its own, and asks again until then.
const NOTED_WITHIN: Duration = Duration::from_secs(60);

/// On which nodes the bundles of a group lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// On few nodes.
    Pack,
    /// On many nodes.
    Spread,
    /// All on one node, or the group waits.
    StrictPack,
    /// Each on a node of its own, or the group waits.
    StrictSpread,
}

impl From<Strategy> for GroupStrategy {
    fn from(strategy: Strategy) -> Self {
        match strategy {
            Strategy::Pack => GroupStrategy::GroupPack,
            Strategy::Spread => GroupStrategy::GroupSpread,
            Strategy::StrictPack => GroupStrategy::GroupStrictPack,
            Strategy::StrictSpread => GroupStrategy::GroupStrictSpread,
        }
    }
}

/// What is reserved together on one node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bundle {
    inner: mobula_proto::Bundle,
    error: Option<String>,
}

impl Bundle {
    /// CPUs; thousandths count.
    pub fn cpus(cpus: f64) -> Self {
        let mut bundle = Bundle::default();
        let amount = bundle.amount("CPUs", cpus);
        match u32::try_from(amount) {
            Ok(amount) => bundle.inner.cpu_milli = amount,
            Err(_) => bundle.error = Some(format!("{cpus} CPUs are more than any node may offer")),
        }
        bundle
    }

    /// An amount of a named resource; thousandths count.
    #[must_use]
    pub fn resource(mut self, name: &str, amount: f64) -> Self {
        let milli = self.amount(name, amount);
        self.inner.resources.retain(|resource| resource.name != name);
        self.inner.resources.push(NamedResource { name: name.to_owned(), milli });
        self
    }

    /// GPUs, whole ones: tasks in the bundle may share them.
    #[must_use]
    pub fn gpus(self, gpus: f64) -> Self {
        self.resource(GPU, gpus)
    }

    /// Memory in millions of bytes, of what nodes offer. It is counted, not enforced.
    #[must_use]
    pub fn memory_mb(self, mb: f64) -> Self {
        self.resource(MEMORY, mb)
    }

    fn amount(&mut self, what: &str, amount: f64) -> u64 {
        if !(amount.is_finite() && amount >= 0.0) {
            self.error = Some(format!("{amount} is no amount of {what}: it is a number from 0 on"));
        }
        milli(amount)
    }
}

/// What names a group in other programs of the job: an argument of a task, say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupHandle {
    id: u64,
    since: u64,
    bundles: u32,
}

/// A group that has been asked for. Dropping it changes nothing: it goes with [`PlacementGroup::remove`], or its job.
#[derive(Clone)]
pub struct PlacementGroup {
    client: Client,
    handle: GroupHandle,
}

fn bad(message: impl Into<String>) -> Error {
    Failure::new(FailureKind::FailureBadArguments, message).into()
}

fn removed(handle: GroupHandle) -> Error {
    let message =
        format!("placement group {:016x} is no more: it was removed, or its job has ended", handle.id);
    Failure::new(FailureKind::FailureGroupRemoved, message).into()
}

impl Client {
    /// Asks for a group: returns once that is on record, however long it may take until all of it is reserved
    /// ([`PlacementGroup::ready`]). A task that runs again asks for the same group again, and is given it.
    ///
    /// # Errors
    /// A bundle asks for what cannot be meant, there are too many, or the connection ended.
    pub fn placement_group(
        &self,
        bundles: impl IntoIterator<Item = Bundle>,
        strategy: Strategy,
    ) -> Result<PlacementGroup, Error> {
        let (create, count) = self.group_create(bundles, strategy)?;
        let id = create.group;
        let ask = self.ask_group(group_ask::What::Create(create));
        let since = self.blocking(|| self.wait_sync(Some(NOTED_WITHIN), |state| answer(state, ask)))??;
        Ok(self.group(GroupHandle { id, since, bundles: count }))
    }

    /// As [`Client::placement_group`], without blocking the thread.
    ///
    /// # Errors
    /// As [`Client::placement_group`].
    pub async fn placement_group_async(
        &self,
        bundles: impl IntoIterator<Item = Bundle>,
        strategy: Strategy,
    ) -> Result<PlacementGroup, Error> {
        let (create, count) = self.group_create(bundles, strategy)?;
        let id = create.group;
        let ask = self.ask_group(group_ask::What::Create(create));
        self.block(false);
        let answered = self.wait_async(|state| answer(state, ask)).await;
        self.unblock();
        Ok(self.group(GroupHandle { id, since: answered??, bundles: count }))
    }

    /// The group that a handle names.
    pub fn group(&self, handle: GroupHandle) -> PlacementGroup {
        PlacementGroup { client: self.clone(), handle }
    }

    fn group_create(
        &self,
        bundles: impl IntoIterator<Item = Bundle>,
        strategy: Strategy,
    ) -> Result<(GroupCreate, u32), Error> {
        let bundles: Vec<Bundle> = bundles.into_iter().collect();
        for (number, bundle) in bundles.iter().enumerate() {
            if let Some(error) = &bundle.error {
                return Err(bad(format!("bundle {number}: {error}")));
            }
        }
        // The same in every attempt of a task, as what it puts is.
        let group = hash64(&[b"placement group", &self.context.next_put().to_bytes()]);
        let count = bundles.len() as u32;
        let bundles = bundles.into_iter().map(|bundle| bundle.inner).collect();
        let strategy = GroupStrategy::from(strategy) as i32;
        Ok((GroupCreate { group, strategy, bundles, ..GroupCreate::default() }, count))
    }

    fn ask_group(&self, what: group_ask::What) -> u64 {
        let ask = self.shell.group_asks.fetch_add(1, Ordering::Relaxed) + 1;
        self.send(client_msg::Msg::Group(GroupAsk { ask, what: Some(what) }));
        ask
    }
}

/// What has been answered, if it has: the revision.
fn answer(state: &mut State, ask: u64) -> Option<Result<u64, Error>> {
    let answer = state.group_answers.remove(&ask)?;
    Some(answer.failure.map_or(Ok(answer.revision), |failure| Err(failure.into())))
}

impl PlacementGroup {
    /// What names it in other programs of the job.
    pub fn handle(&self) -> GroupHandle {
        self.handle
    }

    /// How many bundles it has.
    pub fn bundles(&self) -> u32 {
        self.handle.bundles
    }

    /// Waits until all of it is reserved. It may be so no longer when this returns: nodes die.
    ///
    /// # Errors
    /// `timeout` passed first ([`Error::NotPlaced`] says what it waits for), the group was removed, or the connection
    /// ended.
    pub fn ready(&self, timeout: Option<Duration>) -> Result<(), Error> {
        self.watch();
        let (handle, client) = (self.handle, &self.client);
        let waited = client.blocking(|| client.wait_sync(timeout, |state| self.is_ready(state)));
        match waited {
            Err(Error::Timeout(after)) => {
                let known = client.state().groups.get(&handle.id).and_then(|told| told.view.clone());
                let why = known.map(|view| view.why).filter(|why| !why.is_empty());
                let why = why.unwrap_or_else(|| {
                    "its nodes are reserving what it needs, which tasks still use; wait for it again".into()
                });
                Err(Error::NotPlaced { after, why })
            }
            other => other?,
        }
    }

    /// As [`PlacementGroup::ready`] without a timeout, and without blocking the thread.
    ///
    /// # Errors
    /// The group was removed, or the connection ended.
    pub async fn ready_async(&self) -> Result<(), Error> {
        self.watch();
        self.client.block(false);
        let result = self.client.wait_async(|state| self.is_ready(state)).await;
        self.client.unblock();
        result?
    }

    /// Why it cannot be placed now, as far as this program has heard; `None` when nothing is in its way. Tells from
    /// the first [`PlacementGroup::ready`] or `why` on what the daemon has said since.
    pub fn why(&self) -> Option<String> {
        self.watch();
        let state = self.client.state();
        let view = self.told(&state)?.view.as_ref()?;
        (!view.why.is_empty()).then(|| view.why.clone())
    }

    /// The nodes on which its bundles are, by the incarnations of their daemons; `None` for a bundle that has no place
    /// now. Waits until the daemon has said it once.
    ///
    /// # Errors
    /// The group was removed, or the connection ended.
    pub fn nodes(&self) -> Result<Vec<Option<u64>>, Error> {
        self.watch();
        self.client.wait_sync(None, |state| {
            let view = self.told(state)?.view.as_ref();
            let nodes = view
                .map(|view| view.bundles.iter().map(|bundle| bundle.placed.then_some(bundle.node)).collect());
            Some(nodes.ok_or_else(|| removed(self.handle)))
        })?
    }

    /// Gives back what it has reserved, and waits until that is on record. Its tasks end: those that run are told to
    /// stop, and killed if they do not.
    ///
    /// # Errors
    /// The connection ended.
    pub fn remove(&self) -> Result<(), Error> {
        let remove = GroupRemove { group: self.handle.id, ..GroupRemove::default() };
        let ask = self.client.ask_group(group_ask::What::Remove(remove));
        self.client.blocking(|| self.client.wait_sync(Some(NOTED_WITHIN), |state| answer(state, ask)))??;
        Ok(())
    }

    /// As [`PlacementGroup::remove`], without blocking the thread.
    ///
    /// # Errors
    /// The connection ended.
    pub async fn remove_async(&self) -> Result<(), Error> {
        let remove = GroupRemove { group: self.handle.id, ..GroupRemove::default() };
        let ask = self.client.ask_group(group_ask::What::Remove(remove));
        self.client.wait_async(|state| answer(state, ask)).await??;
        Ok(())
    }

    /// The daemon tells how it stands from here on; once asked, it goes on to.
    fn watch(&self) {
        if self.told(&self.client.state()).is_none() {
            let group = InGroup { group: self.handle.id, since: self.handle.since, bundle: None };
            self.client.ask_group(group_ask::What::Watch(group));
        }
    }

    fn told<'a>(&self, state: &'a State) -> Option<&'a GroupState> {
        state.groups.get(&self.handle.id).filter(|told| told.since >= self.handle.since)
    }

    fn is_ready(&self, state: &State) -> Option<Result<(), Error>> {
        let told = self.told(state)?;
        match told.view.as_ref().filter(|_| told.since == self.handle.since) {
            None => Some(Err(removed(self.handle))),
            Some(view) => view.bundles.iter().all(|bundle| bundle.placed).then_some(Ok(())),
        }
    }
}

impl<T> Task<T> {
    /// Runs in what a placement group has reserved, in whichever bundle has room. Waits until the group is placed,
    /// and fails when it is removed.
    pub fn in_group(self, group: &PlacementGroup) -> Self {
        self.inside(group.handle, None)
    }

    /// Runs in this bundle of a placement group, counted from 0.
    pub fn in_bundle(mut self, group: &PlacementGroup, bundle: u32) -> Self {
        let count = group.handle.bundles;
        if bundle >= count {
            self.error =
                Some(format!("there is no bundle {bundle}: the placement group has {count}, counted from 0"));
        }
        self.inside(group.handle, Some(bundle))
    }

    fn inside(mut self, group: GroupHandle, bundle: Option<u32>) -> Self {
        let placement: &mut Placement = self.options().placement.get_or_insert_default();
        placement.group = Some(InGroup { group: group.id, since: group.since, bundle });
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_that_are_none_are_kept_as_errors() {
        let wrong = |bundle: Bundle| bundle.error.expect("wrong");
        assert!(wrong(Bundle::cpus(-1.0)).contains("-1 is no amount of CPUs"));
        assert!(wrong(Bundle::cpus(f64::NAN)).contains("NaN"));
        assert!(wrong(Bundle::cpus(1e300)).contains("more than any node"));
        assert!(
            wrong(Bundle::cpus(1.0).resource("tape", f64::INFINITY)).contains("inf is no amount of tape")
        );
        let right = Bundle::cpus(0.5).gpus(2.0).memory_mb(100.0).gpus(1.0);
        assert_eq!((right.error, right.inner.cpu_milli, right.inner.resources.len()), (None, 500, 2));
    }

    #[test]
    fn a_handle_travels() {
        let handle = GroupHandle { id: 7, since: 9, bundles: 2 };
        let bytes = crate::value::encode(&handle).expect("plain data").bytes;
        assert_eq!(crate::value::decode::<GroupHandle>(&bytes).expect("our own"), handle);
    }
}
