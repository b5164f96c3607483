//! Who the heads are to be (R18): one change at a time, ids given once.
//!
//! The table says where things are going; `membership` compares it with what consensus has and says
//! what is next. Until the first change the table is empty, and the founders are the members.

use mobula_proto as proto;
use proto::head_command::Op;
use proto::{HeadEntry, HeadOutcome, HeadPlan, HeadPlanDone, HeadTable};

/// Finished changes that are remembered, so that a repeated request is answered as the first one.
pub const MAX_DONE: usize = 64;

/// The table and the change that is under way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heads(HeadTable);

impl Heads {
    /// As it was dumped.
    pub fn restored(table: HeadTable) -> Self {
        Heads(table)
    }

    /// The table.
    pub fn table(&self) -> &HeadTable {
        &self.0
    }

    /// Applies a command at log index `index`; repeating one changes nothing.
    pub fn apply(&mut self, index: u64, command: &proto::HeadCommand) -> HeadOutcome {
        let before = self.0.clone();
        let result = match &command.op {
            Some(Op::Start(start)) => self.start(index, start),
            Some(Op::End(end)) => Ok(self.end(end.request)),
            Some(Op::Claim(claim)) => self.claim(claim),
            Some(Op::Drain(drain)) => self.drain(drain),
            None => Err("a request this build does not know".into()),
        };
        match result {
            Ok(outcome) => {
                if self.0 != before {
                    self.0.version = index;
                }
                outcome
            }
            Err(refused) => {
                self.0 = before;
                HeadOutcome { refused, ..Default::default() }
            }
        }
    }

    fn adopt(&mut self, founders: &[HeadEntry]) {
        if self.0.members.is_empty() {
            let founder = |entry: &HeadEntry| HeadEntry { claimed: true, ..entry.clone() };
            self.0.members = founders.iter().map(founder).collect();
        }
        let highest = founders.iter().map(|entry| entry.head).max().unwrap_or(0);
        self.0.last_id = self.0.last_id.max(highest);
    }

    fn start(&mut self, index: u64, start: &proto::StartHeadPlan) -> Result<HeadOutcome, String> {
        if let Some(done) = self.0.done.iter().find(|done| done.request == start.request) {
            return Ok(HeadOutcome { head: done.head, finished: true, ..Default::default() });
        }
        self.adopt(&start.founders);
        if let Some(plan) = &self.0.plan {
            if plan.request == start.request {
                return Ok(HeadOutcome { head: plan.add, ..Default::default() });
            }
            if start.add.is_empty() && plan.add == start.remove && start.remove != 0 {
                return Ok(self.turn_back(index, start.request));
            }
            let again = self.0.members.iter().any(|entry| {
                (entry.head, &entry.address) == (start.remove, &start.add) && start.remove == plan.add
            });
            if start.remove != 0 && again {
                return Ok(self.add_again(index, start));
            }
            return Err(format!(
                "another change of the heads is under way ({}): wait for its end",
                say(plan)
            ));
        }
        let removed = match start.remove {
            0 => None,
            head => {
                let at = self.0.members.iter().position(|entry| entry.head == head);
                let at = at.ok_or_else(|| format!("head {head} is no member"))?;
                Some(self.0.members.remove(at))
            }
        };
        if self.0.members.iter().any(|entry| entry.address == start.add) {
            return Err(format!("a head at {} is a member already", start.add));
        }
        let mut add = 0;
        if !start.add.is_empty() {
            self.0.last_id += 1;
            add = self.0.last_id;
            let address = start.add.clone();
            self.0.members.push(HeadEntry { head: add, address, ..Default::default() });
        }
        if self.0.members.is_empty() {
            return Err("the last head cannot be removed: add another one first".into());
        }
        self.0.plan = Some(HeadPlan { request: start.request, add, remove: removed, since: index });
        Ok(HeadOutcome { head: add, ..Default::default() })
    }

    /// Removing the head that is being added gives the change up: what it was to replace comes back.
    fn turn_back(&mut self, index: u64, request: u64) -> HeadOutcome {
        let plan = self.0.plan.take().unwrap_or_default();
        let at = self.0.members.iter().position(|entry| entry.head == plan.add);
        let added = at.map(|at| self.0.members.remove(at));
        self.0.members.extend(plan.remove.clone());
        self.0.members.sort_by_key(|entry| entry.head);
        self.remember(plan.request, plan.add, "given up");
        self.0.plan = Some(HeadPlan { request, add: 0, remove: added, since: index });
        HeadOutcome::default()
    }

    /// The head that is being added has lost its disk on the way: it comes under yet another id.
    fn add_again(&mut self, index: u64, start: &proto::StartHeadPlan) -> HeadOutcome {
        let plan = self.0.plan.take().unwrap_or_default();
        self.0.members.retain(|entry| entry.head != plan.add);
        self.0.last_id += 1;
        let (add, address) = (self.0.last_id, start.add.clone());
        self.0.members.push(HeadEntry { head: add, address, ..Default::default() });
        self.remember(plan.request, plan.add, "begun again");
        self.0.plan = Some(HeadPlan { request: start.request, add, remove: plan.remove, since: index });
        HeadOutcome { head: add, ..Default::default() }
    }

    fn end(&mut self, request: u64) -> HeadOutcome {
        if let Some(plan) = self.0.plan.take_if(|plan| plan.request == request) {
            self.remember(request, plan.add, "done");
        }
        HeadOutcome { finished: true, ..Default::default() }
    }

    fn remember(&mut self, request: u64, head: u64, outcome: &str) {
        self.0.done.push(HeadPlanDone { request, head, outcome: outcome.to_owned() });
        let surplus = self.0.done.len().saturating_sub(MAX_DONE);
        self.0.done.drain(..surplus);
    }

    /// A process takes the id that is meant for its address. Its number tells it from one that has
    /// lost its disk since and would come without its votes.
    fn claim(&mut self, claim: &proto::ClaimHead) -> Result<HeadOutcome, String> {
        let entry = self.0.members.iter_mut().find(|entry| entry.head == claim.head);
        let entry = entry.ok_or_else(|| format!("head {} is no member", claim.head))?;
        if entry.address != claim.address {
            return Err(format!("head {} belongs at {}", claim.head, entry.address));
        }
        if entry.claimed && entry.nonce != claim.nonce {
            return Err(format!("head {} has been claimed by another process", claim.head));
        }
        (entry.claimed, entry.nonce) = (true, claim.nonce);
        Ok(HeadOutcome { head: claim.head, finished: true, ..Default::default() })
    }

    fn drain(&mut self, drain: &proto::DrainHead) -> Result<HeadOutcome, String> {
        self.adopt(&drain.founders);
        let others_lead = self.0.members.iter().any(|entry| entry.head != drain.head && !entry.drained);
        if !drain.undo && !others_lead {
            return Err(format!("head {} is the last that may lead: undo another drain first", drain.head));
        }
        let entry = self.0.members.iter_mut().find(|entry| entry.head == drain.head);
        let entry = entry.ok_or_else(|| format!("head {} is no member", drain.head))?;
        entry.drained = !drain.undo;
        Ok(HeadOutcome { head: drain.head, finished: true, ..Default::default() })
    }
}

/// What a plan is about, for people.
pub fn say(plan: &HeadPlan) -> String {
    match (plan.add, &plan.remove) {
        (0, Some(old)) => format!("remove head {} at {}", old.head, old.address),
        (add, Some(old)) => format!("replace head {} at {} by head {add}", old.head, old.address),
        (add, None) => format!("add head {add}"),
    }
}
