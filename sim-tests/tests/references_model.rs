//! An explicit-state model of decision 14: every order of events of a small story, and every rule left out.
//!
//! The driver is on node A. Its task P runs on node B and submits C, whose reference lies in P's value.
//! P's home is shard 1, C's is shard 2. The driver may take C out of the value, and drop either whenever
//! it likes. B may die at any moment; then its fence reaches the two shards at different times, A proposes
//! P's next attempt and runs it itself; it may fail then. A node's items reach a shard in order; when is
//! arbitrary.
//!
//! Two things must hold. *Closure* (R6, S11), in every state: while the driver refers to C there is C's
//! record, or it is on its way from a live node, or P will be replayed and submits it. *No leak* (V4): when
//! nothing more can happen and the driver refers to nothing, the store is empty.
//!
//! An acknowledgement is one step with the apply: later ones allow nothing more.

use std::collections::{HashSet, VecDeque};

/// Rules that are left out, to see that each is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LeftOut {
    Nothing,
    /// A value that contains references leaves its node only when they have their records and edges.
    ToldWhenDurable,
    /// What a program took out of a value is held before the value is released.
    HoldBeforeRelease,
    /// `Done` waits for what the task submitted, and its edges.
    DoneAfterSubmissions,
    /// `Done` waits for the edges of what the value contains.
    DoneAfterEdges,
    /// An edge goes ahead of the release, in the same stream.
    EdgeBeforeRelease,
    /// Who submits a known task holds it.
    KnownIsHeld,
    /// A fence ends holds, and leaves edges.
    FenceLeavesEdges,
    /// A record with an edge stays.
    EdgesKeep,
    /// A record with a hold stays.
    HoldsKeep,
    /// A fence ends the holds of the dead.
    FenceEndsHolds,
    /// What a pruned record contained loses its edge.
    PruneUnnames,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Node {
    A,
    B,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Item {
    SubmitP,
    NextP,
    DoneP,
    ReleaseP,
    SubmitC,
    DoneC,
    NameC,
    HoldC,
    ReleaseC,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Stage {
    Waiting,
    /// It has submitted C.
    Submitted,
    /// It has ended; what follows from it may still be on its way.
    Ended,
}

/// Where the driver stands with a reference.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Has {
    NotYet,
    Yes,
    Dropped,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    /// Items not applied yet: A to shard 1, A to shard 2, B to shard 2.
    a1: VecDeque<Item>,
    a2: VecDeque<Item>,
    b2: VecDeque<Item>,
    // The store.
    p: bool,
    p_ended: bool,
    p_held: bool,
    c: bool,
    c_ended: bool,
    c_keeper: Node,
    c_holds: [bool; 2],
    c_edge: bool,
    /// P was pruned: C is to lose its edge.
    outbox: bool,
    fenced: [bool; 2],
    // The nodes.
    b_alive: bool,
    /// P's attempt on B, and on A.
    on_b: Stage,
    on_a: Option<Stage>,
    /// Whether A runs C for want of its keeper.
    c_on_a: bool,
    /// What A knows of P: that its value is there, that its done-record is queued.
    value: bool,
    done: bool,
    next_proposed: bool,
    /// A's refs to C beside the driver's: the second attempt's.
    task_refers_c: bool,
    /// What A has told C's home.
    a_holds_c: bool,
    driver_p: Has,
    driver_c: Has,
    p_released: bool,
    /// P's attempt on A has failed.
    failed: bool,
}

/// Takes what may happen, if it is enabled.
type May<'a> = dyn FnMut(bool, &dyn Fn(&mut World)) + 'a;

impl World {
    fn new() -> Self {
        World {
            a1: VecDeque::from([Item::SubmitP]),
            a2: VecDeque::new(),
            b2: VecDeque::new(),
            p: false,
            p_ended: false,
            p_held: false,
            c: false,
            c_ended: false,
            c_keeper: Node::B,
            c_holds: [false; 2],
            c_edge: false,
            outbox: false,
            fenced: [false; 2],
            b_alive: true,
            on_b: Stage::Waiting,
            on_a: None,
            c_on_a: false,
            value: false,
            done: false,
            next_proposed: false,
            task_refers_c: false,
            a_holds_c: false,
            driver_p: Has::Yes,
            driver_c: Has::NotYet,
            p_released: false,
            failed: false,
        }
    }

    fn prune(&mut self, without: LeftOut) {
        if self.p && self.p_ended && !self.p_held {
            self.p = false;
            self.outbox = without != LeftOut::PruneUnnames;
        }
        let dead = self.c_keeper == Node::B && self.fenced[1];
        let held = self.c_holds.contains(&true) && without != LeftOut::HoldsKeep;
        let named = self.c_edge && without != LeftOut::EdgesKeep;
        if self.c && (self.c_ended || dead) && !held && !named {
            self.c = false;
        }
    }

    /// A shard applies an item of a node.
    fn apply(&mut self, from: Node, item: Item, without: LeftOut) {
        let who = from as usize;
        match item {
            Item::SubmitP => (self.p, self.p_held) = (true, true),
            Item::NextP if self.p && !self.p_ended => self.on_a = Some(Stage::Waiting),
            Item::NextP => {}
            Item::DoneP => self.p_ended = true,
            Item::ReleaseP => self.p_held = false,
            Item::SubmitC if self.c => self.c_holds[who] |= without != LeftOut::KnownIsHeld,
            Item::SubmitC => {
                (self.c, self.c_ended, self.c_keeper) = (true, false, from);
                self.c_holds[who] = true;
            }
            Item::DoneC => self.c_ended |= self.c,
            Item::NameC => self.c_edge = true,
            Item::HoldC => self.c_holds[who] = true,
            Item::ReleaseC => self.c_holds[who] = false,
        }
        self.prune(without);
    }

    /// A tells C's home that it holds C, or no longer does, as its refs are.
    fn update_hold(&mut self) {
        let refers = self.driver_c == Has::Yes || self.task_refers_c;
        if refers != self.a_holds_c {
            self.a2.push_back(if refers { Item::HoldC } else { Item::ReleaseC });
            self.a_holds_c = refers;
        }
    }

    /// All that can happen next.
    fn next(&self, without: LeftOut) -> Vec<World> {
        let mut worlds = Vec::new();
        let mut may = |enabled: bool, act: &dyn Fn(&mut World)| {
            if enabled {
                let mut world = self.clone();
                act(&mut world);
                worlds.push(world);
            }
        };
        self.deliveries(&mut may, without);
        self.node_b(&mut may, without);
        self.node_a(&mut may, without);
        self.driver(&mut may);
        worlds
    }

    fn deliveries(&self, may: &mut May<'_>, without: LeftOut) {
        may(!self.a1.is_empty(), &|w| {
            let item = w.a1.pop_front().expect("not empty");
            w.apply(Node::A, item, without);
        });
        may(!self.a2.is_empty(), &|w| {
            let item = w.a2.pop_front().expect("not empty");
            w.apply(Node::A, item, without);
        });
        may(self.b_alive && !self.b2.is_empty() && !self.fenced[1], &|w| {
            let item = w.b2.pop_front().expect("not empty");
            w.apply(Node::B, item, without);
        });
        may(self.outbox, &|w| {
            (w.outbox, w.c_edge) = (false, false);
            w.prune(without);
        });
        may(!self.b_alive && !self.fenced[0], &|w| w.fenced[0] = true);
        may(!self.b_alive && self.fenced[0] && !self.fenced[1], &|w| {
            w.fenced[1] = true;
            w.c_holds[Node::B as usize] &= without == LeftOut::FenceEndsHolds;
            w.c_edge &= without != LeftOut::FenceLeavesEdges;
            w.prune(without);
        });
    }

    fn node_b(&self, may: &mut May<'_>, without: LeftOut) {
        may(self.b_alive, &|w| {
            w.b_alive = false;
            w.b2.clear();
        });
        may(self.b_alive && self.on_b == Stage::Waiting, &|w| {
            w.on_b = Stage::Submitted;
            w.b2.extend([Item::SubmitC, Item::DoneC]);
        });
        may(self.b_alive && self.on_b == Stage::Submitted, &|w| {
            w.on_b = Stage::Ended;
            if without == LeftOut::EdgeBeforeRelease {
                w.b2.extend([Item::ReleaseC, Item::NameC]);
            } else {
                w.b2.extend([Item::NameC, Item::ReleaseC]);
            }
            w.value = without == LeftOut::ToldWhenDurable;
        });
        let open = |item: Item| self.b2.contains(&item);
        let durable = match without {
            LeftOut::DoneAfterSubmissions => true,
            LeftOut::DoneAfterEdges => !open(Item::SubmitC),
            _ => !open(Item::SubmitC) && !open(Item::NameC),
        };
        let reports = self.b_alive && self.on_b == Stage::Ended && durable;
        may(reports && !self.done && self.on_a.is_none() && !self.next_proposed, &|w| {
            (w.value, w.done) = (true, true);
            w.a1.push_back(Item::DoneP);
        });
    }

    fn node_a(&self, may: &mut May<'_>, without: LeftOut) {
        may(self.fenced[0] && !self.done && !self.next_proposed, &|w| {
            w.next_proposed = true;
            w.a1.push_back(Item::NextP);
        });
        may(self.on_a == Some(Stage::Waiting), &|w| {
            w.on_a = Some(Stage::Submitted);
            // A submission implies a hold.
            (w.task_refers_c, w.a_holds_c) = (true, true);
            w.a2.push_back(Item::SubmitC);
        });
        let submitted = self.on_a == Some(Stage::Submitted) && !self.a2.contains(&Item::SubmitC);
        let orphan = self.c_keeper == Node::A || self.fenced[1];
        // A keeps what it submitted, whatever becomes of the task that did.
        let keeps = submitted || self.on_a == Some(Stage::Ended);
        may(keeps && self.c && !self.c_ended && orphan && !self.c_on_a, &|w| {
            (w.c_on_a, w.c_keeper) = (true, Node::A);
            w.a2.push_back(Item::DoneC);
        });
        may(submitted, &|w| {
            w.on_a = Some(Stage::Ended);
            w.value = true;
            let edge = w.a2.len();
            w.task_refers_c = false;
            w.update_hold();
            let at = if without == LeftOut::EdgeBeforeRelease { w.a2.len() } else { edge };
            w.a2.insert(at, Item::NameC);
        });
        // Something that it needs may have gone since.
        may(submitted, &|w| {
            (w.on_a, w.failed) = (Some(Stage::Ended), true);
            w.task_refers_c = false;
            w.update_hold();
        });
        let open = self.a2.contains(&Item::NameC) && without != LeftOut::DoneAfterEdges;
        may(self.on_a == Some(Stage::Ended) && !open && !self.done, &|w| {
            w.done = true;
            w.a1.push_back(Item::DoneP);
        });
        let held = !self.a2.contains(&Item::HoldC) || without == LeftOut::HoldBeforeRelease;
        may(self.driver_p == Has::Dropped && self.done && held && !self.p_released, &|w| {
            w.p_released = true;
            w.a1.push_back(Item::ReleaseP);
        });
    }

    fn driver(&self, may: &mut May<'_>) {
        let reads = self.value && self.driver_p == Has::Yes;
        may(reads && self.driver_c == Has::NotYet, &|w| {
            w.driver_c = Has::Yes;
            w.update_hold();
        });
        may(self.driver_p == Has::Yes && (self.value || self.failed), &|w| w.driver_p = Has::Dropped);
        may(self.driver_c == Has::Yes, &|w| {
            w.driver_c = Has::Dropped;
            w.update_hold();
        });
    }

    /// What must hold in every state.
    fn is_closed(&self) -> bool {
        let on_its_way = self.a2.contains(&Item::SubmitC) || self.b2.contains(&Item::SubmitC);
        let replayed = !self.b_alive && !self.done && self.on_a != Some(Stage::Ended);
        self.driver_c != Has::Yes || self.c || on_its_way || replayed
    }

    /// What must hold when nothing more can happen.
    fn is_clean(&self) -> bool {
        !self.p && !self.c && !self.c_edge && !self.outbox && self.c_holds == [false; 2]
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Fine { states: usize },
    Lost,
    Leaked,
}

/// Looks at every state that can be reached.
fn explore(without: LeftOut) -> Verdict {
    let mut seen = HashSet::from([World::new()]);
    let mut open = VecDeque::from([World::new()]);
    while let Some(world) = open.pop_front() {
        if !world.is_closed() {
            return Verdict::Lost;
        }
        let next = world.next(without);
        if next.is_empty() && !world.is_clean() {
            return Verdict::Leaked;
        }
        for world in next {
            if seen.insert(world.clone()) {
                open.push_back(world);
            }
        }
    }
    Verdict::Fine { states: seen.len() }
}

#[test]
fn nothing_is_lost_and_nothing_leaks_in_any_order() {
    let verdict = explore(LeftOut::Nothing);
    let Verdict::Fine { states } = verdict else { panic!("{verdict:?}") };
    assert!(states > 3_500, "the story is too small to mean anything: {states} states");
}

#[test]
fn every_rule_is_needed() {
    use LeftOut::*;
    for without in [
        ToldWhenDurable,
        HoldBeforeRelease,
        DoneAfterSubmissions,
        DoneAfterEdges,
        EdgeBeforeRelease,
        KnownIsHeld,
        FenceLeavesEdges,
        EdgesKeep,
        HoldsKeep,
    ] {
        assert_eq!(explore(without), Verdict::Lost, "without {without:?}");
    }
    for without in [FenceEndsHolds, PruneUnnames] {
        assert_eq!(explore(without), Verdict::Leaked, "without {without:?}");
    }
}
