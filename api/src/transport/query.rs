//! Query parameters: which tasks or operations a list asks for. A bad one is named in the problem; an unknown one is
//! refused, since a misspelt filter that is ignored shows too much.

use std::time::Duration;

use holdfast_shared::domain::task::Tags;
use holdfast_shared::domain::{
    Cursor, OperationId, OperationState, Priority, SortField, Status, TaskQuery, Timestamp,
};
use percent_encoding::percent_decode_str;

use super::cursor;
use super::document::parse_time;
use super::problem::Problem;

/// Most items of one page.
pub const MAX_LIMIT: usize = 200;

/// Items of a page when the client doesn't say.
pub const DEFAULT_LIMIT: usize = 50;

/// Longest `wait`, in seconds: below the time limit of a request.
pub const MAX_WAIT_SECONDS: u64 = 60;

/// Longest `q`, in characters. The stores compare it with every title and description of a user's.
pub const MAX_TEXT: usize = 1000;

/// Which operations a list asks for, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationQuery {
    /// In this state.
    pub state: Option<OperationState>,
    /// Older than this one.
    pub before: Option<OperationId>,
    /// Most operations to give: 1 to [`MAX_LIMIT`].
    pub limit: usize,
}

/// Parameters that nobody has asked for yet.
struct Parameters(Vec<(String, String)>);

/// Reads the parameters of a list of tasks.
///
/// # Errors
/// 400 naming the first bad one.
pub fn tasks(raw: &str) -> Result<TaskQuery, Problem> {
    let mut parameters = Parameters::parse(raw)?;
    let (sort, descending) = parameters
        .take("sort", parse_sort)?
        .unwrap_or((SortField::CreatedAt, true));
    let parse_cursor = |text: &str| -> Result<Cursor, String> {
        cursor::parse_task(text, sort, descending)
            .ok_or_else(|| "is not a cursor of this list in this order".to_owned())
    };
    let query = TaskQuery {
        status: parameters.take("status", told(Status::parse))?,
        priority: parameters.take("priority", parse_priority)?,
        tag: parameters.take("tag", told(Tags::parse_one))?,
        due_before: parameters.take("due_before", parse_query_time)?,
        due_after: parameters.take("due_after", parse_query_time)?,
        text: parameters
            .take("q", parse_text)?
            .filter(|text| !text.is_empty()),
        sort,
        descending,
        limit: parameters
            .take("limit", parse_limit)?
            .unwrap_or(DEFAULT_LIMIT),
        after: parameters.take("cursor", parse_cursor)?,
    };
    parameters.finish()?;
    Ok(query)
}

/// Reads the parameters of a list of operations.
///
/// # Errors
/// 400 naming the first bad one.
pub fn operations(raw: &str) -> Result<OperationQuery, Problem> {
    let mut parameters = Parameters::parse(raw)?;
    let query = OperationQuery {
        state: parameters.take("state", parse_state)?,
        before: parameters.take("cursor", |text| {
            cursor::parse_operation(text).ok_or_else(|| "is not a cursor of this list".to_owned())
        })?,
        limit: parameters
            .take("limit", parse_limit)?
            .unwrap_or(DEFAULT_LIMIT),
    };
    parameters.finish()?;
    Ok(query)
}

/// Reads how long to wait for an operation's end; no time at all when the client doesn't say.
///
/// # Errors
/// 400 naming the bad parameter.
pub fn wait(raw: &str) -> Result<Duration, Problem> {
    let mut parameters = Parameters::parse(raw)?;
    let wait = parameters.take("wait", parse_wait)?.unwrap_or_default();
    parameters.finish()?;
    Ok(wait)
}

impl Parameters {
    fn parse(raw: &str) -> Result<Self, Problem> {
        let mut parameters: Vec<(String, String)> = Vec::new();
        for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name).ok_or_else(|| {
                Problem::parameter("", "has a name that is not percent-encoded UTF-8")
            })?;
            let value = decode(value)
                .ok_or_else(|| Problem::parameter(&name, "must be percent-encoded UTF-8"))?;
            if value.contains('\0') {
                return Err(Problem::parameter(
                    &name,
                    "must not contain the character U+0000",
                ));
            }
            if parameters.iter().any(|(known, _)| *known == name) {
                return Err(Problem::parameter(&name, "must be given once"));
            }
            parameters.push((name, value));
        }
        Ok(Parameters(parameters))
    }

    fn take<T>(
        &mut self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Problem> {
        let Some(index) = self.0.iter().position(|(known, _)| known == name) else {
            return Ok(None);
        };
        let (_, value) = self.0.swap_remove(index);
        parse(&value)
            .map(Some)
            .map_err(|rule| Problem::parameter(name, &rule))
    }

    fn finish(self) -> Result<(), Problem> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(Problem::parameter(name, "is not known here")),
        }
    }
}

/// Percent-decodes, and reads `+` as the space that forms write so.
fn decode(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced)
        .decode_utf8()
        .ok()
        .map(|text| text.into_owned())
}

fn told<T, E: ToString>(parse: fn(&str) -> Result<T, E>) -> impl Fn(&str) -> Result<T, String> {
    move |text| parse(text).map_err(|violation| violation.to_string())
}

fn parse_sort(text: &str) -> Result<(SortField, bool), String> {
    let (word, descending) = match text.strip_prefix('-') {
        Some(word) => (word, true),
        None => (text, false),
    };
    let field = SortField::ALL.iter().find(|(_, known)| *known == word);
    match field {
        Some((field, _)) => Ok((*field, descending)),
        None => Err("must be one of created_at, updated_at, due_at, priority, with - before it for descending".to_owned()),
    }
}

fn parse_priority(text: &str) -> Result<Priority, String> {
    let number = text
        .parse()
        .map_err(|_| "must be a whole number from 1 to 5".to_owned())?;
    Priority::parse(number).map_err(|violation| violation.to_string())
}

/// The `+` of an offset that came in unencoded has become a space.
fn parse_query_time(text: &str) -> Result<Timestamp, String> {
    parse_time(text).or_else(|_| parse_time(&text.replace(' ', "+")))
}

fn parse_text(text: &str) -> Result<String, String> {
    match text.chars().count() {
        0..=MAX_TEXT => Ok(text.to_owned()),
        _ => Err(format!("must have at most {MAX_TEXT} characters")),
    }
}

fn parse_limit(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(limit @ 1..=MAX_LIMIT) => Ok(limit),
        _ => Err(format!("must be a whole number from 1 to {MAX_LIMIT}")),
    }
}

fn parse_state(text: &str) -> Result<OperationState, String> {
    OperationState::parse(text)
        .ok_or_else(|| "must be one of pending, applied, superseded, dead".to_owned())
}

fn parse_wait(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 0..=MAX_WAIT_SECONDS) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!(
            "must be a whole number of seconds from 0 to {MAX_WAIT_SECONDS}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::problem::Kind;
    use super::*;

    #[test]
    fn without_parameters_the_newest_50_are_meant() {
        assert_eq!(tasks("").expect("valid"), TaskQuery::default());
        assert_eq!(
            operations("").expect("valid"),
            OperationQuery {
                state: None,
                before: None,
                limit: 50
            }
        );
        assert_eq!(wait("").expect("valid"), Duration::ZERO);
    }

    #[test]
    fn every_parameter_of_a_task_list_is_read() {
        let raw = "status=in_progress&priority=2&tag=a%26b&due_before=2026-01-02T00:00:00Z\
                   &due_after=2026-01-01T00%3A00%3A00%2B01:00&q=milk+and%20bread&sort=due_at&limit=200";
        let query = tasks(raw).expect("valid");
        assert_eq!(query.status, Some(Status::InProgress));
        assert_eq!(query.priority.map(Priority::number), Some(2));
        assert_eq!(query.tag.as_deref(), Some("a&b"));
        assert_eq!(
            query.due_before.map(|time| time.to_string()).as_deref(),
            Some("2026-01-02T00:00:00Z")
        );
        assert_eq!(
            query.due_after.map(|time| time.to_string()).as_deref(),
            Some("2025-12-31T23:00:00Z")
        );
        assert_eq!(query.text.as_deref(), Some("milk and bread"));
        assert_eq!(
            (query.sort, query.descending, query.limit),
            (SortField::DueAt, false, 200)
        );
    }

    #[test]
    fn an_offset_whose_plus_was_not_encoded_is_understood() {
        let query = tasks("due_after=2026-01-01T00:00:00+01:00").expect("valid");
        assert_eq!(
            query.due_after.map(|time| time.to_string()).as_deref(),
            Some("2025-12-31T23:00:00Z")
        );
    }

    #[test]
    fn a_bad_parameter_is_400_and_named() {
        let table = [
            ("status=open", "status"),
            ("status=", "status"),
            ("priority=0", "priority"),
            ("priority=1.0", "priority"),
            ("tag=", "tag"),
            ("tag=%00", "tag"),
            ("due_before=tomorrow", "due_before"),
            ("due_after=2026-13-01T00:00:00Z", "due_after"),
            ("q=%00", "q"),
            ("q=%FF", "q"),
            ("sort=title", "sort"),
            ("sort=--due_at", "sort"),
            ("limit=0", "limit"),
            ("limit=201", "limit"),
            ("limit=-1", "limit"),
            ("limit=99999999999999999999", "limit"),
            ("cursor=", "cursor"),
            ("cursor=zzz", "cursor"),
            ("limit=1&limit=2", "limit"),
            ("colour=red", "colour"),
        ];
        for (raw, name) in table {
            let problem = tasks(raw).expect_err(raw);
            assert_eq!(problem.kind(), Kind::BadParameter, "{raw}");
            assert!(
                problem.detail().contains(&format!(" {name} ")),
                "{raw}: {}",
                problem.detail()
            );
        }
        for raw in ["state=open", "cursor=zzz", "limit=x", "wait=1"] {
            assert_eq!(
                operations(raw).expect_err(raw).kind(),
                Kind::BadParameter,
                "{raw}"
            );
        }
        for raw in ["wait=61", "wait=-1", "wait=1.5", "wait="] {
            assert_eq!(
                wait(raw).expect_err(raw).kind(),
                Kind::BadParameter,
                "{raw}"
            );
        }
    }

    #[test]
    fn a_cursor_belongs_to_its_order() {
        let place = Cursor {
            key: Some(7),
            id: holdfast_shared::domain::TaskId::generate(),
        };
        let text = cursor::of_task(SortField::Priority, true, &place);
        let query = tasks(&format!("sort=-priority&cursor={text}")).expect("valid");
        assert_eq!(query.after, Some(place));
        assert!(tasks(&format!("sort=priority&cursor={text}")).is_err());
        assert!(tasks(&format!("cursor={text}")).is_err());
    }
}
