//! The few forms of JSON values that the contract is made of, as JSON Schema 2020-12, which OpenAPI 3.1 speaks.
//!
//! Lengths are in Unicode characters, here as in JSON Schema.

use std::ops::RangeInclusive;

use utoipa::openapi::schema::{
    AdditionalProperties, Array, ArrayBuilder, ArrayItems, KnownFormat, Object, ObjectBuilder,
    SchemaFormat, SchemaType, Type,
};
use utoipa::openapi::{Ref, RefOr, Schema};

/// Any text. U+0000 is refused everywhere, since PostgreSQL can't hold it.
pub const TEXT: &str = r"^[^\u0000]*$";

/// A text of so many characters.
pub fn text(lengths: RangeInclusive<usize>) -> ObjectBuilder {
    let least = Some(*lengths.start()).filter(|least| *least > 0);
    string()
        .min_length(least)
        .max_length(Some(*lengths.end()))
        .pattern(Some(TEXT))
}

/// White space as Unicode has it (property `White_Space`), and as it is taken away. `\s` of a regular expression leaves
/// U+0085 out and takes U+FEFF in.
const WHITE_SPACE: [RangeInclusive<char>; 10] = [
    '\t'..='\r',
    ' '..=' ',
    '\u{85}'..='\u{85}',
    '\u{a0}'..='\u{a0}',
    '\u{1680}'..='\u{1680}',
    '\u{2000}'..='\u{200a}',
    '\u{2028}'..='\u{2029}',
    '\u{202f}'..='\u{202f}',
    '\u{205f}'..='\u{205f}',
    '\u{3000}'..='\u{3000}',
];

/// A text of one to so many characters after the white space around it is taken away: more of that may be sent, so
/// only a pattern can say it.
pub fn trimmed_text(longest: usize) -> ObjectBuilder {
    let ranges = WHITE_SPACE.map(|range| {
        let (first, last) = (u32::from(*range.start()), u32::from(*range.end()));
        format!(r"\u{first:04x}-\u{last:04x}")
    });
    let (space, inner) = (ranges.concat(), longest - 2);
    let pattern =
        format!(r"^[{space}]*[^{space}\u0000]([^\u0000]{{0,{inner}}}[^{space}\u0000])?[{space}]*$");
    string().pattern(Some(pattern))
}

/// A string about which nothing more is said.
pub fn string() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

/// A whole number within these bounds.
pub fn whole_number(bounds: RangeInclusive<u64>) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(*bounds.start() as usize))
        .maximum(Some(*bounds.end() as usize))
}

/// A whole number that counts something.
pub fn count() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
        .minimum(Some(0))
}

/// `true` or `false`.
pub fn boolean() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Boolean)
}

/// One of these words.
pub fn word(words: impl IntoIterator<Item = &'static str>) -> ObjectBuilder {
    string().enum_values(Some(words))
}

/// A UUID.
pub fn uuid() -> ObjectBuilder {
    string().format(Some(SchemaFormat::Custom("uuid".to_owned())))
}

/// A point in time (RFC 3339).
pub fn time() -> ObjectBuilder {
    string().format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
}

/// An object without fields so far; more than it names may be added in later versions.
pub fn object(description: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some(description))
}

/// An object that takes no other fields than those it names.
pub fn closed_object(description: &str) -> ObjectBuilder {
    object(description).additional_properties(Some(AdditionalProperties::FreeForm(false)))
}

/// A list.
pub fn list(items: impl Into<RefOr<Schema>>) -> ArrayBuilder {
    ArrayBuilder::new().items(ArrayItems::RefOrSchema(Box::new(items.into())))
}

/// A schema named in the document's components.
pub fn named(name: &str) -> RefOr<Schema> {
    Ref::from_schema_name(name).into()
}

/// What may also be null.
pub trait Nullable {
    /// The same, or null.
    fn or_null(self) -> Self;
}

impl Nullable for Object {
    fn or_null(mut self) -> Self {
        self.schema_type = with_null(self.schema_type);
        if let Some(words) = &mut self.enum_values {
            words.push(serde_json::Value::Null);
        }
        self
    }
}

impl Nullable for Array {
    fn or_null(mut self) -> Self {
        self.schema_type = with_null(self.schema_type);
        self
    }
}

fn with_null(schema_type: SchemaType) -> SchemaType {
    match schema_type {
        SchemaType::Type(one) => SchemaType::from_iter([one, Type::Null]),
        other => other,
    }
}

/// An object's field that is always there.
pub trait Fields {
    /// Adds a field that is always there, or has to be.
    fn always(self, name: &str, schema: impl Into<RefOr<Schema>>) -> Self;
}

impl Fields for ObjectBuilder {
    fn always(self, name: &str, schema: impl Into<RefOr<Schema>>) -> Self {
        self.property(name, schema).required(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_is_what_is_taken_away() {
        for character in '\0'..=char::MAX {
            let is_listed = WHITE_SPACE.iter().any(|range| range.contains(&character));
            assert_eq!(is_listed, character.is_whitespace(), "{character:?}");
        }
    }
}
