//! Messages between nodes, as `node` sends them: numbered, kept until acknowledged, sent again over the
//! next connection, dropped at a death.

use super::calls::Ask;
use super::life::Input;
use super::shard::Key;
use super::world::{What, World};
use mobula_base::Incarnation;
use mobula_proto::{PeerMsg, peer_msg};
use std::rc::Rc;
use std::time::Duration;

/// A connection on which nothing is acknowledged for this long is given up.
const PEER_TIMEOUT: Duration = Duration::from_millis(1500);
/// Pause before a node that does not answer is dialled again.
const REDIAL_AFTER: Duration = Duration::from_millis(25);
/// Messages in one frame.
const FRAME_MESSAGES_MAX: usize = 256;

impl World {
    /// Queues a message for another node.
    pub fn tell_peer(&mut self, machine: usize, epoch: u64, to: Incarnation, message: peer_msg::Msg) {
        let now = self.now();
        let Some(life) = self.life(machine, epoch) else { return };
        if !life.addresses.contains_key(&to.0) {
            // The view that names it has not come yet, or it is dead; the view will tell.
            if !life.dead.contains(&to.0) {
                life.early.entry(to.0).or_default().push(message);
            }
            return;
        }
        let outgoing = life.outgoing.entry(to.0).or_default();
        if outgoing.unacked.is_empty() {
            outgoing.progress = now;
        }
        outgoing.unacked.push_back(PeerMsg { msg: Some(message) });
        self.speak(machine, epoch, to.0);
    }

    /// Sends what was not sent over this connection.
    fn speak(&mut self, machine: usize, epoch: u64, to: u64) {
        let now = self.now();
        let Some(life) = self.life(machine, epoch) else { return };
        let (incarnation, Some(address)) = (life.incarnation.0, life.addresses.get(&to).copied()) else {
            return;
        };
        let Some(outgoing) = life.outgoing.get_mut(&to) else { return };
        if outgoing.sent >= outgoing.unacked.len() {
            return;
        }
        let first_seq = outgoing.acked + outgoing.sent as u64 + 1;
        let msgs: Vec<PeerMsg> =
            outgoing.unacked.iter().skip(outgoing.sent).take(FRAME_MESSAGES_MAX).cloned().collect();
        outgoing.sent += msgs.len();
        let (connection, broken) = (outgoing.connection, outgoing.broken);
        let watched = std::mem::replace(&mut outgoing.watched, true);
        if !watched {
            self.queue.after(PEER_TIMEOUT, What::Progress { machine, epoch, to });
        }
        let (here, there) = (Self::place(machine), Self::place(address));
        let lost = broken || !self.net.reaches(here, there, now);
        let takes = self.net.latency(here, there, now);
        let Some(outgoing) = self.life(machine, epoch).and_then(|life| life.outgoing.get_mut(&to)) else {
            return;
        };
        if lost {
            outgoing.broken = true;
            return;
        }
        let arrives = (now + takes).max(outgoing.arrives);
        outgoing.arrives = arrives;
        let from = (machine, epoch, incarnation);
        let frame = What::Frame { from, to: (address, to), connection, first_seq, msgs: Rc::new(msgs) };
        self.queue.at(arrives, frame);
        self.speak(machine, epoch, to);
    }

    /// A frame reaches a machine: whoever is meant takes what it has not seen.
    pub fn frame(
        &mut self,
        from: (usize, u64, u64),
        to: (usize, u64),
        connection: u64,
        first_seq: u64,
        msgs: &Rc<Vec<PeerMsg>>,
    ) {
        let now = self.now();
        let (machine, sender) = (to.0, from.2);
        let (here, there) = (Self::place(from.0), Self::place(machine));
        let refused = !self.machines[machine].up;
        let meant = self.machines[machine].life.as_ref().is_some_and(|life| life.incarnation.0 == to.1);
        self.note("frame", machine as u64, to.1, super::mix(sender, first_seq), || {
            format!("from {sender}: {} messages from {first_seq}, connection {connection}", msgs.len())
        });
        if refused || !meant || !self.net.joined(here, there, now) {
            if meant || refused {
                self.connection_breaks(from, to.1, connection, refused);
            } else {
                self.sometimes.hit("message for an earlier life");
            }
            return;
        }
        let epoch = self.machines[machine].epoch;
        let Some(life) = self.life(machine, epoch) else { return };
        if life.dead.contains(&sender) {
            return self.sometimes.hit("frame from the dead");
        }
        let seen = life.seen.entry(sender).or_default();
        let mut fresh = Vec::new();
        if first_seq <= *seen + 1 {
            let skip = (*seen + 1 - first_seq) as usize;
            fresh = msgs.iter().skip(skip).cloned().collect();
            *seen += fresh.len() as u64;
            if skip > 0 {
                self.sometimes.hit("frame repeated");
            }
        }
        let mark = self.life(machine, epoch).and_then(|life| life.seen.get(&sender).copied()).unwrap_or(0);
        self.judges.stream.frame(sender, to.1, first_seq, fresh.len() as u64, mark);
        if !fresh.is_empty() {
            self.input(machine, epoch, Input::FromPeer { from: Incarnation(sender), msgs: fresh });
        }
        let takes = self.net.latency(there, here, now);
        let ack = What::FrameAck { machine: from.0, epoch: from.1, to: to.1, connection, mark };
        self.queue.after(takes, ack);
    }

    /// What was sent over a connection did not arrive. A refusal is noticed at once, silence is not.
    fn connection_breaks(&mut self, from: (usize, u64, u64), to: u64, connection: u64, refused: bool) {
        let Some(life) = self.life(from.0, from.1) else { return };
        let Some(outgoing) = life.outgoing.get_mut(&to) else { return };
        if outgoing.connection == connection {
            outgoing.broken = true;
            if refused {
                let (machine, epoch) = (from.0, from.1);
                outgoing.progress = mobula_base::Instant::default();
                self.queue.after(Duration::from_millis(1), What::Progress { machine, epoch, to });
            }
        }
    }

    /// An acknowledgement comes back.
    pub fn frame_ack(&mut self, machine: usize, epoch: u64, to: u64, connection: u64, mark: u64) {
        let now = self.now();
        let Some(life) = self.life(machine, epoch) else { return };
        let Some(outgoing) = life.outgoing.get_mut(&to) else { return };
        if outgoing.connection != connection || outgoing.broken {
            return;
        }
        let newly = mark.saturating_sub(outgoing.acked).min(outgoing.unacked.len() as u64);
        outgoing.unacked.drain(..newly as usize);
        outgoing.sent -= (newly as usize).min(outgoing.sent);
        outgoing.acked += newly;
        outgoing.progress = now;
        outgoing.was_up = true;
    }

    /// Is there progress? If not, the next connection is tried.
    pub fn progress(&mut self, machine: usize, epoch: u64, to: u64) {
        let now = self.now();
        let Some(life) = self.life(machine, epoch) else { return };
        let address = life.addresses.get(&to).copied();
        let Some(outgoing) = life.outgoing.get_mut(&to) else { return };
        outgoing.watched = false;
        let Some(address) = address.filter(|_| !outgoing.unacked.is_empty()) else { return };
        if now.since(outgoing.progress) < PEER_TIMEOUT {
            outgoing.watched = true;
            let at = outgoing.progress + PEER_TIMEOUT;
            return self.queue.at(at, What::Progress { machine, epoch, to });
        }
        let was_up = outgoing.was_up;
        let (here, there) = (Self::place(machine), Self::place(address));
        let joined = self.net.joined(here, there, now);
        let refused = joined && !self.machines[address].up;
        if refused && was_up {
            self.suspect(machine, epoch, to);
        }
        let Some(outgoing) = self.life(machine, epoch).and_then(|life| life.outgoing.get_mut(&to)) else {
            return;
        };
        if refused {
            outgoing.was_up = false;
        }
        if joined && !refused {
            // What the last connection may have lost goes first.
            outgoing.connection += 1;
            outgoing.sent = 0;
            outgoing.broken = false;
            outgoing.arrives = now;
            outgoing.progress = now;
            return self.speak(machine, epoch, to);
        }
        outgoing.watched = true;
        let pause = if refused { REDIAL_AFTER } else { PEER_TIMEOUT };
        self.queue.after(pause, What::Progress { machine, epoch, to });
    }

    /// Passes on the kernel's proof that a node is gone.
    fn suspect(&mut self, machine: usize, epoch: u64, suspect: u64) {
        self.ask(machine, epoch, 0, Key::Suspect, Ask::Suspect(suspect));
    }
}
