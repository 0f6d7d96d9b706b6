//! Records whose fields are last-writer-wins registers: the merge that makes operations commute.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::seeded::Bug;

use super::stamp::Stamp;

/// A field's value and the stamp of the write that set it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register<T> {
    /// The value.
    pub value: T,
    /// The write that set it; [`Stamp::ZERO`] for a default nobody wrote.
    pub stamp: Stamp,
}

impl<T> Register<T> {
    /// A value set by the write with this stamp.
    pub fn new(value: T, stamp: Stamp) -> Self {
        Register { value, stamp }
    }
}

/// Keeps the newer of two registers in `mine`; on equal stamps (the same write) `mine` stays.
pub(super) fn keep_newer<T: Clone>(mine: &mut Option<Register<T>>, other: &Option<Register<T>>) {
    let Some(theirs) = other else { return };
    let is_newer = |own: &Register<T>| theirs.stamp > own.stamp;
    if mine.as_ref().is_none_or(is_newer) || Bug::RustMergeIgnoresStamps.is_on() {
        *mine = Some(theirs.clone());
    }
}

/// The stamp of a register, [`Stamp::ZERO`] where there is none.
pub(super) fn stamp_of<T>(register: &Option<Register<T>>) -> Stamp {
    register
        .as_ref()
        .map_or(Stamp::ZERO, |register| register.stamp)
}

/// The earlier of two optional stamps.
pub(super) fn earliest(one: Option<Stamp>, other: Option<Stamp>) -> Option<Stamp> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// An entity tag (RFC 9110 §8.8.3): a hash of every stamp of a record, so it changes with any change of any field
/// and is the same wherever the same writes have been merged. Of what all users have at one address, also of whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ETag(String);

impl ETag {
    /// The tag of a record with these stamps, in the record's own field order; `whose` is empty where its address says it.
    pub(super) fn of_stamps(whose: &str, stamps: impl IntoIterator<Item = Stamp>) -> Self {
        let mut hash = Sha256::new();
        hash.update(whose);
        for stamp in stamps {
            hash.update(stamp.as_i64().to_be_bytes());
        }
        let digest = hash.finalize();
        ETag(
            digest
                .iter()
                .take(16)
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        )
    }

    /// A tag as a client sent it, without its quotes. Any text: an unknown tag just never matches.
    pub fn from_client(text: &str) -> Self {
        ETag(text.to_owned())
    }

    /// The tag without quotes: 32 hexadecimal digits when made here.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Declares a record: `created` and `deleted` stamps, and one optional register a field.
///
/// An operation's change is such a record with the fields it sets; a row is one with all of them.
macro_rules! record {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub struct $name {
            /// The write that made it (of several, the earliest); `None` where that isn't known.
            pub created: Option<$crate::domain::Stamp>,
            /// The write that deleted it (of several, the earliest). Final: it wins over any other write.
            pub deleted: Option<$crate::domain::Stamp>,
            $($(#[$field_doc])* pub $field: Option<$crate::domain::Register<$type>>,)+
        }

        impl $name {
            /// Merges another record of the same resource into this one: each field takes the greater stamp; a
            /// deletion clears them all. Commutative, associative and idempotent.
            pub fn merge(&mut self, other: &Self) {
                self.created = $crate::domain::record::earliest(self.created, other.created);
                self.deleted = $crate::domain::record::earliest(self.deleted, other.deleted);
                $($crate::domain::record::keep_newer(&mut self.$field, &other.$field);)+
                if self.deleted.is_some() {
                    $(self.$field = None;)+
                }
            }

            /// The fields' stamps in declaration order, [`Stamp::ZERO`](super::Stamp::ZERO) where one is not set.
            pub fn field_stamps(&self) -> impl Iterator<Item = $crate::domain::Stamp> + use<> {
                [$($crate::domain::record::stamp_of(&self.$field)),+].into_iter()
            }

            /// The newest write in this record; [`Stamp::ZERO`](super::Stamp::ZERO) when it is empty.
            pub fn newest(&self) -> $crate::domain::Stamp {
                let ends = [self.created, self.deleted].into_iter().flatten();
                self.field_stamps().chain(ends).max().unwrap_or_default()
            }

            /// Whether applying this change to `current` sets something, or already has (a replay): some field's
            /// stamp is at least the current one.
            pub fn advances(&self, current: &Self) -> bool {
                let mut set = self
                    .field_stamps()
                    .zip(current.field_stamps())
                    .filter(|(mine, _)| mine.is_set())
                    .peekable();
                set.peek().is_none() || set.any(|(mine, theirs)| mine >= theirs)
            }

            /// Whether a newer write than this change has set one of the fields it sets.
            pub fn is_overtaken_by(&self, current: &Self) -> bool {
                self.field_stamps()
                    .zip(current.field_stamps())
                    .any(|(mine, theirs)| mine.is_set() && mine < theirs)
            }

            /// Gives every write in this change the same stamp: for an operation that is stamped (anew).
            pub fn restamp(&mut self, stamp: $crate::domain::Stamp) {
                for end in [&mut self.created, &mut self.deleted].into_iter().flatten() {
                    *end = stamp;
                }
                $(if let Some(register) = &mut self.$field { register.stamp = stamp; })+
            }

            /// The entity tag of this record as a whole row. Not of when it was made: a write of all fields knows what it
            /// makes of them, but not whether it is the first.
            fn etag_of(&self, whose: &str) -> $crate::domain::ETag {
                let deleted = std::iter::once(self.deleted.unwrap_or_default());
                $crate::domain::ETag::of_stamps(whose, deleted.chain(self.field_stamps()))
            }
        }
    };
}
