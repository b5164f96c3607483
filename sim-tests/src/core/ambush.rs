//! Faults that wait for their moment: not at some time, but when a node does something of a drawn kind for the
//! n-th time, it, or whom it does that to, is struck; at once, or a moment later.

use super::dice::Dice;
use super::scenario::{Kind, Planned};
use super::world::{What, World};
use mobula_base::{Incarnation, Instant};
use mobula_scheduler::{ClientId, Effect};
use std::time::Duration;

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// It hands a task to another.
    Assigns,
    /// It tells its keeper how a task ended.
    Reports,
    /// It tells it that all is committed which that had submitted.
    IsDurable,
    /// It sends a batch.
    Sends,
    /// It asks for an object.
    Fetches,
    /// It has a second copy made.
    Replicates,
    /// It tells another that copies may go.
    Frees,
    /// It has a copy to tell of.
    Holds,
    /// It gives a copy up.
    Discards,
    /// It gives a task to a worker.
    Runs,
    /// It asks who has an object.
    Asks,
    /// It makes something again.
    Rebuilds,
    /// It tells a client what something is.
    Tells,
}

const MOMENTS: [Moment; 13] = [
    Moment::Assigns,
    Moment::Reports,
    Moment::IsDurable,
    Moment::Sends,
    Moment::Fetches,
    Moment::Replicates,
    Moment::Frees,
    Moment::Holds,
    Moment::Discards,
    Moment::Runs,
    Moment::Asks,
    Moment::Rebuilds,
    Moment::Tells,
];

/// What happens then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Crash,
    Pause,
    KillWorker,
    LeaderFalls,
}

/// Lies in wait.
#[derive(Clone)]
pub struct Ambush {
    planned: Planned,
    dice: Dice,
    moment: Moment,
    /// So many times more it is let pass.
    left: u64,
    /// Not who does it, but to whom it is done.
    there: bool,
    deed: Deed,
    after: Duration,
    /// It is given up then.
    until: Instant,
}

/// Who is struck.
#[derive(Clone)]
pub struct Sprung {
    ambush: Box<Ambush>,
    machine: usize,
    client: Option<ClientId>,
    shard: Option<usize>,
}

/// A moment, whom it concerns elsewhere, and which worker and shard.
type Seen = (Moment, Option<Incarnation>, Option<ClientId>, Option<usize>);

fn seen(effect: &Effect) -> Option<Seen> {
    let peer = |moment, to: &Incarnation| Some((moment, Some(*to), None, None));
    match effect {
        Effect::Assign { to, .. } => peer(Moment::Assigns, to),
        Effect::Result { to, .. } => peer(Moment::Reports, to),
        Effect::Durable { to, .. } => peer(Moment::IsDurable, to),
        Effect::Fetch { from, .. } => peer(Moment::Fetches, from),
        Effect::Replicate { to, .. } => peer(Moment::Replicates, to),
        Effect::Freed { to, .. } => peer(Moment::Frees, to),
        Effect::Send { shard, .. } => Some((Moment::Sends, None, None, Some(shard.0 as usize))),
        Effect::Locate { shard, .. } => Some((Moment::Asks, None, None, Some(shard.0 as usize))),
        Effect::Run { worker, .. } => Some((Moment::Runs, None, Some(*worker), None)),
        Effect::Ready { client, .. } => Some((Moment::Tells, None, Some(*client), None)),
        Effect::Held { .. } => Some((Moment::Holds, None, None, None)),
        Effect::Discard { .. } => Some((Moment::Discards, None, None, None)),
        Effect::Notice { notice, .. } if notice.kind == "rebuild-start" => {
            Some((Moment::Rebuilds, None, None, None))
        }
        _ => None,
    }
}

impl World {
    /// Lies in wait for something that is drawn; the one before is given up.
    pub fn lie_in_wait(&mut self, planned: Planned) {
        let dice = &mut self.faults.dice;
        let moment = dice.pick(&MOMENTS).unwrap_or(Moment::Sends);
        let deeds = [Deed::Crash, Deed::Crash, Deed::Pause, Deed::KillWorker, Deed::LeaderFalls];
        let deed = dice.pick(&deeds).unwrap_or(Deed::Crash);
        let (left, there) = (dice.log_uniform(1, 64) - 1, dice.permille(500));
        let after = if dice.permille(500) { Duration::ZERO } else { dice.us(1, 4_000) };
        let until = self.queue.now() + dice.ms(500, 8_000);
        let dice = dice.clone();
        self.faults.ambush =
            Some(Box::new(Ambush { planned, dice, moment, left, there, deed, after, until }));
    }

    /// A node does something.
    pub fn is_watched(&mut self, machine: usize, effect: &Effect) {
        let now = self.now();
        let Some(ambush) = &mut self.faults.ambush else { return };
        let Some((moment, peer, client, shard)) = seen(effect) else { return };
        if ambush.until < now {
            self.faults.ambush = None;
            return;
        }
        if ambush.moment != moment {
            return;
        }
        if ambush.left > 0 {
            ambush.left -= 1;
            return;
        }
        let there = ambush.there;
        let Some(ambush) = self.faults.ambush.take() else { return };
        let life = self.machines[machine].life.as_deref();
        let address = peer.and_then(|peer| life?.addresses.get(&peer.0).copied());
        let machine = address.filter(|_| there).unwrap_or(machine);
        self.queue.after(ambush.after, What::Sprung(Box::new(Sprung { ambush, machine, client, shard })));
    }

    /// It strikes, if the governor lets it.
    pub fn sprung(&mut self, sprung: Sprung) {
        let Sprung { ambush, machine, client, shard } = sprung;
        if self.quiet {
            return;
        }
        let Ambush { mut planned, dice, moment, deed, .. } = *ambush;
        let wish = planned.machine;
        planned.machine = Some(machine);
        (self.faults.dice, self.faults.wish) = (dice, planned.clone());
        planned.machine = wish;
        let struck = match deed {
            Deed::Crash => self.victim().map(|machine| self.crash(machine)).is_some(),
            Deed::Pause => machine != 0 && self.pause_machine().is_some(),
            Deed::KillWorker => self.kill_one(machine, client),
            Deed::LeaderFalls => {
                let shard = shard.unwrap_or_else(|| self.any_shard());
                let falls = self.shards[shard].leader.is_some();
                self.leader_falls(shard, None);
                falls
            }
        };
        if struck {
            self.sometimes.hit("struck at its moment");
            self.has_landed(planned, Kind::Ambush, &format!("{moment:?}: {deed:?} of machine {machine}"));
        }
    }

    /// A worker dies at once: this, or one that is at work.
    fn kill_one(&mut self, machine: usize, client: Option<ClientId>) -> bool {
        let epoch = self.machines[machine].epoch;
        let Some(life) = self.life(machine, epoch) else { return false };
        let busy = life.clients.iter().find(|(id, c)| **id != super::life::DRIVER && c.run.is_some());
        let there = client.filter(|id| *id != super::life::DRIVER && life.clients.contains_key(id));
        let Some(client) = there.or(busy.map(|(id, _)| *id)) else { return false };
        self.worker_dies(machine, epoch, client);
        true
    }
}
