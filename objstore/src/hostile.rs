//! Files of spilled objects that are not what their reader thinks. The fuzz target (`fuzz/`) and the tests
//! of [`crate::spill_file`] and [`crate::packing`] call the same functions.

use crate::packing::{self, PIECE, PREFIX};
use crate::spill_file::{FileId, HEADER_BYTES, HEADER_BYTES_MAX, Header};

/// Bytes taken for a file, as they are and with the checksum of the header made right. What is understood
/// is written again and is the same.
pub fn spill_file(bytes: &[u8]) {
    header(bytes);
    for len in [HEADER_BYTES, HEADER_BYTES_MAX] {
        let mut mended = bytes.to_vec();
        if let Some(head) = mended.get_mut(..len) {
            let crc = crc32fast::hash(&head[..len - 4]);
            head[len - 4..].copy_from_slice(&crc.to_le_bytes());
            header(&mended);
        }
    }
    if let Some((len, packed)) = bytes.split_first_chunk() {
        packed_piece(packed, u32::from_le_bytes(*len) as usize % (PIECE + 1));
    }
    if let Ok(name) = std::str::from_utf8(bytes)
        && let Some(id) = FileId::of_name(name)
    {
        assert_eq!(id.name(), name);
    }
}

fn header(bytes: &[u8]) {
    if let Ok(header) = Header::decode(bytes) {
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }
}

/// Bytes taken for a packed piece that has `len` bytes unpacked. What is understood has that length, and is read
/// again when it is written again.
pub fn packed_piece(bytes: &[u8], len: usize) {
    let Ok(packed) = packing::packed_len(bytes, len) else { return };
    let Some(packed) = bytes.get(PREFIX..PREFIX + packed) else { return };
    if let Ok(piece) = packing::unpack(packed.to_vec(), len) {
        assert_eq!(piece.len(), len);
        let again = packing::pack(&piece);
        assert_eq!(packing::unpack(again[PREFIX..].to_vec(), len).as_ref(), Ok(&piece));
    }
}
