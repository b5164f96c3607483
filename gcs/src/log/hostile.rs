//! Segments that may hold anything; see `crate::hostile`.

use super::files::Files;
use super::frame::{self, HEADER, Header, Kind};
use super::index::Found;
use super::item::LogIdentity;
use super::reader::Reader;
use super::record::SegmentHeader;
use super::segments;
use super::sizes::Sizes;
use crate::hostile::disk_with;
use bytes::BytesMut;
use prost::Message;

/// Number of the segment.
const NUMBER: u64 = 1;
/// Room for the segment that follows.
const SEGMENT_BYTES: u64 = 4096;

/// Opens a log that has this segment, under whatever identity it says, and reads every entry.
pub fn open(bytes: Vec<u8>) {
    let whose =
        frame::decode(&bytes, 0, NUMBER).and_then(|(_, payload)| SegmentHeader::decode(payload).ok()).map_or(
            LogIdentity { cluster: 7, head: 1 },
            |header| LogIdentity { cluster: header.cluster, head: header.head },
        );
    let disk = disk_with(&segments::name(NUMBER), bytes);
    segments::verify(&*disk, NUMBER).ok();
    let Ok((_, shards)) = Files::open(disk.clone(), whose, Sizes::with_segments_of(SEGMENT_BYTES)) else {
        return;
    };
    let reader = Reader::new(&*disk);
    for (shard, index) in shards {
        let mut next = index.start();
        while next < index.end() {
            let found = match index.find(next, index.end(), 1 << 20) {
                Found::Here(entries) => entries.len() as u64,
                Found::On(blocks) => {
                    let read = blocks.iter().map(|block| reader.read(block, shard));
                    read.map(|entries| entries.map_or(0, |entries| entries.len() as u64)).sum()
                }
                Found::Nowhere => 0,
            };
            // A segment can say that entries are where none are: whoever reads them is told so.
            if found == 0 {
                break;
            }
            next += found;
        }
    }
}

/// The same frames with right checksums and places.
pub fn with_right_sums(bytes: &[u8]) -> Vec<u8> {
    let (mut out, mut at) = (BytesMut::new(), 0);
    while let Some(fixed) = bytes.get(at..at + HEADER) {
        let u32_at = |at: usize| u32::from_le_bytes(fixed[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(fixed[at..at + 8].try_into().expect("eight bytes"));
        let rest = &bytes[at + HEADER..];
        let payload = &rest[..(u32_at(0) as usize).min(rest.len())];
        let header = Header {
            kind: Kind::from_byte(fixed[8]).unwrap_or(Kind::Mark),
            shard: u32_at(9),
            generation: NUMBER,
            offset: out.len() as u64,
            synced: u64_at(29),
        };
        frame::encode(&header, payload, &mut out);
        at += HEADER + payload.len();
    }
    out.to_vec()
}
