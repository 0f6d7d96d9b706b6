//! Which records are wanted. `EnvFilter` takes a misspelt level for the name of a target and then shows nothing at
//! all, so that is caught here.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Reads directives such as `info` or `info,holdfast_shared=debug`. The error says what is wrong, to follow the
/// quoted text.
pub(crate) fn parse_directives(text: &str) -> Result<EnvFilter, String> {
    if let Some(word) = text
        .split(',')
        .map(str::trim)
        .find(|part| is_misspelt_level(part))
    {
        return Err(format!("has the unknown level {word:?}"));
    }
    EnvFilter::builder()
        .parse(text)
        .map_err(|_| "is not a list of log directives".to_owned())
}

/// A bare word that isn't a level: legal to `EnvFilter`, which would log everything of a target by that name, and
/// nothing else.
fn is_misspelt_level(part: &str) -> bool {
    let is_word = part
        .chars()
        .all(|c| c.is_alphanumeric() || matches!(c, '_' | ':' | '-'));
    is_word && part.parse::<LevelFilter>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives_are_read() {
        for text in [
            "info",
            "WARN",
            "off",
            "info,holdfast_shared=debug",
            "warn,[request{id=7}]=trace",
        ] {
            assert!(parse_directives(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn misspelt_levels_are_refused() {
        for text in ["inof", "info,debgu", "holdfast=loud", "="] {
            assert!(parse_directives(text).is_err(), "{text}");
        }
    }
}
