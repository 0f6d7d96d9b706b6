//! Profiles: their fields, the rules of each, and the record they merge as.

use std::str::FromStr;

use oxilangtag::LanguageTag;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use url::Url;

use super::identity::UserId;
use super::record::{ETag, Register};
use super::stamp::Stamp;
use super::text::{Violation, check_text};

/// Declares a newtype over a text with a `parse` of its own; its length is checked before anything else.
macro_rules! text_value {
    ($(#[$doc:meta])* $name:ident, $lengths:expr, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        pub struct $name(String);

        impl $name {
            /// Most characters.
            pub const MAX_CHARACTERS: usize = *$lengths.end();

            /// Checks.
            ///
            /// # Errors
            /// A [`Violation`] naming the rule.
            pub fn parse(text: &str) -> Result<Self, Violation> {
                check_text(text, *$lengths.start(), Self::MAX_CHARACTERS)?;
                let check: fn(&str) -> Result<(), Violation> = $check;
                check(text)?;
                Ok($name(text.to_owned()))
            }

            /// From a store, which holds only what was checked.
            pub fn from_stored(text: String) -> Self {
                $name(text)
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
    };
}

text_value! {
    /// An e-mail address of up to 254 characters (RFC 5321 §4.5.3.1.3), with one `@` between two parts.
    Email, 1..=254, |text| {
        let plain = !text.chars().any(|c| c.is_whitespace() || c.is_control());
        match text.rsplit_once('@') {
            Some((local, domain)) if plain && !local.is_empty() && !domain.is_empty() => Ok(()),
            _ => Err(Violation::new("must be an e-mail address, such as ann@example.org")),
        }
    }
}
text_value! {
    /// The name others see: up to 100 characters.
    DisplayName, 0..=100, |_| Ok(())
}
text_value! {
    /// A few words about oneself: up to 1 000 characters.
    Bio, 0..=1_000, |_| Ok(())
}
text_value! {
    /// Where the picture is: an `http` or `https` URL of up to 2 048 characters. As it is: what a browser would mend first
    /// is none to others.
    AvatarUrl, 1..=2_048, |text| {
        let plain = !text.chars().any(|c| c.is_whitespace() || c.is_control() || c == '\\');
        let follows = |scheme: &str| text.get(scheme.len()..).is_some_and(|rest| rest.starts_with("://"));
        match Url::parse(text) {
            Ok(url) if plain && matches!(url.scheme(), "http" | "https") && follows(url.scheme()) => Ok(()),
            _ => Err(Violation::new("must be an http or https URL")),
        }
    }
}
text_value! {
    /// A language tag (BCP 47), such as `de-CH`.
    Locale, 1..=100, |text| {
        match LanguageTag::parse(text) {
            Ok(_) => Ok(()),
            Err(_) => Err(Violation::new("must be a BCP 47 language tag, such as de-CH")),
        }
    }
}
text_value! {
    /// An IANA time zone name, such as `Europe/Zurich`.
    TimeZone, 1..=100, |text| {
        match chrono_tz::Tz::from_str(text) {
            Ok(_) => Ok(()),
            Err(_) => Err(Violation::new("must be an IANA time zone name, such as Europe/Zurich")),
        }
    }
}

impl TimeZone {
    /// The names of all zones, in their order.
    pub fn names() -> impl Iterator<Item = &'static str> {
        chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name())
    }
}

/// A JSON object of up to 8 KiB that belongs to the client. Kept as compact JSON text with its members in
/// alphabetical order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preferences(String);

impl Preferences {
    /// Most bytes of the compact form.
    pub const MAX_BYTES: usize = 8 * 1024;

    /// Checks the size, that no text in it has U+0000, which PostgreSQL's `jsonb` can't hold, and that no name is one that
    /// serde_json gives a meaning of its own when it is read back.
    ///
    /// # Errors
    /// A [`Violation`] naming the rule.
    pub fn parse(object: &Map<String, Value>) -> Result<Self, Violation> {
        let text = Value::Object(object.clone()).to_string();
        if text.contains("\\u0000")
            && object
                .iter()
                .any(|(name, value)| name.contains('\0') || has_nul(value))
        {
            return Err(Violation::new("must not contain the character U+0000"));
        }
        if text.len() > Preferences::MAX_BYTES {
            return Err(Violation::new(format!(
                "must be at most 8192 bytes, is {}",
                text.len()
            )));
        }
        if text.contains(PRIVATE_NAMES) && has_private_name(object) {
            return Err(Violation::new(
                "must not contain a name that begins with $serde_json::private::",
            ));
        }
        Ok(Preferences(text))
    }

    /// From a store, which holds only what was checked; made canonical, since `jsonb` has an order of its own.
    pub fn from_stored(value: &Value) -> Self {
        Preferences(value.to_string())
    }

    /// As JSON. A text that is no object, which nothing stores, reads as an empty one.
    pub fn to_object(&self) -> Map<String, Value> {
        serde_json::from_str(&self.0).unwrap_or_default()
    }
}

impl Default for Preferences {
    fn default() -> Self {
        Preferences("{}".to_owned())
    }
}

/// What the names begin with that serde_json reads as something else than names.
const PRIVATE_NAMES: &str = "$serde_json::private::";

fn has_private_name(object: &Map<String, Value>) -> bool {
    fn within(value: &Value) -> bool {
        match value {
            Value::Array(items) => items.iter().any(within),
            Value::Object(members) => has_private_name(members),
            _ => false,
        }
    }
    object
        .iter()
        .any(|(name, value)| name.starts_with(PRIVATE_NAMES) || within(value))
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(members) => members
            .iter()
            .any(|(name, value)| name.contains('\0') || has_nul(value)),
        _ => false,
    }
}

record! {
    /// A profile, or a change of one.
    ProfileState {
        /// The e-mail address.
        email: Option<Email>,
        /// The name others see.
        display_name: DisplayName,
        /// A few words about oneself.
        bio: Bio,
        /// Where the picture is.
        avatar_url: Option<AvatarUrl>,
        /// The language.
        locale: Option<Locale>,
        /// The time zone.
        timezone: Option<TimeZone>,
        /// The client's own settings.
        preferences: Preferences,
    }
}

/// What a token says of its user, to make a profile from at first sight. Claims that break a rule count as absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Claim `email`.
    pub email: Option<String>,
    /// Claim `name`.
    pub name: Option<String>,
    /// Claim `picture`.
    pub picture: Option<String>,
    /// Claim `locale`.
    pub locale: Option<String>,
    /// Claim `zoneinfo`.
    pub zoneinfo: Option<String>,
}

impl ProfileState {
    /// A profile nobody has written yet: every field at [`Stamp::ZERO`], so that any real write wins; `created` is
    /// when the user was first seen.
    pub fn provisioned(claims: &Claims, first_seen: Stamp) -> Self {
        fn unset<T>(value: T) -> Option<Register<T>> {
            Some(Register::new(value, Stamp::ZERO))
        }
        fn claim<T>(text: &Option<String>, parse: fn(&str) -> Result<T, Violation>) -> Option<T> {
            text.as_deref().and_then(|text| parse(text).ok())
        }
        let nameless = || DisplayName::from_stored(String::new());
        ProfileState {
            created: Some(first_seen),
            deleted: None,
            email: unset(claim(&claims.email, Email::parse)),
            display_name: unset(claim(&claims.name, DisplayName::parse).unwrap_or_else(nameless)),
            bio: unset(Bio::from_stored(String::new())),
            avatar_url: unset(claim(&claims.picture, AvatarUrl::parse)),
            locale: unset(claim(&claims.locale, Locale::parse)),
            timezone: unset(claim(&claims.zoneinfo, TimeZone::parse)),
            preferences: unset(Preferences::default()),
        }
    }

    /// The entity tag of this user's profile as a whole row. All users have theirs at one address.
    pub fn etag(&self, user: &UserId) -> ETag {
        self.etag_of(user.as_str())
    }

    /// Whether every field is known: whether it can be shown.
    pub fn is_complete(&self) -> bool {
        self.created.is_some()
            && self.email.is_some()
            && self.display_name.is_some()
            && self.bio.is_some()
            && self.avatar_url.is_some()
            && self.locale.is_some()
            && self.timezone.is_some()
            && self.preferences.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn preferences_are_any_object_without_names_that_are_read_as_something_else() {
        let parse = |value: Value| Preferences::parse(value.as_object().expect("an object"));
        for fine in [
            json!({"a": 9.728_717_369_441_677e-188, "b": [1.797_693_134_862_315_7e308]}),
            json!({"a": "$serde_json::private::RawValue", "b": {"serde_json": 1}}),
        ] {
            assert!(parse(fine.clone()).is_ok(), "{fine}");
        }
        for bad in [
            json!({"$serde_json::private::Number": "1"}),
            json!({"a": [{"b": {"$serde_json::private::RawValue": "1"}}]}),
        ] {
            assert!(parse(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_profile_rule_is_kept() {
        assert!(Email::parse("ann@example.org").is_ok());
        for bad in [
            "",
            "ann",
            "@x",
            "ann@",
            "a b@c",
            &format!("{}@x.org", "a".repeat(250)),
        ] {
            assert!(Email::parse(bad).is_err(), "{bad:?}");
        }
        assert!(AvatarUrl::parse("https://example.org/a.png").is_ok());
        for text in [
            "javascript:alert(1)",
            "ht\ntp://a.b",
            " http://a.b",
            "http://a.b/c d",
            "http:\\\\a.b",
            "http:a.b",
        ] {
            assert!(AvatarUrl::parse(text).is_err(), "{text:?}");
        }
        assert!(Locale::parse("de-CH").is_ok() && Locale::parse("not a tag").is_err());
        assert!(TimeZone::parse("Europe/Zurich").is_ok() && TimeZone::parse("Mars/Base").is_err());
        assert!(
            DisplayName::parse(&"x".repeat(101)).is_err() && Bio::parse(&"x".repeat(1001)).is_err()
        );
    }

    #[test]
    fn preferences_are_bounded_and_without_nul() {
        let object = |value: Value| value.as_object().expect("an object").clone();
        assert!(Preferences::parse(&object(json!({"theme": "dark"}))).is_ok());
        assert!(Preferences::parse(&object(json!({"a": ["\u{0}"]}))).is_err());
        assert!(Preferences::parse(&object(json!({"a\u{0}": 1}))).is_err());
        assert!(Preferences::parse(&object(json!({"a": "\\u0000"}))).is_ok());
        assert!(Preferences::parse(&object(json!({"a": "x".repeat(9000)}))).is_err());
    }

    #[test]
    fn a_provisioned_profile_takes_valid_claims_and_yields_to_any_write() {
        let claims = Claims {
            email: Some("ann@example.org".into()),
            locale: Some("???".into()),
            ..Claims::default()
        };
        let mut profile = ProfileState::provisioned(&claims, Stamp::from_i64(5));
        assert!(profile.is_complete());
        assert!(
            profile
                .locale
                .as_ref()
                .is_some_and(|locale| locale.value.is_none())
        );
        let write = ProfileState {
            email: Some(Register::new(None, Stamp::from_i64(1))),
            ..ProfileState::default()
        };
        profile.merge(&write);
        assert!(profile.email.is_some_and(|email| email.value.is_none()));
    }
}
