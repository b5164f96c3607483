//! Blocks: files packed into objects of about half a megabyte, and signature lists.
//!
//! Both travel as plain bytes (little-endian), because they are large and read once, front to
//! back; a reader borrows the texts instead of copying them.

use super::minhash::{HASHES, Signature};
use serde::{Deserialize, Serialize};

/// A block is closed once it holds this many bytes of text.
pub const BLOCK_BYTES: u64 = 512 * 1024;

/// One input file, as the tasks know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRef {
    /// Its place in the sorted list of all files; the same in every process.
    pub id: u32,
    /// The package it belongs to. Only files of different packages are compared.
    pub package: u32,
    /// Its length when the input was listed; another length later is an error, not another answer.
    pub len: u64,
    /// Where it is.
    pub path: String,
}

/// Deals `files` to blocks in their order. A file larger than a block gets one of its own.
pub fn pack(files: &[FileRef]) -> Vec<Vec<FileRef>> {
    let mut blocks = Vec::new();
    let mut open: Vec<FileRef> = Vec::new();
    let mut bytes = 0;
    for file in files {
        if !open.is_empty() && bytes + file.len > BLOCK_BYTES {
            blocks.push(std::mem::take(&mut open));
            bytes = 0;
        }
        bytes += file.len;
        open.push(file.clone());
    }
    if !open.is_empty() {
        blocks.push(open);
    }
    blocks
}

/// One text inside a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<'a> {
    /// The file's id.
    pub id: u32,
    /// Its package.
    pub package: u32,
    /// Its content.
    pub bytes: &'a [u8],
}

/// Appends one text to the bytes of a block.
pub fn write_text(block: &mut Vec<u8>, text: Text<'_>) {
    block.extend_from_slice(&text.id.to_le_bytes());
    block.extend_from_slice(&text.package.to_le_bytes());
    block.extend_from_slice(&(text.bytes.len() as u32).to_le_bytes());
    block.extend_from_slice(text.bytes);
}

/// The texts of a block.
///
/// # Errors
/// The bytes are no block.
pub fn texts(block: &[u8]) -> Result<Vec<Text<'_>>, String> {
    let mut reader = Reader(block);
    let mut out = Vec::new();
    while !reader.0.is_empty() {
        let (id, package, len) = (reader.number()?, reader.number()?, reader.number()?);
        out.push(Text { id, package, bytes: reader.take(len as usize)? });
    }
    Ok(out)
}

/// The signature of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The file's id.
    pub id: u32,
    /// Its package.
    pub package: u32,
    /// Its MinHash signature.
    pub signature: Signature,
}

/// Appends one signature to a list.
pub fn write_signed(list: &mut Vec<u8>, signed: &Signed) {
    list.extend_from_slice(&signed.id.to_le_bytes());
    list.extend_from_slice(&signed.package.to_le_bytes());
    for number in &signed.signature {
        list.extend_from_slice(&number.to_le_bytes());
    }
}

/// The signatures of a list.
///
/// # Errors
/// The bytes are no such list.
pub fn signatures(list: &[u8]) -> Result<Vec<Signed>, String> {
    let mut reader = Reader(list);
    let mut out = Vec::with_capacity(list.len() / (8 + 4 * HASHES));
    while !reader.0.is_empty() {
        let (id, package) = (reader.number()?, reader.number()?);
        let mut signature = [0; HASHES];
        for (number, bytes) in signature.iter_mut().zip(reader.take(4 * HASHES)?.chunks_exact(4)) {
            *number = u32::from_le_bytes(bytes.try_into().expect("a chunk of four"));
        }
        out.push(Signed { id, package, signature });
    }
    Ok(out)
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        if len > self.0.len() {
            return Err(format!("block cut short: {len} bytes wanted, {} left", self.0.len()));
        }
        let (head, tail) = self.0.split_at(len);
        self.0 = tail;
        Ok(head)
    }

    fn number(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(id: u32, len: u64) -> FileRef {
        FileRef { id, package: 0, len, path: format!("{id}.rs") }
    }

    #[test]
    fn packing_keeps_order_and_bounds_blocks() {
        let lens = [300, 200, 100, 900, 1, 2, 512, 3].map(|kib| kib * 1024);
        let files: Vec<FileRef> = lens.iter().zip(0..).map(|(len, id)| file(id, *len)).collect();
        let blocks = pack(&files);
        let ids: Vec<Vec<u32>> = blocks.iter().map(|b| b.iter().map(|f| f.id).collect()).collect();
        assert_eq!(ids, [vec![0, 1], vec![2], vec![3], vec![4, 5], vec![6], vec![7]]);
        assert!(pack(&[]).is_empty());
    }

    #[test]
    fn blocks_and_lists_survive_the_wire_and_reject_cuts() {
        let mut block = Vec::new();
        let (first, second) =
            (Text { id: 7, package: 1, bytes: b"fn" }, Text { id: 8, package: 2, bytes: b"" });
        write_text(&mut block, first);
        write_text(&mut block, second);
        assert_eq!(texts(&block), Ok(vec![first, second]));
        assert!(texts(&block[..13]).is_err());

        let signed = Signed { id: 1, package: 2, signature: [9; HASHES] };
        let mut list = Vec::new();
        write_signed(&mut list, &signed);
        assert_eq!(signatures(&list), Ok(vec![signed]));
        assert!(signatures(&list[..100]).is_err());
    }
}
