//! Durable: *what was acknowledged is there at the end, as it was acknowledged, or was overwritten by
//! a later change.*

use super::watch::Truth;
use mobula_proto as proto;

/// Compares a fresh list of all keys of a shard with what the changes come to.
pub fn judge(truth: &Truth, shard: u32, list: &proto::KvList) -> Result<(), String> {
    let (state, last) = (truth.keys(shard, b"", u64::MAX), truth.last(shard));
    let entry = |e: &proto::KvEntry| (e.key.clone(), (e.value.clone(), e.revision));
    if list.revision != last || !list.entries.iter().map(entry).eq(state) {
        return Err(format!(
            "shard {shard} was left at revision {last} and is at {} with {} keys",
            list.revision,
            list.entries.len()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_change_is_seen() {
        let mut truth = Truth::default();
        truth.add(1, proto::KvChange { key: "k".into(), revision: 1, ..Default::default() }).expect("first");
        let entry = proto::KvEntry { key: "k".into(), revision: 1, ..Default::default() };
        let list = proto::KvList { entries: vec![entry], revision: 1 };
        assert!(judge(&truth, 1, &list).is_ok());
        assert!(judge(&truth, 1, &proto::KvList::default()).is_err());
    }
}
