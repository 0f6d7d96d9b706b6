//! Operations to apply: plain ones for tests that tell a story, and random ones.

use holdfast_shared::domain::profile::{Bio, DisplayName, Email, Preferences};
use holdfast_shared::domain::task::{Description, Tags, Title};
use holdfast_shared::domain::{
    Body, Claims, Idempotency, IdempotencyKey, Kind, NodeId, Operation, OperationId, Precondition,
    Priority, ProfileState, Register, Stamp, Status, TaskId, TaskState, Timestamp, UserId,
};

/// Milliseconds of the Unix epoch at which the tests' time begins.
const EPOCH_MS: i64 = 1_795_000_000_000;

/// The stamp of the write with this number: greater than that of any smaller number, from one of three nodes.
pub fn stamp(number: i64) -> Stamp {
    Stamp::new(
        Stamp::tick_at(EPOCH_MS + number),
        NodeId::from_number(number.unsigned_abs() % 3),
    )
}

/// A time in the tests' time.
pub fn time(number: i64) -> Timestamp {
    Timestamp::from_micros((EPOCH_MS + number) * 1000)
}

/// An operation that leaves no record.
fn operation(user: &UserId, number: i64, kind: Kind, body: Body) -> Operation {
    Operation {
        id: OperationId::generate(),
        stamp: stamp(number),
        user_id: user.clone(),
        kind,
        body,
        precondition: None,
        idempotency: None,
        // An old one isn't carried out any more, and one that makes a task of a newer id is thought to be its first.
        accepted_at: chrono::Utc::now().into(),
        priority: Priority::default(),
        buffered: false,
    }
}

/// Every field of a task, set by the write with this number.
pub fn whole(number: i64) -> TaskState {
    let stamp = stamp(number);
    TaskState {
        created: Some(stamp),
        deleted: None,
        title: Some(Register::new(
            Title::parse(&format!("title {number}")).expect("valid"),
            stamp,
        )),
        description: Some(Register::new(
            Description::parse("said \"so\"\\").expect("valid"),
            stamp,
        )),
        status: Some(Register::new(Status::Todo, stamp)),
        priority: Some(Register::new(Priority::default(), stamp)),
        due_at: Some(Register::new(None, stamp)),
        tags: Some(Register::new(
            Tags::new(vec!["a,b".into(), "\"{}\\".into()]).expect("valid"),
            stamp,
        )),
    }
}

/// Creates a task.
pub fn create(user: &UserId, id: TaskId, number: i64) -> Operation {
    operation(
        user,
        number,
        Kind::Create,
        Body::Task {
            id,
            change: whole(number),
        },
    )
}

/// Sets a task's title.
pub fn retitle(user: &UserId, id: TaskId, number: i64, title: &str) -> Operation {
    let title = Register::new(Title::parse(title).expect("valid"), stamp(number));
    let change = TaskState {
        title: Some(title),
        ..TaskState::default()
    };
    operation(user, number, Kind::Update, Body::Task { id, change })
}

/// Sets a task's status.
pub fn set_status(user: &UserId, id: TaskId, number: i64, status: Status) -> Operation {
    let change = TaskState {
        status: Some(Register::new(status, stamp(number))),
        ..TaskState::default()
    };
    operation(user, number, Kind::Update, Body::Task { id, change })
}

/// Changes a task.
pub fn change(user: &UserId, id: TaskId, number: i64, change: TaskState) -> Operation {
    operation(user, number, Kind::Update, Body::Task { id, change })
}

/// Deletes a task.
pub fn delete(user: &UserId, id: TaskId, number: i64) -> Operation {
    let change = TaskState {
        deleted: Some(stamp(number)),
        ..TaskState::default()
    };
    operation(user, number, Kind::Delete, Body::Task { id, change })
}

/// Sets fields of a profile, which is made from a claim where there is none.
pub fn edit_profile(user: &UserId, number: i64, bio: &str) -> Operation {
    let stamp = stamp(number);
    let mut preferences = serde_json::Map::new();
    preferences.insert(
        "zoom".to_owned(),
        serde_json::json!({"b": number, "a": [1.5, null, "ä\\u0000"]}),
    );
    let change = ProfileState {
        bio: Some(Register::new(Bio::parse(bio).expect("valid"), stamp)),
        preferences: Some(Register::new(
            Preferences::parse(&preferences).expect("valid"),
            stamp,
        )),
        ..ProfileState::default()
    };
    let provision = ProfileState::provisioned(&claims(), stamp);
    operation(
        user,
        number,
        Kind::Update,
        Body::Profile {
            change: Box::new(change),
            provision: Box::new(provision),
        },
    )
}

/// What a token says of its user.
pub fn claims() -> Claims {
    Claims {
        email: Some("ann@example.org".into()),
        name: Some("Ann".into()),
        ..Claims::default()
    }
}

/// A change of every field that claims fill.
pub fn renamed(number: i64, name: &str) -> ProfileState {
    let stamp = stamp(number);
    ProfileState {
        email: Some(Register::new(
            Some(Email::parse("new@example.org").expect("valid")),
            stamp,
        )),
        display_name: Some(Register::new(
            DisplayName::parse(name).expect("valid"),
            stamp,
        )),
        ..ProfileState::default()
    }
}

/// The same operation, as it comes out of the buffer.
pub fn buffered(mut operation: Operation) -> Operation {
    operation.buffered = true;
    operation
}

/// The same operation under an idempotency key; requests with different `request` are different ones.
pub fn keyed(mut operation: Operation, key: &str, request: u8) -> Operation {
    let key = IdempotencyKey::parse(key).expect("valid");
    operation.idempotency = Some(Idempotency {
        key,
        fingerprint: [request; 32],
    });
    operation
}

/// The same operation with a condition.
pub fn conditional(mut operation: Operation, precondition: Precondition) -> Operation {
    operation.precondition = Some(precondition);
    operation
}
