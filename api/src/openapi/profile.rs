//! Profiles as schemas: as they are shown, as they are given, and as they are patched.

use holdfast_shared::domain::UserId;
use holdfast_shared::domain::profile::{
    AvatarUrl, Bio, DisplayName, Email, Locale, Preferences, TimeZone,
};
use serde_json::json;
use utoipa::openapi::schema::{
    AdditionalProperties, AnyOfBuilder, Object, ObjectBuilder, SchemaFormat, Type,
};
use utoipa::openapi::{RefOr, Schema};

use super::resource::sync_state;
use super::schema::{
    Fields, Nullable, boolean, closed_object, list, named, object, string, text, time, word,
};

/// The name of the schema of any JSON value.
pub const ANY_JSON: &str = "AnyJson";
/// The name of the schema of preferences.
pub const PREFERENCES: &str = "Preferences";
/// The name of the schema of time zones.
pub const TIME_ZONE: &str = "TimeZone";

/// Something before and after an `@`, without white space.
const EMAIL: &str = r"^[^\s\u0000-\u001f\u007f-\u009f]+@[^\s\u0000-\u001f\u007f-\u009f@]+$";

/// An `avatar_url`, as far as a pattern can say it.
const HTTP: &str = r"^https?://[^\s\\\u0000-\u001f\u007f-\u009f]+$";

/// The grammar of RFC 5646 §2.1 without its grandfathered tags.
const LANGUAGE_TAG: &str = "^([A-Za-z]{2,3}(-[A-Za-z]{3}){0,3}|[A-Za-z]{4,8})(-[A-Za-z]{4})?(-([A-Za-z]{2}|[0-9]{3}))?\
                            (-([A-Za-z0-9]{5,8}|[0-9][A-Za-z0-9]{3}))*(-[0-9A-WYZa-wyz](-[A-Za-z0-9]{2,8})+)*\
                            (-[xX](-[A-Za-z0-9]{1,8})+)?$";

/// A profile as it is shown.
pub fn shown() -> ObjectBuilder {
    object("The profile of the token's user, made at first sight from the token's claims.")
        .always(
            "id",
            text(1..=UserId::MAX_CHARACTERS).description(Some("The token's `sub`.")),
        )
        .always(
            "email",
            email(string().max_length(Some(Email::MAX_CHARACTERS))),
        )
        .always("display_name", display_name())
        .always("bio", bio())
        .always(
            "avatar_url",
            avatar_url(string().max_length(Some(AvatarUrl::MAX_CHARACTERS))),
        )
        .always(
            "locale",
            locale(string().max_length(Some(Locale::MAX_CHARACTERS))),
        )
        .always("timezone", timezone())
        .always("preferences", named(PREFERENCES))
        .always(
            "created_at",
            time().description(Some("When the user was first seen.")),
        )
        .always(
            "updated_at",
            time().description(Some("When any of its fields was last written.")),
        )
        .always("sync_state", sync_state())
}

/// A whole profile as `PUT` takes it.
pub fn given() -> ObjectBuilder {
    closed_object(
        "A whole profile: what is left out is emptied. Fields that the server sets, and unknown ones, are refused.",
    )
    .property("email", given_email())
    .property("display_name", display_name().default(Some(json!(""))))
    .property("bio", bio().default(Some(json!(""))))
    .property("avatar_url", given_avatar_url())
    .property("locale", given_locale())
    .property("timezone", timezone())
    .property("preferences", named(PREFERENCES))
}

/// A merge patch of a profile.
pub fn patch() -> ObjectBuilder {
    closed_object(
        "A JSON Merge Patch (RFC 7396) of a profile: each field that is there is set, null empties it, and what is \
         left out stays as it is. `preferences` is one field, replaced whole.",
    )
    .property("email", given_email())
    .property("display_name", display_name().build().or_null())
    .property("bio", bio().build().or_null())
    .property("avatar_url", given_avatar_url())
    .property("locale", given_locale())
    .property("timezone", timezone())
    .property("preferences", preferences().build().or_null())
}

/// The client's own settings.
pub fn preferences() -> ObjectBuilder {
    object_of_any().description(Some(format!(
        "The client's own settings: any JSON object of up to {} bytes, written compactly. Holdfast keeps it and reads \
         nothing in it.",
        Preferences::MAX_BYTES
    )))
}

/// Any JSON value whose texts and names are without U+0000.
pub fn any_json() -> AnyOfBuilder {
    AnyOfBuilder::new()
        .description(Some("Any JSON value without the character U+0000."))
        .item(ObjectBuilder::new().schema_type(Type::Null))
        .item(boolean())
        .item(ObjectBuilder::new().schema_type(Type::Number))
        .item(string().pattern(Some(super::schema::TEXT)))
        .item(list(named(ANY_JSON)))
        .item(object_of_any())
}

/// The names of the time zones there are.
pub fn time_zones() -> Object {
    word(TimeZone::names())
        .description(Some("An IANA time zone, such as `Europe/Zurich`."))
        .build()
}

fn object_of_any() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .property_names(Some(string().pattern(Some(super::schema::TEXT))))
        .additional_properties(Some(AdditionalProperties::RefOr(named(ANY_JSON))))
}

fn given_email() -> Object {
    email(text(3..=Email::MAX_CHARACTERS).pattern(Some(EMAIL)))
}

fn email(text: ObjectBuilder) -> Object {
    text.description(Some("The e-mail address."))
        .build()
        .or_null()
}

fn display_name() -> ObjectBuilder {
    text(0..=DisplayName::MAX_CHARACTERS).description(Some("The name others see."))
}

fn bio() -> ObjectBuilder {
    text(0..=Bio::MAX_CHARACTERS).description(Some("A few words about oneself."))
}

fn given_avatar_url() -> Object {
    avatar_url(
        text(1..=AvatarUrl::MAX_CHARACTERS)
            .format(Some(SchemaFormat::Custom("iri".to_owned())))
            .pattern(Some(HTTP)),
    )
}

fn avatar_url(text: ObjectBuilder) -> Object {
    text.description(Some("Where the picture is: an `http` or `https` URL."))
        .build()
        .or_null()
}

fn given_locale() -> Object {
    locale(text(1..=Locale::MAX_CHARACTERS).pattern(Some(LANGUAGE_TAG)))
}

fn locale(text: ObjectBuilder) -> Object {
    text.description(Some("The language, as a BCP 47 tag such as `de-CH`."))
        .build()
        .or_null()
}

fn timezone() -> RefOr<Schema> {
    AnyOfBuilder::new()
        .description(Some("The time zone."))
        .item(named(TIME_ZONE))
        .item(ObjectBuilder::new().schema_type(Type::Null))
        .into()
}
