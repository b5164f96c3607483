//! What leaders do for references, as in `gcs::sweep`: let their shards count, have what waits worked off,
//! tell other shards which edges have ended (R6).

use super::net::Fate;
use super::shard::{Caller, Delivery};
use super::world::{What, World};
use mobula_base::ObjectId;
use mobula_gcs::core::first_sweep;
use mobula_proto::command::Op;
use mobula_proto::{Command, Delivered, LEVEL_REFERENCES, LooseEnd, RaiseLevel, Sweep, Unnames};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Ends of edges that are told in one round.
const ENDS_PER_ROUND: usize = 4096;
/// Pause after a round in which another shard could not be told.
const RETRY: Duration = Duration::from_millis(500);

impl World {
    /// A new cluster counts references from its first task on.
    pub fn raise_level(&mut self) {
        if self.options.counts {
            let raise = RaiseLevel { level: LEVEL_REFERENCES, program: "simulated".into(), heads: 0 };
            self.propose(0, Rc::new(Command::from(Op::Raise(raise))), Caller::Nobody);
        }
    }

    /// A leader looks at what waits in its shard.
    pub fn look_after_references(&mut self, shard: usize) {
        if self.shards[shard].leader.is_none() || !self.options.counts {
            return;
        }
        self.sweep(shard);
        self.deliver(shard);
    }

    fn sweep(&mut self, shard: usize) {
        if self.shards[shard].sweeping {
            return;
        }
        let counting = &self.shards[shard].state.counting;
        let op = match (counting.is_on(), counting.has_work()) {
            (true, true) => Op::Sweep(Sweep::default()),
            (true, false) => return,
            (false, _) if self.shards[0].state.cluster.level().0 < LEVEL_REFERENCES => return,
            (false, _) => first_sweep(shard as u32, self.shards.len() as u32),
        };
        self.shards[shard].sweeping = true;
        self.propose(shard, Rc::new(Command::from(op)), Caller::Nobody);
    }

    fn deliver(&mut self, shard: usize) {
        let s = &mut self.shards[shard];
        if s.delivery.is_some() {
            return;
        }
        let ends = s.state.counting.outbox().first(ENDS_PER_ROUND);
        if ends.is_empty() {
            return;
        }
        s.rounds += 1;
        let round = s.rounds;
        let mut by_shard: BTreeMap<usize, Vec<LooseEnd>> = BTreeMap::new();
        for end in ends {
            if let Some(object) = ObjectId::from_bytes(&end.object) {
                let home = object.task.run.shard(self.shards.len() as u32).0 as usize;
                by_shard.entry(home).or_default().push(end);
            }
        }
        let seqs = |ends: &Vec<LooseEnd>| ends.iter().map(|end| end.seq).collect();
        let open = by_shard.iter().map(|(to, ends)| (*to, seqs(ends))).collect();
        self.shards[shard].delivery = Some(Delivery { round, open, told: Delivered::default() });
        for (to, ends) in by_shard {
            self.tell_ends(shard, round, to, ends);
        }
    }

    fn tell_ends(&mut self, from: usize, round: u64, to: usize, ends: Vec<LooseEnd>) {
        let fate = self.net.fate(self.queue.now());
        if self.shards[to].leader.is_none() || fate == Fate::RequestLost {
            let patience = self.net.patience();
            return self.queue.after(patience, What::EndsTold { from, round, to, again: None });
        }
        if fate != Fate::Well {
            // It is done, but whoever told does not hear of it in time.
            let patience = self.net.patience();
            self.queue.after(patience / 8, What::EndsTold { from, round, to, again: None });
        }
        self.sometimes.hit("edge ended in another shard");
        let told = Unnames { from_shard: from as u32, ends };
        self.propose(to, Rc::new(Command::from(Op::Unnames(told))), Caller::Ends { from, round });
    }

    /// Another shard has answered, or has not.
    pub fn ends_told(&mut self, from: usize, round: u64, to: usize, again: Option<Vec<u64>>) {
        let s = &mut self.shards[from];
        let Some(delivery) = s.delivery.as_mut().filter(|delivery| delivery.round == round) else { return };
        let Some(seqs) = delivery.open.remove(&to) else { return };
        match again {
            Some(again) => {
                delivery.told.done.extend(seqs.into_iter().filter(|seq| !again.contains(seq)));
                delivery.told.again.extend(again);
            }
            None => delivery.told.again.extend(seqs),
        }
        if !delivery.open.is_empty() {
            return;
        }
        let mut told = std::mem::take(&mut delivery.told);
        told.again.sort_unstable();
        let all_told = told.again.is_empty();
        self.propose(from, Rc::new(Command::from(Op::Delivered(told))), Caller::Nobody);
        if !all_told {
            self.queue.after(RETRY, What::Sweep { shard: from });
        }
    }

    /// An entry that only leaders make was applied.
    pub fn reference_entry_applied(&mut self, shard: usize, op: &Op) {
        match op {
            Op::Sweep(_) => self.shards[shard].sweeping = false,
            Op::Delivered(_) => self.shards[shard].delivery = None,
            _ => {}
        }
    }
}
