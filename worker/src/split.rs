//! Tasks that return several objects, each with a reference of its own.
//!
//! What a function returns is a tuple (or an array) all the same. Its elements are encoded one by one, lie in memory one
//! by one, and are there once the task has ended: whoever needs one does not bring the others, and those that nobody
//! refers to any more go.

use crate::client::Client;
use crate::reference::{AnyRef, ObjectRef};
use crate::task::Task;
use crate::value::{self, Encoded};
use mobula_base::ids::ELEMENTS_MAX;
use mobula_base::{ObjectId, TaskId};
use mobula_proto::{Element, Failure, FailureKind, INLINE_MAX, Shared, Value, value as wire_value};
use serde::Serialize;
use serde::ser::{Impossible, SerializeTuple, Serializer};
use std::fmt;

/// What can be returned in parts: tuples of up to 12, and arrays of up to 32 elements.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be split into several objects",
    label = "not a tuple or an array",
    note = "a task is submitted by `submit_split` if its function returns a tuple or an array; by `submit` otherwise"
)]
pub trait Split {
    /// A reference for each element.
    type Refs;
    /// How many elements there are.
    const ELEMENTS: u32;
    /// Takes the references of all elements, in order.
    #[doc(hidden)]
    fn refs(of: &mut Refs<'_>) -> Self::Refs;
}

/// The references of a task's elements, one after the other.
#[doc(hidden)]
pub struct Refs<'a> {
    client: &'a Client,
    task: TaskId,
    taken: u32,
}

impl Refs<'_> {
    fn next<T>(&mut self) -> ObjectRef<T> {
        self.taken += 1;
        ObjectRef::new(self.task.element(self.taken - 1), Some(self.client.clone()))
    }
}

macro_rules! split {
    ($count:literal: $($element:ident)+) => {
        impl<$($element),+> Split for ($($element,)+) {
            type Refs = ($(ObjectRef<$element>,)+);
            const ELEMENTS: u32 = $count;
            fn refs(of: &mut Refs<'_>) -> Self::Refs {
                ($(of.next::<$element>(),)+)
            }
        }
    };
}

split!(1: A);
split!(2: A B);
split!(3: A B C);
split!(4: A B C D);
split!(5: A B C D E);
split!(6: A B C D E F);
split!(7: A B C D E F G);
split!(8: A B C D E F G H);
split!(9: A B C D E F G H I);
split!(10: A B C D E F G H I J);
split!(11: A B C D E F G H I J K);
split!(12: A B C D E F G H I J K L);

impl<T, const N: usize> Split for [T; N] {
    type Refs = [ObjectRef<T>; N];
    const ELEMENTS: u32 = {
        assert!(N > 0 && N <= ELEMENTS_MAX as usize, "an array of 1 to 32 elements can be split");
        N as u32
    };
    fn refs(of: &mut Refs<'_>) -> Self::Refs {
        std::array::from_fn(|_| of.next())
    }
}

impl Client {
    /// Submits a task whose function returns a tuple or an array, with a reference to each element: never blocks.
    ///
    /// ```no_run
    /// #[mobula::remote]
    /// fn divide(a: u64, b: u64) -> (u64, u64) {
    ///     (a / b, a % b)
    /// }
    ///
    /// # fn main() -> Result<(), mobula::Error> {
    /// # let client = mobula::Client::connect(mobula::ConnectOptions::default())?;
    /// let (quotient, remainder) = client.submit_split(divide::task(17, 5));
    /// assert_eq!((quotient.get()?, remainder.get()?), (3, 2));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Each is an object of its own: fetched, given to tasks, kept and dropped by itself. All of them are there once the
    /// task has ended, and fail as it does. One that is lost with its node is made again by running the task again, which leaves
    /// the others as they are.
    pub fn submit_split<T: Split>(&self, mut task: Task<T>) -> T::Refs {
        task.options().elements = T::ELEMENTS;
        let task = self.hand_in(task);
        T::refs(&mut Refs { client: self, task, taken: 0 })
    }
}

// ------------------------------------------------------------ in the worker

/// Encodes what a function returned in so many parts.
///
/// # Errors
/// It has other parts, or one of them cannot be encoded.
pub(crate) fn encode<T: Serialize>(out: &T, elements: u32) -> Result<Encoded, Failure> {
    let parts = out.serialize(Parts { asked: elements as usize }).map_err(|NotSplit(why)| {
        let name = std::any::type_name::<T>();
        Failure::new(FailureKind::FailureBadArguments, format!("a {name} cannot be returned in parts: {why}"))
    })?;
    Ok(Encoded { elements: parts, ..Encoded::default() })
}

/// What a task has returned in parts, until its node has been told: the large ones go to shared memory one after the other.
pub(crate) struct Landing {
    task: TaskId,
    /// Those that are still to come, the first one last.
    left: Vec<Encoded>,
    made: Vec<Element>,
    /// Checksum and size of each: the task's own value. Were others made on another run, that would show (G3).
    mark: Vec<(u32, u64)>,
    references: Vec<AnyRef>,
    failure: Option<Failure>,
}

impl Landing {
    pub fn new(task: TaskId, mut elements: Vec<Encoded>) -> Self {
        elements.reverse();
        let (made, mark, references) = (Vec::new(), Vec::new(), Vec::new());
        Landing { task, left: elements, made, mark, references, failure: None }
    }

    /// The next one that needs room in shared memory.
    pub fn next(&mut self) -> Option<(ObjectId, Vec<u8>)> {
        while let Some(Encoded { bytes, .. }) = self.left.last_mut().filter(|_| self.failure.is_none()) {
            let bytes = std::mem::take(bytes);
            if bytes.len() > INLINE_MAX {
                return Some((self.task.element(self.made.len() as u32), bytes));
            }
            let output = (crc32fast::hash(&bytes), bytes.len() as u64);
            self.take(wire_value::Value::Inline(bytes.into()), output);
        }
        None
    }

    /// It lies there, or found no room.
    pub fn placed(&mut self, placed: Result<Shared, Failure>) {
        match placed {
            Ok(shared) => self.take(wire_value::Value::Shared(shared), (shared.crc, shared.len)),
            Err(failure) => self.failure = Some(failure),
        }
    }

    fn take(&mut self, value: wire_value::Value, output: (u32, u64)) {
        let Some(element) = self.left.pop() else { return };
        let contains = element.contains();
        self.references.extend(element.references);
        self.made.push(Element { value: Some(Value { value: Some(value) }), contains });
        self.mark.push(output);
    }

    /// The task's own value, what it made, and references that are held until that has been told. What lies in shared
    /// memory is told of even if the rest failed: so its room is given back.
    pub fn end(self) -> (Result<Value, Failure>, Vec<Element>, Vec<AnyRef>) {
        let mark = match self.failure {
            Some(failure) => Err(failure),
            None => value::encode(&self.mark).map_err(|why| Failure::new(FailureKind::FailureUserError, why)),
        };
        let value = mark.map(|mark| Value { value: Some(wire_value::Value::Inline(mark.bytes.into())) });
        (value, self.made, self.references)
    }
}

/// Why something has no parts, or not these.
#[derive(Debug)]
struct NotSplit(String);

impl fmt::Display for NotSplit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotSplit {}

impl serde::ser::Error for NotSplit {
    fn custom<T: fmt::Display>(why: T) -> Self {
        NotSplit(why.to_string())
    }
}

/// Takes a tuple apart.
struct Parts {
    asked: usize,
}

/// Its elements so far.
struct Taken(Vec<Encoded>);

impl SerializeTuple for Taken {
    type Ok = Vec<Encoded>;
    type Error = NotSplit;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, element: &T) -> Result<(), NotSplit> {
        self.0.push(value::encode(element).map_err(NotSplit)?);
        Ok(())
    }

    fn end(self) -> Result<Vec<Encoded>, NotSplit> {
        Ok(self.0)
    }
}

macro_rules! not_split {
    ($($name:ident($($argument:ty),*) -> $result:ty;)+) => {
        $(fn $name(self, $(_: $argument),*) -> Result<$result, NotSplit> {
            Err(NotSplit("it is neither a tuple nor an array".to_owned()))
        })+
    };
}

type No = Impossible<Vec<Encoded>, NotSplit>;

impl Serializer for Parts {
    type Ok = Vec<Encoded>;
    type Error = NotSplit;
    type SerializeSeq = No;
    type SerializeTuple = Taken;
    type SerializeTupleStruct = No;
    type SerializeTupleVariant = No;
    type SerializeMap = No;
    type SerializeStruct = No;
    type SerializeStructVariant = No;

    fn serialize_tuple(self, len: usize) -> Result<Taken, NotSplit> {
        if len != self.asked {
            return Err(NotSplit(format!(
                "it has {len} parts, and whoever submitted it expects {}: they are of different builds",
                self.asked
            )));
        }
        Ok(Taken(Vec::with_capacity(len)))
    }

    not_split! {
        serialize_bool(bool) -> Self::Ok;
        serialize_i8(i8) -> Self::Ok;
        serialize_i16(i16) -> Self::Ok;
        serialize_i32(i32) -> Self::Ok;
        serialize_i64(i64) -> Self::Ok;
        serialize_u8(u8) -> Self::Ok;
        serialize_u16(u16) -> Self::Ok;
        serialize_u32(u32) -> Self::Ok;
        serialize_u64(u64) -> Self::Ok;
        serialize_f32(f32) -> Self::Ok;
        serialize_f64(f64) -> Self::Ok;
        serialize_char(char) -> Self::Ok;
        serialize_str(&str) -> Self::Ok;
        serialize_bytes(&[u8]) -> Self::Ok;
        serialize_none() -> Self::Ok;
        serialize_unit() -> Self::Ok;
        serialize_unit_struct(&'static str) -> Self::Ok;
        serialize_unit_variant(&'static str, u32, &'static str) -> Self::Ok;
        serialize_seq(Option<usize>) -> No;
        serialize_tuple_struct(&'static str, usize) -> No;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> No;
        serialize_map(Option<usize>) -> No;
        serialize_struct(&'static str, usize) -> No;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> No;
    }

    fn serialize_some<T: Serialize + ?Sized>(self, _: &T) -> Result<Self::Ok, NotSplit> {
        self.serialize_none()
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: &T,
    ) -> Result<Self::Ok, NotSplit> {
        self.serialize_none()
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<Self::Ok, NotSplit> {
        self.serialize_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_base::JobId;

    fn task() -> TaskId {
        TaskId::new(JobId(1), TaskId::root(JobId(1)), 0, 3)
    }

    #[test]
    fn a_tuple_is_taken_apart_and_each_part_is_a_value() {
        let out = (7u64, "text".to_owned(), vec![1u8, 2], (1u8, 2u8));
        let parts = encode(&out, 4).expect("a tuple of four").elements;
        assert_eq!(value::decode::<u64>(&parts[0].bytes).expect("a number"), 7);
        assert_eq!(value::decode::<String>(&parts[1].bytes).expect("a text"), "text");
        assert_eq!(value::decode::<Vec<u8>>(&parts[2].bytes).expect("bytes"), [1, 2]);
        assert_eq!(value::decode::<(u8, u8)>(&parts[3].bytes).expect("a tuple"), (1, 2), "and no further");
        let parts = encode(&[5u64; 32], 32).expect("an array").elements;
        assert!(parts.iter().all(|part| value::decode::<u64>(&part.bytes) == Ok(5)));
    }

    #[test]
    fn what_has_other_parts_or_none_says_so() {
        let why = |out: Result<Encoded, Failure>| out.expect_err("it is refused").message;
        assert!(why(encode(&(1u8, 2u8), 3)).contains("(u8, u8) cannot be returned in parts: it has 2 parts"));
        for refused in [why(encode(&7u64, 1)), why(encode(&vec![1u8], 1)), why(encode(&Some((1u8, 2u8)), 2))]
        {
            assert!(refused.contains("neither a tuple nor an array"), "{refused}");
        }
        let many: Vec<_> = (0..=value::REFERENCES_MAX as u32).map(|n| task().output(n)).collect();
        let many: Vec<ObjectRef<u8>> = many.into_iter().map(|id| ObjectRef::new(id, None)).collect();
        assert!(why(encode(&(many, 1u8), 2)).contains("at most 16384"));
    }

    #[test]
    fn small_parts_travel_and_large_ones_are_placed_each_with_what_lies_inside() {
        let inner = ObjectRef::<u8>::new(task().output(0), None);
        let out = (1u8, vec![7u8; INLINE_MAX + 1], vec![inner.clone()]);
        let mut landing = Landing::new(task(), encode(&out, 3).expect("a tuple").elements);
        let (id, bytes) = landing.next().expect("one is large");
        assert_eq!((id, bytes.len() > INLINE_MAX), (task().element(1), true));
        landing.placed(Ok(Shared { offset: 64, len: bytes.len() as u64, crc: 5 }));
        assert!(landing.next().is_none());
        let (mark, elements, references) = landing.end();
        let inside: Vec<usize> = elements.iter().map(|element| element.contains.len()).collect();
        assert_eq!((inside, references.len()), (vec![0, 0, 1], 1));
        let Some(wire_value::Value::Inline(mark)) = mark.expect("all are there").value else {
            panic!("a mark")
        };
        let mark: Vec<(u32, u64)> = value::decode(&mark).expect("of each");
        assert_eq!((mark.len(), mark[1]), (3, (5, bytes.len() as u64)));
    }

    #[test]
    fn without_room_for_one_the_task_fails_and_says_what_lies_there() {
        let out = (vec![7u8; INLINE_MAX + 1], vec![8u8; INLINE_MAX + 1], 1u8);
        let mut landing = Landing::new(task(), encode(&out, 3).expect("a tuple").elements);
        landing.next().expect("one is large");
        landing.placed(Ok(Shared::default()));
        landing.next().expect("so is the next");
        landing.placed(Err(Failure::new(FailureKind::FailureStoreFull, "full")));
        assert!(landing.next().is_none());
        let (mark, elements, _) = landing.end();
        assert_eq!((mark.expect_err("no room").message.as_str(), elements.len()), ("full", 1));
    }
}
