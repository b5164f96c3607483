//! The values of a run: shorter than the program says, since the wire is what costs time here.

use super::state;
use mobula::ObjectRef;
pub use mobula_chaos::content::Content;
use mobula_sim_tests::core::program::INLINE_MAX;

/// Most large values are cut to a part of what their length is beyond the inline limit.
const LARGE_DIVISOR: u64 = 24;
/// One large value in so many has its full length.
const FULL_LENGTH: u64 = 16;

/// A value of a length.
pub fn made(hash: u64, len: u64, refs: Vec<ObjectRef<Content>>) -> Content {
    Content::new(hash, bytes(hash, len), refs)
}

/// It was read; whether it is whole is looked at.
pub fn read(content: Content) -> Content {
    if let Some(text) = content.torn() {
        state::with(|state| _ = state.torn.get_or_insert(text));
    }
    content
}

/// How many bytes stand for a length. Small stays small and large stays large.
fn bytes(hash: u64, len: u64) -> usize {
    let beyond = len.saturating_sub(INLINE_MAX);
    match beyond {
        0 => len.min(2_000) as usize,
        _ if hash.is_multiple_of(FULL_LENGTH) => len as usize,
        _ => (INLINE_MAX + beyond / LARGE_DIVISOR + 1) as usize,
    }
}
