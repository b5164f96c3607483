//! Arguments: given as values or references, taken as values.

use crate::reference::{AnyRef, ObjectRef, distinct};
use crate::value;
use bytes::Bytes;
use mobula_proto::{Arg, Failure, FailureKind, arg, object_bytes};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;

/// The encoded arguments of one submission.
#[derive(Default, Debug)]
pub struct Args {
    pub(crate) args: Vec<Arg>,
    pub(crate) error: Option<String>,
    /// References that are arguments.
    pub(crate) named: Vec<AnyRef>,
    /// References inside arguments that travel by value.
    pub(crate) nested: Vec<AnyRef>,
}

impl Args {
    fn push_value<T: Serialize + ?Sized>(&mut self, value: &T) {
        match value::encode(value) {
            Ok(encoded) => {
                self.args.push(Arg { arg: Some(arg::Arg::Value(encoded.bytes.into())) });
                if !encoded.references.is_empty() {
                    self.push_nested(encoded.references);
                }
            }
            Err(error) => self.error = Some(error),
        }
    }

    fn push_nested(&mut self, references: Vec<AnyRef>) {
        self.nested.extend(references);
        distinct(&mut self.nested);
        if let Err(error) = value::check_count(self.nested.len()) {
            self.error = Some(format!("the task {error}"));
        }
    }

    /// What its record names beside its arguments.
    pub(crate) fn nested_ids(&self) -> Vec<Bytes> {
        self.nested.iter().map(|reference| object_bytes(reference.id())).collect()
    }

    fn push_ref<T>(&mut self, reference: &ObjectRef<T>) {
        self.args.push(Arg { arg: Some(arg::Arg::Object(object_bytes(reference.id()))) });
        self.named.push(reference.any());
    }
}

/// What can be given for a parameter of type `T`: a `T`, or a reference to one.
pub trait IntoArg<T> {
    /// Appends it.
    fn into_arg(self, args: &mut Args);
}

impl<T: Serialize> IntoArg<T> for T {
    fn into_arg(self, args: &mut Args) {
        args.push_value(&self);
    }
}

impl<T> IntoArg<T> for ObjectRef<T> {
    fn into_arg(self, args: &mut Args) {
        args.push_ref(&self);
    }
}

impl<T> IntoArg<T> for &ObjectRef<T> {
    fn into_arg(self, args: &mut Args) {
        args.push_ref(self);
    }
}

/// A parameter that takes any number of references, all resolved before the task starts.
#[derive(Debug, Clone, Default)]
pub struct Many<T>(pub Vec<T>);

impl<T> IntoArg<Many<T>> for Vec<ObjectRef<T>> {
    fn into_arg(self, args: &mut Args) {
        push_many(&self, args);
    }
}

impl<T> IntoArg<Many<T>> for &[ObjectRef<T>] {
    fn into_arg(self, args: &mut Args) {
        push_many(self, args);
    }
}

impl<T> IntoArg<Many<T>> for &Vec<ObjectRef<T>> {
    fn into_arg(self, args: &mut Args) {
        push_many(self, args);
    }
}

/// The count travels as a value in front of the references.
fn push_many<T>(references: &[ObjectRef<T>], args: &mut Args) {
    args.push_value(&(references.len() as u32));
    for reference in references {
        args.push_ref(reference);
    }
}

/// The resolved arguments of a running task.
pub struct ArgReader {
    values: VecDeque<ArgBytes>,
    taken: usize,
    /// What to do once all are taken.
    when_taken: Option<Box<dyn FnOnce() + Send>>,
}

/// Bytes of one argument: owned, or in shared memory.
pub enum ArgBytes {
    /// Came inside the message.
    Inline(Bytes),
    /// Lies in the region, pinned while the task runs.
    Shared(mobula_objstore::Region, u64, u64),
}

impl ArgBytes {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            ArgBytes::Inline(bytes) => bytes,
            ArgBytes::Shared(region, offset, len) => region.view(*offset, *len),
        }
    }
}

impl ArgReader {
    /// Reads `values` in order.
    pub fn new(values: impl IntoIterator<Item = ArgBytes>) -> Self {
        ArgReader { values: values.into_iter().collect(), taken: 0, when_taken: None }
    }

    /// Once all are taken, so that nobody looks at shared memory for them any more, calls `then`; not if
    /// nothing lies there.
    pub(crate) fn when_taken(mut self, then: impl FnOnce() + Send + 'static) -> Self {
        if self.values.iter().any(|value| matches!(value, ArgBytes::Shared(..))) {
            self.when_taken = Some(Box::new(then));
        }
        self
    }

    /// The next argument as a `T`.
    ///
    /// # Errors
    /// There is none, or it is no `T`.
    pub fn value<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        self.taken += 1;
        let bytes =
            self.values.pop_front().ok_or_else(|| bad(format!("argument {} is missing", self.taken)))?;
        value::decode(bytes.as_slice()).map_err(|e| bad(format!("argument {}: {e}", self.taken)))
    }

    /// Checks that every argument was taken.
    ///
    /// # Errors
    /// Some were not.
    pub fn finish(&mut self) -> Result<(), Failure> {
        match self.values.len() {
            0 => {
                if let Some(then) = self.when_taken.take() {
                    then();
                }
                Ok(())
            }
            left => Err(bad(format!("{left} arguments too many"))),
        }
    }
}

fn bad(message: String) -> Failure {
    Failure::new(
        FailureKind::FailureBadArguments,
        format!("{message}; the submitter and the worker disagree about the function's parameters"),
    )
}

/// What a parameter can be.
pub trait FromArgs: Sized {
    /// Takes it off the reader.
    ///
    /// # Errors
    /// The arguments do not match the parameter.
    fn take(reader: &mut ArgReader) -> Result<Self, Failure>;
}

impl<T: DeserializeOwned> FromArgs for T {
    fn take(reader: &mut ArgReader) -> Result<Self, Failure> {
        reader.value()
    }
}

impl<T: DeserializeOwned> FromArgs for Many<T> {
    fn take(reader: &mut ArgReader) -> Result<Self, Failure> {
        let count: u32 = reader.value()?;
        (0..count).map(|_| reader.value()).collect::<Result<_, _>>().map(Many)
    }
}
