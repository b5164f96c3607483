//! Who waits for room gets it, one after the other.

use super::{Depot, Effect, Kept, Moving, READS_MAX, RESTORER, Want, What};
use crate::arena;
use crate::table::{Place, StoreError};
use mobula_base::{ObjectId, mutant};
use std::collections::{BTreeMap, BTreeSet};

impl Depot {
    /// Looks at all that has happened, and says what should be done.
    pub fn turn(&mut self, out: &mut Vec<Effect>) {
        self.granted.clear();
        // Most often whoever was writing is through, and has made what they wanted to make.
        for want in std::mem::take(&mut self.busy) {
            match self.serve(want) {
                Served::Yes => {}
                Served::Busy(want) => self.busy.push(want),
                Served::NoRoom(want) => self.waiting.push_back(want),
            }
        }
        while let Some(want) = self.waiting.pop_front() {
            match self.serve(want) {
                Served::Yes => (self.moving, self.overtaking) = (Moving::No, 0),
                Served::Busy(want) => self.busy.push(want),
                Served::NoRoom(want) => {
                    self.waiting.push_front(want);
                    break;
                }
            }
        }
        for want in self.waiting.iter_mut().filter(|want| !want.told) {
            want.told = true;
            self.effects.push(Effect::Waits { ticket: want.ticket });
        }
        self.relieve();
        out.append(&mut self.effects);
    }

    fn serve(&mut self, want: Want) -> Served {
        match &want.what {
            What::Room { .. } => self.serve_room(want),
            What::Here { .. } => self.serve_here(want),
        }
    }

    fn serve_room(&mut self, want: Want) -> Served {
        let What::Room { object, len, job, creator } = want.what else { return Served::NoRoom(want) };
        if self.gone.contains(&object) {
            // It is made anew: whoever was told of the old one and is not through takes the new one.
            self.discard_now(object);
        }
        loop {
            let room = match self.get(object) {
                // It has no place; whoever asked needs none.
                Some(Kept::File(file)) => {
                    Err(StoreError::Exists(Place { offset: 0, len: file.len, crc: file.crc }))
                }
                Some(Kept::Memory(_)) | None => self.memory.create(object, len, job, creator),
            };
            match room {
                // Another attempt, or a transfer: what that makes is as good, and it may give up.
                Err(StoreError::Busy) => return Served::Busy(want),
                Err(StoreError::Full { .. }) if self.has_disk => {
                    if !self.make_way(len, &[]) {
                        return Served::NoRoom(want);
                    }
                }
                room => {
                    if let (Err(StoreError::Exists(_)), true) = (&room, creator != 0) {
                        self.claims.insert((object, creator));
                    }
                    self.effects.push(Effect::Room { ticket: want.ticket, room });
                    return Served::Yes;
                }
            }
        }
    }

    fn serve_here(&mut self, want: Want) -> Served {
        let What::Here { reader, objects } = &want.what else { return Served::NoRoom(want) };
        let (reader, ticket) = (*reader, want.ticket);
        let (len, capacity) = (self.bytes_of(objects), self.memory.usage().1);
        if len > capacity {
            let error = StoreError::TooLarge { len, capacity };
            self.effects.push(Effect::Refused { ticket, error });
            return Served::Yes;
        }
        loop {
            if self.moving == Moving::Out && !self.has_moved_out() {
                return Served::NoRoom(want);
            }
            let mut waits = false;
            for object in objects {
                match self.get(*object) {
                    Some(Kept::Memory(_)) => {}
                    Some(Kept::File(_)) => {
                        waits = true;
                        if !self.bring_back(*object, objects) {
                            break;
                        }
                    }
                    None => {
                        self.effects.push(Effect::Missing { ticket, object: *object });
                        return Served::Yes;
                    }
                }
            }
            match (waits, self.moving) {
                (true, Moving::Out) => {}
                (true, Moving::No | Moving::Back) => return Served::NoRoom(want),
                (false, _) => break,
            }
        }
        let places = self.pin_all(reader, objects);
        self.effects.push(Effect::Here { ticket, places });
        Served::Yes
    }

    /// Bytes of memory that objects take together, each once.
    fn bytes_of(&self, objects: &[ObjectId]) -> u64 {
        let rounded = |object: &ObjectId| {
            let (len, _) = self.get(*object).map_or((0, 0), |kept| kept.output());
            len.max(1).div_ceil(arena::ALIGN) * arena::ALIGN
        };
        objects.iter().collect::<BTreeSet<_>>().into_iter().map(rounded).sum()
    }

    /// Has an object read back; false if there is no room for it yet. What else is needed stays in memory
    /// if it can.
    fn bring_back(&mut self, object: ObjectId, needed: &[ObjectId]) -> bool {
        if self.reading.contains_key(&object) {
            return true;
        }
        let Some(file) = self.files.get(&object).copied() else { return false };
        loop {
            if self.reading.len() == READS_MAX {
                return false;
            }
            match self.memory.create(object, file.len, file.job, RESTORER) {
                Ok(offset) => {
                    self.reading.insert(object, file);
                    self.effects.push(Effect::Read { object, file, offset });
                    return true;
                }
                Err(StoreError::Full { .. }) => {
                    if !self.make_way(file.len, needed) {
                        self.move_out();
                        return false;
                    }
                }
                // What was read for it before is on its way out.
                Err(_) => return false,
            }
        }
    }

    /// Nothing else can go, and what is needed lies in the way of itself: it goes, too, all of it, and is brought
    /// back side by side. Once, until something changes.
    fn move_out(&mut self) {
        if self.writing.is_empty() && self.reading.is_empty() && self.moving == Moving::No {
            self.moving = Moving::Out;
        }
    }

    /// Whether all that can leave memory has.
    fn has_moved_out(&mut self) -> bool {
        while self.free_one(&[]) && !mutant!("W26") {}
        while self.write_one(&[]) {}
        let is_out = self.writing.is_empty() && !self.is_pausing;
        if is_out || mutant!("W26") {
            self.moving = Moving::Back;
        }
        is_out || mutant!("W26")
    }

    /// More than the mark is used: room is made before somebody needs it.
    fn relieve(&mut self) {
        if !self.has_disk || !self.is_tight() {
            return;
        }
        let needed = match self.waiting.front().map(|want| &want.what) {
            Some(What::Here { objects, .. }) => objects.clone(),
            Some(What::Room { .. }) | None => Vec::new(),
        };
        while self.memory.usage().0.saturating_sub(self.leaving_bytes()) > self.mark() {
            if !self.free_one(&needed) && !self.write_one(&needed) {
                break;
            }
        }
        if self.writing.is_empty() {
            self.recall();
        }
    }

    /// Links are asked to give back what they do not look at just now.
    fn recall(&mut self) {
        if !std::mem::take(&mut self.has_lent) {
            return;
        }
        let mut asked = BTreeMap::<_, Vec<ObjectId>>::new();
        for (link, object) in self.memory.looked_at_by_links() {
            if self.recalled.insert((link, object)) {
                asked.entry(link).or_default().push(object);
            }
        }
        for (link, objects) in asked {
            self.effects.push(Effect::Recall { link, objects });
        }
    }

    /// Whether the head of the line waits for it.
    pub(super) fn needs(&self, object: ObjectId) -> bool {
        let head = self.waiting.front().map(|want| &want.what);
        matches!(head, Some(What::Here { objects, .. }) if objects.contains(&object))
    }
}

/// What has come of serving one who waits.
enum Served {
    /// It has its answer.
    Yes,
    /// Another process is writing what it wants to make: it needs no room now.
    Busy(Want),
    /// There is no room yet.
    NoRoom(Want),
}
