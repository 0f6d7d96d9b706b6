//! Turning the text of a variable into what it means. A bad value is noted as a fault and replaced by a
//! placeholder, so that reading goes on and finds the other faults; the placeholder never gets out.

use secrecy::SecretString;

use super::fault::{Fault, quoted};
use super::source::{Found, Resolved, Source};
use super::variable::{Kind, Variable, variables};

/// What was found, and the faults so far.
pub(super) struct Values {
    resolved: Resolved,
}

impl Values {
    pub(super) fn new(resolved: Resolved) -> Values {
        Values { resolved }
    }

    /// Whether something was set, be it readable or not.
    pub(super) fn is_set(&self, variable: &Variable) -> bool {
        self.resolved.found.contains_key(variable.name)
            || self.resolved.broken.contains(variable.name)
    }

    /// What was set; `None` when only the default holds.
    pub(super) fn found(&self, variable: &Variable) -> Option<&Found> {
        self.resolved.found.get(variable.name)
    }

    /// The value or the default.
    pub(super) fn text(&self, variable: &Variable) -> Option<String> {
        let found = self.found(variable).map(|found| found.value.as_str());
        found.or(variable.default).map(str::to_owned)
    }

    /// The value of a secret.
    pub(super) fn secret(&self, variable: &Variable) -> Option<SecretString> {
        self.found(variable)
            .map(|found| SecretString::from(found.value.clone()))
    }

    /// The value or the default as a number within the declared bounds.
    pub(super) fn number<T: TryFrom<u64> + Default>(&mut self, variable: &Variable) -> T {
        let text = self.text(variable).unwrap_or_default();
        match bounded_number(variable.kind, &text) {
            Ok(number) => number,
            Err(problem) => {
                self.refuse(
                    variable,
                    &problem,
                    &format!("write a whole number, {}", variable.accepts()),
                );
                T::default()
            }
        }
    }

    /// The value or the default as one of the declared words, whatever its case.
    pub(super) fn choice<T: Default>(
        &mut self,
        variable: &Variable,
        parse: fn(&str) -> Option<T>,
    ) -> T {
        let text = self.text(variable).unwrap_or_default();
        let word = text.to_ascii_lowercase();
        let declared =
            matches!(variable.kind, Kind::Choice(words) if words.contains(&word.as_str()));
        if let Some(choice) = parse(&word).filter(|_| declared) {
            return choice;
        }
        let problem = format!("{} is not a value it takes", quoted(&text));
        self.refuse(
            variable,
            &problem,
            &format!("write one of {}", variable.accepts()),
        );
        T::default()
    }

    /// Notes a fault of a variable's value.
    pub(super) fn refuse(&mut self, variable: &Variable, problem: &str, remedy: &str) {
        let fault = Fault::new(variable.name, problem, remedy);
        let source = self.found(variable).map(|found| found.source.clone());
        self.resolved.faults.push(match source {
            Some(source) => fault.found_in(&source),
            None => fault,
        });
    }

    /// Every variable in order, for [`Setting`](super::Setting)s.
    pub(super) fn each(&self) -> impl Iterator<Item = (&'static Variable, Option<&Found>)> {
        variables()
            .iter()
            .map(|variable| (variable, self.found(variable)))
    }

    /// Where a variable's value came from.
    pub(super) fn source(found: Option<&Found>) -> Source {
        found.map_or(Source::Default, |found| found.source.clone())
    }

    /// All faults noted.
    pub(super) fn into_faults(self) -> Vec<Fault> {
        self.resolved.faults
    }
}

fn bounded_number<T: TryFrom<u64>>(kind: Kind, text: &str) -> Result<T, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits {
        return Err(format!("{} is not a whole number", quoted(text)));
    }
    let Kind::Number { min, max } = kind else {
        return Err("is not declared as a number".to_owned());
    };
    let number = text
        .parse()
        .ok()
        .filter(|number| (min..=max).contains(number));
    number
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| format!("{} is out of range", quoted(text)))
}
