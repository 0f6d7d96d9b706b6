//! Random stories of operations, and a model that knows how each has to end.

use std::collections::HashMap;

use holdfast_shared::domain::profile::{Bio, DisplayName};
use holdfast_shared::domain::task::{Description, Tags, Title};
use holdfast_shared::domain::{
    Body, Idempotency, Operation, OperationId, Outcome, Precondition, Priority, ProfileState,
    Register, Rejection, ResourceKey, Row, Status, TaskId, TaskState, UserId, judge,
};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use uuid::Uuid;

use crate::operations::{
    buffered, change, conditional, create, delete, edit_profile, keyed, renamed, stamp, time, whole,
};
use crate::support::some_user;

/// Ways a random operation can go; numbers choose users, tasks and fields.
#[derive(Debug, Clone)]
pub enum Draft {
    Create {
        task: usize,
    },
    Change {
        task: usize,
        fields: u8,
    },
    Folded {
        task: usize,
        fields: u8,
        older: i64,
        ended: bool,
    },
    Delete {
        task: usize,
    },
    Profile {
        fields: u8,
    },
}

/// What a random operation carries besides.
#[derive(Debug, Clone)]
pub struct Dress {
    pub user: usize,
    pub buffered: bool,
    pub key: Option<(u8, u8)>,
    pub condition: Option<Condition>,
    /// This and the next one are sent in one slice.
    pub joined: bool,
    /// An operation before it is sent again after it.
    pub repeat: Option<Index>,
}

#[derive(Debug, Clone, Copy)]
pub enum Condition {
    Exists,
    Absent,
    /// The tag the model has now.
    Current,
    Other,
}

pub fn drafts() -> impl Strategy<Value = Draft> {
    let task = 0..3usize;
    prop_oneof![
        2 => task.clone().prop_map(|task| Draft::Create { task }),
        4 => (task.clone(), 1..64u8).prop_map(|(task, fields)| Draft::Change { task, fields }),
        1 => (task.clone(), any::<u8>(), 1..40i64, any::<bool>())
            .prop_map(|(task, fields, older, ended)| Draft::Folded { task, fields, older, ended }),
        1 => task.prop_map(|task| Draft::Delete { task }),
        2 => (0..4u8).prop_map(|fields| Draft::Profile { fields }),
    ]
}

fn dresses() -> impl Strategy<Value = Dress> {
    let key = proptest::option::weighted(0.2, (0..3u8, 0..2u8));
    let conditions = select(vec![
        Condition::Exists,
        Condition::Absent,
        Condition::Current,
        Condition::Other,
    ]);
    let condition = proptest::option::weighted(0.25, conditions);
    let user = prop_oneof![4 => Just(0usize), 1 => Just(1usize)];
    (
        user,
        any::<bool>(),
        key,
        condition,
        any::<bool>(),
        proptest::option::weighted(0.2, any::<Index>()),
    )
        .prop_map(|(user, buffered, key, condition, joined, repeat)| Dress {
            user,
            buffered,
            key,
            condition,
            joined,
            repeat,
        })
}

/// Drafts in the order they are sent, with the numbers of their stamps, which are all different.
pub fn stories() -> impl Strategy<Value = Vec<(Draft, Dress, i64)>> {
    proptest::collection::vec((drafts(), dresses()), 1..24).prop_flat_map(|drafts| {
        let numbers: Vec<i64> = (100..).step_by(50).take(drafts.len()).collect();
        (Just(drafts), Just(numbers).prop_shuffle()).prop_map(|(drafts, numbers)| {
            drafts
                .into_iter()
                .zip(numbers)
                .map(|((draft, dress), number)| (draft, dress, number))
                .collect()
        })
    })
}

/// The same rules in memory, one operation at a time.
#[derive(Default)]
pub struct Model {
    pub rows: HashMap<ResourceKey, Row>,
    recorded: HashMap<(UserId, OperationId), Outcome>,
    keys: HashMap<(UserId, String), (OperationId, Idempotency)>,
}

impl Model {
    pub fn apply(&mut self, operation: &Operation) -> Outcome {
        let user = &operation.user_id;
        let outcome = match self.by_id(operation).or_else(|| self.by_key(operation)) {
            // What is known of one of several writes isn't known of all.
            Some(Ok(_)) if operation.is_folded() => return self.settle(operation),
            Some(Ok(outcome)) => return outcome,
            Some(Err(rejection)) => Outcome::Rejected(rejection),
            None => self.settle(operation),
        };
        let is_final = match &outcome {
            Outcome::Applied | Outcome::Repeated(_) => true,
            Outcome::Superseded => operation.buffered,
            Outcome::Rejected(Rejection::NotFound) => false,
            Outcome::Rejected(Rejection::PreconditionFailed) => operation.buffered,
            Outcome::Rejected(_) => true,
        };
        if operation.leaves_record() && is_final {
            self.recorded.insert((user.clone(), operation.id), outcome);
            if let Some(own) = &operation.idempotency {
                let key = (user.clone(), own.key.as_str().to_owned());
                self.keys.entry(key).or_insert((operation.id, own.clone()));
            }
        }
        outcome
    }

    fn by_id(&self, operation: &Operation) -> Option<Result<Outcome, Rejection>> {
        let place = (operation.user_id.clone(), operation.id);
        let known = self.recorded.get(&place);
        known.filter(|_| operation.leaves_record()).copied().map(Ok)
    }

    fn by_key(&self, operation: &Operation) -> Option<Result<Outcome, Rejection>> {
        let own = operation.idempotency.as_ref()?;
        let user = operation.user_id.clone();
        let (first, theirs) = self
            .keys
            .get(&(user.clone(), own.key.as_str().to_owned()))?;
        if theirs.fingerprint != own.fingerprint {
            return Some(Err(Rejection::KeyReused));
        }
        Some(Ok(self.recorded[&(user, *first)]))
    }

    fn settle(&mut self, operation: &Operation) -> Outcome {
        let key = operation.resource();
        let current = self.rows.get(&key);
        let outcome = judge(operation, current);
        let ended = current.is_some_and(|row| row.state.deleted().is_some());
        if !ended && operation.changes_row(&outcome) {
            let mut state = operation
                .applied_to(current.map(|row| &row.state))
                .expect("judged to be there");
            state.merge(&state.clone());
            self.rows.insert(
                key,
                Row {
                    owner: operation.user_id.clone(),
                    state,
                },
            );
        }
        outcome
    }
}

/// One story's users and tasks, which no other story knows.
pub struct Cast {
    pub users: [UserId; 2],
    pub tasks: [TaskId; 3],
}

impl Cast {
    pub fn new() -> Self {
        Cast {
            users: [some_user(), some_user()],
            // Made for it, or not, by the look of them: rows are read for that reason or for others.
            tasks: [
                TaskId::generate(),
                TaskId::generate(),
                TaskId::from_uuid(Uuid::new_v4()),
            ],
        }
    }

    pub fn operation(&self, draft: &Draft, dress: &Dress, number: i64, model: &Model) -> Operation {
        let user = &self.users[dress.user];
        let mut operation = match *draft {
            Draft::Create { task } => create(user, self.tasks[task], number),
            Draft::Change { task, fields } => {
                change(user, self.tasks[task], number, some_fields(number, fields))
            }
            Draft::Folded {
                task,
                fields,
                older,
                ended,
            } => change(
                user,
                self.tasks[task],
                number,
                folded(number, fields, number - older, ended),
            ),
            Draft::Delete { task } => delete(user, self.tasks[task], number),
            Draft::Profile { fields } => profile_edit(user, number, fields),
        };
        if dress.buffered {
            operation = buffered(operation);
        }
        if let Some((key, request)) = dress.key {
            operation = keyed(operation, &format!("key-{key}"), request);
        }
        if let Some(condition) = dress.condition {
            let current = model
                .rows
                .get(&operation.resource())
                .map(|row| row.state.etag(&row.owner));
            let other = whole(7).etag();
            let precondition = match condition {
                Condition::Exists => Precondition::Exists,
                Condition::Absent => Precondition::Absent,
                Condition::Current => {
                    Precondition::Match(current.into_iter().chain([other]).collect())
                }
                Condition::Other => Precondition::Match(vec![other]),
            };
            operation = conditional(operation, precondition);
        }
        operation
    }
}

/// The fields of which a bit is set, with values that depend on the number.
pub fn some_fields(number: i64, fields: u8) -> TaskState {
    let stamp = stamp(number);
    let set = |bit: u8| fields & (1 << bit) != 0;
    let due = (number % 3 != 0).then(|| time(number * 1000));
    let tags = vec![
        format!("tag {number}"),
        "\"quoted\", \\ {and} ünï".to_owned(),
    ];
    TaskState {
        created: None,
        deleted: None,
        title: set(0)
            .then(|| Register::new(Title::parse(&format!("t{number}")).expect("valid"), stamp)),
        description: set(1).then(|| {
            Register::new(
                Description::parse(&format!("d\n{number}")).expect("valid"),
                stamp,
            )
        }),
        status: set(2).then(|| Register::new(Status::ALL[number as usize % 4], stamp)),
        priority: set(3).then(|| Register::new(Priority::ALL[number as usize % 5], stamp)),
        due_at: set(4).then(|| Register::new(due, stamp)),
        tags: set(5).then(|| Register::new(Tags::new(tags).expect("valid"), stamp)),
    }
}

/// A whole task of which some fields are newer, perhaps deleted since: what embedded mode leaves behind.
fn folded(number: i64, fields: u8, older: i64, ended: bool) -> TaskState {
    let mut task = whole(older);
    task.merge(&some_fields(number, fields));
    task.deleted = ended.then(|| stamp(number));
    task
}

fn profile_edit(user: &UserId, number: i64, fields: u8) -> Operation {
    let mut operation = edit_profile(user, number, "");
    if let Body::Profile { change, .. } = &mut operation.body {
        **change = ProfileState::default();
        if fields & 1 != 0 {
            change.merge(&renamed(number, &format!("name {number}")));
        }
        if fields & 2 != 0 {
            change.bio = Some(Register::new(
                Bio::parse(&format!("bio {number}")).expect("valid"),
                stamp(number),
            ));
            change.display_name = Some(Register::new(
                DisplayName::parse(&format!("n{number}")).expect("valid"),
                stamp(number),
            ));
        }
    }
    operation
}
