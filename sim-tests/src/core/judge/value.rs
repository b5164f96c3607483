//! G3, S9: *all successful gets of an object return one value, that of the program run step by step.*

use super::{Found, object as objects_to};
use crate::core::program::{Content, Expected, Oracle};
use mobula_base::{Instant, ObjectId};

/// Compares what is got with what the program makes.
#[derive(Default)]
pub struct Value {
    pub(super) found: Found,
    /// How many were compared.
    pub gets: u64,
}

impl Value {
    /// Somebody got a value.
    pub fn got(&mut self, oracle: &Oracle, object: ObjectId, content: &Content, now: Instant) {
        self.gets += 1;
        let expected = oracle.objects.get(&object);
        if !matches!(expected, Some(Expected::Value(value)) if value.hash == content.hash) {
            objects_to(&mut self.found, || {
                format!("at {now:?} {object} is {content:?}; it must be {expected:?}")
            });
        }
    }
}
