//! When the power goes: at random, and again the same with the same seed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// From the first answers of a process to hundreds of commits.
const LATEST_MS: u64 = 900;

/// The moments of a run.
#[derive(Debug)]
pub struct Moments {
    seed: u64,
}

impl Moments {
    /// Those of `HOLDFAST_POWER_SEED`, else new ones.
    ///
    /// # Errors
    /// When the variable isn't a number.
    pub fn from_environment() -> Result<Self> {
        let seed = match std::env::var("HOLDFAST_POWER_SEED") {
            Ok(number) => number.parse().context("HOLDFAST_POWER_SEED is no number")?,
            Err(_) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                now.context("the clock is before 1970")?.as_secs()
            }
        };
        Ok(Self { seed })
    }

    /// How long after its clients began to write a cut comes.
    pub fn of_cut(&self, number: usize) -> Duration {
        Duration::from_millis(mixed(self.seed.wrapping_add(number as u64)) % LATEST_MS)
    }

    /// The words by which a run is repeated.
    pub fn seed_words(&self) -> String {
        format!("HOLDFAST_POWER_SEED={}", self.seed)
    }
}

/// SplitMix64's mixing function (Steele, Lea, Flood 2014): neighbouring numbers
/// come out unrelated.
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}
