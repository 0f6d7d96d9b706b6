//! Commands, each with the hash slot of its key, so that a cluster's can be sent to the node that has it.

use crc::{CRC_16_XMODEM, Crc};
use deadpool_redis::redis::{Cmd, Pipeline, cmd};

/// Hash slots of a cluster.
pub(super) const SLOT_COUNT: u16 = 16_384;

static SLOT_HASH: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);

/// Commands to be carried out: those of one key in their order, none of them together with another.
#[derive(Default)]
pub(super) struct Commands(Vec<Command>);

/// A command on one key, or on several of one slot.
pub(super) struct Command {
    pub(super) slot: u16,
    pub(super) cmd: Cmd,
}

impl Commands {
    /// Adds a command on a key, to which arguments may be added.
    pub(super) fn on(&mut self, key: &str, name: &str) -> &mut Cmd {
        let mut cmd = cmd(name);
        cmd.arg(key);
        self.push(slot(key), cmd)
    }

    /// Adds a script on keys that must be of one slot.
    pub(super) fn script(&mut self, script: &str, keys: [&str; 2]) -> &mut Cmd {
        debug_assert_eq!(slot(keys[0]), slot(keys[1]), "a cluster would refuse it");
        let mut cmd = cmd("EVAL");
        cmd.arg(script).arg(keys.len()).arg(&keys);
        self.push(slot(keys[0]), cmd)
    }

    fn push(&mut self, slot: u16, cmd: Cmd) -> &mut Cmd {
        self.0.push(Command { slot, cmd });
        let last = self.0.last_mut().expect("just pushed");
        &mut last.cmd
    }

    pub(super) fn as_slice(&self) -> &[Command] {
        &self.0
    }

    /// All of them, for one server. Their errors are among the answers.
    pub(super) fn into_pipeline(self) -> Pipeline {
        let mut pipeline = Pipeline::with_capacity(self.0.len());
        for command in self.0 {
            pipeline.add_command(command.cmd);
        }
        pipeline.ignore_errors();
        pipeline
    }
}

/// The slot of a key: of what stands between its first brace and the next closing one, if anything does.
pub(super) fn slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| {
        let (tag, _) = rest.split_once('}')?;
        Some(tag).filter(|tag| !tag.is_empty())
    });
    SLOT_HASH.checksum(tag.unwrap_or(key).as_bytes()) % SLOT_COUNT
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `CLUSTER KEYSLOT` of Redis 7.0 says.
    #[test]
    fn slots_are_those_of_redis() {
        for (key, expected) in [
            ("123456789", 12_739),
            ("foo", 12_182),
            ("{foo}:bar", 12_182),
            ("bar{foo}{zap}", 12_182),
            ("foo{{bar}}zap", 4_015),
            ("foo{}{bar}", 8_363),
            ("{", 4_092),
            ("revocations", 10_721),
        ] {
            assert_eq!(slot(key), expected, "{key}");
        }
        assert_eq!(slot("revocations"), slot("{revocations}:expiry"));
    }
}
