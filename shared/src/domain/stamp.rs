//! Time as the domain uses it: stamps, which order writes across nodes, and timestamps, which people read.

use std::fmt;

use chrono::{DateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize};

/// Milliseconds of the Unix epoch at which stamps begin: 2020-01-01T00:00:00Z.
const STAMP_EPOCH_MS: i64 = 1_577_836_800_000;

/// Bits of the node in a stamp: 16 384 writers.
const NODE_BITS: u32 = 14;

/// Bits of the counter in a stamp: 256 writes of one writer within one millisecond; the next one takes the next
/// millisecond.
const COUNTER_BITS: u32 = 8;

/// Greatest tick (millisecond and counter) a stamp can hold: 41 bits of milliseconds, until the year 2089.
const MAX_TICK: i64 = (1 << (63 - NODE_BITS)) - 1;

/// Which writer made a stamp, so that two writers never make the same one.
///
/// 14 bits. Each process takes its own from the buffer file when it opens it; files start at a random place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeId(u16);

impl NodeId {
    /// The writer with this number, of which the lowest 14 bits count.
    pub fn from_number(number: u64) -> Self {
        let mask = (1u64 << NODE_BITS) - 1;
        NodeId(u16::try_from(number & mask).expect("14 bits fit in 16"))
    }
}

/// A write's place in time: milliseconds since 2020 (41 bits), a counter (8 bits) and the writer (14 bits).
///
/// Greater is newer. Zero means "never set". Always positive, so that it is a PostgreSQL `bigint` as it is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Stamp(i64);

impl Stamp {
    /// The stamp of a field nobody has written: older than every write.
    pub const ZERO: Stamp = Stamp(0);

    /// The stamp of a tick (see [`Stamp::tick`]) made by a writer. Ticks beyond the representable range are capped.
    pub fn new(tick: i64, node: NodeId) -> Self {
        Stamp((tick.clamp(0, MAX_TICK) << NODE_BITS) | i64::from(node.0))
    }

    /// The stamp stored as this number; a negative number, which nothing stores, reads as [`Stamp::ZERO`].
    pub fn from_i64(raw: i64) -> Self {
        Stamp(raw.max(0))
    }

    /// The number to store.
    pub fn as_i64(self) -> i64 {
        self.0
    }

    /// Milliseconds and counter as one number: what a clock counts up.
    pub fn tick(self) -> i64 {
        self.0 >> NODE_BITS
    }

    /// The greatest stamp of a tick, whoever makes it.
    pub fn last_of(tick: i64) -> Self {
        Stamp::new(tick, NodeId::from_number(u64::MAX))
    }

    /// The same writer's stamp this many ticks later, or earlier where it is negative.
    pub fn moved_by(self, ticks: i64) -> Self {
        let tick = self.tick().saturating_add(ticks).clamp(0, MAX_TICK);
        let node = self.0 & ((1 << NODE_BITS) - 1);
        Stamp((tick << NODE_BITS) | node)
    }

    /// The first tick of a millisecond of the Unix epoch. Times before 2020 give 0.
    pub fn tick_at(unix_ms: i64) -> i64 {
        unix_ms
            .saturating_sub(STAMP_EPOCH_MS)
            .clamp(0, MAX_TICK >> COUNTER_BITS)
            << COUNTER_BITS
    }

    /// When the write was made, to the millisecond.
    pub fn time(self) -> Timestamp {
        Timestamp(((self.tick() >> COUNTER_BITS) + STAMP_EPOCH_MS) * 1000)
    }

    /// Whether this is a real write's stamp.
    pub fn is_set(self) -> bool {
        self != Stamp::ZERO
    }
}

/// A point in time: microseconds of the Unix epoch, which is what PostgreSQL keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From microseconds of the Unix epoch.
    pub fn from_micros(micros: i64) -> Self {
        Timestamp(micros)
    }

    /// Microseconds of the Unix epoch.
    pub fn as_micros(self) -> i64 {
        self.0
    }

    /// Milliseconds of the Unix epoch, rounded down.
    pub fn as_millis(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// As chrono knows it; times chrono can't express (beyond the year 262 000) give the epoch.
    pub fn to_datetime(self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.0).unwrap_or_default()
    }
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(time: DateTime<Utc>) -> Self {
        Timestamp(time.trunc_subsecs(6).timestamp_micros())
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC, with as many fractional digits as are needed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self
            .to_datetime()
            .to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true);
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_order_by_time_then_counter_then_node() {
        let tick = Stamp::tick_at(1_795_000_000_000);
        let (low, high) = (NodeId::from_number(1), NodeId::from_number(2));
        assert!(Stamp::new(tick, high) > Stamp::new(tick, low));
        assert!(Stamp::new(tick + 1, low) > Stamp::new(tick, high));
        assert!(Stamp::new(Stamp::tick_at(1_795_000_000_001), low) > Stamp::new(tick + 255, high));
    }

    #[test]
    fn a_stamp_tells_its_millisecond() {
        let stamp = Stamp::new(
            Stamp::tick_at(1_795_000_000_123) + 7,
            NodeId::from_number(99),
        );
        assert_eq!(stamp.time().as_micros(), 1_795_000_000_123_000);
        assert_eq!(Stamp::from_i64(stamp.as_i64()), stamp);
    }

    #[test]
    fn times_out_of_range_are_capped_and_stay_positive() {
        let node = NodeId::from_number(u64::MAX);
        assert!(Stamp::new(Stamp::tick_at(i64::MAX), node).as_i64() > 0);
        assert_eq!(Stamp::tick_at(i64::MIN), 0);
        assert!(Stamp::new(i64::MAX, node) >= Stamp::new(MAX_TICK, NodeId::from_number(0)));
    }

    #[test]
    fn a_moved_stamp_keeps_its_writer_and_the_order() {
        let tick = Stamp::tick_at(1_795_000_000_123) + 7;
        let (low, high) = (NodeId::from_number(1), NodeId::from_number(2));
        for ticks in [-1_000_000, 0, 12_345] {
            assert_eq!(
                Stamp::new(tick, low).moved_by(ticks),
                Stamp::new(tick + ticks, low)
            );
            assert!(Stamp::new(tick, low).moved_by(ticks) < Stamp::new(tick, high).moved_by(ticks));
        }
        assert!(Stamp::last_of(tick) >= Stamp::new(tick, high));
        assert_eq!(Stamp::new(tick, low).moved_by(i64::MIN).tick(), 0);
    }

    #[test]
    fn a_timestamp_is_rfc_3339_in_utc() {
        assert_eq!(
            Timestamp::from_micros(1_500_000).to_string(),
            "1970-01-01T00:00:01.500Z"
        );
    }
}
