//! Reading the settings again while running: what changed, and what of it can take effect.

use holdfast_shared::config::{Config, Setting};

/// Settings that take effect at once. The others are built into what is already running.
const RELOADABLE: [&str; 4] = [
    "SYNC_INTERVAL_SECONDS",
    "SYNC_BATCH_SIZE",
    "SYNC_BATCH_MAX",
    "MAX_RETRY_ATTEMPTS",
];

/// What a reload changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Variables that take effect now.
    pub applied: Vec<&'static str>,
    /// Variables that need a restart.
    pub postponed: Vec<&'static str>,
}

/// Compares what is in force with what was read. A secret that changed can't be seen here, since values are listed
/// without secrets; it needs a restart like all the others.
pub fn compare(in_force: &Config, read: &Config) -> Changes {
    let mut changes = Changes::default();
    for setting in read.settings() {
        if !is_changed(in_force, setting) {
            continue;
        }
        if RELOADABLE.contains(&setting.variable) {
            changes.applied.push(setting.variable);
        } else {
            changes.postponed.push(setting.variable);
        }
    }
    changes
}

fn is_changed(in_force: &Config, setting: &Setting) -> bool {
    let before = in_force
        .settings()
        .iter()
        .find(|before| before.variable == setting.variable);
    before.is_none_or(|before| before.value != setting.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> Config {
        let pairs = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::from_pairs(pairs).expect("valid settings")
    }

    #[test]
    fn what_changed_is_told_apart_by_whether_it_takes_effect() {
        let before = config(&[("SYNC_BATCH_SIZE", "50")]);
        let after = config(&[
            ("SYNC_BATCH_SIZE", "60"),
            ("BUFFER_MAX_SIZE", "7"),
            ("SYNC_INTERVAL_SECONDS", "30"),
        ]);
        let changes = compare(&before, &after);
        assert_eq!(changes.applied, ["SYNC_BATCH_SIZE"]);
        assert_eq!(changes.postponed, ["BUFFER_MAX_SIZE"]);
    }

    #[test]
    fn every_reloadable_setting_is_one() {
        let names: Vec<&str> = holdfast_shared::config::variables()
            .iter()
            .map(|variable| variable.name)
            .collect();
        assert!(RELOADABLE.iter().all(|name| names.contains(name)));
    }
}
