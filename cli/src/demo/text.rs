//! From text to shingles: what "similar" is measured on.
//!
//! A token is a run of letters, digits, `_` and non-ASCII bytes, or one punctuation character;
//! white space only separates. A shingle is five tokens in a row, as a 64-bit hash. Layout and
//! indentation therefore do not count, order of words does.

/// Tokens in a shingle.
pub const SHINGLE_TOKENS: usize = 5;
/// A text with fewer distinct shingles says too little to be called similar to anything.
pub const SHINGLES_MIN: usize = 20;

/// Multiplier of the polynomial over five token hashes; odd, so that it is invertible.
const K: u64 = 0x9e37_79b9_7f4a_7c15;
/// `K` to the fifth: the weight with which the oldest token leaves the window.
const K5: u64 = K.wrapping_mul(K).wrapping_mul(K).wrapping_mul(K).wrapping_mul(K);

const SPACE: u8 = 0;
const WORD: u8 = 1;
const MARK: u8 = 2;

/// What each byte is, once for all.
const CLASS: [u8; 256] = {
    let mut class = [MARK; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        if b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80 {
            class[byte] = WORD;
        } else if b <= b' ' || b == 0x7f {
            class[byte] = SPACE;
        }
        byte += 1;
    }
    class
};

/// The distinct shingles of `text`, sorted.
pub fn shingles(text: &[u8]) -> Vec<u64> {
    // Source code has about one token in four bytes.
    let mut out = Vec::with_capacity(text.len() / 4 + 1);
    let mut window = [0u64; SHINGLE_TOKENS];
    let mut rolling = 0u64;
    let mut seen = 0usize;
    for_each_token(text, |token| {
        let place = seen % SHINGLE_TOKENS;
        rolling = rolling.wrapping_mul(K).wrapping_add(token).wrapping_sub(window[place].wrapping_mul(K5));
        window[place] = token;
        seen += 1;
        if seen >= SHINGLE_TOKENS {
            out.push(mix(rolling));
        }
    });
    out.sort_unstable();
    out.dedup();
    out
}

/// Calls `each` with the hash of every token, in order.
fn for_each_token(text: &[u8], mut each: impl FnMut(u64)) {
    let mut at = 0;
    while at < text.len() {
        match CLASS[usize::from(text[at])] {
            SPACE => at += 1,
            MARK => {
                each(mix(u64::from(text[at]) + 1));
                at += 1;
            }
            _ => {
                // FNV-1a: a multiplication per byte, no set-up, good enough once mixed.
                let mut hash = 0xcbf2_9ce4_8422_2325u64;
                while at < text.len() && CLASS[usize::from(text[at])] == WORD {
                    hash = (hash ^ u64::from(text[at])).wrapping_mul(0x0000_0100_0000_01b3);
                    at += 1;
                }
                each(mix(hash));
            }
        }
    }
}

/// The finaliser of splitmix64: every input bit reaches every output bit.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_does_not_count_but_order_does() {
        let one = shingles(b"fn add(a: u32, b: u32) -> u32 { a + b }");
        let spread = shingles(b"fn  add(a : u32,\n\tb: u32)\n -> u32 {\n    a+b\n}\n");
        assert_eq!(one, spread);
        let swapped = shingles(b"fn add(a: u32, b: u32) -> u32 { b + a }");
        assert_ne!(one, swapped);
    }

    #[test]
    fn a_window_forgets_what_left_it() {
        // The same five tokens hash alike whatever came before them.
        let tail = shingles(b"v w x y z");
        assert_eq!(tail.len(), 1);
        let long = shingles(b"a b c d e f g v w x y z");
        assert!(long.contains(&tail[0]));
        assert_eq!(long.len(), 8);
    }

    #[test]
    fn short_texts_have_no_shingle() {
        assert!(shingles(b"").is_empty());
        assert!(shingles(b" \n\t").is_empty());
        assert!(shingles(b"a b c d").is_empty());
        assert_eq!(shingles("größe = α + β".as_bytes()).len(), 1);
    }
}
