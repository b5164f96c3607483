//! Random programs: the driver takes the steps of the script, and at the end asks for everything, lets go of
//! everything, and ends its job. The interpreter knows every answer.

use super::task::{self, Program, References};
use super::tasks::{connect, lost_node};
use super::{BOUND, Done, LOOK, Order, SETTLES, Shared};
use crate::chaos::judge::{Class, Judged, runs};
use crate::chaos::probe;
use crate::chaos::pulse::Pulse;
use crate::demo::audit;
use mobula::{Client, Durability, Error, FailureKind, ObjectRef, TaskId};
use mobula_base::ObjectId;
use mobula_chaos::cause::explains;
use mobula_chaos::content::Content;
use mobula_chaos::dice::Dice;
use mobula_chaos::probe::{at_work, memory};
use mobula_chaos::program::{Expected, Oracle, Style};
use mobula_chaos::script::{self, Plan, Script, Step};
use mobula_chaos::style::pace;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long the end of the job may take.
const END: Duration = Duration::from_secs(60);

/// Runs it.
///
/// # Errors
/// The driver cannot connect, or its node died: that is nobody's fault but ours.
pub fn run(order: &Order<'_>) -> Result<Done, String> {
    let log = order.cluster.dir().join("runs");
    std::fs::create_dir_all(&log).map_err(|e| format!("cannot make {}: {e}", log.display()))?;
    let program = Program { seed: order.seed, work: order.work, log: log.to_string_lossy().into_owned() };
    let style = Style::of_processes(order.seed, order.work);
    let mut client = connect(order.cluster, "chaos: programs")?;
    if style.commits {
        client = client.with_durability(Durability::Commit);
    }
    let mut oracle = Oracle::of(client.job());
    let script = script(order, &style, &mut oracle);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("cannot make a runtime: {e}"))?;
    let ear = Rc::new(Ear {
        oracle,
        shared: order.shared.clone(),
        pulse: order.pulse.clone(),
        hands: RefCell::default(),
    });
    let driver = Driver { client, program, order, ear };
    let mut done = tokio::task::LocalSet::new().block_on(&runtime, driver.run(script))?;
    let found = runs::read(&log)?;
    done.executions = (found.executions, found.again);
    done.places = found.places.len();
    done.judged.extend(runs::judge(&found, &driver.ear.oracle));
    Ok(done)
}

/// What the driver does when.
fn script(order: &Order<'_>, style: &Style, oracle: &mut Oracle) -> Script {
    let dice = &mut Dice::new(order.seed, "processes");
    let plan = Plan {
        seed: order.seed,
        style,
        rate: pace(order.seed).1,
        drop_permille: dice.pick(&[0, 500, 950]).unwrap_or(0),
        end: order.ends,
        dies: false,
        without: &order.without,
    };
    let all = script::write(&plan, oracle);
    all.into_iter()
        .filter(|(_, step)| !matches!(step, Step::Cancel(..) | Step::Take(_) | Step::EndStream(_)))
        .collect()
}

/// What the driver has and waits for, and what was found.
#[derive(Default)]
struct Hands {
    made: References,
    open: BTreeSet<ObjectId>,
    /// Whatever turns up is asked for, too.
    all: bool,
    lost: Option<String>,
    values: u64,
    failures: u64,
    wrong: Option<String>,
    causeless: Option<String>,
}

/// Hears the answers.
struct Ear {
    oracle: Oracle,
    shared: Arc<Shared>,
    pulse: Arc<Pulse>,
    hands: RefCell<Hands>,
}

struct Driver<'a> {
    client: Client,
    program: Program,
    order: &'a Order<'a>,
    ear: Rc<Ear>,
}

impl Driver<'_> {
    async fn run(&self, script: Script) -> Result<Done, String> {
        let submitted = self.steps(script).await?;
        while !self.order.shared.is_calm() {
            self.ear.check()?;
            tokio::time::sleep(LOOK).await;
        }
        let unanswered = self.answers().await?;
        self.ear.pulse.over();
        let mut judged = self.ear.judged(unanswered);
        let records = self.held_records();
        judged.push(self.settles("leak", "G8, V4", "at work", at_work));
        // Read back while it is still referred to.
        judged.push(self.audit(&records)?);
        drop(std::mem::take(&mut self.ear.hands.borrow_mut().made));
        let ended = match tokio::time::timeout(END, self.client.end_async(true)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("the job cannot end: {error}")),
            Err(_) => Some(format!("the end of the job is not committed after {END:?}")),
        };
        judged.push(Judged::of("end", "G5", Class::Liveness, 1).objecting(ended));
        judged.push(self.settles("memory", "G8, V4", "after the end of the job", memory));
        let hands = self.ear.hands.borrow();
        let (values, failures) = (hands.values, hands.failures);
        Ok(Done { submitted, values, failures, judged, ..Done::default() })
    }

    async fn steps(&self, script: Script) -> Result<u64, String> {
        let mut submitted = 0;
        for (at, step) in script {
            tokio::time::sleep_until((self.order.pulse.began() + at).into()).await;
            self.ear.check()?;
            match step {
                Step::Submit(task) => {
                    let made = &mut self.ear.hands.borrow_mut().made;
                    let reference = task::submit(&self.client, &self.program, &task, made);
                    if reference.id() != task.id.output(0) {
                        return Err(format!("the driver submits {}, not {}", reference.id(), task.id));
                    }
                    made.insert(reference.id(), reference);
                    submitted += 1;
                }
                Step::Put { object, content } => {
                    let refs = self.named(&content.refs);
                    let value = Content::new(content.hash, content.len as usize, refs);
                    let put = self.client.put_async(&value).await;
                    let reference = put.map_err(|error| format!("a put failed: {error}"))?;
                    if reference.id() != object {
                        return Err(format!("the driver puts {}, not {object}", reference.id()));
                    }
                    self.ear.hands.borrow_mut().made.insert(object, reference);
                }
                Step::Get(object) => self.ear.wants(object),
                Step::Drop(object) => drop(self.ear.hands.borrow_mut().made.remove(&object)),
                // Left out by `script`.
                Step::Cancel(..) | Step::Take(_) | Step::EndStream(_) => {}
            }
        }
        Ok(submitted)
    }

    fn named(&self, ids: &[ObjectId]) -> Vec<ObjectRef<Content>> {
        let hands = self.ear.hands.borrow();
        ids.iter().filter_map(|id| hands.made.get(id).cloned()).collect()
    }

    /// Everything is asked for; what has no answer in time.
    async fn answers(&self) -> Result<Option<String>, String> {
        let since = Instant::now();
        let all: Vec<ObjectId> = {
            let mut hands = self.ear.hands.borrow_mut();
            hands.all = true;
            hands.made.keys().copied().collect()
        };
        all.into_iter().for_each(|object| self.ear.wants(object));
        while let Some(open) = self.ear.first_open() {
            self.ear.check()?;
            if since.elapsed() > BOUND {
                let many = self.ear.hands.borrow().open.len();
                return Ok(Some(format!(
                    "{many} values have no answer {BOUND:?} after the last fault, {open} first"
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
        self.ear.check().map(|()| None)
    }

    /// Records that were acknowledged, of what is still referred to.
    fn held_records(&self) -> Vec<(TaskId, u64)> {
        let hands = self.ear.hands.borrow();
        let held = |(task, _): &(TaskId, u64)| hands.made.contains_key(&task.output(0));
        self.client.take_committed().into_iter().filter(held).collect()
    }

    fn audit(&self, records: &[(TaskId, u64)]) -> Result<Judged, String> {
        let heads = self.client.heads();
        let submitted = self.client.submitted();
        // It waits on a runtime of its own.
        let audit = std::thread::scope(|scope| {
            scope
                .spawn(|| audit::run(heads, submitted, records, &[]))
                .join()
                .map_err(|_| "the audit panicked")
        })??;
        let lost =
            (audit.lost > 0).then(|| format!("{} are lost: {}", audit.lost, audit.lost_named.join("; ")));
        Ok(Judged::of("durable", "R4, S1", Class::Safety, records.len() as u64).objecting(lost))
    }

    /// Waits until no node has anything left, by a look at its metrics.
    fn settles(
        &self,
        judge: &'static str,
        rule: &'static str,
        what: &str,
        left: impl Fn(&probe::Metrics) -> Option<String>,
    ) -> Judged {
        let nodes = self.order.cluster.nodes();
        let objection = nodes.iter().enumerate().find_map(|(at, node)| {
            let lacks = || match probe::metrics(node) {
                Ok(metrics) => left(&metrics),
                Err(error) => Some(error),
            };
            let left = super::until(SETTLES, lacks)?;
            Some(format!("node {} has something {what} {SETTLES:?} after it should be over: {left}", at + 1))
        });
        Judged::of(judge, rule, Class::Safety, nodes.len() as u64).objecting(objection)
    }
}

impl Ear {
    /// Asks for a value, unless it is asked for or let go of.
    fn wants(self: &Rc<Self>, object: ObjectId) {
        let reference = {
            let hands = &mut *self.hands.borrow_mut();
            match hands.made.get(&object) {
                Some(reference) if hands.open.insert(object) => reference.clone(),
                _ => return,
            }
        };
        self.pulse.asked(1);
        let ear = self.clone();
        tokio::task::spawn_local(async move {
            let got = reference.get_async().await;
            ear.pulse.answered(1);
            ear.answered(object, got);
        });
    }

    fn answered(self: &Rc<Self>, object: ObjectId, got: Result<Content, Error>) {
        let mut fresh = Vec::new();
        {
            let hands = &mut *self.hands.borrow_mut();
            hands.open.remove(&object);
            match got {
                Ok(content) => {
                    hands.values += 1;
                    self.compare(hands, object, &content);
                    for reference in content.refs {
                        let id = reference.id();
                        if hands.made.insert(id, reference).is_none() {
                            fresh.push(id);
                        }
                    }
                }
                Err(Error::Task { kind, message, .. }) => {
                    hands.failures += 1;
                    if !self.has_cause(object, kind) {
                        hands
                            .causeless
                            .get_or_insert(format!("{object} failed without a cause: {kind:?}: {message}"));
                    }
                }
                Err(error) => _ = hands.lost.get_or_insert(error.to_string()),
            }
            if !hands.all {
                return;
            }
        }
        fresh.into_iter().for_each(|object| self.wants(object));
    }

    fn compare(&self, hands: &mut Hands, object: ObjectId, content: &Content) {
        let expected = self.oracle.objects.get(&object);
        let is_right = matches!(expected, Some(Expected::Value(value)) if value.hash == content.hash);
        let wrong = match content.torn() {
            Some(text) => Some(format!("{object}: {text}")),
            None if is_right => None,
            None => Some(format!("{object} is {:016x}; it must be {expected:?}", content.hash)),
        };
        hands.wrong = hands.wrong.take().or(wrong);
    }

    /// Whether a failure leads to one that the program asks for, or to faults enough to use up a task's attempts.
    fn has_cause(&self, object: ObjectId, kind: FailureKind) -> bool {
        let lethal = self.shared.lethal.load(Ordering::SeqCst);
        let died = |task: TaskId| {
            let known = self.oracle.tasks.get(&task);
            known.is_some_and(|known| known.poison || u64::from(known.retries) < lethal)
        };
        match kind {
            FailureKind::FailureWorkerDied => died(object.task),
            FailureKind::FailureMayHaveRun => {
                self.oracle.tasks.get(&object.task).is_some_and(|known| known.retries == 0)
                    && died(object.task)
            }
            FailureKind::FailureUserError | FailureKind::FailureDependency => {
                self.oracle.objects.get(&object) == Some(&Expected::Failure)
                    || explains(&self.oracle, object.task, &died)
            }
            _ => false,
        }
    }

    fn first_open(&self) -> Option<ObjectId> {
        self.hands.borrow().open.first().copied()
    }

    /// # Errors
    /// The driver's node is gone, and with it what could be judged.
    fn check(&self) -> Result<(), String> {
        match &self.hands.borrow().lost {
            Some(why) => Err(lost_node(why)),
            None => Ok(()),
        }
    }

    fn judged(&self, unanswered: Option<String>) -> Vec<Judged> {
        let hands = self.hands.borrow();
        let answers = hands.values + hands.failures;
        vec![
            Judged::of("value", "G3, S9", Class::Safety, hands.values).objecting(hands.wrong.clone()),
            Judged::of("typed-cause", "S24", Class::Safety, hands.failures)
                .objecting(hands.causeless.clone()),
            Judged::of("liveness", "G5, V2", Class::Liveness, answers).objecting(unanswered),
        ]
    }
}
