//! Which object was used longest ago.

use mobula_base::ObjectId;
use std::collections::{BTreeMap, HashMap};

/// Objects in the order of their last use. Deterministic: the hash map is never walked.
#[derive(Debug, Default)]
pub(crate) struct Lru {
    clock: u64,
    by_use: BTreeMap<u64, ObjectId>,
    used: HashMap<ObjectId, u64>,
}

impl Lru {
    /// It is used now.
    pub fn touch(&mut self, object: ObjectId) {
        self.clock += 1;
        if let Some(before) = self.used.insert(object, self.clock) {
            self.by_use.remove(&before);
        }
        self.by_use.insert(self.clock, object);
    }

    /// Whether it was there.
    pub fn remove(&mut self, object: ObjectId) -> bool {
        let used = self.used.remove(&object);
        used.is_some_and(|used| self.by_use.remove(&used).is_some())
    }

    pub fn contains(&self, object: ObjectId) -> bool {
        self.used.contains_key(&object)
    }

    pub fn len(&self) -> usize {
        self.used.len()
    }

    /// The one that was used longest ago of those that are `idle`. Whatever is not counts as used now, so
    /// that what many look at is not looked through again and again.
    pub fn oldest(&mut self, idle: impl Fn(ObjectId) -> bool) -> Option<ObjectId> {
        for _ in 0..self.by_use.len() {
            let (_, object) = self.by_use.first_key_value()?;
            let object = *object;
            if idle(object) {
                return Some(object);
            }
            self.touch(object);
        }
        None
    }

    /// Forgets all but those that are to be kept.
    pub fn retain(&mut self, keep: impl Fn(ObjectId) -> bool) {
        let used = &mut self.used;
        self.by_use.retain(|_, object| {
            let kept = keep(*object);
            if !kept {
                used.remove(object);
            }
            kept
        });
    }

    pub fn iter(&self) -> impl Iterator<Item = ObjectId> {
        self.by_use.values().copied()
    }
}
