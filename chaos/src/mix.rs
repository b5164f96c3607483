//! One number out of two, the same everywhere.

/// Mixes two numbers into one.
pub fn mix(a: u64, b: u64) -> u64 {
    let mut z = (a.rotate_left(29) ^ b).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    z ^ (z >> 29)
}
