//! Reading a JSON body field by field, so that *every* fault of it is told at once, each with a pointer to its place.
//!
//! serde's derive stops at the first fault and says where only in words, so the document is walked here.

use std::fmt;

use chrono::{DateTime, Datelike};
use holdfast_shared::domain::{Register, Stamp, Timestamp, Violation};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;

use super::json::Plain;
use super::problem::{Fault, Kind, Problem};

/// What reading a value gives: the value, or its faults with pointers relative to it.
pub type Reading<T> = Result<T, Vec<Fault>>;

/// A JSON object being read: members that nobody has asked for yet, and what was wrong so far.
#[derive(Debug)]
pub struct Document {
    members: Vec<(String, Value)>,
    read_only: &'static [&'static str],
    faults: Vec<Fault>,
}

/// What a document says of a member.
enum Given<T> {
    Absent,
    Null,
    Value(T),
    /// Something that is no such value; the fault is recorded.
    Faulty,
}

/// The members of an object in their order, repeats included.
struct Members(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;
        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some((name, Plain(value))) = map.next_entry()? {
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(MembersVisitor)
    }
}

impl Document {
    /// Parses a body. `read_only` names the fields of the resource that a client can't give.
    ///
    /// # Errors
    /// 400 when it isn't JSON, 422 when it is JSON but not an object.
    pub fn parse(body: &[u8], read_only: &'static [&'static str]) -> Result<Self, Problem> {
        let Members(all) = parse_members(body)?;
        let mut document = Document {
            members: Vec::with_capacity(all.len()),
            read_only,
            faults: Vec::new(),
        };
        let mut seen = std::collections::HashSet::new();
        for (name, value) in all {
            if seen.insert(name.clone()) {
                document.members.push((name, value));
            } else {
                document.fault(&name, "must be given once");
            }
        }
        Ok(document)
    }

    /// Whether it has no members at all.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.faults.is_empty()
    }

    /// A field that has to be there; `None` after a fault.
    pub fn required<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&Value) -> Reading<T>,
    ) -> Option<T> {
        match self.take(name, read) {
            Given::Value(value) => Some(value),
            Given::Absent => self.refuse(name, "is required"),
            Given::Null => self.refuse(name, "must not be null"),
            Given::Faulty => None,
        }
    }

    /// A field with a default, which it takes when it is absent or faulty; null is a fault.
    pub fn optional<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&Value) -> Reading<T>,
        default: T,
    ) -> T {
        match self.take(name, read) {
            Given::Value(value) => value,
            Given::Absent | Given::Faulty => default,
            Given::Null => self.refuse(name, "must not be null").unwrap_or(default),
        }
    }

    /// A field that may be null, which is also its default.
    pub fn nullable<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&Value) -> Reading<T>,
    ) -> Option<T> {
        match self.take(name, read) {
            Given::Value(value) => Some(value),
            Given::Absent | Given::Null | Given::Faulty => None,
        }
    }

    /// What a merge patch (RFC 7396) sets a field to: `None` when it doesn't mention it, the default for null. The
    /// register is not stamped yet.
    pub fn change<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&Value) -> Reading<T>,
        default: T,
    ) -> Option<Register<T>> {
        match self.take(name, read) {
            Given::Value(value) => Some(Register::new(value, Stamp::ZERO)),
            Given::Null => Some(Register::new(default, Stamp::ZERO)),
            Given::Absent | Given::Faulty => None,
        }
    }

    /// As [`Document::change`], of a field that has no default, so that null is a fault.
    pub fn change_required<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&Value) -> Reading<T>,
    ) -> Option<Register<T>> {
        match self.take(name, read) {
            Given::Value(value) => Some(Register::new(value, Stamp::ZERO)),
            Given::Null => self.refuse(name, "can't be removed"),
            Given::Absent | Given::Faulty => None,
        }
    }

    /// Ends the reading: what nobody asked for is a fault.
    ///
    /// # Errors
    /// 422 with all faults.
    pub fn finish(mut self) -> Result<(), Problem> {
        for (name, _) in std::mem::take(&mut self.members) {
            let is_known = self.read_only.contains(&name.as_str());
            self.fault(
                &name,
                if is_known {
                    "is set by the server"
                } else {
                    "is not a field of this resource"
                },
            );
        }
        if self.faults.is_empty() {
            Ok(())
        } else {
            Err(Problem::invalid(self.faults))
        }
    }

    fn take<T>(&mut self, name: &str, read: impl FnOnce(&Value) -> Reading<T>) -> Given<T> {
        let Some(index) = self.members.iter().position(|(known, _)| known == name) else {
            return Given::Absent;
        };
        let (_, value) = self.members.swap_remove(index);
        if value.is_null() {
            return Given::Null;
        }
        match read(&value) {
            Ok(value) => Given::Value(value),
            Err(faults) => {
                let within = |fault: Fault| {
                    Fault::new(format!("/{}{}", escape(name), fault.pointer), fault.detail)
                };
                self.faults.extend(faults.into_iter().map(within));
                Given::Faulty
            }
        }
    }

    fn fault(&mut self, name: &str, detail: &str) {
        self.faults
            .push(Fault::new(format!("/{}", escape(name)), detail));
    }

    fn refuse<T>(&mut self, name: &str, detail: &str) -> Option<T> {
        self.fault(name, detail);
        None
    }
}

fn parse_members(body: &[u8]) -> Result<Members, Problem> {
    let error = match serde_json::from_slice(body) {
        Ok(members) => return Ok(members),
        Err(error) => error,
    };
    // What isn't an object may still be broken JSON further on.
    let is_json =
        error.classify() == Category::Data && serde_json::from_slice::<IgnoredAny>(body).is_ok();
    if is_json {
        return Err(Problem::invalid(vec![Fault::new("", "must be an object")]));
    }
    let detail = match (body.is_empty(), error.line(), error.column()) {
        (true, ..) => "the body is empty; it must be JSON".to_owned(),
        (false, line, column) => {
            format!("the body is not valid JSON near line {line}, column {column}")
        }
    };
    Err(Problem::new(Kind::MalformedJson, detail))
}

/// A name as one step of a JSON Pointer (RFC 6901 §3).
fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn refused<T>(detail: impl Into<String>) -> Reading<T> {
    Err(vec![Fault::new("", detail)])
}

/// Reads a string by a rule of the domain.
pub fn text<T>(parse: fn(&str) -> Result<T, Violation>) -> impl Fn(&Value) -> Reading<T> {
    move |value| match value.as_str() {
        Some(text) => parse(text).or_else(|violation| refused(violation.to_string())),
        None => refused("must be a string"),
    }
}

/// Reads what may also be null, for a merge patch.
pub fn some<T>(read: impl Fn(&Value) -> Reading<T>) -> impl Fn(&Value) -> Reading<Option<T>> {
    move |value| read(value).map(Some)
}

/// Reads a whole number by a rule of the domain. `3.0` is one, as JSON knows only one kind of number.
pub fn whole_number<T>(parse: fn(i64) -> Result<T, Violation>) -> impl Fn(&Value) -> Reading<T> {
    move |value| match as_whole(value) {
        Some(number) => parse(number).or_else(|violation| refused(violation.to_string())),
        None => refused("must be a whole number"),
    }
}

fn as_whole(value: &Value) -> Option<i64> {
    /// Up to here every whole number is a float of its own.
    const MAX_EXACT: f64 = 9_007_199_254_740_992.0;
    if let Some(number) = value.as_i64() {
        return Some(number);
    }
    let number = value.as_f64()?;
    (number.fract() == 0.0 && number.abs() <= MAX_EXACT).then_some(number as i64)
}

/// Reads a list of strings, each by a rule of the domain; faults point at the items.
pub fn texts<T>(parse: fn(&str) -> Result<T, Violation>) -> impl Fn(&Value) -> Reading<Vec<T>> {
    move |value| {
        let Some(items) = value.as_array() else {
            return refused("must be a list of strings");
        };
        let (mut read, mut faults) = (Vec::with_capacity(items.len()), Vec::new());
        for (index, item) in items.iter().enumerate() {
            match text(parse)(item) {
                Ok(item) => read.push(item),
                Err(own) => faults.extend(
                    own.into_iter()
                        .map(|fault| Fault::new(format!("/{index}"), fault.detail)),
                ),
            }
        }
        if faults.is_empty() {
            Ok(read)
        } else {
            Err(faults)
        }
    }
}

/// Reads a point in time.
pub fn time(value: &Value) -> Reading<Timestamp> {
    match value.as_str() {
        Some(text) => parse_time(text).or_else(refused),
        None => refused("must be a string with an RFC 3339 time"),
    }
}

/// Parses an RFC 3339 time of any offset, in the years that RFC 3339 can write.
///
/// # Errors
/// The broken rule, as the end of a sentence.
pub fn parse_time(text: &str) -> Result<Timestamp, String> {
    let time = DateTime::parse_from_rfc3339(text).map(|time| time.to_utc());
    match time {
        Ok(time) if (0..=9999).contains(&time.year()) => Ok(Timestamp::from(time)),
        _ => Err("must be an RFC 3339 time, such as 2026-01-31T18:00:00Z".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointers(problem: &Problem) -> Vec<&str> {
        problem
            .faults()
            .iter()
            .map(|fault| fault.pointer.as_str())
            .collect()
    }

    #[test]
    fn malformed_json_is_400_and_other_json_than_an_object_422() {
        for body in [
            "",
            "{",
            "{\"a\":}",
            "[1,",
            "nul",
            "{} {}",
            "\"\\ud800\"",
            "{\"a\":\"\\ud800\"}",
            "\u{feff}{}",
        ] {
            let problem = Document::parse(body.as_bytes(), &[]).expect_err(body);
            assert_eq!(problem.kind(), Kind::MalformedJson, "{body}");
        }
        assert_eq!(
            Document::parse(b"{\"a\":\"\xff\"}", &[])
                .expect_err("not UTF-8")
                .kind(),
            Kind::MalformedJson
        );
        for body in ["[]", "null", "1", "\"x\"", "[{}]", "true"] {
            let problem = Document::parse(body.as_bytes(), &[]).expect_err(body);
            assert_eq!(problem.kind(), Kind::InvalidFields, "{body}");
            assert_eq!(pointers(&problem), [""], "{body}");
        }
    }

    #[test]
    fn nesting_without_end_is_400() {
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
        assert_eq!(
            Document::parse(deep.as_bytes(), &[])
                .expect_err("too deep")
                .kind(),
            Kind::MalformedJson
        );
    }

    #[test]
    fn all_faults_are_told_each_with_its_pointer() {
        let body =
            br#"{"n":"x","list":["a",1,""],"a/b~c":1,"id":"x","dup":1,"dup":2,"when":"now"}"#;
        let mut document = Document::parse(body, &["id"]).expect("an object");
        let rule: fn(&str) -> Result<(), Violation> = |text| {
            if text.is_empty() {
                Err(Violation("must not be empty".to_owned()))
            } else {
                Ok(())
            }
        };
        assert_eq!(document.required("missing", text(rule)), None);
        assert_eq!(document.required("n", whole_number(|_| Ok(()))), None);
        document.nullable("list", texts(rule));
        document.nullable("when", time);
        document.nullable("dup", |_| Ok(()));
        let problem = document.finish().expect_err("faulty");
        let mut found = pointers(&problem);
        found.sort_unstable();
        assert_eq!(
            found,
            [
                "/a~1b~0c", "/dup", "/id", "/list/1", "/list/2", "/missing", "/n", "/when"
            ]
        );
    }

    #[test]
    fn null_is_a_fault_but_where_it_means_something() {
        let mut document =
            Document::parse(br#"{"a":null,"b":null,"c":null,"d":null,"e":null}"#, &[])
                .expect("an object");
        document.required("a", |_| Ok(()));
        document.optional("b", |_| Ok(()), ());
        assert_eq!(document.nullable("c", |_| Ok(1)), None);
        assert_eq!(
            document
                .change("d", |_| Ok(1), 7)
                .map(|register| register.value),
            Some(7)
        );
        assert_eq!(document.change_required("e", |_| Ok(1)), None);
        let problem = document.finish().expect_err("faulty");
        assert_eq!(pointers(&problem), ["/a", "/b", "/e"]);
    }

    #[test]
    fn whole_numbers_may_be_written_with_a_point() {
        let read = |text: &str| whole_number(Ok)(&serde_json::from_str(text).expect("JSON"));
        assert_eq!(read("3"), Ok(3));
        assert_eq!(read("3.0"), Ok(3));
        for bad in [
            "3.5",
            "1e300",
            "\"3\"",
            "true",
            "18446744073709551615",
            "[]",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_rfc_3339_and_nothing_else() {
        assert_eq!(
            parse_time("2026-01-31T18:00:00.123456789+02:00")
                .expect("valid")
                .to_string(),
            "2026-01-31T16:00:00.123456Z"
        );
        for bad in [
            "",
            "2026-01-31",
            "2026-01-31T18:00:00",
            "0",
            "9999-12-31T23:59:59-01:00",
            "2026-02-30T00:00:00Z",
        ] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
