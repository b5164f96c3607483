//! Frames from whoever has dialled, whatever they hold. The fuzz target (`fuzz/`) and the test below call
//! the same function.

use crate::frame::{Decoder, encode, may_begin};
use bytes::BytesMut;
use mobula_proto::{Fetch, PeerAck, PeerHello, ToClient, ToDaemon, ToPeer};
use prost::Message;

/// Bytes of a connection, in pieces of the length that the first byte says: the pieces change nothing.
pub fn frames(bytes: &[u8]) {
    let Some((piece, bytes)) = bytes.split_first() else { return };
    let whole = read(bytes, bytes.len().max(1));
    let pieces = read(bytes, usize::from(*piece).max(1));
    assert_eq!(whole, pieces, "the same frames, however they arrive");
    if let Some(first) = bytes.first_chunk() {
        may_begin(*first);
    }
    for frame in whole {
        message::<ToDaemon>(&frame);
        message::<ToClient>(&frame);
        message::<ToPeer>(&frame);
        message::<PeerHello>(&frame);
        message::<PeerAck>(&frame);
        message::<Fetch>(&frame);
    }
}

/// All frames up to the end or the first that is none.
fn read(bytes: &[u8], piece: usize) -> Vec<Vec<u8>> {
    let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
    for piece in bytes.chunks(piece) {
        decoder.buffer().extend_from_slice(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame.to_vec()),
                Ok(None) => break,
                Err(_) => return frames,
            }
        }
    }
    frames
}

/// What is understood is written again and understood again.
fn message<M: Message + Default + PartialEq>(frame: &[u8]) {
    let Ok(message) = M::decode(frame) else { return };
    let mut out = BytesMut::new();
    encode(&message, &mut out);
    let mut decoder = Decoder::default();
    decoder.buffer().extend_from_slice(&out);
    let again: M = decoder.next_message().expect("our own").expect("whole");
    assert!(again == message, "what is written is what is read");
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_proto::{ClientMsg, Hello, MAGIC, PeerMsg, WIRE_VERSION, client_msg};
    use proptest::prelude::*;

    /// What a driver and a node say first.
    fn greetings() -> Vec<u8> {
        let mut out = BytesMut::from(&[3u8][..]);
        let hello = Hello { magic: MAGIC, version: WIRE_VERSION, driver: true, ..Hello::default() };
        let hello = ClientMsg { msg: Some(client_msg::Msg::Hello(hello)) };
        encode(&ToDaemon { msgs: vec![hello] }, &mut out);
        encode(&PeerHello { magic: MAGIC, version: WIRE_VERSION, to: 5, ..PeerHello::default() }, &mut out);
        encode(&ToPeer { first_seq: 9, msgs: vec![PeerMsg::default()] }, &mut out);
        out.to_vec()
    }

    proptest! {
        #[test]
        fn frames_that_nobody_should_send(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            more in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut bytes = greetings();
            changes.into_iter().for_each(|(at, byte)| *at.get_mut(&mut bytes) = byte);
            bytes.extend(more);
            frames(&bytes);
        }
    }

    /// Writes the first input of the fuzz target.
    #[test]
    #[ignore = "writes files of the source tree"]
    fn write_seeds() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/frames");
        std::fs::create_dir_all(dir).expect("writable");
        std::fs::write(format!("{dir}/greetings"), greetings()).expect("writable");
    }
}
