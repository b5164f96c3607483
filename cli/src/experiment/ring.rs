//! A ring of sockets in which all add up their vectors: what the object store is compared with.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Barrier;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

/// Who takes part.
pub const MEMBERS: usize = 4;

/// What member `who` has in part `part` of its vector.
pub fn own(who: usize, part: usize, bytes: usize) -> Vec<u8> {
    repeated(bytes, |at| at.wrapping_mul(31).wrapping_add((who * 17 + part * 5) as u8))
}

/// So many bytes, of which each is made of its place: all 256, again and again.
fn repeated(bytes: usize, of: impl Fn(u8) -> u8) -> Vec<u8> {
    let all: Vec<u8> = (0..=u8::MAX).map(of).collect();
    let mut out = Vec::with_capacity(bytes + all.len());
    while out.len() < bytes {
        out.extend_from_slice(&all);
    }
    out.truncate(bytes);
    out
}

/// Adds a part to another.
pub fn add(to: &mut [u8], from: &[u8]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = to.wrapping_add(*from));
}

/// What a member has in the end, in short.
pub fn hash<'a>(parts: impl Iterator<Item = &'a [u8]>) -> u64 {
    parts.fold(0, |hash, part| hash.rotate_left(7) ^ xxh3_64(part))
}

/// What each member must have in the end.
pub fn expected(part_bytes: usize) -> u64 {
    let parts: Vec<Vec<u8>> = (0..MEMBERS)
        .map(|part| {
            let mut sum = own(0, part, part_bytes);
            (1..MEMBERS).for_each(|who| add(&mut sum, &own(who, part, part_bytes)));
            sum
        })
        .collect();
    hash(parts.iter().map(Vec::as_slice))
}

/// Adds up over sockets: how long it took, and what each member has then.
///
/// # Errors
/// The loopback interface does not work.
pub fn over_sockets(part_bytes: usize) -> io::Result<(Duration, Vec<u64>)> {
    let listeners: Vec<TcpListener> =
        (0..MEMBERS).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<io::Result<_>>()?;
    let mut to_next = Vec::new();
    for who in 0..MEMBERS {
        let stream = TcpStream::connect(listeners[(who + 1) % MEMBERS].local_addr()?)?;
        stream.set_nodelay(true)?;
        to_next.push(stream);
    }
    let from_last: Vec<TcpStream> =
        listeners.iter().map(|listener| Ok(listener.accept()?.0)).collect::<io::Result<_>>()?;
    let together = &Barrier::new(MEMBERS);
    let members = to_next.into_iter().zip(from_last).enumerate();
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            members.map(|(who, ends)| scope.spawn(move || member(who, ends, part_bytes, together))).collect();
        let mut longest = Duration::ZERO;
        let mut hashes = Vec::new();
        for thread in threads {
            let (took, hash) = thread.join().map_err(|_| io::Error::other("a member panicked"))??;
            longest = longest.max(took);
            hashes.push(hash);
        }
        Ok((longest, hashes))
    })
}

fn member(
    who: usize,
    (mut next, mut last): (TcpStream, TcpStream),
    part_bytes: usize,
    together: &Barrier,
) -> io::Result<(Duration, u64)> {
    let mut parts: Vec<Vec<u8>> = (0..MEMBERS).map(|part| own(who, part, part_bytes)).collect();
    let mut come = vec![0u8; part_bytes];
    together.wait();
    let at = Instant::now();
    // First each part is added up on its way round, then it goes round once more.
    for step in 0..2 * (MEMBERS - 1) {
        let sent = (who + 2 * MEMBERS - step) % MEMBERS;
        let taken = (sent + MEMBERS - 1) % MEMBERS;
        let part = &parts[sent];
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| next.write_all(part));
            last.read_exact(&mut come)?;
            writing.join().map_err(|_| io::Error::other("a writer panicked"))?
        })?;
        if step < MEMBERS - 1 {
            add(&mut parts[taken], &come);
        } else {
            parts[taken].copy_from_slice(&come);
        }
    }
    let hash = hash(parts.iter().map(Vec::as_slice));
    Ok((at.elapsed(), hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_members_have_the_sum() {
        let (_, hashes) = over_sockets(10_000).expect("the loopback interface works");
        assert_eq!(hashes, [expected(10_000); MEMBERS]);
        assert_ne!(expected(10_000), expected(10_001));
    }
}
