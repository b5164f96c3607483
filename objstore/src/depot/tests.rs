//! Programs that make more than memory holds, with a disk that does at once, later, or never what it is
//! told.

use super::*;
use std::collections::VecDeque;

/// More than any of these programs needs.
const STEPS_MAX: usize = 5_000;
const MB: u64 = 1 << 20;
const JOB: JobId = JobId(1);
const DRIVER: Creator = 7;
const WORKER: Creator = 8;

fn object(n: u32) -> ObjectId {
    TaskId::root(JOB).output(n)
}

fn crc(object: ObjectId) -> u32 {
    object.slot.wrapping_mul(2_654_435_761)
}

/// A depot, a disk, and links that do what they are asked.
struct World {
    depot: Depot,
    /// What the disk has been told to do and has not done.
    disk: VecDeque<Effect>,
    files: BTreeMap<FileId, File>,
    rooms: BTreeMap<Ticket, Result<u64, StoreError>>,
    here: BTreeMap<Ticket, Vec<Place>>,
    waits: BTreeSet<Ticket>,
    missing: Vec<(Ticket, ObjectId)>,
    refused: Vec<(Ticket, StoreError)>,
    lost: Vec<ObjectId>,
    /// Links give back what they are asked for.
    gives_back: bool,
    is_full: bool,
    damaged: BTreeSet<ObjectId>,
    pauses: u32,
    writes: u32,
    next: Ticket,
}

impl World {
    fn new(capacity: u64) -> Self {
        World {
            depot: Depot::new(capacity, true),
            disk: VecDeque::new(),
            files: BTreeMap::new(),
            rooms: BTreeMap::new(),
            here: BTreeMap::new(),
            waits: BTreeSet::new(),
            missing: Vec::new(),
            refused: Vec::new(),
            lost: Vec::new(),
            gives_back: true,
            is_full: false,
            damaged: BTreeSet::new(),
            pauses: 0,
            writes: 0,
            next: 0,
        }
    }

    /// Whether links have given something back.
    fn turn(&mut self) -> bool {
        let mut given_back = false;
        let mut effects = Vec::new();
        self.depot.turn(&mut effects);
        self.depot.check_invariants();
        for effect in effects {
            match effect {
                Effect::Waits { ticket } => assert!(self.waits.insert(ticket), "told once"),
                Effect::Room { ticket, room } => drop(self.rooms.insert(ticket, room)),
                Effect::Here { ticket, places } => drop(self.here.insert(ticket, places)),
                Effect::Missing { ticket, object } => self.missing.push((ticket, object)),
                Effect::Refused { ticket, error } => self.refused.push((ticket, error)),
                Effect::Write { .. } | Effect::Read { .. } | Effect::Remove { .. } => {
                    self.disk.push_back(effect)
                }
                Effect::Lost { object } => self.lost.push(object),
                Effect::Recall { link, objects } => {
                    for object in objects.into_iter().filter(|_| self.gives_back) {
                        self.depot.unpin(object, Reader::Link(link));
                        given_back = true;
                    }
                }
                Effect::Pause => self.pauses += 1,
            }
        }
        given_back
    }

    /// The disk does one thing.
    fn io(&mut self) -> bool {
        let Some(effect) = self.disk.pop_front() else { return false };
        match effect {
            Effect::Write { object, file, .. } => {
                self.writes += 1;
                // Some things shrink.
                let packed = file.number.is_multiple_of(2).then_some(file.len / 3);
                let file = File { packed, ..file };
                if !self.is_full {
                    assert!(self.files.insert(file.id(object), file).is_none(), "a name is used once");
                }
                self.depot.written(object, if self.is_full { Err(()) } else { Ok(packed) });
            }
            Effect::Read { object, file, .. } => {
                let whole =
                    self.files.get(&file.id(object)) == Some(&file) && !self.damaged.contains(&object);
                self.depot.read(object, if whole { Ok(()) } else { Err(()) });
            }
            Effect::Remove { file } => drop(self.files.remove(&file)),
            other => panic!("not for the disk: {other:?}"),
        }
        self.depot.check_invariants();
        true
    }

    /// Until nothing moves any more.
    fn settle(&mut self) {
        for _ in 0..STEPS_MAX {
            if !self.turn() && !self.io() {
                return;
            }
        }
        panic!("it goes round in circles: {:?}", self.depot);
    }

    fn ticket(&mut self) -> Ticket {
        self.next += 1;
        self.next
    }

    fn ask(&mut self, n: u32, len: u64, creator: Creator) -> Ticket {
        let ticket = self.ticket();
        self.depot.want_room(ticket, object(n), len, JOB, creator);
        ticket
    }

    fn make(&mut self, n: u32, len: u64) {
        let ticket = self.ask(n, len, WORKER);
        self.settle();
        let room = self.rooms.remove(&ticket).expect("the line moves on");
        room.expect("there is room");
        self.depot.seal(object(n), crc(object(n)), WORKER).expect("it was given room");
    }

    /// As a program does that looks at values: places, pinned for `reader`.
    fn bring(&mut self, reader: Reader, of: &[u32]) -> Option<Vec<Place>> {
        let ticket = self.ticket();
        self.depot.want_here(ticket, reader, of.iter().map(|n| object(*n)).collect());
        self.settle();
        self.here.remove(&ticket)
    }

    fn read(&mut self, n: u32) {
        let places = self.bring(Reader::Link(DRIVER), &[n]).expect("it is brought back");
        assert_eq!(places[0].crc, crc(object(n)), "object {n} has other bytes");
        self.depot.unpin(object(n), Reader::Link(DRIVER));
    }
}

#[test]
fn a_store_of_64_mb_takes_a_gigabyte_and_gives_it_back() {
    let mut world = World::new(64 * MB);
    for n in 0..200 {
        world.make(n, 5 * MB);
        // A driver is told of each, and does not look.
        world.depot.lend(object(n), Reader::Link(DRIVER)).expect("just made");
    }
    world.make(200, 58 * MB);
    assert!(world.files.len() >= 190, "{} files", world.files.len());
    for n in (0..=200).rev() {
        world.read(n);
    }
    assert!(world.lost.is_empty() && world.missing.is_empty());
    assert!(world.writes <= 201, "what has a file is not written again: {}", world.writes);
    for n in 0..=200 {
        assert!(world.depot.discard(object(n)));
    }
    world.settle();
    assert_eq!((world.files.len(), world.depot.usage().0), (0, 0));
    assert_eq!(world.depot.spilled(), Spilled::default());
}

#[test]
fn below_the_mark_nothing_is_written() {
    let mut world = World::new(64 * MB);
    for n in 0..10 {
        world.make(n, 5 * MB);
    }
    assert_eq!((world.writes, world.depot.is_tight()), (0, false));
    world.make(10, 5 * MB);
    world.settle();
    assert_eq!((world.writes, world.depot.is_tight()), (1, false), "the oldest has gone");
    assert!(matches!(world.depot.get(object(0)), Some(Kept::File(_))));
}

#[test]
fn what_somebody_looks_at_stays_and_producers_wait_in_line() {
    let mut world = World::new(64 * MB);
    for n in 0..10 {
        world.make(n, 6 * MB);
        world.depot.lend(object(n), Reader::Task(WORKER, TaskId::root(JOB))).expect("just made");
    }
    let large = world.ask(20, 40 * MB, DRIVER);
    let small = world.ask(21, MB, WORKER);
    world.settle();
    assert!(world.rooms.is_empty(), "small ones do not overtake");
    assert_eq!(world.waits, BTreeSet::from([large, small]));
    assert_eq!(world.writes, 0);
    world.depot.task_ended(WORKER, TaskId::root(JOB));
    world.settle();
    assert!(world.rooms[&large].is_ok() && world.rooms[&small].is_ok());
}

#[test]
fn an_object_larger_than_the_store_is_refused_at_once() {
    let mut world = World::new(64 * MB);
    world.make(1, 60 * MB);
    let ticket = world.ask(2, 65 * MB, DRIVER);
    world.turn();
    assert!(matches!(world.rooms[&ticket], Err(StoreError::TooLarge { .. })), "{:?}", world.rooms);
    // So are arguments that come to more than it.
    world.make(3, 10 * MB);
    let ticket = world.ticket();
    world.depot.want_here(ticket, Reader::Link(DRIVER), vec![object(1), object(3)]);
    world.turn();
    assert!(matches!(world.refused[..], [(t, StoreError::TooLarge { .. })] if t == ticket));
}

#[test]
fn what_is_needed_together_is_laid_side_by_side() {
    let mut world = World::new(64 * MB);
    // The second lies in the middle, the rest of the room on both sides of it.
    world.make(1, 17 * MB);
    world.make(2, 30 * MB);
    world.depot.discard(object(1));
    world.make(3, 30 * MB);
    for _ in 0..5 {
        assert!(world.bring(Reader::Link(DRIVER), &[2, 3]).is_some());
        for n in [2, 3] {
            world.depot.unpin(object(n), Reader::Link(DRIVER));
        }
        world.make(4, 60 * MB);
        world.depot.discard(object(4));
        world.settle();
    }
}

#[test]
fn all_that_lies_in_the_way_moves_aside() {
    let mut world = World::new(64 * MB);
    for (n, len) in [(5, 22), (1, 9), (2, 14), (3, 9), (4, 14)] {
        world.make(n, len * MB);
    }
    for n in [1, 3] {
        world.depot.discard(object(n));
    }
    // Neither of those that are here has a file, and there is room for the third beside neither.
    assert!(matches!(world.depot.get(object(5)), Some(Kept::File(_))));
    assert!(world.bring(Reader::Link(DRIVER), &[2, 4, 5]).is_some());
}

#[test]
fn what_was_given_to_whoever_does_not_want_it_any_more_is_looked_at_by_nobody() {
    let mut world = World::new(64 * MB);
    world.make(1, 40 * MB);
    let ticket = world.ticket();
    world.depot.want_here(ticket, Reader::Task(WORKER, TaskId::root(JOB)), vec![object(1)]);
    world.depot.cancel(&BTreeSet::from([ticket]));
    let room = world.ask(2, 40 * MB, DRIVER);
    world.settle();
    assert!(world.here.is_empty() && world.rooms[&room].is_ok());
}

#[test]
fn two_who_need_more_than_fits_together_do_not_take_it_away_from_each_other() {
    let mut world = World::new(64 * MB);
    for n in 0..4 {
        world.make(n, 30 * MB);
    }
    let tasks = [TaskId::root(JobId(2)), TaskId::root(JobId(3))];
    let (one, two) = (world.ticket(), world.ticket());
    world.depot.want_here(one, Reader::Task(WORKER, tasks[0]), vec![object(0), object(2)]);
    world.depot.want_here(two, Reader::Task(WORKER, tasks[1]), vec![object(1), object(3)]);
    world.settle();
    assert_eq!(world.here.keys().copied().collect::<Vec<_>>(), [one]);
    world.depot.task_ended(WORKER, tasks[0]);
    world.settle();
    assert_eq!(world.here.keys().copied().collect::<Vec<_>>(), [one, two]);
}

#[test]
fn what_everybody_looks_at_keeps_nobody_waiting_for_ever() {
    let mut world = World::new(64 * MB);
    world.make(0, 10 * MB);
    let task = |n: u64| TaskId::root(JobId(n));
    let first = world.ticket();
    world.depot.want_here(first, Reader::Task(WORKER, task(0)), vec![object(0)]);
    let large = world.ask(1, 60 * MB, DRIVER);
    // Another begins to look before the last is through, again and again.
    let mut looking = 0;
    for n in 1..=u64::from(2 * OVERTAKING_MAX) {
        let ticket = world.ticket();
        world.depot.want_here(ticket, Reader::Task(WORKER, task(n)), vec![object(0)]);
        world.settle();
        if world.here.contains_key(&ticket) {
            world.depot.task_ended(WORKER, task(looking));
            looking = n;
        }
    }
    assert_eq!(looking, u64::from(OVERTAKING_MAX));
    assert!(!world.rooms.contains_key(&large));
    world.depot.task_ended(WORKER, task(looking));
    world.settle();
    assert!(world.rooms[&large].is_ok());
    world.depot.abort(object(1), DRIVER);
    world.settle();
    assert_eq!(world.depot.waiting(), 0);
}

#[test]
fn a_damaged_file_is_a_lost_copy() {
    let mut world = World::new(64 * MB);
    for n in 0..20 {
        world.make(n, 6 * MB);
    }
    world.settle();
    world.damaged.insert(object(3));
    assert_eq!(world.bring(Reader::Link(DRIVER), &[3]), None);
    assert_eq!(world.lost, [object(3)]);
    assert_eq!(world.missing.len(), 1);
    assert_eq!(world.depot.get(object(3)), None);
    world.settle();
    assert!(world.files.keys().all(|file| file.object != object(3)), "its file is gone");
    // Made again, it is as good as new.
    world.damaged.clear();
    world.make(3, 6 * MB);
    world.read(3);
}

#[test]
fn damage_that_is_found_while_memory_has_it_costs_nothing() {
    let mut world = World::new(64 * MB);
    for n in 0..12 {
        world.make(n, 6 * MB);
    }
    world.settle();
    world.bring(Reader::Transfer(1), &[0]).expect("brought back");
    let file = world.files.iter().find(|(id, _)| id.object == object(0)).map(|(_, file)| *file);
    world.depot.damaged(file.expect("it was spilled"), object(0));
    assert!(world.lost.is_empty());
    world.settle();
    assert!(world.files.keys().all(|file| file.object != object(0)));
    world.read(0);
}

#[test]
fn a_full_disk_lets_producers_wait_and_goes_on_by_itself() {
    let mut world = World::new(64 * MB);
    for n in 0..8 {
        world.make(n, 6 * MB);
    }
    world.is_full = true;
    for n in 8..10 {
        world.make(n, 6 * MB);
    }
    let ticket = world.ask(30, 10 * MB, DRIVER);
    world.settle();
    assert!(world.rooms.is_empty());
    assert!(world.depot.spilled().failures > 0, "it is counted");
    let before = (world.writes, world.pauses);
    world.settle();
    assert_eq!((world.writes, world.pauses), before, "not tried again before it is time");
    world.depot.try_disk_again();
    world.settle();
    assert_eq!(world.pauses, before.1 + 1, "still full");
    for n in 0..10 {
        assert!(matches!(world.depot.get(object(n)), Some(Kept::Memory(_))), "nothing left memory");
    }
    world.is_full = false;
    world.depot.try_disk_again();
    world.settle();
    assert!(world.rooms[&ticket].is_ok());
    // And whoever drops references makes room without any disk.
    world.is_full = true;
    let ticket = world.ask(31, 50 * MB, DRIVER);
    world.settle();
    for n in 0..10 {
        world.depot.discard(object(n));
    }
    world.depot.abort(object(30), DRIVER);
    world.settle();
    assert!(world.rooms[&ticket].is_ok());
}

#[test]
fn without_a_disk_whoever_finds_no_room_is_refused() {
    let mut world = World::new(MB);
    world.depot = Depot::new(MB, false);
    world.make(1, 900_000);
    let ticket = world.ask(2, 900_000, DRIVER);
    world.settle();
    assert!(matches!(world.rooms[&ticket], Err(StoreError::Full { .. })));
}

#[test]
fn what_is_there_already_need_not_be_made_again_wherever_it_lies() {
    let mut world = World::new(64 * MB);
    for n in 0..20 {
        world.make(n, 6 * MB);
    }
    world.settle();
    assert!(matches!(world.depot.get(object(0)), Some(Kept::File(_))));
    let ticket = world.ask(0, 6 * MB, DRIVER);
    world.turn();
    let room = world.rooms.remove(&ticket).expect("answered at once");
    assert!(matches!(room, Err(StoreError::Exists(place)) if place.crc == crc(object(0))));
}

#[test]
fn what_goes_while_an_attempt_makes_it_again_is_put_back_wherever_it_lies() {
    let mut world = World::new(64 * MB);
    for n in 0..20 {
        world.make(n, 6 * MB);
    }
    world.settle();
    // The first lies in a file, the last in memory.
    for n in [0, 19] {
        let ticket = world.ask(n, 6 * MB, DRIVER);
        world.turn();
        assert!(matches!(world.rooms.remove(&ticket), Some(Err(StoreError::Exists(_)))));
        assert!(world.depot.discard(object(n)));
        assert!(!world.depot.discard(object(n)), "it is gone");
        assert_eq!(world.depot.get(object(n)), None);
        let crc = crc(object(n));
        assert_eq!(world.depot.seal_again(object(n), crc ^ 1, DRIVER), None, "other bytes");
        assert_eq!(world.depot.seal_again(object(n), crc, WORKER), None, "who was not told of it");
        assert!(world.depot.seal_again(object(n), crc, DRIVER).is_some());
        world.read(n);
        world.depot.discard(object(n));
    }
    world.depot.args_taken(DRIVER, TaskId::root(JOB));
    assert!(world.depot.seal_again(object(0), crc(object(0)), DRIVER).is_some());
    world.depot.discard(object(0));
    world.depot.task_ended(DRIVER, TaskId::root(JOB));
    assert_eq!(world.depot.seal_again(object(0), crc(object(0)), DRIVER), None);
    world.settle();
    assert!(world.files.keys().all(|file| ![object(0), object(19)].contains(&file.object)));
}

#[test]
fn whoever_wants_to_make_what_another_makes_waits_aside() {
    let mut world = World::new(64 * MB);
    let first = world.ask(1, MB, WORKER);
    let second = world.ask(1, MB, DRIVER);
    let other = world.ask(2, MB, DRIVER);
    world.settle();
    assert!(world.rooms[&first].is_ok() && world.rooms[&other].is_ok());
    assert!(!world.rooms.contains_key(&second) && !world.waits.contains(&second));
    world.depot.creator_gone(WORKER);
    world.settle();
    assert!(world.rooms[&second].is_ok());
}

#[test]
fn files_of_an_earlier_life_are_taken_up() {
    let mut world = World::new(64 * MB);
    let file = File { number: 5, len: 6 * MB, crc: crc(object(1)), job: JOB, packed: Some(MB) };

    world.files.insert(file.id(object(1)), file);
    assert!(world.depot.attach(object(1), file));
    assert!(!world.depot.attach(object(1), File { number: 6, ..file }), "one is enough");
    world.read(1);
    for n in 2..20 {
        world.make(n, 6 * MB);
    }
    world.depot.free_job(JOB);
    world.settle();
    assert_eq!((world.files.len(), world.depot.usage().0), (0, 0));
}

mod walk {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// Whatever happens in whatever order: once all who look are through and the disk works, everyone
        /// who waits has an answer, and everything that was made is there or was said to be lost.
        #[test]
        fn the_line_always_moves_on(
            steps in prop::collection::vec((0u8..12, 0u32..12, 1u64..60), 1..150),
            lazy in any::<bool>(),
        ) {
            let mut world = World::new(64 * 1024);
            world.gives_back = !lazy;
            let task = TaskId::root(JobId(9));
            let mut asked: Vec<(Ticket, u32, Creator)> = Vec::new();
            for (what, n, size) in steps {
                match what {
                    0..=2 => {
                        let creator = 7 + u64::from(n % 2);
                        let ticket = world.ask(n, size * 1000, creator);
                        asked.push((ticket, n, creator));
                    }
                    3 => {
                        let ticket = world.ticket();
                        world.depot.want_here(ticket, Reader::Task(WORKER, task), vec![object(n), object(size as u32 % 12)]);
                    }
                    4 => drop(world.depot.lend(object(n), Reader::Link(DRIVER))),
                    5 => world.depot.unpin(object(n), Reader::Link(DRIVER)),
                    6 => world.depot.task_ended(WORKER, task),
                    7 => drop(world.depot.discard(object(n))),
                    8 => world.is_full = size > 40,
                    9 => drop(if size > 30 { world.damaged.insert(object(n)) } else { world.damaged.remove(&object(n)) }),
                    10 if size > 55 => world.depot.free_job(JOB),
                    10 => world.depot.try_disk_again(),
                    _ => {
                        world.io();
                    }
                }
                world.turn();
                seal_all(&mut world, &asked);
            }
            // All goes well from here on.
            (world.is_full, world.gives_back) = (false, true);
            for _ in 0..20 {
                world.depot.task_ended(WORKER, task);
                (0..12).for_each(|n| (0..150).for_each(|_| world.depot.unpin(object(n), Reader::Link(DRIVER))));
                world.depot.try_disk_again();
                world.settle();
                seal_all(&mut world, &asked);
            }
            prop_assert_eq!(world.depot.waiting(), 0, "somebody waits for ever");
            for n in 0..12 {
                world.depot.discard(object(n));
            }
            for creator in [7, 8] {
                world.depot.task_ended(creator, TaskId::root(JOB));
            }
            world.settle();
            prop_assert_eq!(world.depot.usage().0, 0, "nothing leaks");
            prop_assert_eq!(world.files.len(), 0, "no file is left");
        }
    }

    fn seal_all(world: &mut World, asked: &[(Ticket, u32, Creator)]) {
        for (ticket, n, creator) in asked {
            match world.rooms.remove(ticket) {
                Some(Ok(_)) => drop(world.depot.seal(object(*n), crc(object(*n)), *creator)),
                Some(Err(StoreError::Exists(_))) if n % 3 == 0 => {
                    world.depot.seal_again(object(*n), crc(object(*n)), *creator);
                }
                Some(Err(_)) | None => {}
            }
        }
    }
}
