//! Tasks that return several objects (decision 26).
//!
//! The elements of what such a task returns are objects of their own, at slots that are known when it is submitted. To
//! their home they are puts of the task: whoever refers to one holds it there, and a lost one makes the task run again.
//! They come into being all at once, when the task has ended well; until then whoever wants one waits for the task, and
//! it fails as the task does. The task's own value is a mark that they were made, which nobody refers to.

use crate::core::{Core, Kept, KeptState};
use crate::objects::State;
use crate::stream::About;
use crate::types::{ClientId, Effect, Element, Value};
use mobula_base::ids::ELEMENTS_MAX;
use mobula_base::{Incarnation, JobId, ObjectId, TaskId};
use mobula_proto::value as wire;
use mobula_proto::{
    Failure, FailureKind, Name, StreamItem, TaskSpec, Value as Told, object_bytes, stream_item,
};
use thin_vec::ThinVec;

/// Bytes of a hold in a stream, about.
const HOLD_BYTES: usize = 60;

/// How many elements a task returns; 0: one value.
#[inline]
pub(crate) fn count(spec: &TaskSpec) -> u32 {
    spec.options.as_deref().map_or(0, |options| options.elements)
}

/// The elements of a task, if it returns such.
pub(crate) fn of(task: TaskId, spec: &TaskSpec) -> impl Iterator<Item = ObjectId> + use<> {
    (0..count(spec).min(ELEMENTS_MAX)).map(move |n| task.element(n))
}

/// What whoever submits a task refers to.
pub(crate) fn returned(task: TaskId, spec: &TaskSpec) -> impl Iterator<Item = ObjectId> + use<> {
    let whole = (count(spec) == 0).then(|| task.output(0));
    whole.into_iter().chain(of(task, spec))
}

/// Why a task cannot be asked for so many, if so.
#[inline]
pub(crate) fn too_many(spec: &TaskSpec) -> Option<String> {
    let count = count(spec);
    (count > ELEMENTS_MAX).then(|| say_too_many(count))
}

#[cold]
fn say_too_many(count: u32) -> String {
    format!(
        "a task that is to return {count} objects: at most {ELEMENTS_MAX} are possible. Return a list of references to what \
         the task puts"
    )
}

/// A task has made other elements than it was asked for, if so.
///
/// Asked of every task that ends.
#[inline]
pub(crate) fn mismatch(spec: &TaskSpec, made: usize) -> Option<Failure> {
    let asked = count(spec) as usize;
    (asked != made).then(|| say_mismatch(asked, made))
}

#[cold]
fn say_mismatch(asked: usize, made: usize) -> Failure {
    let message = format!(
        "the task was to return {asked} objects and returned {made}: whoever submitted it and its worker are of different \
         builds. Start all nodes with the same release"
    );
    Failure::new(FailureKind::FailureBadArguments, message)
}

/// How elements travel to the keeper: small ones as they are, of others that they lie where they were made.
pub(crate) fn to_keeper(elements: &[Element], crc: fn(&[u8]) -> u32) -> Vec<Told> {
    let told = |element: &Element| match &element.value {
        Value::Inline(bytes) => wire::Value::Inline(bytes.clone()),
        shared @ Value::Shared { .. } => wire::Value::Elsewhere(shared.output(crc)),
    };
    elements.iter().map(|element| Told { value: Some(told(element)) }).collect()
}

/// What a keeper knows of elements by [`to_keeper`]; less than were made if it is malformed.
pub(crate) fn at_executor(executor: Incarnation, told: Vec<Told>) -> ThinVec<State> {
    let state = |told: Told| match told.value {
        Some(wire::Value::Inline(bytes)) => Some(State::Here(Value::Inline(bytes))),
        Some(wire::Value::Elsewhere(output)) => Some(State::Elsewhere { holders: vec![executor], output }),
        Some(wire::Value::Shared(_) | wire::Value::Failure(_)) | None => None,
    };
    told.into_iter().map_while(state).collect()
}

/// What an executor knows of what it has made: mostly nothing in parts.
#[inline]
pub(crate) fn made_here(elements: ThinVec<Element>) -> ThinVec<State> {
    if elements.is_empty() {
        return ThinVec::new();
    }
    elements.into_iter().map(|element| State::Here(element.value)).collect()
}

impl Core {
    /// A client refers to the elements of a task that it has submitted, and wants to know when they are there. `begins`:
    /// the task is kept from here on; else it was before, and may have ended.
    pub(crate) fn expect_elements(&mut self, client: ClientId, task: TaskId, spec: &TaskSpec, begins: bool) {
        let job = JobId(spec.job);
        let over = |kept: &Kept| matches!(kept.state, KeptState::Finishing | KeptState::Undurable(_));
        let is_made = begins || self.kept.get(&task).is_some_and(|kept| !over(kept));
        for id in of(task, spec) {
            self.refer(client, id, job);
            let object = self.object(id, job);
            object.refs.origin |= begins;
            // What is there already stays: an id denotes one value.
            match object.state {
                State::Unknown | State::Locating if is_made => object.state = State::Pending,
                State::Failed(_) if begins => object.state = State::Pending,
                _ => {}
            }
            self.subscribe(client, id, job);
        }
    }

    /// This node holds the elements of a task, unless their home knows that: told in front of the task's end, after
    /// which what nobody holds may go.
    pub(crate) fn hold_elements(&mut self, task: TaskId, spec: &TaskSpec) {
        let job = JobId(spec.job);
        if !self.counts(job) {
            return;
        }
        for id in of(task, spec) {
            let refs = &mut self.object(id, job).refs;
            if std::mem::replace(&mut refs.home, crate::refs::Home::Held) == crate::refs::Home::Held {
                continue;
            }
            let name = Name { object: object_bytes(id), job: job.0, hold: true, ..Name::default() };
            // As late as the record: nobody waits for it.
            let item = StreamItem { item: Some(stream_item::Item::Name(name)) };
            self.streams.push(item, HOLD_BYTES, About::Name(id));
        }
    }

    /// A task that this node keeps has ended: its elements are there, or will never be. Those that are there from an
    /// earlier attempt are as they were.
    pub(crate) fn end_elements(
        &mut self,
        task: TaskId,
        executor: Incarnation,
        made: ThinVec<State>,
        failure: Option<&Failure>,
    ) {
        let Some(kept) = self.kept.get(&task).filter(|kept| count(&kept.spec) > 0) else { return };
        let (spec, is_here) = (kept.spec.clone(), executor == self.config.incarnation);
        // Others may know of it, and hold it: its home will say when it may go.
        let is_known = kept.attempt > 1 || spec.replay;
        let makes_all = is_here && is_known && failure.is_none();
        let job = JobId(spec.job);
        let mut made = made.into_iter();
        for id in of(task, &spec) {
            let made = made.next();
            if !(makes_all || self.objects.contains_key(&id)) {
                continue;
            }
            let object = self.object(id, job);
            object.refs.left |= is_known;
            if !is_here {
                object.refs.copy_at = Some(executor);
            }
            let is_there = matches!(object.state, State::Here(_) | State::Elsewhere { .. });
            match (failure, made) {
                (Some(_), _) if is_there => {}
                (Some(failure), _) => self.make_known(id, job, State::Failed(failure.clone().into())),
                (None, Some(State::Elsewhere { .. })) if is_there => {}
                (None, Some(state)) => self.element_known(id, job, state, is_here),
                // What is there of it its home knows.
                (None, None) if !is_there => self.forget_place(id),
                (None, None) => {}
            }
            self.announce(id);
            self.to_tidy.push_back(id);
        }
    }

    fn element_known(&mut self, id: ObjectId, job: JobId, state: State, is_here: bool) {
        // Of the executor's copy its home hears by the done-record.
        if !is_here && matches!(state, State::Here(_)) {
            self.effects.push(Effect::Held { object: id });
        }
        self.make_known(id, job, state);
    }

    /// This node has made elements for another one that keeps their task: it has copies, which stay while they are held.
    pub(crate) fn elements_made_for_another(&mut self, task: TaskId, job: JobId, made: ThinVec<Element>) {
        for (n, element) in made.into_iter().enumerate() {
            let id = task.element(n as u32);
            self.make_known(id, job, State::Here(element.value));
            self.object(id, job).refs.left = true;
            self.announce(id);
        }
    }

    /// Those elements of a task that are expected from its end here: what is to become of them once it is not kept any
    /// more is for the caller to say.
    pub(crate) fn elements_awaited(&self, task: TaskId) -> Vec<ObjectId> {
        let awaited = |id: &ObjectId| self.objects.get(id).is_some_and(|o| o.state == State::Pending);
        self.kept.get(&task).into_iter().flat_map(|kept| of(task, &kept.spec)).filter(awaited).collect()
    }

    /// Whether somebody here needs what a kept task is to return.
    pub(crate) fn is_return_needed(&self, task: TaskId) -> bool {
        let needed = |id: ObjectId| {
            self.objects.get(&id).is_some_and(|object| object.is_wanted() || object.refs.is_referred())
        };
        let elements = self.kept.get(&task).into_iter().flat_map(|kept| of(task, &kept.spec));
        std::iter::once(task.output(0)).chain(elements).any(needed)
    }
}
