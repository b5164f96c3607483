//! What a daemon learns from the machine it runs on.

use crate::exit::Failure;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs, UdpSocket};

/// From here on the end of the process `parent` ends this one. `None` changes nothing.
///
/// # Errors
/// `parent` is not our parent, so it has ended already.
pub fn die_with_parent(parent: Option<u32>) -> Result<(), Failure> {
    let Some(parent) = parent else { return Ok(()) };
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|e| format!("cannot follow the parent: {e}"))?;
    // It may have ended before the line above.
    if getppid().map(Pid::as_raw_pid) != i32::try_from(parent).ok() {
        return Err(format!("process {parent}, which started this one, has ended").into());
    }
    Ok(())
}

/// The one moment in which entropy enters: everything random follows from this number.
///
/// # Errors
/// The kernel's random numbers cannot be read.
pub fn system_seed() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// The address of this machine that the heads see: that of the interface packets to them leave
/// by. No packet is sent.
pub fn own_ip(heads: &[String]) -> IpAddr {
    let towards = |head: &String| {
        let target = head.to_socket_addrs().ok()?.next()?;
        let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { "::".parse().ok()? };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(target).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    heads.iter().find_map(towards).unwrap_or(Ipv4Addr::LOCALHOST.into())
}

/// The host's name.
pub fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "unnamed".into() } else { name.trim().to_owned() }
}

/// The machine's memory, in millions of bytes.
pub fn memory_mb() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024 / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_memory() {
        assert!(memory_mb().is_some_and(|mb| mb > 100));
    }

    #[test]
    fn a_node_of_a_loopback_cluster_stays_on_loopback() {
        assert_eq!(own_ip(&["127.0.0.1:6380".into()]), IpAddr::from([127, 0, 0, 1]));
        assert_eq!(own_ip(&[]), IpAddr::from([127, 0, 0, 1]));
    }
}
