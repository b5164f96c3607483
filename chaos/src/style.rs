//! What a seed's programs are like, and what each task of them does.

use crate::dice::Dice;
use crate::program::{WHIM, picked_all};
use crate::scenario::Work;
use mobula_base::{ObjectId, TaskId};
use mobula_proto::{LabelOp, LabelTerm, NodeAffinity, Placement, RetryOn, TaskOptions};

/// What a seed's programs are like.
#[derive(Clone, Debug)]
pub struct Style {
    /// Tasks nest so deep.
    pub depth: u8,
    /// Tasks that submit others, in a thousand.
    pub nest_permille: u64,
    /// Tasks that one submits, at most.
    pub width: u64,
    /// Values that are large, in a thousand.
    pub large_permille: u64,
    /// Tasks that may not be repeated, in a thousand.
    pub once_permille: u64,
    /// Tasks that end with an error of their own, in a thousand.
    pub error_permille: u64,
    /// Tasks that kill their worker, in a thousand.
    pub poison_permille: u64,
    /// Tasks that never end by themselves, in a thousand.
    pub hang_permille: u64,
    /// Values that have references in them, in a thousand.
    pub refs_permille: u64,
    /// Tasks that do not come through the first time, in a thousand.
    pub stumble_permille: u64,
    /// Tasks that make other bytes each time, in a thousand.
    pub moody_permille: u64,
    /// The job accepts that (G3).
    pub accepts: bool,
    /// The job's tasks begin once their records are committed.
    pub commits: bool,
    /// A task runs so long, in microseconds.
    pub work_us: (u64, u64),
    /// Tasks that may only run for so long, in a thousand, and for how long, in milliseconds.
    pub limit_permille: u64,
    /// See there.
    pub limit_ms: (u64, u64),
    /// Tasks that run again after errors of their own, or when their time is over, in a thousand.
    pub again_permille: u64,
    /// Steps after which a task lets go of a reference, in a thousand.
    pub forget_permille: u64,
    /// Tasks that may not run everywhere, or are to be spread, in a thousand.
    pub placed_permille: u64,
    /// Tasks of the driver that it cancels, in a thousand, and tasks that cancel what they submitted.
    pub cancel_permille: u64,
    /// What the driver submits or puts and drops at once, or nearly, in a thousand.
    pub hasty_permille: u64,
    /// How often each way comes in which a group of the driver's tasks hangs together.
    pub shapes: [u64; 5],
    /// Tasks that one worker is given; 0 for any number.
    pub reuse: u32,
    /// Tasks that return several objects, in a thousand.
    pub parts_permille: u64,
    /// Tasks below the driver's that return a stream of items, in a thousand.
    pub streams_permille: u64,
    /// Tasks that say that they only compute, of those that do, in a thousand.
    pub pure_permille: u64,
    /// Of such that come back from other nodes so many may be hedged, in a thousand.
    pub hedge_permille: u32,
}

/// One step of a task. What it refers to is a pick among the references it has by then.
#[derive(Clone, Debug)]
pub enum Op {
    /// Computes for so many nanoseconds.
    Work(u64),
    /// Submits a task; some references are arguments, others lie in an argument given by value.
    Submit { seed: u64, args: Vec<u64>, nested: Vec<u64> },
    /// Waits for a value, and takes the references in it.
    Get(u64),
    /// Takes the next item of a stream that it has submitted, if there is one more.
    Take(u64),
    /// Waits until something exists.
    Wait(u64),
    /// Stores a value with references in it.
    Put { seed: u64, len: u64, refs: Vec<u64> },
    /// Submits another task each time under the same number (R2), waits until it has ended, and goes on
    /// whatever came of it.
    Whim(u64),
    /// Lets go of a reference.
    Drop(u64),
    /// Cancels something that it submitted, perhaps with all below.
    Cancel(u64, bool),
}

/// How a task ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With a value.
    Value,
    /// With an error.
    Error,
    /// With its worker.
    Poison,
    /// Never, but for its time limit.
    Hang,
}

/// What comes of the first attempt of a task, once it has done all that it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// What comes of all.
    Same,
    /// Its worker dies.
    Dies,
    /// An error.
    Fails,
    /// It never ends, but for its time limit.
    Hangs,
}

/// Where a task may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It does not matter.
    Anywhere,
    /// Where there is least to do.
    Spread,
    /// On this machine if that can be.
    Rather(usize),
    /// On this machine only.
    Only(usize),
    /// Where the label is that of machine 0, or this.
    OneOf(&'static str),
    /// Where the label is not this.
    AllBut(&'static str),
}

/// The label `zone` of a machine.
pub fn label_of(machine: usize) -> &'static str {
    ["a", "b", "c"][machine % 3]
}

impl Place {
    fn placement(self) -> Option<Placement> {
        let mut placement = Placement::default();
        let mut label = |op: LabelOp, values: &[&str]| {
            let values = values.iter().map(|value| (*value).to_owned()).collect();
            placement.labels.push(LabelTerm { key: "zone".into(), op: op as i32, values });
        };
        let affinity =
            |machine, soft| Some(NodeAffinity { name: format!("node-{machine}"), incarnation: 0, soft });
        match self {
            Place::Anywhere => return None,
            Place::Spread => placement.spread = true,
            Place::Rather(machine) => placement.node = affinity(machine, true),
            Place::Only(machine) => placement.node = affinity(machine, false),
            Place::OneOf(zone) => {
                label(LabelOp::LabelIn, &[label_of(0), zone]);
                label(LabelOp::LabelExists, &[]);
            }
            Place::AllBut(zone) => label(LabelOp::LabelNotIn, &[zone]),
        }
        Some(placement)
    }
}

/// A task, spelled out.
#[derive(Clone, Debug)]
pub struct Body {
    /// Where it may run.
    pub place: Place,
    /// What it does before it ends.
    pub ops: Vec<Op>,
    /// Bytes of its value.
    pub len: u64,
    /// References that lie in its value.
    pub returns: Vec<u64>,
    /// How it ends.
    pub end: End,
    /// What comes of its first attempt.
    pub first: First,
    /// How often it may be repeated.
    pub retries: u32,
    /// It runs again after an error of its own.
    pub again: bool,
    /// It may run so long, in milliseconds; 0: as long as it takes.
    pub limit_ms: u64,
    /// What it needs.
    pub cpu_milli: u32,
    /// Which function it is.
    pub function: u64,
    /// It makes other bytes each time, though nothing that comes of its value differs.
    pub moody: bool,
    /// It fails now and then, and takes long now and then, as it pleases.
    pub fickle: bool,
    /// How many objects it returns, if not one value: elements (decision 26).
    pub parts: u32,
    /// It returns a stream, of which so many items may wait to be taken (decision 27); 0: it does not.
    pub window: u32,
    /// How many items there are.
    pub items: u32,
    /// It says that it only computes.
    pub pure: bool,
}

/// How long tasks of real processes compute, in microseconds, and how many the driver submits each second, how many of
/// them at once: together what a few nodes can bear while some of them are gone.
const PACES: [((u64, u64), (u64, u64)); 3] =
    [((500, 20_000), (60, 60)), ((20_000, 200_000), (16, 30)), ((50_000, 400_000), (8, 8))];

/// The pace of a program on real processes.
pub fn pace(seed: u64) -> ((u64, u64), (u64, u64)) {
    Dice::new(seed, "pace").pick(&PACES).unwrap_or(PACES[0])
}

/// Values that are large in programs that are about objects, in a thousand, at least.
pub const OBJECTS_PERMILLE: u64 = 700;

/// Values beyond this are large.
pub const INLINE_MAX: u64 = mobula_proto::INLINE_MAX as u64;

/// What hangs has a limit of so many milliseconds at most, but for styles in which all have more.
const HANG_MS_MAX: u64 = 2_000;

/// Objects that one task returns at most.
const PARTS_MAX: u64 = 4;

/// Items of a stream at most, and of those that wait to be taken.
const ITEMS_MAX: u64 = 6;
const WINDOW_MAX: u64 = 4;

/// Of those that make other bytes each time so many do not even come through each time, in a thousand.
const FICKLE_PERMILLE: u64 = 500;

/// What the error says that comes as it pleases.
pub const FICKLE: &str = "not this time";
/// What the error of a first attempt says.
pub const FLAKY: &str = "not the first time";
/// What the error says that comes each time.
pub const DRAWN: &str = "drawn";

impl Body {
    /// What is said of it beyond what it demands.
    pub fn options(&self) -> Option<Box<TaskOptions>> {
        let retry_on = self.again.then(|| RetryOn {
            errors: true,
            panics: false,
            timeouts: self.limit_ms > 0,
            containing: self.after_which().iter().map(|text| (*text).to_owned()).collect(),
            out_of_memory: false,
        });
        // Processes are not simulated: nobody measures what they have.
        let (placement, timeout_ms, memory_limit) = (self.place.placement(), self.limit_ms, 0);
        let (elements, window, pure) = (self.parts, self.window, self.pure);
        let options = TaskOptions { placement, timeout_ms, retry_on, memory_limit, elements, window, pure };
        (options != TaskOptions::default()).then(|| Box::new(options))
    }

    /// What whoever submits it as `task` gets references to at once: of a stream nothing.
    pub fn outputs(&self, task: TaskId) -> Vec<ObjectId> {
        match (self.window, self.parts) {
            (0, 0) => vec![task.output(0)],
            (0, parts) => (0..parts).map(|n| task.element(n)).collect(),
            (_, _) => Vec::new(),
        }
    }

    /// Errors after which it runs again: its own, never that a value which it needs is none, which would multiply
    /// from task to task. Half of them only after one of two.
    fn after_which(&self) -> &'static [&'static str] {
        if self.function.is_multiple_of(2) { &[FLAKY] } else { &[FLAKY, DRAWN] }
    }

    /// Whether it runs again after an error.
    pub fn goes_on_after(&self, error: &str) -> bool {
        self.again && self.after_which().contains(&error)
    }

    /// A task that was submitted on a whim.
    fn whim(work: Op, function: u64) -> Self {
        Body {
            place: Place::Anywhere,
            ops: vec![work],
            len: 16,
            returns: Vec::new(),
            end: End::Value,
            first: First::Same,
            retries: 3,
            again: false,
            limit_ms: 0,
            cpu_milli: 500,
            function,
            moody: false,
            fickle: false,
            parts: 0,
            window: 0,
            items: 0,
            pure: false,
        }
    }
}

impl Style {
    /// Draws a style.
    pub fn draw(dice: &mut Dice) -> Self {
        // Very short ones queue up at their workers.
        let work_us = dice
            .pick(&[(5, 100), (500, 20_000), (2_000, 80_000), (10_000, 300_000), (20_000, 1_000_000)])
            .unwrap_or((500, 20_000));
        let limited = dice.permille(300);
        Style {
            depth: dice.below(4) as u8,
            nest_permille: dice.from_to(50, 350),
            width: dice.pick(&[2, 4, 4, 9]).unwrap_or(4),
            large_permille: dice.pick(&[0, 50, 200, 400, 700]).unwrap_or(200),
            once_permille: dice.pick(&[0, 0, 50, 200]).unwrap_or(0),
            error_permille: dice.pick(&[0, 0, 10, 40]).unwrap_or(0),
            poison_permille: dice.pick(&[0, 0, 0, 5]).unwrap_or(0),
            hang_permille: if limited { dice.pick(&[0, 2, 8]).unwrap_or(0) } else { 0 },
            refs_permille: dice.pick(&[0, 100, 400, 800]).unwrap_or(0),
            stumble_permille: dice.pick(&[0, 0, 20, 60]).unwrap_or(0),
            moody_permille: dice.pick(&[0, 0, 0, 20, 80]).unwrap_or(0),
            accepts: dice.permille(500),
            commits: dice.permille(150),
            limit_permille: if limited { dice.pick(&[50, 300]).unwrap_or(50) } else { 0 },
            limit_ms: dice.pick(&[(1, 50), (20, 2_000), (2_000, 9_000)]).unwrap_or((20, 2_000)),
            again_permille: dice.pick(&[0, 0, 100, 600]).unwrap_or(0),
            forget_permille: dice.pick(&[0, 0, 200, 700]).unwrap_or(0),
            work_us,
            placed_permille: dice.pick(&[0, 100, 600]).unwrap_or(0),
            cancel_permille: dice.pick(&[0, 0, 0, 20, 100]).unwrap_or(0),
            hasty_permille: dice.pick(&[0, 0, 100, 500]).unwrap_or(0),
            shapes: [0; 5].map(|_: u64| dice.pick(&[0, 1, 4]).unwrap_or(1)),
            reuse: dice.pick(&[0, 0, 0, 1, 5]).unwrap_or(0),
            parts_permille: 0,
            streams_permille: 0,
            pure_permille: 0,
            hedge_permille: 0,
        }
    }

    /// Without what only the layer of the pure cores follows: tasks that differ from time to time, return parts or
    /// streams, may be hedged, or run out of their time or again by themselves.
    #[must_use]
    pub fn plain(mut self) -> Self {
        (self.moody_permille, self.parts_permille, self.streams_permille) = (0, 0, 0);
        (self.pure_permille, self.hedge_permille) = (0, 0);
        (self.limit_permille, self.hang_permille, self.again_permille) = (0, 0, 0);
        self
    }

    /// Of programs on real processes: plain, with tasks that take long enough to be spread over the nodes, and mostly
    /// large values if they are about objects.
    pub fn of_processes(seed: u64, work: Work) -> Self {
        let mut style = Style::draw(&mut Dice::new(seed, "style")).plain();
        (style.work_us, _) = pace(seed);
        if work == Work::Objects {
            style.large_permille = style.large_permille.max(OBJECTS_PERMILLE);
        }
        style
    }

    /// Parents with many children, of which some soon are nobody's: much that is submitted again when they are.
    pub fn haunt(&mut self, dice: &mut Dice) {
        self.depth = dice.from_to(2, 3) as u8;
        self.nest_permille = dice.from_to(350, 550);
        self.width = dice.from_to(3, 5);
        self.refs_permille = dice.pick(&[0, 100, 400, 800]).unwrap_or(400);
        self.forget_permille = dice.pick(&[0, 200, 700]).unwrap_or(200);
        self.hasty_permille = dice.pick(&[0, 100, 500]).unwrap_or(100);
        self.error_permille = dice.pick(&[0, 0, 40, 150]).unwrap_or(0);
        if dice.permille(300) {
            (self.limit_permille, self.hang_permille, self.again_permille) = (300, 10, 300);
        }
        self.work_us =
            dice.pick(&[(500, 20_000), (2_000, 80_000), (10_000, 300_000)]).unwrap_or((500, 20_000));
        self.moody_permille = dice.pick(&[0, 80, 300]).unwrap_or(0);
    }

    /// Where a task may run: of a stream of its own. Machine 0, which is the driver's, always may.
    fn place(&self, seed: u64) -> Place {
        let dice = &mut Dice::new(seed, "place");
        if !dice.permille(self.placed_permille) {
            return Place::Anywhere;
        }
        let machine = dice.below(10) as usize;
        match dice.below(6) {
            0 | 1 => Place::Spread,
            2 => Place::Rather(machine),
            3 => Place::OneOf(label_of(machine)),
            4 => Place::AllBut(label_of(dice.from_to(1, 2) as usize)),
            _ => Place::Only(0),
        }
    }

    /// How many objects a task returns: of a stream of its own.
    fn parts(&self, seed: u64) -> u32 {
        if self.parts_permille == 0 {
            return 0;
        }
        let dice = &mut Dice::new(seed, "parts");
        if dice.permille(self.parts_permille) { dice.from_to(1, PARTS_MAX) as u32 } else { 0 }
    }

    /// The window of a stream and how many items it has, if a task returns one: of a stream of dice of its own. A program
    /// cannot tell how many were made by a task that fails for good, so this one does not, and has the time it needs.
    fn flow(&self, seed: u64, depth: u8) -> (u32, u32) {
        let dice = &mut Dice::new(seed, "items");
        match depth < self.depth && dice.permille(self.streams_permille) {
            true => (dice.from_to(1, WINDOW_MAX) as u32, dice.below(ITEMS_MAX + 1) as u32),
            false => (0, 0),
        }
    }

    /// Whether a task says that it only computes: of dice of its own, too.
    fn is_pure(&self, seed: u64, ops: &[Op], moody: bool) -> bool {
        let computes = |op: &Op| matches!(op, Op::Work(_) | Op::Get(_) | Op::Wait(_) | Op::Drop(_));
        self.pure_permille > 0
            && !moody
            && ops.iter().all(computes)
            && Dice::new(seed, "pure").permille(self.pure_permille)
    }

    fn len(&self, dice: &mut Dice) -> u64 {
        if dice.permille(self.large_permille) {
            dice.log_uniform(INLINE_MAX + 1, 2_000_000)
        } else {
            dice.log_uniform(8, 2_000)
        }
    }

    fn work(&self, dice: &mut Dice) -> Op {
        Op::Work(dice.log_uniform(self.work_us.0, self.work_us.1) * 1000)
    }

    /// Spells out a task.
    pub fn body(&self, seed: u64, depth: u8) -> Body {
        let dice = &mut Dice::new(seed, "body");
        let function = seed % 5 + 1;
        let mut ops = vec![self.work(dice)];
        if depth == WHIM {
            return Body::whim(ops.remove(0), function);
        }
        // Of what it was given as a reference it wants the first.
        if dice.permille(300) {
            ops.push(Op::Get(0));
        }
        let moody = dice.permille(self.moody_permille);
        if moody && depth > 0 && dice.permille(500) {
            ops.push(Op::Whim(dice.bits()));
        }
        if depth > 0 && dice.permille(self.nest_permille) {
            self.nest(dice, &mut ops);
            ops.push(self.work(dice));
        }
        let end = self.end(dice);
        let retries = if dice.permille(self.once_permille) { 0 } else { dice.from_to(2, 6) as u32 };
        let (first, again, limit_ms) = self.limits(dice, retries, end);
        let cpu_milli = dice.pick(&[1000, 1000, 1000, 500, 2000]).unwrap_or(1000);
        let returns = self.refs(dice);
        let (place, len) = (self.place(seed), self.len(dice));
        let (window, items) = self.flow(seed, depth);
        let streams = window > 0;
        let parts = if streams { 0 } else { self.parts(seed) };
        let (end, limit_ms) = if streams { (End::Value, 0) } else { (end, limit_ms) };
        let first = if streams && first == First::Hangs { First::Same } else { first };
        let fickle = moody && Dice::new(seed, "fickle").permille(FICKLE_PERMILLE);
        let pure = returns.is_empty() && self.is_pure(seed, &ops, moody);
        Body {
            place,
            ops,
            len,
            returns,
            end,
            first,
            retries,
            again,
            limit_ms,
            cpu_milli,
            function,
            moody,
            fickle,
            parts,
            window,
            items,
            pure,
        }
    }

    fn end(&self, dice: &mut Dice) -> End {
        let ends = [
            (End::Error, self.error_permille),
            (End::Poison, self.poison_permille),
            (End::Hang, self.hang_permille),
        ];
        let mut drawn = dice.below(1000);
        for (end, permille) in ends {
            if drawn < permille {
                return end;
            }
            drawn -= permille;
        }
        End::Value
    }

    /// What comes of the first attempt, whether the task runs again after failures of its own, and how long it
    /// may run. What never ends has a limit, and not all the time there is.
    fn limits(&self, dice: &mut Dice, retries: u32, end: End) -> (First, bool, u64) {
        let drawn = dice.permille(self.limit_permille);
        let again = dice.permille(self.again_permille);
        let stumbles = retries > 0 && end == End::Value && dice.permille(self.stumble_permille);
        let first = match dice.below(3) {
            _ if !stumbles => First::Same,
            1 if again => First::Fails,
            2 if again && drawn => First::Hangs,
            _ => First::Dies,
        };
        let (low, high) = self.limit_ms;
        let hangs = end == End::Hang || first == First::Hangs;
        let high = if hangs { high.min(HANG_MS_MAX).max(low) } else { high };
        let limit_ms = if drawn || hangs { dice.log_uniform(low, high) } else { 0 };
        (first, again && retries > 0, limit_ms)
    }

    /// Some of `among`, or mostly none.
    pub fn pick_refs(&self, dice: &mut Dice, among: &[ObjectId]) -> Vec<ObjectId> {
        let picks = self.refs(dice);
        picked_all(among, &picks)
    }

    /// Some references, or mostly none.
    fn refs(&self, dice: &mut Dice) -> Vec<u64> {
        let many = if dice.permille(self.refs_permille) { dice.from_to(1, 3) } else { 0 };
        (0..many).map(|_| dice.bits()).collect()
    }

    /// Children, some of which take earlier ones as arguments, and gets of some of them.
    fn nest(&self, dice: &mut Dice, ops: &mut Vec<Op>) {
        for _ in 0..dice.from_to(1, self.width) {
            let refs = self.refs(dice);
            if dice.permille(200) {
                ops.push(Op::Put { seed: dice.bits(), len: self.len(dice), refs });
            } else {
                let many = dice.below(3);
                let args = (0..many).map(|_| dice.bits()).collect();
                ops.push(Op::Submit { seed: dice.bits(), args, nested: refs });
            }
            self.forget(dice, ops);
        }
        if dice.permille(self.cancel_permille) {
            ops.push(self.work(dice));
            ops.push(Op::Cancel(dice.bits(), dice.permille(500)));
        }
        for _ in 0..dice.from_to(1, self.width) {
            if self.streams_permille > 0 {
                (0..dice.below(6)).for_each(|_| ops.push(Op::Take(dice.bits())));
            }
            match dice.below(10) {
                0 => {}
                1 => ops.push(Op::Wait(dice.bits())),
                _ => ops.push(Op::Get(dice.bits())),
            }
            self.forget(dice, ops);
        }
    }

    fn forget(&self, dice: &mut Dice, ops: &mut Vec<Op>) {
        if dice.permille(self.forget_permille) {
            ops.push(Op::Drop(dice.bits()));
        }
    }
}
