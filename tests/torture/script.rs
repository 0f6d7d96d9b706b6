//! What a client does, step by step: made from the seed alone.
//!
//! A step names what it is about by a number, and which resource that is depends
//! on what there is when the step is taken, so a seed fixes what is tried, not
//! what comes of it.

use std::time::Duration;

use crate::history::FIELDS;
use crate::random::Random;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// `POST` a task.
    Create,
    /// `PUT` a task under a new id.
    PutNew,
    /// `PUT` over a task that is there.
    PutOver,
    /// `PATCH` this field of a task.
    Patch(usize),
    /// `DELETE` a task.
    Delete,
    /// `GET` a task.
    Read,
    /// `GET` all tasks.
    List,
    /// `PATCH` this field of the profile.
    PatchProfile(usize),
    /// `PUT` the profile.
    PutProfile,
    /// `GET` the profile.
    ReadProfile,
    /// An earlier request under an idempotency key again.
    Repeat,
    /// Ask what became of an operation.
    Follow,
}

/// Which of a user's tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// One of the newest few, which others are likely to be at too.
    Recent(u64),
    /// Any.
    Any(u64),
}

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What is asked.
    pub action: Action,
    /// Of which task.
    pub pick: Pick,
    /// Whether a `POST` or `PATCH` carries an idempotency key.
    pub keyed: bool,
    /// Which process: the client's own, or this one.
    pub elsewhere: Option<u64>,
    /// How long the client waits afterwards.
    pub pause: Duration,
}

/// The newest few.
const RECENT: u64 = 6;

/// A client's steps, without end.
#[derive(Debug, Clone)]
pub struct Script(Random);

impl Script {
    /// The script of this client.
    pub fn new(seed: u64, client: u64) -> Self {
        Self(Random::new(seed, client))
    }

    /// The next step.
    pub fn next(&mut self) -> Step {
        let random = &mut self.0;
        // The task's origin is never patched: it tells what made the task.
        let field = random.weighted(&[(3, 0), (3, 2), (3, 3)]);
        let any_field = random.between(0, FIELDS as u64) as usize;
        let action = random.weighted(&[
            (14, Action::Create),
            (5, Action::PutNew),
            (4, Action::PutOver),
            (25, Action::Patch(field)),
            (4, Action::Delete),
            (20, Action::Read),
            (6, Action::List),
            (5, Action::PatchProfile(any_field)),
            (2, Action::PutProfile),
            (4, Action::ReadProfile),
            (6, Action::Repeat),
            (3, Action::Follow),
        ]);
        let number = random.next();
        let pick = if random.chance(70) {
            Pick::Recent(number)
        } else {
            Pick::Any(number)
        };
        let keyed = random.chance(40);
        let other = random.next();
        let elsewhere = random.chance(25).then_some(other);
        let pause = if random.chance(4) {
            random.millis(200, 900)
        } else {
            random.millis(5, 90)
        };
        Step {
            action,
            pick,
            keyed,
            elsewhere,
            pause,
        }
    }
}

impl Pick {
    /// The index of the one picked out of `count`; `None` when there is none.
    pub fn index(self, count: usize) -> Option<usize> {
        let all = u64::try_from(count).unwrap_or(u64::MAX);
        let index = match self {
            _ if all == 0 => return None,
            Pick::Recent(number) => all - 1 - number % all.min(RECENT),
            Pick::Any(number) => number % all,
        };
        usize::try_from(index).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_and_a_client_have_one_script() {
        let steps = |seed, client| {
            let mut script = Script::new(seed, client);
            (0..50).map(|_| script.next()).collect::<Vec<_>>()
        };
        assert_eq!(steps(1, 1), steps(1, 1));
        assert_ne!(steps(1, 1), steps(1, 2));
        assert_ne!(steps(1, 1), steps(2, 1));
    }

    #[test]
    fn a_pick_is_always_one_of_those_there() {
        for number in 0..100 {
            for count in 1..20 {
                assert!(Pick::Any(number).index(count).is_some_and(|at| at < count));
                let recent = Pick::Recent(number).index(count);
                assert!(recent.is_some_and(|at| at < count && at + 6 >= count));
            }
        }
        assert_eq!(Pick::Any(3).index(0), None);
    }
}
