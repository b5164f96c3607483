//! R13: *no home says that copies may be dropped of what the driver refers to.*

use super::{Found, object as objects_to};
use crate::core::driver::Driver;
use bytes::Bytes;
use mobula_base::ObjectId;

/// Looks at what homes let go.
#[derive(Default)]
pub struct Drops {
    pub(super) found: Found,
}

impl Drops {
    /// A shard's leader says to a node that it may drop its copies of these.
    pub fn said(&mut self, shard: usize, node: u64, drop: &[Bytes], driver: &Driver) {
        for object in drop.iter().filter_map(|id| ObjectId::from_bytes(id)) {
            if driver.refers_to(object) {
                objects_to(&mut self.found, || {
                    format!("shard {shard} lets {node} drop {object}, to which the driver refers")
                });
            }
        }
    }
}
