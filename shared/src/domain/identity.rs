//! Identifiers: checked once, when they come in, and never mixed up afterwards.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::text::{Violation, check_text};

/// Namespace of task ids derived from a user and an idempotency key (UUID version 5, RFC 9562 §5.5).
const DERIVED_TASK_NAMESPACE: Uuid = Uuid::from_u128(0x5d0c_1f5e_7a0b_4b7e_9d1e_68f1_0c3a_ff01);

/// Declares a newtype over a UUID.
macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(Uuid);

        impl $name {
            /// A new one, sortable by the time it was made (version 7, RFC 9562 §5.7).
            pub fn generate() -> Self {
                $name(Uuid::now_v7())
            }

            /// From a UUID that was checked before it was stored.
            pub fn from_uuid(uuid: Uuid) -> Self {
                $name(uuid)
            }

            /// As a UUID.
            pub fn as_uuid(self) -> Uuid {
                self.0
            }

            /// Parses the hyphenated form, in either case.
            pub fn parse(text: &str) -> Option<Self> {
                (text.len() == 36).then(|| Uuid::try_parse(text).ok()).flatten().map($name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

uuid_id! {
    /// A task's id.
    TaskId
}
uuid_id! {
    /// An operation's id: its identity wherever it goes.
    OperationId
}

impl IdempotencyKey {
    /// Days for which a repeat under a key is recognised, at least.
    pub const KEPT_DAYS: i32 = 90;
}

impl TaskId {
    /// When it was made, in milliseconds since 1970, as far as the id tells: of [`TaskId::generate`]'s, not of derived
    /// ones.
    pub fn made_at_millis(self) -> Option<u64> {
        (self.0.get_version_num() == 7).then(|| {
            let (high, _) = self.0.as_u64_pair();
            high >> 16
        })
    }

    /// The id of the task that a user's `POST` under an idempotency key creates: the same on every node. It has a version
    /// of its own (RFC 9562 §5.8), so that nobody else can take it first: see [`TaskId::is_derived`].
    pub fn derived(user: &UserId, key: &IdempotencyKey) -> Self {
        let name = format!("{}\0{}", user.as_str(), key.as_str());
        let hash = Uuid::new_v5(&DERIVED_TASK_NAMESPACE, name.as_bytes());
        TaskId(uuid::Builder::from_custom_bytes(hash.into_bytes()).into_uuid())
    }

    /// Whether it can be one that is derived from a key. Nothing else makes a task under such an id.
    pub fn is_derived(self) -> bool {
        self.0.get_version_num() == 8
    }
}

/// Declares a newtype over a bounded text, cheap to clone.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $max:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Most characters.
            pub const MAX_CHARACTERS: usize = $max;

            /// Checks the length (1 to [`Self::MAX_CHARACTERS`]) and that there is no control character.
            ///
            /// # Errors
            /// A [`Violation`] naming the rule.
            pub fn parse(text: &str) -> Result<Self, Violation> {
                check_text(text, 1, Self::MAX_CHARACTERS)?;
                if text.chars().any(char::is_control) {
                    return Err(Violation::new("must not contain control characters"));
                }
                Ok($name(Arc::from(text)))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id! {
    /// A user: the token's `sub`.
    UserId, 255
}
text_id! {
    /// A session: the token's `sid`, else its `jti`, else a hash of the token.
    SessionId, 255
}
text_id! {
    /// The value of an `Idempotency-Key` header.
    IdempotencyKey, 255
}

/// What an operation is about. Operations on one key are never reordered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ResourceKey {
    /// A task.
    Task(TaskId),
    /// A user's profile.
    Profile(UserId),
    /// A session.
    Session(SessionId),
}

impl fmt::Display for ResourceKey {
    /// The id alone, as the contract's `entity_id`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ResourceKey::Task(id) => id.fmt(f),
            ResourceKey::Profile(id) => id.fmt(f),
            ResourceKey::Session(id) => id.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_task_ids_depend_on_user_and_key_only() {
        let (ann, bob) = (
            UserId::parse("ann").expect("valid"),
            UserId::parse("bob").expect("valid"),
        );
        let key = IdempotencyKey::parse("k-1").expect("valid");
        assert_eq!(TaskId::derived(&ann, &key), TaskId::derived(&ann, &key));
        assert_ne!(TaskId::derived(&ann, &key), TaskId::derived(&bob, &key));
    }

    #[test]
    fn ids_with_control_characters_or_of_wrong_length_are_refused() {
        for bad in ["", "a\nb", "a\0b", &"x".repeat(256)] {
            assert!(UserId::parse(bad).is_err(), "{bad:?}");
        }
        assert!(UserId::parse(&"ü".repeat(255)).is_ok());
    }

    #[test]
    fn only_the_hyphenated_form_of_a_uuid_is_an_id() {
        assert!(TaskId::parse("0190a3f0-7b7e-7000-8000-000000000001").is_some());
        assert!(TaskId::parse("0190a3f07b7e70008000000000000001").is_none());
        assert!(TaskId::parse("{0190a3f0-7b7e-7000-8000-000000000001}").is_none());
    }
}
