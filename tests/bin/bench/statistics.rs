//! Medians, quantiles, and how sure one can be of a ratio.
//!
//! Two shared cores move by a factor of ten between minutes and by tens of percent between seconds. What is compared
//! is therefore measured in short slices right after each other, in a shuffled order, many times over; a ratio is the
//! median of the ratios within the rounds, and beside it stands what resampling the rounds gives.

use serde::Serialize;

/// Resamplings for an interval: enough that its ends move by less than a percent.
const RESAMPLES: usize = 4_000;

/// A small random generator (SplitMix64, Steele et al. 2014), so that an order of slices can be had again by its seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// A number below `bound`, which must not be zero.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let scaled = (u128::from(mixed) * bound as u128) >> 64;
        usize::try_from(scaled).expect("below a usize")
    }

    /// Puts the items in a random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// A ratio measured several times.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// Of the rounds' ratios.
    pub median: f64,
    /// Lower end of the 95 % interval of that median, by resampling the rounds.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// How many rounds there were.
    pub rounds: usize,
}

impl Ratio {
    /// The ratio of two series measured in the same rounds; `None` without a round in which both have a value.
    pub fn of(measured: &[f64], against: &[f64], random: &mut Random) -> Option<Self> {
        let ratios: Vec<f64> = measured
            .iter()
            .zip(against)
            .filter(|(_, against)| **against > 0.0)
            .map(|(measured, against)| measured / against)
            .collect();
        let middle = median(&ratios)?;
        let mut medians: Vec<f64> = (0..RESAMPLES)
            .filter_map(|_| median(&resample(&ratios, random)))
            .collect();
        medians.sort_by(f64::total_cmp);
        Some(Ratio {
            median: middle,
            low: quantile(&medians, 0.025)?,
            high: quantile(&medians, 0.975)?,
            rounds: ratios.len(),
        })
    }
}

fn resample(values: &[f64], random: &mut Random) -> Vec<f64> {
    values
        .iter()
        .map(|_| values[random.below(values.len())])
        .collect()
}

/// The middle value; `None` of none.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile(&sorted, 0.5)
}

/// The value below which this share (0 to 1) of the sorted values lies, between its two neighbours in proportion.
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    #[expect(
        clippy::cast_precision_loss,
        reason = "there are fewer than 2^52 samples"
    )]
    let position = share.clamp(0.0, 1.0) * last as f64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and the last index"
    )]
    let below = position.floor() as usize;
    let above = (below + 1).min(last);
    Some(sorted[below] + (sorted[above] - sorted[below]) * position.fract())
}

/// Half of the answers, 99 % of them, and all of them took at most this long, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// The median.
    pub p50_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
    /// The slowest.
    pub max_ms: f64,
}

impl Latency {
    /// The time, in milliseconds, that this share (0 to 1) of samples in microseconds took at most; `None` of none.
    pub fn at(samples_us: &[u32], share: f64) -> Option<f64> {
        let mut sorted_ms: Vec<f64> = samples_us
            .iter()
            .map(|us| f64::from(*us) / 1000.0)
            .collect();
        sorted_ms.sort_by(f64::total_cmp);
        quantile(&sorted_ms, share)
    }

    /// Of samples in microseconds; `None` of none.
    pub fn of(samples_us: &[u32]) -> Option<Self> {
        let mut sorted_ms: Vec<f64> = samples_us
            .iter()
            .map(|us| f64::from(*us) / 1000.0)
            .collect();
        sorted_ms.sort_by(f64::total_cmp);
        Some(Latency {
            p50_ms: quantile(&sorted_ms, 0.5)?,
            p99_ms: quantile(&sorted_ms, 0.99)?,
            max_ms: *sorted_ms.last()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        let sorted = [1.0, 2.0, 4.0];
        assert_eq!(quantile(&sorted, 0.5), Some(2.0));
        assert_eq!(quantile(&sorted, 0.75), Some(3.0));
        assert_eq!(quantile(&sorted, 1.0), Some(4.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_ratio_is_within_its_interval() {
        let against: Vec<f64> = (1..=30).map(f64::from).collect();
        let measured: Vec<f64> = against
            .iter()
            .enumerate()
            .map(|(at, value)| value * if at % 2 == 0 { 0.9 } else { 1.1 })
            .collect();
        let ratio = Ratio::of(&measured, &against, &mut Random::new(1)).expect("thirty rounds");
        assert!(
            ratio.low <= ratio.median && ratio.median <= ratio.high,
            "{ratio:?}"
        );
        assert!(ratio.low >= 0.89 && ratio.high <= 1.11, "{ratio:?}");
    }

    #[test]
    fn a_shuffle_keeps_all_and_a_seed_repeats_it() {
        let shuffled = |seed| {
            let mut items: Vec<u32> = (0..100).collect();
            Random::new(seed).shuffle(&mut items);
            items
        };
        assert_eq!(shuffled(7), shuffled(7));
        assert_ne!(shuffled(7), shuffled(8));
        let mut sorted = shuffled(7);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<u32>>());
    }
}
