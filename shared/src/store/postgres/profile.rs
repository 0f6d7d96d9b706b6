//! The statements on profiles, and how a profile lies in a row.
//!
//! As with tasks, each field has a stamp beside it; one that was only filled from a token's claims has stamp 0.

use serde_json::Value;

use super::connection::Connection;
use super::values::{
    columns, field_stamp, field_value, read_stamp, read_user, stored_stamp, unreadable,
};
use crate::domain::profile::{AvatarUrl, Bio, DisplayName, Email, Locale, Preferences, TimeZone};
use crate::domain::{ProfileState, Register, Row, Stamp, State, UserId};

/// Reads profiles: `SELECT` of all columns, and the rest of the statement.
macro_rules! select_profiles {
    ($rest:literal, $($argument:expr),+) => {
        sqlx::query_as!(
            ProfileRow,
            "SELECT id, email, display_name, bio, avatar_url, locale, timezone, preferences::text AS \"preferences!\", \
             created_stamp, deleted_stamp, email_stamp, display_name_stamp, bio_stamp, avatar_url_stamp, \
             locale_stamp, timezone_stamp, preferences_stamp FROM users "
                + $rest,
            $($argument),+
        )
    };
}

/// The profiles of these users, in no particular order.
pub(super) async fn find(
    connection: &mut Connection<'_>,
    users: &[String],
) -> Result<Vec<Row>, sqlx::Error> {
    let rows = select_profiles!("WHERE id = ANY($1)", users)
        .fetch_all(connection)
        .await?;
    rows.into_iter().map(ProfileRow::into_row).collect()
}

/// The same, locked until the end of the transaction, in order of id, so that two batches never wait for each other.
pub(super) async fn lock(
    connection: &mut Connection<'_>,
    users: &[String],
) -> Result<Vec<Row>, sqlx::Error> {
    let rows = select_profiles!("WHERE id = ANY($1) ORDER BY id FOR UPDATE", users)
        .fetch_all(connection)
        .await?;
    rows.into_iter().map(ProfileRow::into_row).collect()
}

/// Merges a change that deletes nothing into the user's profile, or makes `first` where there is none: one statement,
/// which decides field by field as [`ProfileState::merge`] does. Returns the profile as it is then; `None` where it is
/// deleted, and so was left alone.
pub(super) async fn merge(
    connection: &mut Connection<'_>,
    user: &UserId,
    first: &ProfileState,
    change: &ProfileState,
) -> Result<Option<Row>, sqlx::Error> {
    let profile = ProfileColumns::of(user, first);
    let row = sqlx::query_as!(
        ProfileRow,
        "INSERT INTO users AS mine (id, email, display_name, bio, avatar_url, locale, timezone, preferences, created_stamp, \
             deleted_stamp, email_stamp, display_name_stamp, bio_stamp, avatar_url_stamp, locale_stamp, \
             timezone_stamp, preferences_stamp) \
         SELECT $1, $2, $3, $4, $5, $6, $7, $8::text::jsonb, $9, $10, $11, $12, $13, $14, $15, $16, $17 \
         ON CONFLICT (id) DO UPDATE SET \
             email = CASE WHEN EXCLUDED.email_stamp > mine.email_stamp \
                 THEN EXCLUDED.email ELSE mine.email END, \
             display_name = CASE WHEN EXCLUDED.display_name_stamp > mine.display_name_stamp \
                 THEN EXCLUDED.display_name ELSE mine.display_name END, \
             bio = CASE WHEN EXCLUDED.bio_stamp > mine.bio_stamp \
                 THEN EXCLUDED.bio ELSE mine.bio END, \
             avatar_url = CASE WHEN EXCLUDED.avatar_url_stamp > mine.avatar_url_stamp \
                 THEN EXCLUDED.avatar_url ELSE mine.avatar_url END, \
             locale = CASE WHEN EXCLUDED.locale_stamp > mine.locale_stamp \
                 THEN EXCLUDED.locale ELSE mine.locale END, \
             timezone = CASE WHEN EXCLUDED.timezone_stamp > mine.timezone_stamp \
                 THEN EXCLUDED.timezone ELSE mine.timezone END, \
             preferences = CASE WHEN EXCLUDED.preferences_stamp > mine.preferences_stamp \
                 THEN EXCLUDED.preferences ELSE mine.preferences END, \
             created_stamp = COALESCE(LEAST(NULLIF(mine.created_stamp, 0), NULLIF($18::bigint, 0)), 0), \
             email_stamp = GREATEST(mine.email_stamp, EXCLUDED.email_stamp), \
             display_name_stamp = GREATEST(mine.display_name_stamp, EXCLUDED.display_name_stamp), \
             bio_stamp = GREATEST(mine.bio_stamp, EXCLUDED.bio_stamp), \
             avatar_url_stamp = GREATEST(mine.avatar_url_stamp, EXCLUDED.avatar_url_stamp), \
             locale_stamp = GREATEST(mine.locale_stamp, EXCLUDED.locale_stamp), \
             timezone_stamp = GREATEST(mine.timezone_stamp, EXCLUDED.timezone_stamp), \
             preferences_stamp = GREATEST(mine.preferences_stamp, EXCLUDED.preferences_stamp) \
         WHERE mine.deleted_stamp = 0 \
         RETURNING id, email, display_name, bio, avatar_url, locale, timezone, preferences::text AS \"preferences!\", \
             created_stamp, deleted_stamp, email_stamp, display_name_stamp, bio_stamp, avatar_url_stamp, \
             locale_stamp, timezone_stamp, preferences_stamp",
        profile.id,
        profile.email,
        profile.display_name,
        profile.bio,
        profile.avatar_url,
        profile.locale,
        profile.timezone,
        profile.preferences,
        profile.created_stamp,
        profile.deleted_stamp,
        profile.email_stamp,
        profile.display_name_stamp,
        profile.bio_stamp,
        profile.avatar_url_stamp,
        profile.locale_stamp,
        profile.timezone_stamp,
        profile.preferences_stamp,
        stored_stamp(change.created),
    )
    .fetch_optional(connection)
    .await?;
    row.map(ProfileRow::into_row).transpose()
}

/// Inserts new profiles. Where one of the users has one it fails with a unique violation.
pub(super) async fn insert(
    connection: &mut Connection<'_>,
    profiles: &ProfileArrays<'_>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO users (id, email, display_name, bio, avatar_url, locale, timezone, preferences, created_stamp, \
             deleted_stamp, email_stamp, display_name_stamp, bio_stamp, avatar_url_stamp, locale_stamp, \
             timezone_stamp, preferences_stamp) \
         SELECT UNNEST($1::text[]), UNNEST($2::text[]), UNNEST($3::text[]), UNNEST($4::text[]), UNNEST($5::text[]), \
             UNNEST($6::text[]), UNNEST($7::text[]), UNNEST($8::text[])::jsonb, UNNEST($9::bigint[]), \
             UNNEST($10::bigint[]), UNNEST($11::bigint[]), UNNEST($12::bigint[]), UNNEST($13::bigint[]), \
             UNNEST($14::bigint[]), UNNEST($15::bigint[]), UNNEST($16::bigint[]), UNNEST($17::bigint[])",
        &profiles.id as &[&str],
        &profiles.email as &[Option<&str>],
        &profiles.display_name as &[&str],
        &profiles.bio as &[&str],
        &profiles.avatar_url as &[Option<&str>],
        &profiles.locale as &[Option<&str>],
        &profiles.timezone as &[Option<&str>],
        &profiles.preferences,
        &profiles.created_stamp,
        &profiles.deleted_stamp,
        &profiles.email_stamp,
        &profiles.display_name_stamp,
        &profiles.bio_stamp,
        &profiles.avatar_url_stamp,
        &profiles.locale_stamp,
        &profiles.timezone_stamp,
        &profiles.preferences_stamp,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes a user's profile unless there is one.
pub(super) async fn insert_if_absent(
    connection: &mut Connection<'_>,
    user: &UserId,
    profile: &ProfileState,
) -> Result<(), sqlx::Error> {
    let profile = ProfileColumns::of(user, profile);
    sqlx::query!(
        "INSERT INTO users (id, email, display_name, bio, avatar_url, locale, timezone, preferences, created_stamp, \
             deleted_stamp, email_stamp, display_name_stamp, bio_stamp, avatar_url_stamp, locale_stamp, \
             timezone_stamp, preferences_stamp) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::jsonb, $9, $10, $11, $12, $13, $14, $15, $16, $17) \
         ON CONFLICT (id) DO NOTHING",
        profile.id,
        profile.email,
        profile.display_name,
        profile.bio,
        profile.avatar_url,
        profile.locale,
        profile.timezone,
        profile.preferences,
        profile.created_stamp,
        profile.deleted_stamp,
        profile.email_stamp,
        profile.display_name_stamp,
        profile.bio_stamp,
        profile.avatar_url_stamp,
        profile.locale_stamp,
        profile.timezone_stamp,
        profile.preferences_stamp,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Sets whole profiles that the transaction has locked.
pub(super) async fn overwrite(
    connection: &mut Connection<'_>,
    profiles: &ProfileArrays<'_>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE users SET email = new.email, display_name = new.display_name, bio = new.bio, avatar_url = new.avatar_url, \
             locale = new.locale, timezone = new.timezone, preferences = new.preferences::jsonb, created_stamp = \
             new.created_stamp, deleted_stamp = new.deleted_stamp, email_stamp = new.email_stamp, \
             display_name_stamp = new.display_name_stamp, bio_stamp = new.bio_stamp, avatar_url_stamp = \
             new.avatar_url_stamp, locale_stamp = new.locale_stamp, timezone_stamp = new.timezone_stamp, \
             preferences_stamp = new.preferences_stamp \
         FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], \
             $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], \
             $15::bigint[], $16::bigint[], $17::bigint[]) \
             AS new (id, email, display_name, bio, avatar_url, locale, timezone, preferences, created_stamp, \
             deleted_stamp, email_stamp, display_name_stamp, bio_stamp, avatar_url_stamp, locale_stamp, \
             timezone_stamp, preferences_stamp) \
         WHERE users.id = new.id",
        &profiles.id as &[&str],
        &profiles.email as &[Option<&str>],
        &profiles.display_name as &[&str],
        &profiles.bio as &[&str],
        &profiles.avatar_url as &[Option<&str>],
        &profiles.locale as &[Option<&str>],
        &profiles.timezone as &[Option<&str>],
        &profiles.preferences,
        &profiles.created_stamp,
        &profiles.deleted_stamp,
        &profiles.email_stamp,
        &profiles.display_name_stamp,
        &profiles.bio_stamp,
        &profiles.avatar_url_stamp,
        &profiles.locale_stamp,
        &profiles.timezone_stamp,
        &profiles.preferences_stamp,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A row as it is read.
struct ProfileRow {
    id: String,
    email: Option<String>,
    display_name: String,
    bio: String,
    avatar_url: Option<String>,
    locale: Option<String>,
    timezone: Option<String>,
    preferences: String,
    created_stamp: i64,
    deleted_stamp: i64,
    email_stamp: i64,
    display_name_stamp: i64,
    bio_stamp: i64,
    avatar_url_stamp: i64,
    locale_stamp: i64,
    timezone_stamp: i64,
    preferences_stamp: i64,
}

impl ProfileRow {
    fn into_row(self) -> Result<Row, sqlx::Error> {
        let owner = read_user(&self.id)?;
        let deleted = read_stamp(self.deleted_stamp);
        if deleted.is_some() {
            let tombstone = ProfileState {
                created: read_stamp(self.created_stamp),
                deleted,
                ..ProfileState::default()
            };
            return Ok(Row {
                owner,
                state: State::Profile(tombstone),
            });
        }
        let preferences: Value = serde_json::from_str(&self.preferences).map_err(unreadable)?;
        let profile = ProfileState {
            created: read_stamp(self.created_stamp),
            deleted,
            email: register(self.email.map(Email::from_stored), self.email_stamp),
            display_name: register(
                DisplayName::from_stored(self.display_name),
                self.display_name_stamp,
            ),
            bio: register(Bio::from_stored(self.bio), self.bio_stamp),
            avatar_url: register(
                self.avatar_url.map(AvatarUrl::from_stored),
                self.avatar_url_stamp,
            ),
            locale: register(self.locale.map(Locale::from_stored), self.locale_stamp),
            timezone: register(
                self.timezone.map(TimeZone::from_stored),
                self.timezone_stamp,
            ),
            preferences: register(
                Preferences::from_stored(&preferences),
                self.preferences_stamp,
            ),
        };
        Ok(Row {
            owner,
            state: State::Profile(profile),
        })
    }
}

fn register<T>(value: T, stamp: i64) -> Option<Register<T>> {
    Some(Register::new(value, Stamp::from_i64(stamp)))
}

columns! {
    /// A profile as columns: placeholders, with stamp 0, for fields that aren't set.
    ProfileColumns,
    /// Whole profiles, column by column, as `UNNEST` takes them.
    ProfileArrays {
        id: &'a str,
        email: Option<&'a str>,
        display_name: &'a str,
        bio: &'a str,
        avatar_url: Option<&'a str>,
        locale: Option<&'a str>,
        timezone: Option<&'a str>,
        preferences: String,
        created_stamp: i64,
        deleted_stamp: i64,
        email_stamp: i64,
        display_name_stamp: i64,
        bio_stamp: i64,
        avatar_url_stamp: i64,
        locale_stamp: i64,
        timezone_stamp: i64,
        preferences_stamp: i64,
    }
}

/// The fields of a tombstone.
static CLEARED: ProfileState = ProfileState {
    created: None,
    deleted: None,
    email: None,
    display_name: None,
    bio: None,
    avatar_url: None,
    locale: None,
    timezone: None,
    preferences: None,
};

impl<'a> ProfileColumns<'a> {
    /// A state as a row; of a deleted profile only its end is kept.
    pub(super) fn of(user: &'a UserId, profile: &'a ProfileState) -> Self {
        let fields = if profile.deleted.is_some() {
            &CLEARED
        } else {
            profile
        };
        ProfileColumns {
            id: user.as_str(),
            email: optional(&fields.email).map(Email::as_str),
            display_name: field_value(&fields.display_name).map_or("", DisplayName::as_str),
            bio: field_value(&fields.bio).map_or("", Bio::as_str),
            avatar_url: optional(&fields.avatar_url).map(AvatarUrl::as_str),
            locale: optional(&fields.locale).map(Locale::as_str),
            timezone: optional(&fields.timezone).map(TimeZone::as_str),
            preferences: json_text(field_value(&fields.preferences)),
            created_stamp: stored_stamp(profile.created),
            deleted_stamp: stored_stamp(profile.deleted),
            email_stamp: field_stamp(&fields.email),
            display_name_stamp: field_stamp(&fields.display_name),
            bio_stamp: field_stamp(&fields.bio),
            avatar_url_stamp: field_stamp(&fields.avatar_url),
            locale_stamp: field_stamp(&fields.locale),
            timezone_stamp: field_stamp(&fields.timezone),
            preferences_stamp: field_stamp(&fields.preferences),
        }
    }
}

fn json_text(preferences: Option<&Preferences>) -> String {
    Value::Object(preferences.map(Preferences::to_object).unwrap_or_default()).to_string()
}

/// The value of a field that may be set to nothing.
fn optional<T>(register: &Option<Register<Option<T>>>) -> Option<&T> {
    field_value(register).and_then(Option::as_ref)
}
