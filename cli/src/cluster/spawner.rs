//! The one thread that starts processes.
//!
//! A parent-death signal follows the *thread* that spawned the child, so children are spawned
//! from a thread that lives exactly as long as this process.

use std::io;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

type Order = (Command, Sender<io::Result<Child>>);

static ORDERS: OnceLock<Sender<Order>> = OnceLock::new();

/// Starts `command` from the spawning thread.
///
/// # Errors
/// The operating system refuses.
pub fn spawn(command: Command) -> io::Result<Child> {
    let orders = ORDERS.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        std::thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                for (mut command, reply) in inbox {
                    // Nobody waits any more only when the process is on its way out.
                    let _ = reply.send(command.spawn());
                }
            })
            .expect("a process that cannot start a thread cannot start processes either");
        orders
    });
    let (reply, answer) = channel();
    orders.send((command, reply)).expect("the spawning thread never ends");
    answer.recv().expect("the spawning thread answers every order")
}

/// Keeps the allocator from committing whole arenas, 60 MB a process, before anything needs them. It is
/// read before `main`; the systemd unit of nodes sets it, too. Not for heads: their memory is then made
/// of huge pages, so that the kernel is done with a killed one, and closes its connections, within 3 ms
/// instead of 15.
pub const LEAN_ALLOCATOR: (&str, &str) = ("MIMALLOC_ARENA_EAGER_COMMIT", "0");

/// This program, even where its file was replaced since it started.
pub fn this_program() -> Command {
    Command::new("/proc/self/exe")
}
