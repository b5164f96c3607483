//! The object table against a model: whatever is asked in whatever order, answers are the model's, no two
//! places overlap, nobody's bytes change while he looks at them, and all memory comes back.

use mobula_base::{JobId, ObjectId, TaskId};
use mobula_objstore::{Reader, Store, StoreError};
use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use std::collections::{BTreeMap, BTreeSet};

/// More than all steps together can fill: whether it is full depends on where holes are.
const CAPACITY: u64 = 1 << 20;
/// Places are counted in these, bytes.
const ALIGN: u64 = 64;

fn object(n: u8) -> ObjectId {
    TaskId::root(JobId(1)).output(u32::from(n))
}

fn reader(n: u8) -> Reader {
    match n % 5 {
        0 | 1 => Reader::Link(u64::from(n)),
        2 | 3 => Reader::Task(u64::from(n - 1), task(n)),
        _ => Reader::Transfer(1),
    }
}

/// What reader `n` runs, if it is a task of worker `n - 1`.
fn task(n: u8) -> TaskId {
    TaskId { place: u16::from(n), ..TaskId::root(JobId(1)) }
}

#[derive(Clone, Debug)]
enum Step {
    Create { object: u8, len: u64, job: u64, creator: u64 },
    Seal { object: u8, creator: u64 },
    Abort { object: u8, creator: u64 },
    Pin { object: u8, reader: u8 },
    Unpin { object: u8, reader: u8 },
    TaskEnded { reader: u8 },
    CreatorGone { creator: u64 },
    FreeJob { job: u64 },
    Discard { object: u8 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Creating(u64),
    Sealed,
}

/// An object as it should be.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Which creation it is: its bytes say so.
    tag: u64,
    len: u64,
    job: u64,
    state: State,
}

/// What a store should know.
#[derive(Clone, Debug, Default)]
struct Model {
    entries: BTreeMap<u8, Entry>,
    /// Still written to, although their jobs have ended: length of each.
    doomed: BTreeMap<(u64, u8), u64>,
    /// Who looks at which creation, the first told first.
    pins: Vec<(u8, u8, u64)>,
    /// Creations that are gone but for those who look at them, and their lengths.
    leaving: BTreeMap<u64, u64>,
    last_tag: u64,
}

impl Model {
    fn remove(&mut self, object: u8) {
        let Some(entry) = self.entries.remove(&object) else { return };
        if self.pins.iter().any(|pin| pin.2 == entry.tag) {
            self.leaving.insert(entry.tag, entry.len);
        }
    }

    /// Takes pins away: all that match, or the first.
    fn unpin(&mut self, first: bool, matches: impl Fn(&(u8, u8, u64)) -> bool) {
        let mut gone = false;
        self.pins.retain(|pin| {
            let goes = matches(pin) && !(first && gone);
            gone |= goes;
            !goes
        });
        let looked_at: BTreeSet<u64> = self.pins.iter().map(|pin| pin.2).collect();
        self.leaving.retain(|tag, _| looked_at.contains(tag));
    }

    fn used(&self) -> u64 {
        let lens = self.entries.values().map(|entry| entry.len);
        let lens = lens.chain(self.doomed.values().copied()).chain(self.leaving.values().copied());
        lens.map(|len| len.max(1).div_ceil(ALIGN) * ALIGN).sum()
    }
}

impl ReferenceStateMachine for Model {
    type State = Model;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Model> {
        Just(Model::default()).boxed()
    }

    fn transitions(_: &Model) -> BoxedStrategy<Step> {
        let (object, creator, job, reader) = (0u8..5, 0u64..3, 1u64..3, 0u8..5);
        prop_oneof![
            6 => (object.clone(), 0u64..3000, job.clone(), creator.clone())
                .prop_map(|(object, len, job, creator)| Step::Create { object, len, job, creator }),
            5 => (object.clone(), creator.clone()).prop_map(|(object, creator)| Step::Seal { object, creator }),
            1 => (object.clone(), creator.clone()).prop_map(|(object, creator)| Step::Abort { object, creator }),
            4 => (object.clone(), reader.clone()).prop_map(|(object, reader)| Step::Pin { object, reader }),
            2 => (object.clone(), reader.clone()).prop_map(|(object, reader)| Step::Unpin { object, reader }),
            1 => (2u8..4).prop_map(|reader| Step::TaskEnded { reader }),
            1 => (1u64..3).prop_map(|creator| Step::CreatorGone { creator }),
            1 => job.prop_map(|job| Step::FreeJob { job }),
            2 => object.prop_map(|object| Step::Discard { object }),
        ]
        .boxed()
    }

    fn apply(mut model: Model, step: &Step) -> Model {
        match *step {
            Step::Create { object, len, job, creator } => {
                if model.doomed.contains_key(&(creator, object)) && creator != 0 {
                    model.doomed.remove(&(creator, object));
                }
                let again = matches!(model.entries.get(&object), Some(entry) if entry.state == State::Creating(creator));
                let busy = model.doomed.contains_key(&(creator, object));
                if !busy && (!model.entries.contains_key(&object) || (again && creator != 0)) {
                    model.last_tag += 1;
                    let entry = Entry { tag: model.last_tag, len, job, state: State::Creating(creator) };
                    model.entries.insert(object, entry);
                }
            }
            Step::Seal { object, creator } => {
                model.doomed.remove(&(creator, object));
                if let Some(entry) = model.entries.get_mut(&object)
                    && entry.state == State::Creating(creator)
                {
                    entry.state = State::Sealed;
                }
            }
            Step::Abort { object, creator } => {
                model.doomed.remove(&(creator, object));
                if model.entries.get(&object).is_some_and(|entry| entry.state == State::Creating(creator)) {
                    model.remove(object);
                }
            }
            Step::Pin { object, reader } => {
                if let Some(entry) = model.entries.get(&object).filter(|entry| entry.state == State::Sealed) {
                    model.pins.push((reader, object, entry.tag));
                }
            }
            Step::Unpin { object, reader } => model.unpin(true, |pin| (pin.0, pin.1) == (reader, object)),
            Step::TaskEnded { reader } => model.unpin(false, |pin| pin.0 == reader),
            Step::CreatorGone { creator } => {
                // Reader `n` is of the link `n`, or a task of the worker `n - 1`.
                let of_it = |n: u8| match n {
                    0 | 1 => u64::from(n) == creator,
                    2 | 3 => u64::from(n - 1) == creator,
                    _ => false,
                };
                model.unpin(false, |pin| of_it(pin.0));
                model.doomed.retain(|(by, _), _| *by != creator);
                model.entries.retain(|_, entry| entry.state != State::Creating(creator));
            }
            Step::FreeJob { job } => {
                let gone: Vec<u8> =
                    model.entries.iter().filter(|(_, entry)| entry.job == job).map(|(n, _)| *n).collect();
                for object in gone {
                    match model.entries[&object].state {
                        State::Sealed => model.remove(object),
                        State::Creating(by) => {
                            let entry = model.entries.remove(&object).expect("seen above");
                            model.doomed.insert((by, object), entry.len);
                        }
                    }
                }
            }
            Step::Discard { object } => {
                if model.entries.get(&object).is_some_and(|entry| entry.state == State::Sealed) {
                    model.remove(object);
                }
            }
        }
        model
    }
}

/// The store, and a region in which each unit of 64 bytes says whose creation wrote it last.
struct Real {
    store: Store,
    region: Vec<u64>,
    /// Where each creation lies.
    places: BTreeMap<u64, (u64, u64)>,
}

impl Real {
    fn units(&self, tag: u64) -> std::ops::Range<usize> {
        let (offset, len) = self.places[&tag];
        (offset / ALIGN) as usize..(offset + len.max(1)).div_ceil(ALIGN) as usize
    }
}

impl StateMachineTest for Real {
    type SystemUnderTest = Real;
    type Reference = Model;

    fn init_test(_: &Model) -> Real {
        Real {
            store: Store::new(CAPACITY),
            region: vec![0; (CAPACITY / ALIGN) as usize],
            places: BTreeMap::new(),
        }
    }

    fn apply(mut real: Real, model: &Model, step: Step) -> Real {
        match step {
            Step::Create { object: n, len, job, creator } => {
                let made = model.entries.get(&n);
                match real.store.create(object(n), len, JobId(job), creator) {
                    Ok(offset) => {
                        let made = made.expect("the model has it, too");
                        assert_eq!((made.len, made.state), (len, State::Creating(creator)));
                        real.places.insert(made.tag, (offset, len));
                        // Its creator writes at once.
                        let units = real.units(made.tag);
                        real.region[units].fill(made.tag);
                    }
                    Err(StoreError::Exists(place)) => {
                        let entry = made.expect("the model has it, too");
                        assert_eq!((entry.state, place.len), (State::Sealed, entry.len));
                    }
                    Err(StoreError::Busy) => {
                        let other = made.is_some_and(|entry| entry.state != State::Sealed);
                        assert!(other || model.doomed.contains_key(&(creator, n)));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Seal { object: n, creator } => match real.store.seal(object(n), 7, creator) {
                Ok(place) => {
                    let entry = model.entries[&n];
                    assert_eq!(
                        (entry.state, real.places[&entry.tag]),
                        (State::Sealed, (place.offset, place.len))
                    );
                }
                Err(error) => assert_eq!(error, StoreError::NotCreating),
            },
            Step::Abort { object: n, creator } => real.store.abort(object(n), creator),
            Step::Pin { object: n, reader: r } => {
                let sealed = model.entries.get(&n).is_some_and(|entry| entry.state == State::Sealed);
                assert_eq!(real.store.pin(object(n), reader(r)), sealed);
            }
            Step::Unpin { object: n, reader: r } => real.store.unpin(object(n), reader(r)),
            Step::TaskEnded { reader: r } => real.store.task_ended(u64::from(r - 1), task(r)),
            Step::CreatorGone { creator } => real.store.creator_gone(creator),
            Step::FreeJob { job } => real.store.free_job(JobId(job)),
            Step::Discard { object: n } => drop(real.store.discard(object(n))),
        }
        real
    }

    fn check_invariants(real: &Real, model: &Model) {
        real.store.check_invariants();
        assert_eq!(real.store.usage().0, model.used());
        let sealed = |entry: &&Entry| entry.state == State::Sealed;
        let count = model.entries.values().filter(sealed).count() as u64;
        let open = model.entries.len() as u64 - count;
        assert_eq!(real.store.count(), (count, open, model.leaving.len() as u64));
        for (n, entry) in &model.entries {
            let place = real.store.get(object(*n));
            assert_eq!(place.is_some(), entry.state == State::Sealed);
            let whole = real.region[real.units(entry.tag)].iter().all(|unit| *unit == entry.tag);
            assert!(whole, "somebody else wrote over object {n}");
        }
        for (reader, n, tag) in &model.pins {
            let whole = real.region[real.units(*tag)].iter().all(|unit| unit == tag);
            assert!(whole, "reader {reader} still looks at object {n}, and it was given away");
        }
    }

    fn teardown(mut real: Real, model: Model) {
        for (r, n, _) in model.pins {
            real.store.unpin(object(n), reader(r));
        }
        (0..3).for_each(|creator| real.store.creator_gone(creator));
        (1..3).for_each(|job| real.store.free_job(JobId(job)));
        assert_eq!(real.store.usage().0, 0, "memory that nobody uses");
        real.store.create(object(0), CAPACITY, JobId(1), 1).expect("it is one piece again");
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn the_table_does_what_the_model_does(sequential 1..80 => Real);
}
