//! The users that clients act for, what they own, and their tokens.
//!
//! A user is retired after so many tasks, long before a process may forget one
//! of them (it remembers 500 a user) and before a list needs a second page.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::Utc;
use holdfast_tests::tokens;
use serde_json::json;
use uuid::Uuid;

use crate::history::Token;

/// Tasks after which a user is retired.
const TASKS_MAX: usize = 110;

/// Validity of tokens: longer than any run, whatever the nodes' clocks say.
const TOKEN_HOURS: i64 = 72;

/// A user.
#[derive(Debug)]
pub struct User {
    /// Its number; the `sub` of its token is `u` and this.
    pub number: u32,
    /// Its bearer token.
    pub bearer: String,
    tasks: Mutex<Vec<Uuid>>,
    operations: Mutex<Vec<(u8, Uuid)>>,
}

impl User {
    fn new(number: u32) -> Self {
        let mut claims = tokens::claims(&name(number));
        claims["exp"] = json!(Utc::now().timestamp() + TOKEN_HOURS * 3600);
        claims["iat"] = json!(Utc::now().timestamp() - TOKEN_HOURS * 3600);
        Self {
            number,
            bearer: tokens::hs256(tokens::SECRET, &claims),
            tasks: Mutex::default(),
            operations: Mutex::default(),
        }
    }

    /// Notes a task that is, or may be, there.
    pub fn note_task(&self, id: Uuid) {
        let mut tasks = hold(&self.tasks);
        if !tasks.contains(&id) {
            tasks.push(id);
        }
    }

    /// The tasks noted, oldest first.
    pub fn tasks(&self) -> Vec<Uuid> {
        hold(&self.tasks).clone()
    }

    /// Notes an operation that a process of `node` has named.
    pub fn note_operation(&self, node: u8, id: Uuid) {
        hold(&self.operations).push((node, id));
    }

    /// The operations that processes of `node` have named, oldest first.
    pub fn operations(&self, node: u8) -> Vec<Uuid> {
        let operations = hold(&self.operations);
        let of_node = operations.iter().filter(|(other, _)| *other == node);
        of_node.map(|(_, id)| *id).collect()
    }
}

/// The users of a run: each place is filled by one at a time.
#[derive(Debug)]
pub struct Users {
    places: Vec<Mutex<Arc<User>>>,
    retired: Mutex<Vec<Arc<User>>>,
    numbers: AtomicU32,
    tokens: AtomicU32,
}

impl Users {
    /// Fills so many places.
    pub fn new(places: u32) -> Self {
        let user = |number| Mutex::new(Arc::new(User::new(number)));
        Self {
            places: (1..=places).map(user).collect(),
            retired: Mutex::default(),
            numbers: AtomicU32::new(places + 1),
            tokens: AtomicU32::new(1),
        }
    }

    /// How many places there are.
    pub fn places(&self) -> usize {
        self.places.len()
    }

    /// The user at a place; a new one when the last has enough tasks.
    pub fn at(&self, place: usize) -> Arc<User> {
        let mut user = hold(&self.places[place]);
        if hold(&user.tasks).len() >= TASKS_MAX {
            let number = self.numbers.fetch_add(1, Ordering::Relaxed);
            let old = std::mem::replace(&mut *user, Arc::new(User::new(number)));
            hold(&self.retired).push(old);
        }
        Arc::clone(&user)
    }

    /// Everybody who is at a place now, and the last ones who were.
    pub fn recent(&self, retired: usize) -> Vec<Arc<User>> {
        let now = self.places.iter().map(|place| Arc::clone(&hold(place)));
        let before = hold(&self.retired).clone();
        now.chain(before.into_iter().rev().take(retired)).collect()
    }

    /// A token for a write.
    pub fn next_token(&self) -> Token {
        self.tokens.fetch_add(1, Ordering::Relaxed)
    }
}

/// What a user is called in tokens and rows.
pub fn name(number: u32) -> String {
    format!("u{number}")
}

/// The number of the user of this name.
pub fn number(name: &str) -> Option<u32> {
    name.strip_prefix('u')?.parse().ok()
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
