//! Files of spilled objects that are not what their reader thinks. The fuzz target (`fuzz/`) and the test
//! of [`crate::spill_file`] call the same function.

use crate::spill_file::{FileId, HEADER_BYTES, Header};

/// Bytes taken for a file, as they are and with the checksum of the header made right. What is understood
/// is written again and is the same.
pub fn spill_file(bytes: &[u8]) {
    header(bytes);
    let mut mended = bytes.to_vec();
    if let Some(head) = mended.first_chunk_mut::<HEADER_BYTES>() {
        let crc = crc32fast::hash(&head[..HEADER_BYTES - 4]);
        head[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        header(&mended);
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
