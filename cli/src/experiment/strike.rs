//! Taking a head away, and giving it back.

use crate::args::How;
use crate::cluster::LocalCluster;
use crate::commands::fault_switch;
use mobula_net::faults::{Cut, Weather};
use rustix::process::Signal;
use std::time::Instant;

/// Takes head `number` away; the moment just before.
///
/// # Errors
/// It cannot be done.
pub fn strike(cluster: &LocalCluster, number: usize, how: How) -> Result<Instant, String> {
    match how {
        How::Kill => Ok(cluster.kill_head(number)),
        How::Stop => {
            let at = Instant::now();
            cluster.head_process(number).signal(Signal::STOP);
            Ok(at)
        }
        How::Drop => {
            let at = Instant::now();
            fault_switch::order(&cluster.head_dir(number).fault_switch(), &Weather::of(Cut::Both), None)?;
            Ok(at)
        }
        How::Transfer => Err("a transfer is asked for, not struck".into()),
    }
}

/// Gives head `number` back.
///
/// # Errors
/// It does not come back.
pub fn give_back(cluster: &LocalCluster, number: usize, how: How) -> Result<(), String> {
    match how {
        How::Kill => cluster.restart_head(number),
        How::Stop => {
            cluster.head_process(number).signal(Signal::CONT);
            Ok(())
        }
        How::Drop => fault_switch::order(&cluster.head_dir(number).fault_switch(), &Weather::default(), None),
        How::Transfer => Ok(()),
    }
}
