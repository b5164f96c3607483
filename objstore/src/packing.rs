//! How the bytes of an object are packed in its file, piece by piece, so that it takes the memory of one piece
//! and not of the object; and whether they are at all: a sample says whether it pays.
//!
//! A piece is [`PIECE`] bytes of the object (the last one what is left), an LZ4 block, behind its packed length.
//! A piece that does not shrink lies there as it was, at its full length. There is no checksum here: the one of
//! the object is of what is read back, after unpacking.

use crate::spill_file::Damage;

/// Bytes of the object that are packed at once.
pub const PIECE: usize = 1 << 20;
/// Bytes before each packed piece: its packed length.
pub const PREFIX: usize = 4;
/// Bytes of each of the samples by which it is decided.
pub const SAMPLE: usize = 64 << 10;
/// It pays if samples shrink to so much or less. A core packs some 530 MB/s, so what shrinks to a half is written
/// sooner than as it is where the disk takes less than 530 * (1 - 0.5) = 265 MB/s, as most do that are rented; on a
/// faster one half of the room is worth the longer time. What shrinks less is worth it on neither.
pub const PAYS_PERCENT: usize = 50;

/// Where samples of an object are taken, from and to: at its beginning, and from its middle, since many things
/// begin with something that is not like the rest. Empty if it is too short to say.
pub fn samples(len: u64) -> Vec<(u64, u64)> {
    let sample = SAMPLE as u64;
    match len {
        0..1024 => Vec::new(),
        _ if len < 3 * sample => vec![(0, len.min(sample))],
        _ => vec![(0, sample), (len / 2, len / 2 + sample)],
    }
}

/// Whether packing pays for an object of which these are the samples.
pub fn pays(samples: &[Vec<u8>]) -> bool {
    let (before, after) = samples.iter().fold((0, 0), |(before, after), sample| {
        (before + sample.len(), after + lz4_flex::block::compress(sample).len())
    });
    before > 0 && after * 100 <= before * PAYS_PERCENT
}

/// A piece as it stands in the file, its length before it.
pub fn pack(piece: &[u8]) -> Vec<u8> {
    debug_assert!(piece.len() <= PIECE);
    // What does not shrink is found out when it is longer than this; no more room is taken for it.
    let mut out = vec![0; PREFIX + lz4_flex::block::get_maximum_output_size(piece.len())];
    let packed = lz4_flex::block::compress_into(piece, &mut out[PREFIX..]).unwrap_or(piece.len());
    if packed < piece.len() {
        out.truncate(PREFIX + packed);
    } else {
        out.truncate(PREFIX);
        out.extend(piece);
    }
    let len = u32::try_from(out.len() - PREFIX).expect("no piece is that long");
    out[..PREFIX].copy_from_slice(&len.to_le_bytes());
    out
}

/// How many bytes of the file a piece takes that has `len` bytes unpacked.
///
/// # Errors
/// That is more than any piece of this length takes, or nothing.
pub fn packed_len(prefix: &[u8], len: usize) -> Result<usize, Damage> {
    let prefix: &[u8; PREFIX] = prefix.first_chunk().ok_or(Damage::Length)?;
    let packed = usize::try_from(u32::from_le_bytes(*prefix)).map_err(|_| Damage::Bytes)?;
    if packed == 0 || packed > len { Err(Damage::Bytes) } else { Ok(packed) }
}

/// The `len` bytes that a piece had.
///
/// # Errors
/// It is not what was written.
pub fn unpack(packed: Vec<u8>, len: usize) -> Result<Vec<u8>, Damage> {
    if packed.len() == len {
        return Ok(packed);
    }
    let mut out = vec![0; len];
    match lz4_flex::block::decompress_into(&packed, &mut out) {
        Ok(found) if found == len => Ok(out),
        Ok(_) | Err(_) => Err(Damage::Bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile;
    use proptest::prelude::*;

    /// Bytes that no packer shrinks.
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..len).map(next).collect()
    }

    fn text(len: usize) -> Vec<u8> {
        let lines =
            (0_u32..).flat_map(|n| format!("line {n}: so much was {}\n", n * 7919 % 1000).into_bytes());
        lines.take(len).collect()
    }

    fn back(piece: &[u8]) -> usize {
        let packed = pack(piece);
        let len = packed_len(&packed, piece.len()).expect("as written");
        assert_eq!(packed.len(), PREFIX + len);
        assert_eq!(unpack(packed[PREFIX..].to_vec(), piece.len()).expect("as written"), piece);
        len
    }

    #[test]
    fn pieces_come_back_as_they_were_and_none_is_longer() {
        assert!(back(&vec![0; PIECE]) < PIECE / 100);
        assert!(back(&text(PIECE)) < PIECE / 2);
        assert_eq!(back(&noise(PIECE)), PIECE);
        assert_eq!(back(b"x"), 1);
        assert!(back(&text(PIECE - 1)) < PIECE / 2);
    }

    #[test]
    fn what_does_not_shrink_is_left_alone() {
        assert!(pays(&[vec![0; SAMPLE], vec![0; SAMPLE]]));
        assert!(pays(&[text(SAMPLE), text(SAMPLE)]));
        assert!(!pays(&[noise(SAMPLE), noise(SAMPLE)]));
        // A beginning alone does not decide.
        assert!(!pays(&[noise(SAMPLE), text(SAMPLE / 4)]));
        assert!(pays(&[noise(SAMPLE / 8), text(SAMPLE)]));
        assert!(!pays(&[]));
    }

    #[test]
    fn samples_lie_in_the_object() {
        for len in [0, 1, 1023, 1024, 65_536, 65_537, 196_607, 196_608, 1 << 40] {
            let samples = samples(len);
            assert_eq!(samples.is_empty(), len < 1024);
            assert!(samples.iter().all(|&(from, to)| from < to && to <= len && to - from <= SAMPLE as u64));
        }
    }

    #[test]
    fn a_length_that_no_piece_has_is_damage() {
        assert_eq!(packed_len(&[1, 0, 0], 10), Err(Damage::Length));
        assert_eq!(packed_len(&[0; 4], 10), Err(Damage::Bytes));
        assert_eq!(packed_len(&11_u32.to_le_bytes(), 10), Err(Damage::Bytes));
        assert_eq!(packed_len(&u32::MAX.to_le_bytes(), PIECE), Err(Damage::Bytes));
        assert_eq!(packed_len(&10_u32.to_le_bytes(), 10), Ok(10));
    }

    proptest! {
        #[test]
        fn whatever_stands_there_is_unpacked_or_refused(
            packed in prop::collection::vec(any::<u8>(), 0..300),
            len in 0_usize..5000,
        ) {
            hostile::packed_piece(&packed, len);
        }

        #[test]
        fn damaged_pieces_are_unpacked_or_refused(
            len in 1_usize..5000,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut packed = pack(&text(len));
            changes.into_iter().for_each(|(at, byte)| *at.get_mut(&mut packed) = byte);
            hostile::packed_piece(&packed, len);
        }
    }
}
