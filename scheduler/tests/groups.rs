//! Placement groups as one node sees them: what it reserves, which tasks run in it, and what is told.

use bytes::Bytes;
use mobula_base::resources::GPU;
use mobula_base::{Incarnation, Instant, JobId, Resources, TaskId};
use mobula_proto::{
    Bundle, BundleView, Claim, ClusterView, Failure, FailureKind, GroupView, InGroup, JobStart, JobView,
    NamedResource, NodeView, PeerResult, Placement, TaskOptions, TaskSpec, task_bytes, task_id,
};
use mobula_scheduler::groups::PLACE_AGAIN_AFTER;
use mobula_scheduler::{ClientId, Config, Core, Effect, Event, Ready, TaskOutcome, Value};
use std::collections::BTreeMap;
use std::time::Duration;

const DRIVER: ClientId = 100;
const JOB: JobId = JobId(7);

/// Node 1 of two, with two CPUs and two GPUs each; the driver is here.
struct Node {
    core: Core,
    now: Instant,
    next: u64,
    next_worker: ClientId,
    version: u64,
    /// What workers were given, in order: worker, task, devices.
    runs: Vec<(ClientId, TaskId, Vec<u32>)>,
    effects: Vec<Effect>,
}

fn totals() -> Resources {
    Resources::new(2000, [(GPU.to_owned(), 2000)])
}

fn bundle(cpu_milli: u32, gpus: u64, node: u64, attempt: u64, placed: bool) -> BundleView {
    let resources = vec![NamedResource { name: GPU.into(), milli: gpus }];
    BundleView { bundle: Some(Bundle { cpu_milli, resources }), node, attempt, placed }
}

fn group(group: u64, since: u64, bundles: Vec<BundleView>) -> GroupView {
    GroupView { group, job: JOB.0, since, bundles, ..GroupView::default() }
}

fn wish(group: u64, since: u64, bundle: Option<u32>) -> Option<InGroup> {
    Some(InGroup { group, since, bundle })
}

impl Node {
    fn new() -> Self {
        let config = Config {
            incarnation: Incarnation(1),
            shards: 1,
            name: "n1".into(),
            resources: totals(),
            labels: BTreeMap::new(),
            workers: 2,
            linger: Duration::from_secs(1),
            crc: |b| b.len() as u32,
        };
        let mut node = Node {
            core: Core::new(config),
            now: Instant(0),
            next: 0,
            next_worker: 1,
            version: 0,
            runs: Vec::new(),
            effects: Vec::new(),
        };
        node.view(vec![]);
        node.step(Event::JobStarted { job: JOB, counted: true });
        node
    }

    fn step(&mut self, event: Event) {
        let mut events = vec![event];
        while !events.is_empty() {
            self.now = self.now + Duration::from_millis(1);
            let mut effects = Vec::new();
            self.core.step(std::mem::take(&mut events), self.now, &mut effects);
            for effect in effects {
                match effect {
                    Effect::Spawn { job } => {
                        self.next_worker += 1;
                        events.push(Event::WorkerUp { worker: self.next_worker, job });
                    }
                    Effect::Run { worker, spec, devices, .. } => {
                        self.runs.push((worker, task_id(&spec.id).expect("valid"), devices));
                    }
                    other => self.effects.push(other),
                }
            }
        }
    }

    /// A newer view with these groups.
    fn view(&mut self, groups: Vec<GroupView>) {
        self.version += 10;
        self.view_at(self.version, groups);
    }

    fn view_at(&mut self, version: u64, groups: Vec<GroupView>) {
        let gpus = vec![NamedResource { name: GPU.into(), milli: 2000 }];
        let one = |incarnation: u64| NodeView {
            incarnation,
            name: format!("n{incarnation}"),
            cpu_milli: 2000,
            resources: gpus.clone(),
            alive: true,
            ..NodeView::default()
        };
        let start = Some(JobStart { job: JOB.0, incarnation: 1, counted: true, ..JobStart::default() });
        let jobs = vec![JobView { job: JOB.0, start, ..JobView::default() }];
        let nodes = vec![one(1), one(2)];
        self.step(Event::View(ClusterView { version, nodes, jobs, groups, ..ClusterView::default() }));
    }

    fn submit(&mut self, cpu_milli: u32, gpus: u64, in_group: Option<InGroup>) -> TaskId {
        let placement = in_group.map(|group| Placement { group: Some(group), ..Placement::default() });
        self.submit_with(cpu_milli, gpus, placement)
    }

    fn submit_with(&mut self, cpu_milli: u32, gpus: u64, placement: Option<Placement>) -> TaskId {
        let task = TaskId::new(JOB, TaskId::root(JOB), 0, self.next);
        self.next += 1;
        let options = placement
            .map(|placement| Box::new(TaskOptions { placement: Some(placement), ..TaskOptions::default() }));
        let resources = vec![NamedResource { name: GPU.into(), milli: gpus }];
        let spec = TaskSpec {
            id: task_bytes(task),
            job: JOB.0,
            parent: task_bytes(TaskId::root(JOB)),
            function: 1 + u64::from(cpu_milli),
            cpu_milli,
            resources: if gpus > 0 { resources } else { vec![] },
            max_retries: 3,
            digest: 9,
            options,
            ..TaskSpec::default()
        };
        self.step(Event::Submit { client: DRIVER, specs: vec![spec] });
        task
    }

    fn finish(&mut self, task: TaskId) {
        let at = self.runs.iter().position(|(_, run, _)| *run == task).expect("it runs");
        let (worker, ..) = self.runs.remove(at);
        let value = Ok(Value::Inline(Bytes::from_static(b"v")));
        let outcome = TaskOutcome {
            elements: Default::default(),
            task,
            attempt: 1,
            value,
            contains: vec![],
            ran_ns: 1_000_000_000,
        };
        self.step(Event::Finished { worker, outcomes: vec![outcome] });
    }

    fn running(&self) -> Vec<TaskId> {
        self.runs.iter().map(|(_, task, _)| *task).collect()
    }

    /// Why a task has failed, if it has.
    fn failure(&self, task: TaskId) -> Option<Failure> {
        self.effects.iter().find_map(|effect| match effect {
            Effect::Ready { client: DRIVER, object, ready: Ready::Failed(failure) }
                if object.task == task =>
            {
                Some(failure.clone())
            }
            _ => None,
        })
    }

    fn fails(&self, task: TaskId, kind: FailureKind, said: &str) {
        let failure = self.failure(task).unwrap_or_else(|| panic!("{task} waits"));
        assert_eq!(failure.kind(), kind, "{failure:?}");
        assert!(failure.message.contains(said), "{failure:?}");
    }

    fn assigned(&self) -> Vec<(u64, TaskId)> {
        let to = |effect: &Effect| match effect {
            Effect::Assign { to, assign } => Some((to.0, task_id(&assign.spec.as_ref()?.id).ok()?)),
            _ => None,
        };
        self.effects.iter().filter_map(to).collect()
    }

    fn claims(&self) -> Vec<(u64, u32, u64, bool)> {
        self.core
            .claims()
            .iter()
            .map(|Claim { group, bundle, attempt, held }| (*group, *bundle, *attempt, *held))
            .collect()
    }

    /// What one who watches was told last of a group: how many bundles are placed, `None` for none of it any more.
    fn told(&self) -> Option<Option<usize>> {
        self.effects.iter().rev().find_map(|effect| match effect {
            Effect::Group { client: DRIVER, state } => {
                let placed = |view: &GroupView| view.bundles.iter().filter(|bundle| bundle.placed).count();
                Some(state.view.as_ref().map(placed))
            }
            _ => None,
        })
    }
}

#[test]
fn what_is_to_be_reserved_is_reserved_once_and_given_back_when_the_attempt_is_over() {
    let mut node = Node::new();
    let mine = |attempt| {
        vec![group(5, 11, vec![bundle(1000, 500, 1, attempt, false), bundle(1000, 0, 2, attempt, false)])]
    };
    node.view(mine(1));
    assert_eq!(node.claims(), [(5, 0, 1, true)], "and nothing of the other node");
    assert_eq!(*node.core.free_resources(), Resources::new(1000, [(GPU.to_owned(), 1500)]));
    assert!(node.effects.iter().any(|effect| matches!(effect, Effect::TellClaims)), "at once");
    node.view(mine(1));
    assert_eq!(node.core.free_resources().cpu_milli, 1000, "the same is reserved once");
    node.view(mine(2));
    assert_eq!(node.claims(), [(5, 0, 2, true)], "another attempt is another reservation");
    node.view_at(node.version - 5, vec![]);
    assert_eq!(node.claims(), [(5, 0, 2, true)], "an older view says nothing");
    node.view(vec![]);
    assert_eq!((node.claims(), node.core.free_resources()), (vec![], &totals()));
}

#[test]
fn a_task_runs_in_its_bundle_once_that_is_placed() {
    let mut node = Node::new();
    let bundles =
        |placed| vec![group(5, 11, vec![bundle(1000, 1000, 1, 1, placed), bundle(1000, 0, 2, 1, placed)])];
    let early = node.submit(1000, 1000, wish(5, 11, None));
    assert_eq!((node.running(), node.failure(early)), (vec![], None), "it waits for word of the group");
    node.view(bundles(false));
    assert_eq!(node.running(), []);
    let beside = node.submit(1000, 2000, None);
    assert_eq!(node.running(), [], "one of the two GPUs is reserved");
    node.view(bundles(true));
    assert_eq!(node.running(), [early]);
    let second = node.submit(500, 1000, wish(5, 11, Some(0)));
    assert_eq!(node.running(), [early], "its GPU is in use");
    let there = node.submit(500, 0, wish(5, 11, Some(1)));
    assert_eq!(node.assigned().last(), Some(&(2, there)), "the other bundle is on the other node");
    let devices = node.runs[0].2.clone();
    node.finish(early);
    assert_eq!(node.running(), [second]);
    assert_eq!(node.runs[0].2, devices, "the device that is reserved");
    assert!(!node.running().contains(&beside));
}

#[test]
fn what_can_never_be_is_said_at_once() {
    let mut node = Node::new();
    node.view(vec![group(5, 11, vec![bundle(1000, 0, 1, 1, true), bundle(500, 0, 0, 0, false)])]);
    let other = GroupView { job: 99, ..group(6, 12, vec![bundle(500, 0, 0, 0, false)]) };
    node.view(vec![group(5, 11, vec![bundle(1000, 0, 1, 1, true), bundle(500, 0, 0, 0, false)]), other]);
    let cases = [
        (1500, wish(5, 11, None), FailureKind::FailureInfeasible, "the largest has cpu 1"),
        (
            1000,
            wish(5, 11, Some(1)),
            FailureKind::FailureInfeasible,
            "bundle 1 of its placement group has cpu 0.5",
        ),
        (1000, wish(5, 11, Some(2)), FailureKind::FailureBadArguments, "no bundle 2"),
        (1000, wish(5, 11, Some(u32::MAX)), FailureKind::FailureBadArguments, "has 2, numbered from 0"),
        (500, wish(6, 12, None), FailureKind::FailureBadArguments, "another job"),
        (500, wish(7, 13, None), FailureKind::FailureGroupRemoved, "is no more"),
        (500, wish(5, 10, None), FailureKind::FailureGroupRemoved, "is no more"),
    ];
    for (cpus, group, kind, said) in cases {
        let task = node.submit(cpus, 0, group);
        node.fails(task, kind, said);
    }
    let small = node.submit(500, 0, wish(5, 11, Some(1)));
    assert_eq!(node.failure(small), None, "that one waits");
    let both = Placement { spread: true, group: wish(5, 11, None), ..Placement::default() };
    let both = node.submit_with(500, 0, Some(both));
    node.fails(both, FailureKind::FailureBadArguments, "cannot be spread");
}

#[test]
fn a_claim_waits_for_what_runs_and_goes_before_what_has_not_begun() {
    let mut node = Node::new();
    let first = node.submit(1000, 1000, None);
    let second = node.submit(1000, 1000, None);
    assert_eq!(node.running(), [first, second]);
    node.view(vec![group(5, 11, vec![bundle(2000, 0, 1, 1, false)])]);
    assert_eq!(node.claims(), [(5, 0, 1, false)]);
    let third = node.submit(1000, 1000, None);
    node.finish(first);
    assert!(!node.running().contains(&third), "the CPU is kept back");
    assert_eq!(node.claims(), [(5, 0, 1, false)]);
    node.finish(second);
    assert_eq!(node.claims(), [(5, 0, 1, true)]);
    // The attempt is given up: the others go on.
    node.view(vec![group(5, 11, vec![bundle(2000, 0, 0, 0, false)])]);
    node.now = node.now + PLACE_AGAIN_AFTER;
    node.step(Event::Tick);
    let placed = node.running().contains(&third) || node.assigned().iter().any(|(_, task)| *task == third);
    assert!(placed);
}

#[test]
fn a_task_that_has_not_begun_goes_elsewhere_when_a_group_takes_its_place() {
    let mut node = Node::new();
    let first = node.submit(1000, 2000, None);
    let second = node.submit(1000, 2000, None);
    assert_eq!((node.running(), node.assigned()), (vec![first], vec![]), "it is the next here");
    node.view(vec![group(5, 11, vec![bundle(0, 2000, 1, 1, false)])]);
    node.now = node.now + PLACE_AGAIN_AFTER;
    node.step(Event::Tick);
    assert_eq!(node.assigned(), [(2, second)]);
    assert_eq!(node.failure(second), None);
    // It is given back from there, too, and waits until there is room somewhere.
    let failure = Some(Failure::new(FailureKind::FailureNoRoom, "reserved"));
    let result =
        PeerResult { task: task_bytes(second), attempt: 1, failure, durable: true, ..PeerResult::default() };
    let both =
        |placed| vec![group(5, 11, vec![bundle(0, 2000, 1, 1, placed), bundle(0, 2000, 2, 1, placed)])];
    node.view(both(false));
    node.step(Event::PeerResult { from: Incarnation(2), result });
    node.now = node.now + PLACE_AGAIN_AFTER;
    node.step(Event::Tick);
    assert_eq!((node.assigned().len(), node.failure(second)), (1, None));
    node.finish(first);
    node.view(vec![]);
    assert!(node.running().contains(&second) || node.assigned().len() == 2);
}

#[test]
fn tasks_of_a_group_that_is_removed_end_and_nothing_is_left() {
    let mut node = Node::new();
    node.view(vec![group(5, 11, vec![bundle(1000, 1000, 1, 1, true)])]);
    let runs = node.submit(1000, 500, wish(5, 11, None));
    let waits = node.submit(1000, 500, wish(5, 11, None));
    assert_eq!(node.running(), [runs]);
    node.view(vec![]);
    node.fails(waits, FailureKind::FailureGroupRemoved, "is no more");
    assert!(node.effects.iter().any(|effect| matches!(effect, Effect::Stop { task, .. } if *task == runs)));
    assert_eq!(
        node.core.free_resources(),
        &Resources::new(1000, [(GPU.to_owned(), 1500)]),
        "what it uses is in use"
    );
    node.finish(runs);
    node.fails(runs, FailureKind::FailureGroupRemoved, "is no more");
    assert_eq!(node.core.free_resources(), &totals());
}

#[test]
fn a_worker_that_waits_gives_its_cpu_to_its_bundle() {
    let mut node = Node::new();
    node.view(vec![group(5, 11, vec![bundle(1000, 0, 1, 1, true)])]);
    let first = node.submit(1000, 0, wish(5, 11, None));
    let second = node.submit(1000, 0, wish(5, 11, None));
    assert_eq!(node.running(), [first]);
    let worker = node.runs[0].0;
    node.step(Event::Blocked { worker, returned: vec![] });
    assert_eq!(node.running(), [first, second]);
    // Its bundle goes meanwhile, and it goes on.
    node.view(vec![]);
    node.step(Event::Unblocked { worker });
    node.finish(first);
    node.finish(second);
    assert_eq!(node.core.free_resources(), &totals());
}

#[test]
fn tasks_that_wait_inside_do_not_fill_their_bundle() {
    let mut node = Node::new();
    let group = |placed| vec![group(1, 5, vec![bundle(1000, 0, 1, 9, placed)])];
    node.view(group(false));
    node.view(group(true));
    // Each waits for the next, as a function does that calls itself: one CPU is enough for all of them.
    for depth in 0..5 {
        let task = node.submit(1000, 0, wish(1, 5, None));
        let given = node.runs.iter().find(|(_, run, _)| *run == task);
        let worker = given.unwrap_or_else(|| panic!("the task at depth {depth} waits for ever")).0;
        node.step(Event::Blocked { worker, returned: Vec::new() });
    }
}

#[test]
fn whoever_watches_is_told_of_every_change_until_the_end() {
    let mut node = Node::new();
    node.step(Event::WatchGroup { client: DRIVER, group: InGroup { group: 5, since: 25, bundle: None } });
    assert_eq!(node.told(), None, "nothing is known yet");
    node.view(vec![]);
    assert_eq!(node.told(), None, "a view that is older than the group says nothing of it");
    node.effects.clear();
    let views = [bundle(1000, 0, 1, 1, false), bundle(1000, 0, 1, 1, true)];
    for (view, placed) in views.into_iter().zip([0, 1]) {
        node.view(vec![group(5, 25, vec![view])]);
        assert_eq!(node.told(), Some(Some(placed)));
        node.effects.clear();
    }
    node.view(vec![]);
    assert_eq!(node.told(), Some(None));
    node.effects.clear();
    node.view(vec![]);
    assert_eq!(node.told(), None, "once");
    node.step(Event::WatchGroup { client: DRIVER, group: InGroup { group: 5, since: 25, bundle: None } });
    assert_eq!(node.told(), Some(None), "that it is no more is known");
}

#[test]
fn the_node_of_the_driver_says_once_why_a_group_waits() {
    let mut node = Node::new();
    let waits = |why: &str| GroupView { why: why.into(), ..group(5, 11, vec![bundle(1000, 0, 0, 0, false)]) };
    let said = |node: &Node| {
        let of = |effect: &Effect| match effect {
            Effect::Notice { notice, .. } if notice.kind == "group-waits" => Some(notice.text.clone()),
            _ => None,
        };
        node.effects.iter().filter_map(of).collect::<Vec<_>>()
    };
    node.view(vec![waits("of this")]);
    node.view(vec![waits("of this")]);
    node.view(vec![waits("of that")]);
    let texts = said(&node);
    assert!(texts.len() == 2 && texts[0].ends_with("of this") && texts[1].ends_with("of that"), "{texts:?}");
}

#[test]
fn hundreds_of_groups_one_after_the_other_leave_nothing_behind() {
    let mut node = Node::new();
    for number in 1..400u64 {
        let since = node.version + 1;
        node.view(vec![group(number, since, vec![bundle(1000, 0, 1, number, true)])]);
        let task = node.submit(1000, 0, wish(number, since, None));
        assert_eq!(node.running(), [task]);
        node.finish(task);
        node.view(vec![]);
    }
    assert_eq!(node.core.free_resources(), &totals());
    assert!(node.core.census().queues.len() < 8, "classes of groups that are gone have their places taken");
}
