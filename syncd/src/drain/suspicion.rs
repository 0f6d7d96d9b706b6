//! Whose fault it is when items fail and nothing succeeds: theirs, or the store's.
//!
//! A refused item normally uses up one of its tries. But after a bad deployment *every* item is refused, and counting
//! those tries would bury a million good items. So while nothing has succeeded since the first of a series of
//! failures, the failed items are only suspects: left queued, skipped, and not counted. One success anywhere proves
//! the store sound, though perhaps only since that moment: so the suspects are tried once more, and those that fail
//! again are guilty. [`MOST_SUSPECTS`] different resources without a success, and then one
//! more batch of others without one either, prove the store unsound, and nobody is counted.

use std::collections::HashSet;

use holdfast_shared::domain::ResourceKey;

/// So many different resources failing in a row, with nothing succeeding, are not all poisoned by chance.
pub const MOST_SUSPECTS: usize = 20;

/// Most resources remembered as tried in vain; beyond it the search for a sound item begins anew at the front.
const MOST_DOUBTED: usize = 10_000;

/// What follows from a batch in which nothing succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ruling<T> {
    /// Too few failures to tell: go on with others.
    Undecided,
    /// Many failures: judge one small batch of others before deciding.
    SecondOpinion,
    /// The store is unsound. The suspects have been acquitted; this was the last of them.
    Systemic(Option<T>),
}

/// What follows when there is nothing else to try.
#[derive(Debug, PartialEq, Eq)]
pub enum Conclusion<T> {
    /// These failed by their own fault: count it. May be empty.
    Guilty(Vec<T>),
    /// Only doubted ones are left: they are no longer left out.
    LookAgain,
    /// The store is unsound. The suspects have been acquitted; this was the last of them.
    Systemic(Option<T>),
}

/// The suspects of one lane; `T` is whatever is needed to count a failure later.
#[derive(Debug)]
pub struct Suspicion<T> {
    suspects: Vec<(ResourceKey, T)>,
    /// Tried in vain in earlier cycles that ended as systemic: others are tried before them.
    doubted: HashSet<ResourceKey>,
    /// Suspected or doubted until something succeeded in this cycle: if they fail once more, it is their own fault.
    accused: HashSet<ResourceKey>,
    convicted: Vec<T>,
    second_opinion: bool,
}

impl<T> Default for Suspicion<T> {
    fn default() -> Self {
        Suspicion {
            suspects: Vec::new(),
            doubted: HashSet::new(),
            accused: HashSet::new(),
            convicted: Vec::new(),
            second_opinion: false,
        }
    }
}

impl<T> Suspicion<T> {
    /// Notes that an item of this resource was refused.
    pub fn suspect(&mut self, resource: ResourceKey, failure: T) {
        if self.accused.remove(&resource) {
            self.convicted.push(failure);
        } else {
            self.suspects.push((resource, failure));
        }
    }

    /// Whether nothing is suspected, and nothing has to be looked at again.
    pub fn is_calm(&self) -> bool {
        self.suspects.is_empty() && self.doubted.is_empty() && self.accused.is_empty()
    }

    /// Whether the next batch is the one that decides, and so should be small.
    pub fn wants_second_opinion(&self) -> bool {
        self.second_opinion
    }

    /// Something succeeded: all suspects, and the doubted ones, get their last chance.
    pub fn accuse(&mut self) {
        self.second_opinion = false;
        self.accused.extend(self.doubted.drain());
        self.accused
            .extend(self.suspects.drain(..).map(|(resource, _)| resource));
    }

    /// Something of this resource succeeded.
    pub fn exonerate(&mut self, resource: &ResourceKey) {
        if !self.accused.is_empty() {
            self.accused.remove(resource);
        }
    }

    /// The guilty since this was last asked.
    pub fn take_convicted(&mut self) -> Vec<T> {
        std::mem::take(&mut self.convicted)
    }

    /// Judges after a batch in which nothing succeeded.
    pub fn after_failed_batch(&mut self) -> Ruling<T> {
        if self.suspects.len() < MOST_SUSPECTS {
            return Ruling::Undecided;
        }
        if !self.second_opinion {
            self.second_opinion = true;
            return Ruling::SecondOpinion;
        }
        if self.doubted.len() + self.suspects.len() > MOST_DOUBTED {
            self.doubted.clear();
        }
        self.doubted
            .extend(self.suspects.iter().map(|(resource, _)| resource.clone()));
        Ruling::Systemic(self.acquit())
    }

    /// Judges when there is nothing left but suspects and doubted ones.
    pub fn conclude(&mut self) -> Conclusion<T> {
        if self.suspects.is_empty() && !self.doubted.is_empty() {
            self.doubted.clear();
            return Conclusion::LookAgain;
        }
        if self.suspects.len() + self.doubted.len() < MOST_SUSPECTS {
            self.second_opinion = false;
            self.doubted.clear();
            self.accused.clear();
            let guilty = self.suspects.drain(..).map(|(_, failure)| failure);
            return Conclusion::Guilty(guilty.collect());
        }
        // All have been tried: the next search begins at the front again.
        self.doubted.clear();
        Conclusion::Systemic(self.acquit())
    }

    /// Lets every suspect of this cycle go uncounted: the store went away, or is known to be unsound. Gives the last.
    pub fn acquit(&mut self) -> Option<T> {
        self.second_opinion = false;
        self.accused.clear();
        self.suspects
            .drain(..)
            .next_back()
            .map(|(_, failure)| failure)
    }

    /// Resources to leave out of the next batch.
    pub fn skipped(&self) -> impl Iterator<Item = &ResourceKey> {
        self.suspects
            .iter()
            .map(|(resource, _)| resource)
            .chain(&self.doubted)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_shared::domain::TaskId;

    use super::*;

    fn accuse(suspicion: &mut Suspicion<usize>, count: usize) {
        for index in 0..count {
            suspicion.suspect(ResourceKey::Task(TaskId::generate()), index);
        }
    }

    fn some_resources() -> Vec<ResourceKey> {
        (0..MOST_SUSPECTS)
            .map(|_| ResourceKey::Task(TaskId::generate()))
            .collect()
    }

    #[test]
    fn few_failures_are_their_items_own_fault() {
        let mut suspicion = Suspicion::default();
        accuse(&mut suspicion, MOST_SUSPECTS - 1);
        assert_eq!(suspicion.after_failed_batch(), Ruling::Undecided);
        assert_eq!(
            suspicion.conclude(),
            Conclusion::Guilty((0..MOST_SUSPECTS - 1).collect())
        );
        assert_eq!(suspicion.skipped().count(), 0);
    }

    #[test]
    fn many_failures_with_nothing_else_to_try_are_systemic() {
        let mut suspicion = Suspicion::default();
        accuse(&mut suspicion, MOST_SUSPECTS);
        assert_eq!(suspicion.after_failed_batch(), Ruling::SecondOpinion);
        assert_eq!(
            suspicion.conclude(),
            Conclusion::Systemic(Some(MOST_SUSPECTS - 1))
        );
        assert_eq!(suspicion.skipped().count(), 0);
    }

    #[test]
    fn a_success_in_the_second_opinion_convicts_those_that_fail_once_more() {
        let mut suspicion = Suspicion::default();
        let suspects = some_resources();
        for resource in &suspects {
            suspicion.suspect(resource.clone(), 0);
        }
        assert_eq!(suspicion.after_failed_batch(), Ruling::SecondOpinion);
        assert!(suspicion.wants_second_opinion());
        suspicion.accuse();
        assert!(!suspicion.wants_second_opinion());
        assert_eq!(suspicion.take_convicted(), [0; 0]);
        assert_eq!(suspicion.skipped().count(), 0, "they are tried again");
        for resource in &suspects {
            suspicion.suspect(resource.clone(), 1);
        }
        assert_eq!(suspicion.take_convicted(), [1; MOST_SUSPECTS]);
    }

    #[test]
    fn a_store_mended_between_a_failure_and_a_success_counts_nothing() {
        let mut suspicion = Suspicion::default();
        let suspects = some_resources();
        for resource in &suspects {
            suspicion.suspect(resource.clone(), 0);
        }
        suspicion.accuse();
        for resource in &suspects {
            suspicion.exonerate(resource);
        }
        assert_eq!(suspicion.take_convicted(), [0; 0]);
        assert!(suspicion.is_calm());
    }

    #[test]
    fn two_failed_batches_are_systemic_and_the_next_cycle_begins_with_others() {
        let mut suspicion = Suspicion::default();
        accuse(&mut suspicion, MOST_SUSPECTS);
        assert_eq!(suspicion.after_failed_batch(), Ruling::SecondOpinion);
        accuse(&mut suspicion, 5);
        assert_eq!(suspicion.after_failed_batch(), Ruling::Systemic(Some(4)));
        assert_eq!(suspicion.skipped().count(), MOST_SUSPECTS + 5);

        accuse(&mut suspicion, 1);
        suspicion.accuse();
        assert_eq!(suspicion.take_convicted().len(), 0);
        assert_eq!(
            suspicion.skipped().count(),
            0,
            "and the doubted ones are tried again"
        );
    }

    #[test]
    fn a_doubted_resource_that_fails_after_a_success_is_guilty_at_once() {
        let mut suspicion = Suspicion::default();
        let doubted = some_resources();
        for resource in &doubted {
            suspicion.suspect(resource.clone(), 0);
        }
        suspicion.after_failed_batch();
        suspicion.after_failed_batch();
        suspicion.accuse();
        for resource in &doubted {
            suspicion.suspect(resource.clone(), 1);
        }
        assert_eq!(suspicion.take_convicted(), [1; MOST_SUSPECTS]);
        assert_eq!(suspicion.after_failed_batch(), Ruling::Undecided);
    }

    #[test]
    fn doubted_resources_are_tried_again_once_nothing_else_is_left() {
        let mut suspicion = Suspicion::<usize>::default();
        accuse(&mut suspicion, MOST_SUSPECTS);
        suspicion.after_failed_batch();
        suspicion.after_failed_batch();
        assert_eq!(suspicion.conclude(), Conclusion::LookAgain);
        assert_eq!(suspicion.skipped().count(), 0);
        assert_eq!(suspicion.conclude(), Conclusion::Guilty(Vec::new()));
    }

    #[test]
    fn when_even_the_others_fail_the_next_cycle_begins_at_the_front() {
        let mut suspicion = Suspicion::default();
        accuse(&mut suspicion, MOST_SUSPECTS);
        suspicion.after_failed_batch();
        suspicion.after_failed_batch();
        accuse(&mut suspicion, 1);
        assert_eq!(suspicion.conclude(), Conclusion::Systemic(Some(0)));
        assert_eq!(suspicion.skipped().count(), 0);
    }

    #[test]
    fn acquitted_suspects_are_not_counted_and_not_skipped() {
        let mut suspicion = Suspicion::default();
        accuse(&mut suspicion, 3);
        assert_eq!(suspicion.acquit(), Some(2));
        assert_eq!(suspicion.conclude(), Conclusion::Guilty(Vec::new()));
    }

    #[test]
    fn the_memory_of_doubted_resources_is_bounded() {
        let mut suspicion = Suspicion::default();
        for _ in 0..MOST_DOUBTED / MOST_SUSPECTS + 2 {
            accuse(&mut suspicion, MOST_SUSPECTS);
            suspicion.after_failed_batch();
            suspicion.after_failed_batch();
        }
        assert!(suspicion.skipped().count() <= MOST_DOUBTED);
    }
}
