//! The driver of the one job: it takes the steps of the script, and at the end asks for everything, lets go
//! of everything, and looks at what is left.

use super::content::{self as values, Content};
use super::local::Door;
use super::probe::{self, Metrics};
use super::work::{self, References};
use super::world::{HOME, World, node_name};
use super::{Phase, state};
use crate::judge::{self, Verdict};
use crate::trace;
use mobula::{Client, Error, ObjectRef, TaskId};
use mobula_base::ObjectId;
use mobula_sim_tests::core::program::JOB;
use mobula_sim_tests::core::script::Step;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Everything is answered so long after the last fault.
pub const BOUND: Duration = Duration::from_secs(60);
/// What goes goes within this.
const SETTLES: Duration = Duration::from_secs(20);
/// A fault that has healed may take this long to be forgotten.
const PATIENCE: Duration = Duration::from_secs(60);
/// What heads have agreed on is known to all within this.
const NOTICED: Duration = Duration::from_millis(600);
/// Pause between looks.
const LOOK: Duration = Duration::from_millis(100);

/// Drives, and says what it came to.
pub async fn drive(world: World, door: Door) {
    if !world.draw.early {
        while !world.is_of_newest_level() {
            tokio::time::sleep(LOOK).await;
        }
        // The nodes hear of it, too.
        tokio::time::sleep(NOTICED).await;
    }
    let driver = match door.driver(JOB.0).await {
        Ok(client) => Driver { world: world.clone(), client, hands: Rc::default() },
        Err(error) => {
            return world.shared.end(Verdict::Unknown(format!("the driver cannot connect: {error}")));
        }
    };
    trace::note("the driver is connected");
    let verdict = match driver.run().await {
        Ok(()) => Verdict::Pass,
        Err(verdict) => verdict,
    };
    trace::note(format!("driver: {verdict:?}"));
    world.shared.end(verdict);
}

/// What the driver has and waits for.
#[derive(Default)]
struct Hands {
    made: References,
    open: BTreeSet<ObjectId>,
    /// Whatever turns up is asked for, too.
    all: bool,
    lost: Option<String>,
}

#[derive(Clone)]
struct Driver {
    world: World,
    client: Client,
    hands: Rc<RefCell<Hands>>,
}

impl Driver {
    async fn run(&self) -> Result<(), Verdict> {
        let shared = self.world.shared.clone();
        shared.phase.set(Phase::Steps);
        self.steps().await?;
        shared.phase.set(Phase::Faults);
        while !shared.calm.get() {
            self.pause()?;
            tokio::time::sleep(LOOK).await;
        }
        shared.phase.set(Phase::Answers);
        self.answers().await?;
        shared.phase.set(Phase::Settles);
        self.until("at work", PATIENCE, probe::at_work).await?;
        self.audit().await?;
        shared.phase.set(Phase::Dropped);
        self.drops_all().await?;
        shared.phase.set(Phase::Ends);
        self.ends().await?;
        shared.phase.set(Phase::Over);
        Ok(())
    }

    async fn steps(&self) -> Result<(), Verdict> {
        let begun = Instant::now();
        for (at, step) in self.world.shared.script.take() {
            tokio::time::sleep_until(begun + at).await;
            self.pause()?;
            match step {
                Step::Submit(task) => {
                    let made = &mut self.hands.borrow_mut().made;
                    let reference = work::submit(&self.client, &task, made);
                    if reference.id() != task.id.output(0) {
                        let (is, meant) = (reference.id(), task.id);
                        return Err(Verdict::Harness(format!("the driver submits {is}, not {meant}")));
                    }
                    made.insert(reference.id(), reference);
                }
                Step::Put { object, content } => {
                    let refs = self.of(&content.refs);
                    let put = self.client.put_async(&values::made(content.hash, content.len, refs)).await;
                    let reference =
                        put.map_err(|error| Verdict::Harness(format!("a put failed: {error}")))?;
                    if reference.id() != object {
                        return Err(Verdict::Harness(format!(
                            "the driver puts {}, not {object}",
                            reference.id()
                        )));
                    }
                    self.hands.borrow_mut().made.insert(object, reference);
                }
                Step::Get(object) => self.wants(object),
                // Of the core layer alone.
                Step::Cancel(..) | Step::Take(_) | Step::EndStream(_) => {}
                Step::Drop(object) => _ = self.hands.borrow_mut().made.remove(&object),
            }
        }
        Ok(())
    }

    /// Whether there is any point in going on.
    fn pause(&self) -> Result<(), Verdict> {
        match &self.hands.borrow().lost {
            Some(why) => Err(Verdict::Unknown(format!("the driver's node was declared dead: {why}"))),
            None => Ok(()),
        }
    }

    fn of(&self, ids: &[ObjectId]) -> Vec<ObjectRef<Content>> {
        let hands = self.hands.borrow();
        ids.iter().filter_map(|id| hands.made.get(id).cloned()).collect()
    }

    /// Asks for a value, unless it is asked for or let go of.
    fn wants(&self, object: ObjectId) {
        let reference = {
            let hands = &mut *self.hands.borrow_mut();
            match hands.made.get(&object) {
                Some(reference) if hands.open.insert(object) => reference.clone(),
                _ => return,
            }
        };
        let driver = self.clone();
        tokio::task::spawn_local(async move {
            let got = reference.get_async().await;
            driver.answered(object, work::judge(object, got));
        });
    }

    fn answered(&self, object: ObjectId, got: Result<Content, Error>) {
        let mut fresh = Vec::new();
        let shared = &self.world.shared;
        {
            let hands = &mut *self.hands.borrow_mut();
            hands.open.remove(&object);
            match got {
                Ok(content) => {
                    trace::note(format!("{object} is {:016x}", content.hash));
                    shared.values.set(shared.values.get() + 1);
                    for reference in content.refs {
                        let id = reference.id();
                        if hands.made.insert(id, reference).is_none() {
                            trace::note(format!("the driver takes {id} out of {object}"));
                            fresh.push(id);
                        }
                    }
                }
                Err(Error::Task { kind, .. }) => {
                    trace::note(format!("{object} failed: {kind:?}"));
                    shared.failures.set(shared.failures.get() + 1);
                }
                Err(error) => _ = hands.lost.get_or_insert(error.to_string()),
            }
            if !hands.all {
                return;
            }
        }
        fresh.into_iter().for_each(|object| self.wants(object));
    }

    /// Everything is asked for, and must be answered.
    async fn answers(&self) -> Result<(), Verdict> {
        let since = Instant::now();
        let all: Vec<ObjectId> = {
            let mut hands = self.hands.borrow_mut();
            hands.all = true;
            hands.made.keys().copied().collect()
        };
        all.into_iter().for_each(|object| self.wants(object));
        while !self.hands.borrow().open.is_empty() {
            self.pause()?;
            if since.elapsed() > BOUND {
                return Err(Verdict::Liveness(self.unanswered().await));
            }
            tokio::time::sleep(LOOK).await;
        }
        self.pause()
    }

    async fn unanswered(&self) -> String {
        let open: Vec<ObjectId> = self.hands.borrow().open.iter().copied().collect();
        let mut text =
            format!("{} gets have no answer {BOUND:?} after the last fault: {:?}", open.len(), open.first());
        for node in 1..=self.world.draw.nodes {
            let said = self.ask(node).await.map(|metrics| probe::all(&metrics));
            text += &format!("; {}: {said:?}", node_name(node));
        }
        let first: Vec<ObjectId> = open.into_iter().take(3).collect();
        let store = self.store();
        let _ = store.connect(PATIENCE).await;
        for object in first {
            let shard = store.slots().of_run(object.task.run).0;
            let asked = vec![mobula_proto::object_bytes(object)];
            let said = store.locate(shard, self.client.node(), asked, LOOK, PATIENCE).await;
            text += &format!("; shard {shard} says of {object}: {:?}", said.map(|list| list.answers));
        }
        text
    }

    fn store(&self) -> mobula_gcs::Client {
        let net = Arc::new(self.world.wires.net(&node_name(HOME)));
        mobula_gcs::Client::new(net, self.client.heads(), self.world.draw.seed)
    }

    async fn ask(&self, node: u64) -> Result<Metrics, String> {
        let net = self.world.wires.net(&node_name(HOME));
        let address =
            if node == HOME { "127.0.0.1:7000".to_owned() } else { format!("{}:7000", node_name(node)) };
        probe::metrics(&net, &address).await
    }

    /// Waits until no node has anything left, by a look at its metrics.
    async fn until(
        &self,
        what: &str,
        patience: Duration,
        left: impl Fn(&Metrics) -> Option<String>,
    ) -> Result<(), Verdict> {
        let since = Instant::now();
        let mut node = 1;
        while node <= self.world.draw.nodes {
            let said = match self.ask(node).await {
                Ok(metrics) => left(&metrics),
                Err(error) => Some(error),
            };
            self.pause()?;
            match said {
                None => node += 1,
                Some(said) if since.elapsed() > patience => {
                    let text = format!(
                        "leak: {patience:?} after it should be over, {} has {what}: {said}",
                        node_name(node)
                    );
                    return Err(Verdict::Safety(text));
                }
                Some(_) => tokio::time::sleep(LOOK).await,
            }
        }
        Ok(())
    }

    /// What was acknowledged and is still referred to is there.
    async fn audit(&self) -> Result<(), Verdict> {
        let acknowledged = self.client.take_committed();
        let held = |task: &TaskId| self.hands.borrow().made.contains_key(&task.output(0));
        let acknowledged: Vec<(TaskId, u64)> =
            acknowledged.into_iter().filter(|(task, _)| held(task)).collect();
        let store = self.store();
        store.connect(PATIENCE).await.map_err(|e| Verdict::Liveness(e.to_string()))?;
        self.world.shared.audited.set(acknowledged.len() as u64);
        match judge::audit(&store, &acknowledged).await {
            Verdict::Pass => Ok(()),
            other => Err(other),
        }
    }

    /// Nothing is referred to any more: no record and no object is left, unless a node has died: what it
    /// had named may then stay until the job ends.
    async fn drops_all(&self) -> Result<(), Verdict> {
        drop(std::mem::take(&mut self.hands.borrow_mut().made));
        // Nested tasks without retries go only with their job: a replayed parent must not run them again.
        let stays = state::with(|state| {
            let known = &state.oracle.tasks;
            known.values().flat_map(|parent| &parent.children).any(|child| known[child].retries == 0)
        });
        // And the references of a job that began before the newest formats may not be counted.
        if stays || self.world.draw.early {
            return Ok(());
        }
        let since = Instant::now();
        let mut left = None;
        while since.elapsed() <= SETTLES {
            let records = self.world.records();
            left = (!records.is_empty()).then(|| records.join(", "));
            if left.is_none() {
                break;
            }
            self.pause()?;
            tokio::time::sleep(LOOK).await;
        }
        let outcome = match left {
            None => self.until("what nobody refers to", SETTLES, probe::objects).await,
            Some(left) => Err(Verdict::Safety(format!(
                "leak: {SETTLES:?} after all was dropped the control store has {left}"
            ))),
        };
        match outcome {
            Err(Verdict::Safety(_)) if self.world.nodes.deaths() > 0 => {
                self.world.shared.stayed.set(true);
                Ok(())
            }
            other => other,
        }
    }

    async fn ends(&self) -> Result<(), Verdict> {
        match tokio::time::timeout(PATIENCE, self.client.end_async(true)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Verdict::Unknown(format!("the job cannot end: {error}"))),
            Err(_) => return Err(Verdict::Liveness("the end of the job is not committed".into())),
        }
        self.until("after the end of the job", PATIENCE, probe::memory).await?;
        state::hit("all copies dropped with their job");
        // Replicas catch up before they are compared.
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(())
    }
}
