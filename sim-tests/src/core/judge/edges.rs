//! R6: *a put ends only once the edges from it have come: the end of one that comes later ends nothing.* R5: *a value
//! in which references lie leaves its node only once all that its task has submitted has its record.*

use super::{Found, object as objects_to, order::Order};
use crate::core::program::{Expected, Oracle};
use mobula_base::{ObjectId, TaskId};
use mobula_proto::stream_item::Item;
use mobula_proto::{StreamBatch, object_id};
use std::collections::BTreeSet;

/// Knows which edges have come.
#[derive(Default)]
pub struct Edges {
    pub(super) found: Found,
    /// What is named, and by what.
    named: BTreeSet<(ObjectId, ObjectId)>,
    /// What drivers have put, as far as the record of it has come.
    put: BTreeSet<ObjectId>,
}

impl Edges {
    /// A batch is applied.
    pub fn applied(&mut self, oracle: &Oracle, driver: u64, batch: &StreamBatch) {
        for item in &batch.items {
            match &item.item {
                Some(Item::Name(name)) => {
                    self.named.extend(object_id(&name.object).ok().zip(object_id(&name.by).ok()));
                }
                Some(Item::Put(put)) => self.put.extend(object_id(&put.object).ok()),
                Some(Item::Release(release)) if batch.incarnation == driver => {
                    object_id(&release.object).into_iter().for_each(|object| self.released(oracle, object));
                }
                _ => {}
            }
        }
    }

    /// The driver's node has let go of something. What it has put itself names what lies inside.
    fn released(&mut self, oracle: &Oracle, object: ObjectId) {
        // Before its record comes, it may be an earlier hold that ends.
        if !self.put.contains(&object) {
            return;
        }
        let Some(Expected::Value(content)) = oracle.objects.get(&object) else { return };
        if let Some(inner) = content.refs.iter().find(|inner| !self.named.contains(&(**inner, object))) {
            objects_to(&mut self.found, || {
                format!("{object} is let go of, and the edge from it to {inner} has not come")
            });
        }
    }

    /// The node that made a task's value, or items, tells another of what is `meant` of it.
    pub fn leaves(
        &mut self,
        oracle: &Oracle,
        order: &Order,
        task: TaskId,
        meant: impl Fn(&ObjectId) -> bool,
    ) {
        let Some(known) = oracle.tasks.get(&task) else { return };
        for object in known.outputs.iter().filter(|object| meant(object)) {
            let Some(Expected::Value(content)) = oracle.objects.get(object) else { continue };
            let lacks =
                |inner: &&ObjectId| known.children.contains(&inner.task) && !order.had_record(inner.task);
            if let Some(inner) = content.refs.iter().find(lacks) {
                objects_to(&mut self.found, || {
                    format!("{object} leaves its node, and {inner}, which lies in it, never had a record")
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::program::{JOB, put_content};
    use mobula_base::ids::FIRST_PUT_SLOT;
    use mobula_proto::{Name, Release, SmallPut, StreamItem, object_bytes};

    fn tells(edges: &mut Edges, oracle: &Oracle, item: Item) {
        let items = vec![StreamItem { item: Some(item) }];
        edges.applied(oracle, 1, &StreamBatch { incarnation: 1, first_seq: 1, items });
    }

    #[test]
    fn a_put_is_let_go_of_after_its_edges() {
        let root = TaskId::root(JOB);
        let (put, inner) = (root.output(FIRST_PUT_SLOT), root.output(FIRST_PUT_SLOT + 1));
        let mut oracle = Oracle::default();
        oracle.objects.insert(put, Expected::Value(put_content(1, 16, vec![inner])));
        let name = Name { object: object_bytes(inner), by: object_bytes(put), ..Name::default() };
        let release = || Item::Release(Release { object: object_bytes(put) });
        let mut edges = Edges::default();
        tells(&mut edges, &oracle, release());
        assert_eq!(edges.found, None, "an earlier hold of it");
        tells(&mut edges, &oracle, Item::Put(SmallPut { object: object_bytes(put), ..SmallPut::default() }));
        tells(&mut edges, &oracle, release());
        assert!(edges.found.take().is_some());
        tells(&mut edges, &oracle, Item::Name(name));
        tells(&mut edges, &oracle, release());
        assert_eq!(edges.found, None);
    }
}
