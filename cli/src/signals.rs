//! Ctrl-C and friends: the process leaves in order, and takes what it started with it.

use crate::exit;
use std::sync::mpsc::channel;
use tokio::signal::unix::{SignalKind, signal};

/// From here on an interrupt, a hang-up or a request to end leaves through [`exit::leave`].
/// For commands that own processes; others simply end.
pub fn leave_in_order() {
    let (armed, is_armed) = channel();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime for signals needs two file descriptors");
            let number = runtime.block_on(async {
                let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
                let [mut interrupt, mut terminate, mut hangup] =
                    kinds.map(|kind| signal(kind).expect("these signals can be caught"));
                armed.send(()).expect("the other end waits");
                tokio::select! {
                    biased;
                    _ = interrupt.recv() => SignalKind::interrupt(),
                    _ = terminate.recv() => SignalKind::terminate(),
                    _ = hangup.recv() => SignalKind::hangup(),
                }
                .as_raw_value()
            });
            // As a shell reports a process that a signal ended.
            exit::leave(128 + u8::try_from(number).unwrap_or(0));
        })
        .expect("a thread for signals");
    is_armed.recv().expect("the thread arms itself before anything else");
}
