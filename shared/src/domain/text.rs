//! Checks that every text shares, and how a broken rule is told.

use thiserror::Error;

/// A value that breaks a rule of the contract; the text says which rule, for the client.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Violation(pub String);

impl Violation {
    pub(super) fn new(detail: impl Into<String>) -> Self {
        Violation(detail.into())
    }
}

/// Accepts a text of `min..=max` Unicode characters without U+0000, which PostgreSQL can't store.
///
/// # Errors
/// A [`Violation`] naming the rule.
pub(super) fn check_text(text: &str, min: usize, max: usize) -> Result<(), Violation> {
    if text.contains('\0') {
        return Err(Violation::new("must not contain the character U+0000"));
    }
    let length = text.chars().count();
    if length < min && min == 1 {
        return Err(Violation::new("must not be empty"));
    }
    if length > max {
        return Err(Violation::new(format!(
            "must have at most {max} characters, has {length}"
        )));
    }
    Ok(())
}
