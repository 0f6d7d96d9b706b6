//! How the domain's values lie in columns.

use chrono::{DateTime, Utc};

use crate::domain::{Register, Stamp, Timestamp, UserId};

/// The years 0 to 9999, which RFC 3339 can write: whatever lies outside came from a hand-made cursor.
const STORABLE_MICROS: std::ops::RangeInclusive<i64> =
    -62_167_219_200_000_000..=253_402_300_799_999_999;

/// A time as a column holds it; one outside the years 0 to 9999 becomes the nearest within.
pub(super) fn stored_time(time: Timestamp) -> DateTime<Utc> {
    let micros = time
        .as_micros()
        .clamp(*STORABLE_MICROS.start(), *STORABLE_MICROS.end());
    Timestamp::from_micros(micros).to_datetime()
}

/// A stamp as a column holds it: 0 for none.
pub(super) fn stored_stamp(stamp: Option<Stamp>) -> i64 {
    stamp.unwrap_or(Stamp::ZERO).as_i64()
}

/// The stamp of a field, 0 where it isn't set.
pub(super) fn field_stamp<T>(register: &Option<Register<T>>) -> i64 {
    stored_stamp(register.as_ref().map(|register| register.stamp))
}

/// The value of a field, if it is set.
pub(super) fn field_value<T>(register: &Option<Register<T>>) -> Option<&T> {
    register.as_ref().map(|register| &register.value)
}

/// The stamp that a column holds; `None` for 0.
pub(super) fn read_stamp(column: i64) -> Option<Stamp> {
    Some(Stamp::from_i64(column)).filter(|stamp| stamp.is_set())
}

/// The user a row belongs to.
pub(super) fn read_user(column: &str) -> Result<UserId, sqlx::Error> {
    UserId::parse(column).map_err(unreadable)
}

/// A column holds what this program doesn't know, such as a word that a newer one has written.
pub(super) fn unreadable(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Decode(why.into())
}

/// Declares a struct of one row's columns, and one of many rows' columns, each a `Vec`.
macro_rules! columns {
    ($(#[$row_doc:meta])* $row:ident, $(#[$arrays_doc:meta])* $arrays:ident { $($column:ident: $type:ty,)+ }) => {
        $(#[$row_doc])*
        pub(super) struct $row<'a> {
            $(pub(super) $column: $type,)+
        }

        $(#[$arrays_doc])*
        #[derive(Default)]
        pub(super) struct $arrays<'a> {
            row_count: usize,
            $($column: Vec<$type>,)+
        }

        impl<'a> $arrays<'a> {
            /// Whether there are no rows.
            pub(super) fn is_empty(&self) -> bool {
                self.row_count == 0
            }

            /// Adds a row.
            pub(super) fn push(&mut self, row: $row<'a>) {
                self.row_count += 1;
                $(self.$column.push(row.$column);)+
            }
        }

        impl<'a> FromIterator<$row<'a>> for $arrays<'a> {
            fn from_iter<I: IntoIterator<Item = $row<'a>>>(rows: I) -> Self {
                let mut arrays = Self::default();
                rows.into_iter().for_each(|row| arrays.push(row));
                arrays
            }
        }
    };
}
pub(super) use columns;
