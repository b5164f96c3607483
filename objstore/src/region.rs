//! The memory of a store: one region, shared between processes or on this process's heap.
//!
//! The mapped twin is a memfd: it has no name, and it is gone with the last process that has it,
//! however that process ends. The heap twin runs in simulation. Both hold the same bytes at the
//! same offsets.
#![allow(unsafe_code)]

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};
use std::io;
use std::sync::Arc;

/// A range of memory that one node daemon and its workers all see.
///
/// Who may write which bytes when is decided by [`crate::table::Store`]: an allocation is written
/// by one process before it is sealed and by nobody after. The accessors check bounds; that they
/// are called under that protocol is what makes them sound.
#[derive(Clone)]
pub struct Region(Arc<Memory>);

struct Memory {
    base: *mut u8,
    len: usize,
    fd: Option<OwnedFd>,
}

// SAFETY: `base` points to memory that lives as long as this value; concurrent access follows the
// seal protocol described at `Region`.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        if self.fd.is_some() {
            // SAFETY: mapped with this length in `map`, unmapped once, here.
            let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.len) };
        } else {
            let whole = std::ptr::slice_from_raw_parts_mut(self.base, self.len);
            // SAFETY: leaked from a boxed slice of this length in `heap`, taken back once, here.
            drop(unsafe { Box::from_raw(whole) });
        }
    }
}

/// Copies block by block. A call of `memcpy` takes up to ten times as long where the destination lies a few bytes
/// behind the source, as seen from the beginning of a page: each read waits for a write that it seems to overlap. A
/// value lies like that, behind its length (measured on AMD EPYC with AVX-512: 3 and 12 GB/s).
///
/// # Safety
/// As `std::ptr::copy_nonoverlapping`.
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    const BLOCK: usize = 64;
    let whole = len / BLOCK * BLOCK;
    for at in (0..whole).step_by(BLOCK) {
        // SAFETY: inside of what the caller has vouched for.
        unsafe { std::ptr::copy_nonoverlapping(from.add(at), to.add(at), BLOCK) }
        // Else the compiler makes a call of `memcpy` of the loop.
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
    }
    // SAFETY: as above.
    unsafe { std::ptr::copy_nonoverlapping(from.add(whole), to.add(whole), len - whole) }
}

impl Region {
    /// New memory that other processes can map once they are handed [`Region::fd`].
    ///
    /// # Errors
    /// No memfd, or no address space.
    pub fn shared(len: u64) -> io::Result<Self> {
        let fd = rustix::fs::memfd_create("mobula-arena", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, len)?;
        Self::map(fd, len)
    }

    /// Maps memory that another process made with [`Region::shared`].
    ///
    /// # Errors
    /// The descriptor is not `len` bytes of memory.
    pub fn map(fd: OwnedFd, len: u64) -> io::Result<Self> {
        let have = rustix::fs::fstat(&fd)?.st_size as u64;
        if have < len || len == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("shared memory has {have} bytes, {len} were announced"),
            ));
        }
        let len = usize::try_from(len).map_err(io::Error::other)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice; nothing else refers to it.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &fd,
                0,
            )?
        };
        Ok(Region(Arc::new(Memory { base: base.cast(), len, fd: Some(fd) })))
    }

    /// Memory of this process only.
    pub fn heap(len: u64) -> Self {
        let memory = vec![0u8; len as usize].into_boxed_slice();
        let len = memory.len();
        let base = Box::into_raw(memory).cast();
        Region(Arc::new(Memory { base, len, fd: None }))
    }

    /// The descriptor to hand to another process; `None` on the heap.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.fd.as_ref().map(AsFd::as_fd)
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.0.len as u64
    }

    /// Whether the region has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    fn check(&self, offset: u64, len: u64) -> usize {
        let end = offset.checked_add(len).expect("offsets come from the store");
        assert!(end <= self.len(), "{offset}+{len} is outside the region of {} bytes", self.len());
        offset as usize
    }

    /// The bytes of a sealed object (or of one this caller is writing).
    pub fn view(&self, offset: u64, len: u64) -> &[u8] {
        let start = self.check(offset, len);
        // SAFETY: in bounds; sealed bytes are not written any more (see `Region`).
        unsafe { std::slice::from_raw_parts(self.0.base.add(start), len as usize) }
    }

    /// Copies `bytes` to `offset`, inside an allocation that this caller has created and not yet
    /// sealed.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        let start = self.check(offset, bytes.len() as u64);
        // SAFETY: in bounds; before the seal only the creator touches these bytes.
        unsafe { copy(bytes.as_ptr(), self.0.base.add(start), bytes.len()) }
    }

    /// As [`Region::write`], for whoever reads the bytes from a file or a socket: `fill` is handed the place.
    pub fn write_with<T>(&self, offset: u64, len: usize, fill: impl FnOnce(&mut [u8]) -> T) -> T {
        let start = self.check(offset, len as u64);
        // SAFETY: in bounds; before the seal only the creator touches these bytes, and it does so here.
        fill(unsafe { std::slice::from_raw_parts_mut(self.0.base.add(start), len) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_see_the_same_bytes() {
        let one = Region::shared(1 << 20).expect("memfd");
        let fd = one.fd().expect("shared").try_clone_to_owned().expect("dup");
        let two = Region::map(fd, 1 << 20).expect("map");
        one.write(4096, b"sealed");
        assert_eq!(two.view(4096, 6), b"sealed");
        let fd = one.fd().expect("shared").try_clone_to_owned().expect("dup");
        assert!(Region::map(fd, 2 << 20).is_err(), "longer than it is");
    }

    #[test]
    #[should_panic(expected = "outside the region")]
    fn out_of_bounds_is_refused() {
        Region::heap(64).view(60, 5);
    }
}
