//! Which node of a cluster has which hash slots.

use std::collections::{BTreeMap, BTreeSet};

use deadpool_redis::redis::Value;

use super::commands::{SLOT_COUNT, slot};
use crate::config::RedisAddress;
use crate::store::FailureClass::Unavailable;
use crate::store::StoreError;

/// The masters of a cluster, as one of its nodes knows them: every slot has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slots {
    /// Of each range of slots the last, in their order, without gaps.
    ranges: Vec<(u16, RedisAddress)>,
}

impl Slots {
    /// From the answer to `CLUSTER SLOTS` of the node at `source`.
    ///
    /// # Errors
    /// When there is a slot that no node has: the cluster is not there yet, or has lost a part.
    pub(super) fn read(answer: &[Value], source: &RedisAddress) -> Result<Self, StoreError> {
        let ranges = answer.iter().filter_map(|entry| read_range(entry, source));
        let mut ranges: Vec<(u16, u16, RedisAddress)> = ranges.collect();
        ranges.sort_unstable();
        let mut next = 0;
        for (first, last, _) in &ranges {
            if *first != next || last < first || *last >= SLOT_COUNT {
                return Err(incomplete());
            }
            next = last + 1;
        }
        if next != SLOT_COUNT {
            return Err(incomplete());
        }
        let ranges = ranges.into_iter().map(|(_, last, master)| (last, master));
        Ok(Slots {
            ranges: ranges.collect(),
        })
    }

    /// The node that has a slot.
    pub(super) fn master_of(&self, slot: u16) -> &RedisAddress {
        let index = self.ranges.partition_point(|(last, _)| *last < slot);
        &self.ranges[index].1
    }

    /// For each node a key that it has: `stem` with a number behind it.
    pub(super) fn keys_of_all(&self, stem: &str) -> BTreeMap<&RedisAddress, String> {
        let count = self.masters().count();
        let mut keys = BTreeMap::new();
        // A node with a single slot takes 16 384 tries on average, and more than twenty times as many never.
        for number in 0..u32::from(SLOT_COUNT) * 20 {
            let key = format!("{stem}{number}");
            keys.entry(self.master_of(slot(&key))).or_insert(key);
            if keys.len() == count {
                break;
            }
        }
        keys
    }

    /// Each node once.
    pub(super) fn masters(&self) -> impl Iterator<Item = &RedisAddress> {
        let masters: BTreeSet<_> = self.ranges.iter().map(|(_, master)| master).collect();
        masters.into_iter()
    }
}

fn incomplete() -> StoreError {
    StoreError::new(
        Unavailable,
        "the redis cluster has slots that no node serves",
    )
}

/// First and last slot, then the master, then replicas, which are of no use here.
fn read_range(entry: &Value, source: &RedisAddress) -> Option<(u16, u16, RedisAddress)> {
    let Value::Array(fields) = entry else {
        return None;
    };
    let [
        Value::Int(first),
        Value::Int(last),
        Value::Array(master),
        ..,
    ] = &fields[..]
    else {
        return None;
    };
    let [host, Value::Int(port), ..] = &master[..] else {
        return None;
    };
    let host = match host {
        Value::BulkString(host) => std::str::from_utf8(host).ok()?,
        Value::Nil => "",
        _ => return None,
    };
    Some((
        u16::try_from(*first).ok()?,
        u16::try_from(*last).ok()?,
        node(host, u16::try_from(*port).ok()?, source)?,
    ))
}

/// A node by the name another gives it: none means the other's own, a question mark that it doesn't know.
pub(super) fn node(host: &str, port: u16, source: &RedisAddress) -> Option<RedisAddress> {
    match (host, source) {
        ("?", _) => None,
        ("", RedisAddress::Tcp(host, _)) => Some(RedisAddress::Tcp(host.clone(), port)),
        ("", RedisAddress::Socket(_)) => None,
        _ => Some(RedisAddress::Tcp(host.to_owned(), port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> RedisAddress {
        RedisAddress::Tcp("seed".to_owned(), 1)
    }

    fn tcp(host: &str, port: u16) -> RedisAddress {
        RedisAddress::Tcp(host.to_owned(), port)
    }

    fn host(name: &str) -> Value {
        Value::BulkString(name.as_bytes().to_vec())
    }

    /// A range with a master, and a replica that nobody asks for.
    fn range(first: i64, last: i64, host: Value, port: i64) -> Value {
        let node = |port| Value::Array(vec![host.clone(), Value::Int(port), Value::Nil]);
        Value::Array(vec![
            Value::Int(first),
            Value::Int(last),
            node(port),
            node(port + 1000),
        ])
    }

    #[test]
    fn every_slot_has_the_master_it_was_given() {
        let answer = [
            range(8192, 16_383, host("two"), 7),
            range(0, 0, host(""), 8),
            range(1, 8191, Value::Nil, 9),
        ];
        let slots = Slots::read(&answer, &source()).expect("complete");
        for (slot, master) in [
            (0, tcp("seed", 8)),
            (1, tcp("seed", 9)),
            (8191, tcp("seed", 9)),
            (8192, tcp("two", 7)),
            (16_383, tcp("two", 7)),
        ] {
            assert_eq!(slots.master_of(slot), &master, "{slot}");
        }
        assert_eq!(slots.masters().count(), 3);
        let keys = slots.keys_of_all("probe:");
        assert_eq!(keys.len(), 3, "also of the node with a single slot");
        for (master, key) in keys {
            assert_eq!(slots.master_of(slot(&key)), master);
        }
    }

    #[test]
    fn a_slot_without_a_node_is_an_outage() {
        let all = |last| range(0, last, host("one"), 7);
        for answer in [
            vec![],
            vec![all(16_382)],
            vec![all(16_384)],
            vec![range(1, 16_383, host("one"), 7)],
            vec![range(0, 16_383, host("?"), 7)],
            vec![range(0, 16_383, host("one"), 65_536)],
            vec![all(9), range(11, 16_383, host("one"), 7)],
            vec![all(9), range(9, 16_383, host("one"), 7)],
            vec![all(9), range(10, 9, host("one"), 7)],
            vec![Value::Nil],
        ] {
            let error = Slots::read(&answer, &source()).expect_err("incomplete");
            assert_eq!(error.class(), Unavailable, "{answer:?}");
        }
    }
}
