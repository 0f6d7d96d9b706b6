//! What is in the file: tables, counters and the encoding of an item.
//!
//! | table | key → value |
//! |---|---|
//! | `postgres_1` … `postgres_5`, `redis_1` … `redis_5` | sequence number → [item](Item), one table a lane and priority |
//! | `followed` | place of an item → place of the one that was accepted behind it for the same resource |
//! | `inherited` | place of an item → what items before it, which have left, knew of the resource |
//! | `dead` | operation id → [dead letter](DeadLetter) |
//! | `finished` | number of its first record → [records](FinishedBatch) of the operations that ended in one transaction |
//! | `set_aside` | sequence number → bytes of an item whose checksum is wrong |
//! | `revocations`, `sessions` | session id → revocation, session |
//! | `commits` | writer → its last group commit, to learn the fate of a commit that returned an error |
//! | `epochs` | run of the machine → [epoch](super::epoch::Epoch) of stamps made before PostgreSQL's clock was known |
//! | `meta` | schema version, [counters](Counters), database, what is known of PostgreSQL's clock |
//!
//! All keys but those of `revocations`, `sessions` and `epochs`, which stay small, grow with time: appending to the end of a
//! B-tree costs the same at a million items as at none, inserting at random 5 to 12 times as much. What has to be
//! found by resource, user or operation is therefore an index in memory (see `index.rs`).
//!
//! An item is `version (1 byte) | CRC-32 of the rest (4 bytes, little-endian) | postcard`. redb doesn't verify its
//! checksums on ordinary reads. An item of a newer version is left in the queue for the program that knows it.

use std::collections::HashSet;

use redb::TableDefinition;
use serde::{Deserialize, Serialize};

use crate::clock::BootId;
use crate::domain::{
    Kind, Operation, OperationId, OperationRecord, OperationState, Priority, ResourceKey,
    SessionId, Stamp, State, TaskId, Timestamp, UserId,
};
use crate::seeded::Bug;

/// Version of the tables. A file with a greater one is refused.
pub(super) const SCHEMA_VERSION: u64 = 1;

/// Version of an item's encoding.
const ITEM_VERSION: u8 = 1;

/// Bytes before an item's encoded part: version and CRC.
const ITEM_HEADER_BYTES: usize = 5;

/// A queue: sequence number → encoded item.
pub(super) type QueueTable = TableDefinition<'static, u64, &'static [u8]>;

/// The store an operation is for. Lanes drain independently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Tasks and profiles.
    Postgres,
    /// Revocations of sessions.
    Redis,
}

impl Lane {
    /// Both.
    pub const ALL: [Lane; 2] = [Lane::Postgres, Lane::Redis];

    /// The name in metrics and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Lane::Postgres => "postgres",
            Lane::Redis => "redis",
        }
    }

    /// The lane of an operation.
    pub fn of(operation: &Operation) -> Self {
        match operation.body {
            crate::domain::Body::Session(_) => Lane::Redis,
            _ => Lane::Postgres,
        }
    }
}

const QUEUES: [[QueueTable; 5]; 2] = [
    [
        TableDefinition::new("postgres_1"),
        TableDefinition::new("postgres_2"),
        TableDefinition::new("postgres_3"),
        TableDefinition::new("postgres_4"),
        TableDefinition::new("postgres_5"),
    ],
    [
        TableDefinition::new("redis_1"),
        TableDefinition::new("redis_2"),
        TableDefinition::new("redis_3"),
        TableDefinition::new("redis_4"),
        TableDefinition::new("redis_5"),
    ],
];

/// The table of a lane and priority.
pub(super) fn queue(lane: Lane, priority: Priority) -> QueueTable {
    QUEUES[lane as usize][usize::from(priority.number()) - 1]
}

/// Every queue, a lane at a time, the most urgent first.
pub(super) fn queues() -> impl Iterator<Item = (Lane, Priority, QueueTable)> {
    Lane::ALL.into_iter().flat_map(|lane| {
        Priority::ALL
            .into_iter()
            .map(move |priority| (lane, priority, queue(lane, priority)))
    })
}

pub(super) const FOLLOWED: TableDefinition<'static, u64, u64> = TableDefinition::new("followed");
pub(super) const INHERITED: QueueTable = TableDefinition::new("inherited");
pub(super) const DEAD: TableDefinition<'static, u128, &'static [u8]> = TableDefinition::new("dead");
pub(super) const FINISHED: QueueTable = TableDefinition::new("finished");
pub(super) const SET_ASIDE: QueueTable = TableDefinition::new("set_aside");
pub(super) const REVOCATIONS: TableDefinition<'static, &'static str, &'static [u8]> =
    TableDefinition::new("revocations");
pub(super) const SESSIONS: TableDefinition<'static, &'static str, &'static [u8]> =
    TableDefinition::new("sessions");
pub(super) const KEYED: TableDefinition<'static, u128, &'static [u8]> =
    TableDefinition::new("keyed");
pub(super) const COMMITS: TableDefinition<'static, u64, u64> = TableDefinition::new("commits");
pub(super) const EPOCHS: TableDefinition<'static, u128, &'static [u8]> =
    TableDefinition::new("epochs");
pub(super) const META: TableDefinition<'static, &'static str, &'static [u8]> =
    TableDefinition::new("meta");

/// Keys of [`META`].
pub(super) const SCHEMA_KEY: &str = "schema_version";
pub(super) const COUNTERS_KEY: &str = "counters";
pub(super) const DATABASE_KEY: &str = "database";
pub(super) const NODE_BASE_KEY: &str = "node_base";
pub(super) const CLOCK_KEY: &str = "clock";

/// What has been counted since the file was made; changed in the transactions that do what is counted.
///
/// Conservation: `accepted = pending + applied + superseded + dead + archived + discarded`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// The sequence number the next item gets.
    pub next_seq: u64,
    /// The number the next finished record gets.
    pub next_finish: u64,
    /// The greatest stamp of any item ever accepted; of items of an epoch only once that has its place.
    pub high_water: i64,
    /// Writers that have opened the file.
    pub writers: u64,
    /// Changes of the revocations, so that others see when to read them again.
    pub revocation_changes: u64,
    /// Items accepted.
    pub accepted: u64,
    /// Items waiting.
    pub pending: u64,
    /// Items that took effect.
    pub applied: u64,
    /// Items that newer writes had overtaken.
    pub superseded: u64,
    /// Dead letters in the file, items set aside as damaged included.
    pub dead: u64,
    /// Dead letters moved to the archive.
    pub archived: u64,
    /// Dead letters an operator discarded.
    pub discarded: u64,
}

impl Counters {
    /// `accepted` minus all that items can have become: zero, always.
    pub fn imbalance(&self) -> i64 {
        let ended = self.applied + self.superseded + self.dead + self.archived + self.discarded;
        let accounted = i128::from(self.pending) + i128::from(ended);
        i64::try_from(i128::from(self.accepted) - accounted).unwrap_or(i64::MAX)
    }
}

/// An operation in the queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The operation.
    pub operation: Operation,
    /// The resource as the node knew it when it accepted this: with it, reads stay whole after a restart.
    pub base: Option<State>,
    /// How often applying it has failed while the store was healthy.
    pub retries: u32,
    /// Why it failed last.
    pub last_error: Option<String>,
    /// When to try it again, if not at once.
    pub not_before: Option<Timestamp>,
    /// The run of the machine by whose clock it is stamped, while it is not known how far that is from PostgreSQL's.
    pub epoch: Option<BootId>,
}

impl Item {
    /// A new one.
    pub(super) fn new(operation: Operation, base: Option<State>) -> Self {
        Item {
            operation,
            base,
            retries: 0,
            last_error: None,
            not_before: None,
            epoch: None,
        }
    }

    /// As the contract shows it.
    pub fn record(&self) -> OperationRecord {
        OperationRecord {
            retries: self.retries,
            last_error: self.last_error.clone(),
            ..OperationRecord::pending(&self.operation)
        }
    }
}

/// An operation that was refused or failed for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// What was queued.
    pub item: Item,
    /// Why it ended.
    pub reason: String,
    /// When.
    pub died_at: Timestamp,
}

impl DeadLetter {
    /// As the contract shows it.
    pub fn record(&self) -> OperationRecord {
        OperationRecord {
            state: OperationState::Dead,
            last_error: Some(self.reason.clone()),
            finished_at: Some(self.died_at),
            ..self.item.record()
        }
    }
}

/// An item whose checksum is wrong: what there is of it.
#[derive(Debug, Clone, PartialEq)]
pub struct DamagedItem {
    /// What its bytes say, if they say anything: not to be trusted.
    pub item: Option<Item>,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl DamagedItem {
    /// What there is of these bytes.
    pub(super) fn of(bytes: Vec<u8>) -> Self {
        let encoded = bytes.get(ITEM_HEADER_BYTES..).unwrap_or_default();
        let read = postcard::take_from_bytes::<Item>(encoded);
        DamagedItem {
            item: read.ok().map(|(item, _)| item),
            bytes,
        }
    }

    /// The operation its bytes name, if they can be read: not to be trusted either.
    pub fn id(&self) -> Option<OperationId> {
        self.item.as_ref().map(|item| item.operation.id)
    }
}

/// Records of operations that ended together. They are written and removed as one value: as entries of their own they
/// took a third of what a drain costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FinishedBatch {
    oldest: OperationId,
    newest: OperationId,
    pub(super) records: Vec<OperationRecord>,
    /// Those of them that were repeats, and did nothing themselves, with the stamps that the first ones had.
    pub(super) repeats: Vec<(OperationId, Stamp)>,
}

impl FinishedBatch {
    /// A batch of these records; `None` of none.
    pub(super) fn new(
        records: Vec<OperationRecord>,
        repeats: Vec<(OperationId, Stamp)>,
    ) -> Option<Self> {
        let ids = || records.iter().map(|record| record.id);
        let (oldest, newest) = (ids().min()?, ids().max()?);
        Some(FinishedBatch {
            oldest,
            newest,
            records,
            repeats,
        })
    }

    /// The same without what `known` has; `None` when nothing is left.
    pub(super) fn without(self, known: &HashSet<OperationId>) -> Option<Self> {
        let mut records = self.records;
        records.retain(|record| !known.contains(&record.id));
        FinishedBatch::new(records, self.repeats)
    }

    /// Whether an encoded batch may hold this operation's record, by its beginning alone.
    pub(super) fn may_hold(bytes: &[u8], id: OperationId) -> bool {
        let encoded = bytes.get(ITEM_HEADER_BYTES..).unwrap_or_default();
        let ends = postcard::take_from_bytes::<(OperationId, OperationId)>(encoded);
        ends.is_ok_and(|((oldest, newest), _)| (oldest..=newest).contains(&id))
    }
}

/// Where an item is: its queue and sequence number in 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place(u64);

impl Place {
    const SEQ_BITS: u32 = 60;

    pub(super) fn new(lane: Lane, priority: Priority, seq: u64) -> Self {
        let queue = (lane as u64) * 5 + u64::from(priority.number()) - 1;
        Place((queue << Place::SEQ_BITS) | (seq & ((1 << Place::SEQ_BITS) - 1)))
    }

    /// Behind every item of this queue.
    pub(super) fn last(lane: Lane, priority: Priority) -> Self {
        Place::new(lane, priority, u64::MAX)
    }

    /// The item's lane.
    pub fn lane(self) -> Lane {
        if (self.0 >> Place::SEQ_BITS) < 5 {
            Lane::Postgres
        } else {
            Lane::Redis
        }
    }

    /// The item's priority in the queue.
    pub fn priority(self) -> Priority {
        let index = (self.0 >> Place::SEQ_BITS) % 5;
        Priority::ALL[usize::try_from(index).expect("below five")]
    }

    /// The item's sequence number: greater is later.
    pub fn seq(self) -> u64 {
        self.0 & ((1 << Place::SEQ_BITS) - 1)
    }

    /// As a key.
    pub(super) fn key(self) -> u64 {
        self.0
    }

    /// The place with this key.
    pub(super) fn from_key(key: u64) -> Self {
        Place(key)
    }

    pub(super) fn table(self) -> QueueTable {
        queue(self.lane(), self.priority())
    }
}

/// An encoded value, read.
pub(super) enum Decoded<T> {
    /// As it was written.
    Whole(T),
    /// Its checksum or encoding is wrong.
    Damaged,
    /// A newer program wrote it.
    Newer,
}

/// Encodes a value with version and checksum.
pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let header = vec![ITEM_VERSION, 0, 0, 0, 0];
    let mut bytes =
        postcard::to_extend(value, header).expect("the types encoded here have no unsized maps");
    let crc = crc32fast::hash(&bytes[ITEM_HEADER_BYTES..]);
    bytes[1..ITEM_HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Decodes what [`encode`] made.
pub(super) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Decoded<T> {
    if bytes.len() < ITEM_HEADER_BYTES {
        return Decoded::Damaged;
    }
    if bytes[0] > ITEM_VERSION {
        return Decoded::Newer;
    }
    let is_damaged = checksum(bytes) != crc32fast::hash(&bytes[ITEM_HEADER_BYTES..]);
    if is_damaged && !Bug::ChecksumIgnored.is_on() {
        return Decoded::Damaged;
    }
    postcard::from_bytes(&bytes[ITEM_HEADER_BYTES..]).map_or(Decoded::Damaged, Decoded::Whole)
}

/// The byte each value of this version begins with.
pub(super) const VALUE_START: u8 = ITEM_VERSION;

/// Decodes a value that these bytes begin with, whatever follows; gives it with the length of its encoding.
pub(super) fn decode_prefix<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Option<(T, usize)> {
    let encoded = bytes
        .get(ITEM_HEADER_BYTES..)
        .filter(|_| bytes[0] == ITEM_VERSION)?;
    let (value, rest) = postcard::take_from_bytes::<T>(encoded).ok()?;
    let length = encoded.len() - rest.len();
    let is_whole = checksum(bytes) == crc32fast::hash(&encoded[..length]);
    is_whole.then_some((value, ITEM_HEADER_BYTES + length))
}

/// The checksum stored in an encoded value; zero where there is no room for one.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    bytes
        .get(1..ITEM_HEADER_BYTES)
        .and_then(|crc| crc.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

/// What the index needs of an item: the fields its encoding begins with, so that the rest needn't be read.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct ItemPrefix {
    pub(super) id: OperationId,
    _stamp: Stamp,
    pub(super) user_id: UserId,
    _kind: Kind,
    body: BodyPrefix,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
enum BodyPrefix {
    Task(TaskId),
    Profile,
    Session(SessionId),
}

impl ItemPrefix {
    #[cfg(test)]
    pub(super) fn of_task(id: OperationId, user_id: UserId, task: TaskId) -> Self {
        ItemPrefix {
            id,
            _stamp: Stamp::ZERO,
            user_id,
            _kind: Kind::Create,
            body: BodyPrefix::Task(task),
        }
    }

    /// Reads the beginning of an encoded item, without looking whether it is whole: what the index says is verified
    /// where it is used. `None` for what is no item of a known version.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let known = bytes
            .first()
            .is_some_and(|version| *version <= ITEM_VERSION);
        let encoded = bytes.get(ITEM_HEADER_BYTES..).filter(|_| known)?;
        postcard::take_from_bytes(encoded)
            .ok()
            .map(|(prefix, _)| prefix)
    }

    /// The very thing the operation is about.
    pub(super) fn resource(&self) -> ResourceKey {
        match &self.body {
            BodyPrefix::Task(id) => ResourceKey::Task(*id),
            BodyPrefix::Profile => ResourceKey::Profile(self.user_id.clone()),
            BodyPrefix::Session(id) => ResourceKey::Session(id.clone()),
        }
    }
}

/// A key by which operations are stored: increases with the time they were made.
pub(super) fn operation_key(id: OperationId) -> u128 {
    id.as_uuid().as_u128()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_gives_back_what_it_was_made_of() {
        for (lane, priority, _) in queues() {
            let place = Place::new(lane, priority, 123_456_789_012);
            assert_eq!(
                (place.lane(), place.priority(), place.seq()),
                (lane, priority, 123_456_789_012)
            );
        }
    }

    #[test]
    fn every_flipped_bit_of_an_encoded_value_is_noticed() {
        let encoded = encode(&(7u64, "seven".to_owned()));
        assert!(matches!(
            decode::<(u64, String)>(&encoded),
            Decoded::Whole((7, _))
        ));
        for bit in 8..encoded.len() * 8 {
            let mut flipped = encoded.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(
                matches!(decode::<(u64, String)>(&flipped), Decoded::Damaged),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn the_prefix_of_an_item_says_what_the_item_says() {
        use crate::domain::{Body, ProfileState, Revocation, TaskState};
        let (user_id, id) = (UserId::parse("ann").expect("valid"), TaskId::generate());
        let session_id = SessionId::parse("s-1").expect("valid");
        let revocation = Revocation {
            session_id,
            keep_until: Timestamp::from_micros(7),
        };
        let profile = Box::<ProfileState>::default();
        for body in [
            Body::Task {
                id,
                change: TaskState {
                    created: Some(Stamp::from_i64(9)),
                    ..TaskState::default()
                },
            },
            Body::Profile {
                change: profile.clone(),
                provision: profile,
            },
            Body::Session(revocation),
        ] {
            let operation = Operation {
                id: OperationId::generate(),
                stamp: Stamp::from_i64(77),
                user_id: user_id.clone(),
                kind: Kind::Update,
                body,
                precondition: None,
                idempotency: None,
                accepted_at: Timestamp::from_micros(1),
                priority: Priority::default(),
                buffered: true,
            };
            let prefix =
                ItemPrefix::read(&encode(&Item::new(operation.clone(), None))).expect("an item");
            assert_eq!(
                (prefix.id, &prefix.user_id),
                (operation.id, &operation.user_id)
            );
            assert_eq!(prefix.resource(), operation.resource());
        }
        assert!(
            ItemPrefix::read(&[]).is_none()
                && ItemPrefix::read(&[ITEM_VERSION + 1, 0, 0, 0, 0]).is_none()
        );
    }

    #[test]
    fn a_newer_version_is_not_taken_for_damage() {
        let mut encoded = encode(&1u8);
        encoded[0] = ITEM_VERSION + 1;
        assert!(matches!(decode::<u8>(&encoded), Decoded::Newer));
        assert!(matches!(decode::<u8>(&[]), Decoded::Damaged));
    }
}
