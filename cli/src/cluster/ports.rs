//! Free ports of the loopback interface.

use std::io;
use std::net::TcpListener;

/// `count` addresses that nobody listens at right now. Somebody may by the time they are used;
/// whoever uses them then tries again with others.
///
/// # Errors
/// The operating system has none.
pub fn free_addresses(count: usize) -> io::Result<Vec<String>> {
    // All are held until the last is found, so that no two are the same.
    let held: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<io::Result<_>>()?;
    held.iter().map(|l| Ok(l.local_addr()?.to_string())).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn addresses_differ_and_are_free() {
        let addresses = super::free_addresses(5).expect("free ports");
        let distinct: std::collections::BTreeSet<&String> = addresses.iter().collect();
        assert_eq!(distinct.len(), 5);
        for address in &addresses {
            std::net::TcpListener::bind(address).expect("free");
        }
    }
}
