//! What leaves memory for a file, and what comes of it.

use super::{Depot, Effect, File, Outcome, RESTORER, WRITES_MAX, Written};
use crate::Reader;
use mobula_base::ObjectId;

impl Depot {
    /// Something has to go so that `len` bytes find room; of `needed` nothing. True if some room is free
    /// now; else files are being written, or nothing can go.
    pub(super) fn make_way(&mut self, len: u64, needed: &[ObjectId]) -> bool {
        if self.free_one(needed) {
            return true;
        }
        let free = |depot: &Depot| {
            let (used, all) = depot.memory.usage();
            all - used + depot.leaving_bytes()
        };
        while self.writing.is_empty() || free(self) < len {
            if !self.write_one(needed) {
                break;
            }
        }
        false
    }

    /// Frees the memory of an object that has a file: of that which was used longest ago.
    pub(super) fn free_one(&mut self, needed: &[ObjectId]) -> bool {
        let memory = &self.memory;
        let idle = |object: ObjectId| !memory.is_looked_at(object) && !needed.contains(&object);
        let Some(object) = self.clean.oldest(idle) else { return false };
        self.clean.remove(object);
        self.memory.discard(object)
    }

    /// Has an object written to a file. Whether one was found.
    pub(super) fn write_one(&mut self, needed: &[ObjectId]) -> bool {
        if !self.has_disk || self.is_pausing || self.writing.len() == WRITES_MAX {
            return false;
        }
        let (memory, writing) = (&self.memory, &self.writing);
        // One that was made again while its first bytes are still being written lies elsewhere.
        let idle = |object: ObjectId| {
            !memory.is_looked_at(object) && !writing.contains_key(&object) && !needed.contains(&object)
        };
        let Some(object) = self.dirty.oldest(idle) else { return false };
        let (Some(place), Some(job)) = (self.memory.get(object), self.memory.job(object)) else {
            return false;
        };
        let file = File { number: self.next_number, len: place.len, crc: place.crc, job, packed: None };
        self.next_number += 1;
        self.memory.pin(object, Reader::Spill);
        self.dirty.touch(object);
        self.writing.insert(object, (file, place));
        self.effects.push(Effect::Write { object, file, offset: place.offset });
        true
    }

    /// Bytes that are free once their files are there.
    pub(super) fn leaving_bytes(&self) -> u64 {
        self.writing.values().map(|(file, _)| file.len).sum()
    }

    /// A file is durable, or it could not be written.
    pub fn written(&mut self, object: ObjectId, outcome: Written) {
        let Some((file, place)) = self.writing.remove(&object) else { return };
        self.memory.unpin(object, Reader::Spill);
        let Ok(packed) = outcome else {
            self.failures += 1;
            if !std::mem::replace(&mut self.is_pausing, true) {
                self.effects.push(Effect::Pause);
            }
            return;
        };
        let file = File { packed, ..file };
        if self.memory.get(object) != Some(place) || self.files.contains_key(&object) {
            // It has gone meanwhile, or was made again.
            self.effects.push(Effect::Remove { file: file.id(object) });
            return;
        }
        self.add_file(object, file);
        if self.dirty.remove(object) {
            self.clean.touch(object);
        }
        if self.is_tight() && !self.memory.is_looked_at(object) && !self.needs(object) {
            self.clean.remove(object);
            self.memory.discard(object);
        }
    }

    /// The disk may take files again.
    pub fn try_disk_again(&mut self) {
        self.is_pausing = false;
    }

    /// An object was read back, or its file is damaged.
    pub fn read(&mut self, object: ObjectId, outcome: Outcome) {
        let Some(file) = self.reading.remove(&object) else { return };
        let is_wanted = self.files.get(&object) == Some(&file);
        if outcome.is_err() || !is_wanted {
            self.memory.abort(object, RESTORER);
            if is_wanted {
                self.damaged(file, object);
            }
            return;
        }
        // If its job has ended, the room is free now.
        if self.memory.seal(object, file.crc, RESTORER).is_ok() {
            self.clean.touch(object);
        }
    }

    /// A file was found damaged when it was read for somebody else.
    pub fn damaged(&mut self, file: File, object: ObjectId) {
        if self.files.get(&object) != Some(&file) || self.reading.contains_key(&object) {
            // Another one by now; or whoever reads it back will see for itself.
            return;
        }
        self.drop_file(object);
        if self.clean.remove(object) {
            // What is in memory is whole, and is written again if need be.
            self.dirty.touch(object);
        } else if !self.gone.remove(&object) {
            self.effects.push(Effect::Lost { object });
        }
    }

    pub(super) fn add_file(&mut self, object: ObjectId, file: File) {
        self.file_bytes += file.len;
        self.stored_bytes += file.stored();
        self.files.insert(object, file);
    }

    /// Whether there was one.
    pub(super) fn drop_file(&mut self, object: ObjectId) -> bool {
        let Some(file) = self.files.remove(&object) else { return false };
        self.file_bytes -= file.len;
        self.stored_bytes -= file.stored();
        self.effects.push(Effect::Remove { file: file.id(object) });
        true
    }
}
