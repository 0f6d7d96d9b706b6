//! `apply`, rule by rule.

use anyhow::Result;
use holdfast_shared::domain::task::Title;
use holdfast_shared::domain::{
    Body, IdempotencyKey, Operation, OperationState, Outcome, Precondition, ProfileState,
    Rejection, Stamp, State, Status, TaskId, TaskState,
};
use holdfast_tests::eventually;
use sqlx::{Executor as _, Row as _};

use crate::operations::{
    buffered, change, claims, conditional, create, delete, edit_profile, keyed, renamed, retitle,
    set_status, stamp, time, whole,
};
use crate::support::{DATABASE, Fixture, PATIENCE, apply_one, hasty, outcomes, row, some_user};

fn task(state: Option<State>) -> TaskState {
    match state {
        Some(State::Task(task)) => task,
        other => panic!("not a task: {other:?}"),
    }
}

fn rejected(rejection: Rejection) -> Outcome {
    Outcome::Rejected(rejection)
}

#[tokio::test]
async fn a_created_task_reads_back_as_it_was_written() -> Result<()> {
    let fixture = Fixture::start().await?;
    for recorded in [false, true] {
        let (user, id) = (some_user(), TaskId::generate());
        let mut operation = create(&user, id, 1);
        operation.buffered = recorded;
        let applied = apply_one(&fixture.store, &operation).await?;
        assert_eq!(applied.outcome, Outcome::Applied);
        assert!(applied.created && applied.replayed.is_none());
        assert_eq!(task(applied.state), whole(1));
        let row = row(&fixture.store, id).await?;
        assert_eq!(
            (row.owner, row.state),
            (user.clone(), State::Task(whole(1)))
        );
        assert_eq!(
            fixture
                .store
                .find_tasks(&user, &[id, TaskId::generate()])
                .await?,
            [(id, whole(1))]
        );
        assert_eq!(fixture.store.find_tasks(&some_user(), &[id]).await?, []);
    }
    Ok(())
}

#[tokio::test]
async fn an_older_write_keeps_out_of_newer_fields_only() -> Result<()> {
    let fixture = Fixture::start().await?;
    let (user, id) = (some_user(), TaskId::generate());
    apply_one(&fixture.store, &create(&user, id, 10)).await?;
    apply_one(&fixture.store, &retitle(&user, id, 30, "newest")).await?;
    let mut both = whole(20);
    both.created = None;
    let applied = apply_one(&fixture.store, &buffered(change(&user, id, 20, both))).await?;
    assert_eq!(applied.outcome, Outcome::Applied);
    let merged = task(applied.state);
    assert_eq!(
        merged.title.as_ref().map(|title| title.value.as_str()),
        Some("newest")
    );
    assert_eq!(
        merged.status.as_ref().map(|status| status.stamp),
        Some(stamp(20))
    );
    let late = apply_one(&fixture.store, &retitle(&user, id, 25, "late")).await?;
    assert_eq!(late.outcome, Outcome::Superseded);
    assert_eq!(task(late.state), merged);
    Ok(())
}

#[tokio::test]
async fn times_come_from_stamps() -> Result<()> {
    let fixture = Fixture::start().await?;
    let (user, id) = (some_user(), TaskId::generate());
    apply_one(&fixture.store, &create(&user, id, 1)).await?;
    apply_one(&fixture.store, &set_status(&user, id, 5, Status::Done)).await?;
    apply_one(&fixture.store, &retitle(&user, id, 9, "later")).await?;
    let mut connection = fixture.connect().await?;
    let times = sqlx::query("SELECT created_at, updated_at, completed_at FROM tasks")
        .fetch_one(&mut connection)
        .await?;
    for (index, number) in [1, 9, 5].into_iter().enumerate() {
        assert_eq!(
            times.try_get::<chrono::DateTime<chrono::Utc>, _>(index)?,
            time(number).to_datetime()
        );
    }
    apply_one(&fixture.store, &set_status(&user, id, 6, Status::Todo)).await?;
    let completed = sqlx::query("SELECT completed_at FROM tasks")
        .fetch_one(&mut connection)
        .await?;
    assert_eq!(
        completed.try_get::<Option<chrono::DateTime<chrono::Utc>>, _>(0)?,
        None
    );
    Ok(())
}

#[tokio::test]
async fn a_deleted_task_stays_deleted_with_its_body_cleared() -> Result<()> {
    let fixture = Fixture::start().await?;
    for recorded in [false, true] {
        let (user, id) = (some_user(), TaskId::generate());
        let dress = |mut operation: holdfast_shared::domain::Operation| {
            operation.buffered = recorded;
            operation
        };
        apply_one(&fixture.store, &create(&user, id, 1)).await?;
        let deleted = apply_one(&fixture.store, &dress(delete(&user, id, 2))).await?;
        assert_eq!(deleted.outcome, Outcome::Applied);
        let tombstone = TaskState {
            created: Some(stamp(1)),
            deleted: Some(stamp(2)),
            ..TaskState::default()
        };
        assert_eq!(task(deleted.state), tombstone);
        let again = apply_one(&fixture.store, &dress(delete(&user, id, 3))).await?;
        assert_eq!(again.outcome, Outcome::Superseded);
        let update = apply_one(&fixture.store, &dress(retitle(&user, id, 4, "back?"))).await?;
        assert_eq!(update.outcome, rejected(Rejection::Deleted));
        let replacement = apply_one(&fixture.store, &dress(create(&user, id, 5))).await?;
        assert_eq!(replacement.outcome, rejected(Rejection::Deleted));
        assert_eq!(row(&fixture.store, id).await?.state, State::Task(tombstone));
    }
    let mut connection = fixture.connect().await?;
    let bodies =
        sqlx::query("SELECT 1 FROM tasks WHERE title <> '' OR description <> '' OR tags <> '{}'");
    assert!(bodies.fetch_all(&mut connection).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_folded_item_may_bring_a_tombstone_or_fields_of_different_age() -> Result<()> {
    let fixture = Fixture::start().await?;
    let user = some_user();
    let (gone, mixed) = (TaskId::generate(), TaskId::generate());
    let mut ended = whole(1);
    ended.deleted = Some(stamp(3));
    let mut several = whole(1);
    several.title = whole(4).title;
    let items = [
        change(&user, gone, 3, ended.clone()),
        change(&user, mixed, 4, several.clone()),
    ];
    for item in &items {
        assert_eq!(
            apply_one(&fixture.store, item).await?.outcome,
            Outcome::Applied
        );
    }
    let tombstone = TaskState {
        created: Some(stamp(1)),
        deleted: Some(stamp(3)),
        ..TaskState::default()
    };
    assert_eq!(
        row(&fixture.store, gone).await?.state,
        State::Task(tombstone)
    );
    assert_eq!(
        row(&fixture.store, mixed).await?.state,
        State::Task(several)
    );
    let again = fixture.store.apply(&items.map(buffered)).await?;
    assert_eq!(outcomes(&again), [Outcome::Applied, Outcome::Applied]);
    Ok(())
}

#[tokio::test]
async fn an_update_needs_its_row_and_its_owner() -> Result<()> {
    let fixture = Fixture::start().await?;
    let (ann, bob, id) = (some_user(), some_user(), TaskId::generate());
    for recorded in [false, true] {
        let mut early = retitle(&ann, id, 1, "early");
        early.buffered = recorded;
        let applied = apply_one(&fixture.store, &early).await?;
        assert_eq!(
            (applied.outcome, applied.state),
            (rejected(Rejection::NotFound), None)
        );
    }
    assert_eq!(
        fixture.store.count_applied_operations().await?,
        0,
        "what isn't there yet is tried again"
    );
    apply_one(&fixture.store, &create(&ann, id, 2)).await?;
    for foreign in [
        retitle(&bob, id, 9, "mine"),
        create(&bob, id, 9),
        delete(&bob, id, 9),
    ] {
        for operation in [buffered(foreign.clone()), foreign] {
            let applied = apply_one(&fixture.store, &operation).await?;
            assert_eq!(
                (applied.outcome, applied.state),
                (rejected(Rejection::NotOwner), None)
            );
        }
    }
    assert_eq!(row(&fixture.store, id).await?.state, State::Task(whole(2)));
    Ok(())
}

#[tokio::test]
async fn a_slice_sees_its_own_writes_in_order() -> Result<()> {
    let fixture = Fixture::start().await?;
    let (user, id, other) = (some_user(), TaskId::generate(), TaskId::generate());
    let slice = [
        retitle(&user, id, 1, "before it is there"),
        create(&user, id, 2),
        retitle(&user, id, 4, "four"),
        edit_profile(&user, 5, "hello"),
        retitle(&user, id, 3, "three"),
        create(&user, other, 6),
        delete(&user, other, 7),
        retitle(&user, other, 8, "too late"),
    ];
    let applied = fixture.store.apply(&slice.map(buffered)).await?;
    let expected = [
        rejected(Rejection::NotFound),
        Outcome::Applied,
        Outcome::Applied,
        Outcome::Applied,
        Outcome::Superseded,
        Outcome::Applied,
        Outcome::Applied,
        rejected(Rejection::Deleted),
    ];
    assert_eq!(outcomes(&applied), expected);
    let created: Vec<bool> = applied.iter().map(|applied| applied.created).collect();
    assert_eq!(
        created,
        [false, true, false, true, false, true, false, false]
    );
    assert_eq!(fixture.store.count_applied_operations().await?, 7);
    assert!(fixture.store.apply::<Operation>(&[]).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_record_of_one_write_keeps_no_fold_of_several_out() -> Result<()> {
    let fixture = Fixture::start().await?;
    let (user, id) = (some_user(), TaskId::generate());
    let first = buffered(create(&user, id, 1));
    apply_one(&fixture.store, &first).await?;
    let mut folded = first.clone();
    let later = retitle(&user, id, 5, "later");
    folded.stamp = later.stamp;
    if let (Body::Task { change, .. }, Body::Task { change: more, .. }) =
        (&mut folded.body, &later.body)
    {
        change.merge(more);
    }
    for _ in 0..2 {
        let met = apply_one(&fixture.store, &folded).await?;
        assert_eq!(met.outcome, Outcome::Applied);
        let title = task(met.state).title.map(|title| title.value);
        assert_eq!(title, Some(Title::parse("later")?));
    }
    assert_eq!(fixture.store.count_applied_operations().await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_replay_gets_the_recorded_outcome_whatever_happened_since() -> Result<()> {
    let fixture = Fixture::start().await?;
    let (user, id) = (some_user(), TaskId::generate());
    let tag = whole(1).etag();
    apply_one(&fixture.store, &create(&user, id, 1)).await?;
    let first = conditional(
        retitle(&user, id, 2, "first"),
        Precondition::Match(vec![tag.clone()]),
    );
    assert_eq!(
        apply_one(&fixture.store, &first).await?.outcome,
        Outcome::Applied
    );
    let refused = buffered(conditional(
        retitle(&user, id, 3, "no"),
        Precondition::Match(vec![tag]),
    ));
    assert_eq!(
        apply_one(&fixture.store, &refused).await?.outcome,
        rejected(Rejection::PreconditionFailed)
    );
    apply_one(&fixture.store, &delete(&user, id, 4)).await?;
    let replays = fixture
        .store
        .apply(&[buffered(first.clone()), refused.clone()])
        .await?;
    assert_eq!(
        outcomes(&replays),
        [Outcome::Applied, rejected(Rejection::PreconditionFailed)]
    );
    for (replay, operation) in replays.iter().zip([&first, &refused]) {
        let record = replay.replayed.as_ref().expect("a replay");
        assert_eq!((record.id, &record.user_id), (operation.id, &user));
        assert_eq!(record.accepted_at, operation.accepted_at);
        assert!(record.finished_at.is_some());
        assert!(
            task(replay.state.clone()).deleted.is_some(),
            "the state is the present one"
        );
        assert_eq!(
            fixture
                .store
                .find_operation(&user, operation.id)
                .await?
                .as_ref(),
            Some(record)
        );
    }
    let record = replays[1].replayed.as_ref().expect("a replay");
    assert_eq!(
        (record.state, record.last_error.as_deref()),
        (OperationState::Dead, Some("precondition_failed"))
    );
    Ok(())
}

#[tokio::test]
async fn a_repeat_too_waits_for_a_synchronous_standby() -> Result<()> {
    let fixture = Fixture::start().await?;
    let user = some_user();
    let key = IdempotencyKey::parse("k").expect("valid");
    let first = keyed(create(&user, TaskId::derived(&user, &key), 1), "k", 1);
    apply_one(&fixture.store, &first).await?;
    let hasty = fixture.store_with(hasty());
    assert!(apply_one(&hasty, &first).await?.replayed.is_some());
    // Nothing is ever confirmed by this one.
    fixture
        .server
        .configure("synchronous_standby_names", "nobody")
        .await?;
    // Commits wait as soon as the checkpointer too has read that.
    eventually(
        PATIENCE,
        "a repeat that isn't confirmed",
        async || match hasty.apply(std::slice::from_ref(&first)).await {
            Err(error) if error.outcome_unknown() => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await
}

#[tokio::test]
async fn an_idempotency_key_stands_for_one_request() -> Result<()> {
    let fixture = Fixture::start().await?;
    let (user, other) = (some_user(), some_user());
    let key = IdempotencyKey::parse("k").expect("valid");
    let id = TaskId::derived(&user, &key);
    let first = keyed(create(&user, id, 1), "k", 1);
    assert!(apply_one(&fixture.store, &first).await?.created);
    let repeat = apply_one(&fixture.store, &keyed(create(&user, id, 2), "k", 1)).await?;
    assert_eq!(repeat.outcome, Outcome::Applied);
    assert_eq!(
        repeat.replayed.as_ref().map(|record| record.id),
        Some(first.id)
    );
    assert_eq!(
        task(repeat.state),
        whole(1),
        "the repeat was not applied again"
    );
    let reuse = keyed(retitle(&user, id, 3, "else"), "k", 2);
    assert_eq!(
        apply_one(&fixture.store, &reuse).await?.outcome,
        rejected(Rejection::KeyReused)
    );
    let elsewhere = keyed(create(&other, TaskId::derived(&other, &key), 4), "k", 1);
    assert!(
        apply_one(&fixture.store, &elsewhere)
            .await?
            .replayed
            .is_none()
    );
    let record = fixture
        .store
        .find_by_key(&user, &key)
        .await?
        .expect("recorded");
    assert_eq!(
        (record.operation.id, record.fingerprint),
        (first.id, [1; 32])
    );
    assert_eq!(fixture.store.find_by_key(&some_user(), &key).await?, None);
    Ok(())
}

#[tokio::test]
async fn a_repeat_shows_the_task_however_young() -> Result<()> {
    let fixture = Fixture::start().await?;
    let (user, id) = (some_user(), TaskId::generate());
    apply_one(&fixture.store, &keyed(create(&user, id, 1), "k", 1)).await?;
    apply_one(&fixture.store, &retitle(&user, id, 2, "since")).await?;
    let repeat = apply_one(&fixture.store, &keyed(create(&user, id, 3), "k", 1)).await?;
    assert!(repeat.replayed.is_some());
    assert_eq!(repeat.state, Some(row(&fixture.store, id).await?.state));
    Ok(())
}

/// Waits until so many transactions wait for others' locks.
async fn wait_blocked(fixture: &Fixture, count: i64) -> Result<()> {
    let mut admin = fixture.server.connect_admin(DATABASE).await?;
    let blocked = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted";
    eventually(PATIENCE, "transactions to wait", async || {
        let waiting = sqlx::query_scalar::<_, i64>(blocked).fetch_one(&mut admin);
        match waiting.await {
            Ok(waiting) if waiting == count => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_that_waits_for_its_first_is_not_judged_by_what_that_has_done() -> Result<()> {
    let fixture = Fixture::start().await?;
    let (user, id) = (some_user(), TaskId::generate());
    let seen = apply_one(&fixture.store, &create(&user, id, 1)).await?;
    let tag = seen.state.expect("a task").etag(&user);
    let attempt = |number: i64| {
        let condition = Precondition::Match(vec![tag.clone()]);
        let operation = conditional(keyed(retitle(&user, id, number, "x"), "k", 1), condition);
        let store = fixture.store.clone();
        tokio::spawn(async move { apply_one(&store, &operation).await })
    };
    let mut holder = fixture.server.connect_admin(DATABASE).await?;
    holder.execute("BEGIN").await?;
    holder.execute("SELECT FROM tasks FOR UPDATE").await?;
    // Both have looked for a record in vain, and wait for the row.
    let first = attempt(2);
    wait_blocked(&fixture, 1).await?;
    let second = attempt(3);
    wait_blocked(&fixture, 2).await?;
    holder.execute("COMMIT").await?;
    let (first, second) = (first.await??, second.await??);
    assert_eq!(
        (first.outcome, second.outcome),
        (Outcome::Applied, Outcome::Applied)
    );
    assert!(first.replayed.is_some() != second.replayed.is_some());
    assert_eq!(first.state, second.state);
    Ok(())
}

#[tokio::test]
async fn a_keyed_write_that_is_overtaken_changes_nothing_until_it_is_stamped_anew() -> Result<()> {
    let fixture = Fixture::start().await?;
    let (user, id) = (some_user(), TaskId::generate());
    apply_one(&fixture.store, &create(&user, id, 1)).await?;
    apply_one(&fixture.store, &retitle(&user, id, 9, "of a faster clock")).await?;
    let before = row(&fixture.store, id).await?;
    let whole = keyed(create(&user, id, 5), "k", 1);
    let met = apply_one(&fixture.store, &whole).await?;
    assert_eq!(met.outcome, Outcome::Superseded);
    assert_eq!(row(&fixture.store, id).await?, before);
    // So what is refused after that was not done in part.
    let other = keyed(retitle(&user, id, 10, "else"), "k", 2);
    apply_one(&fixture.store, &other).await?;
    let mut again = whole;
    again.restamp(stamp(11));
    let refused = apply_one(&fixture.store, &again).await?;
    assert_eq!(refused.outcome, rejected(Rejection::KeyReused));
    let after = task(Some(row(&fixture.store, id).await?.state));
    let unchanged = task(Some(before.state));
    assert_eq!(after.status, unchanged.status);
    assert_eq!(after.created, unchanged.created);
    Ok(())
}

#[tokio::test]
async fn repeats_within_one_slice_find_the_first() -> Result<()> {
    let fixture = Fixture::start().await?;
    let (user, id) = (some_user(), TaskId::generate());
    let first = keyed(create(&user, id, 1), "k", 1);
    let edit = buffered(retitle(&user, id, 2, "edited"));
    let slice = [
        first.clone(),
        edit.clone(),
        keyed(create(&user, id, 3), "k", 1),
        edit.clone(),
        keyed(create(&user, id, 4), "k", 2),
        first.clone(),
    ];
    let applied = fixture.store.apply(&slice).await?;
    let replayed: Vec<_> = applied
        .iter()
        .map(|applied| applied.replayed.as_ref().map(|record| record.id))
        .collect();
    assert_eq!(
        replayed,
        [
            None,
            None,
            Some(first.id),
            Some(edit.id),
            None,
            Some(first.id)
        ]
    );
    assert_eq!(applied[4].outcome, rejected(Rejection::KeyReused));
    assert_eq!(fixture.store.count_applied_operations().await?, 3);
    Ok(())
}

#[tokio::test]
async fn a_direct_write_that_was_also_buffered_is_applied_once() -> Result<()> {
    let fixture = Fixture::start().await?;
    let (user, id) = (some_user(), TaskId::generate());
    let lost = create(&user, id, 1);
    apply_one(&fixture.store, &lost).await?;
    apply_one(&fixture.store, &retitle(&user, id, 2, "since then")).await?;
    let before = row(&fixture.store, id).await?;
    let replay = apply_one(&fixture.store, &buffered(lost)).await?;
    assert_eq!(replay.outcome, Outcome::Applied);
    assert_eq!(row(&fixture.store, id).await?, before);
    Ok(())
}

#[tokio::test]
async fn a_profile_is_made_from_claims_and_yields_to_every_write() -> Result<()> {
    let fixture = Fixture::start().await?;
    for recorded in [false, true] {
        let user = some_user();
        let mut edit = edit_profile(&user, 5, "hello");
        edit.buffered = recorded;
        let made = apply_one(&fixture.store, &edit).await?;
        assert!(made.created);
        let Some(State::Profile(profile)) = made.state else {
            panic!("not a profile")
        };
        assert_eq!(
            profile.email.as_ref().map(|email| email.stamp),
            Some(Stamp::ZERO)
        );
        assert_eq!(
            fixture.store.find_profile(&user).await?,
            Some(profile.clone())
        );
        let mut rename = edit_profile(&user, 3, "");
        rename.buffered = recorded;
        if let holdfast_shared::domain::Body::Profile { change, .. } = &mut rename.body {
            **change = renamed(3, "Anna");
        }
        let older = apply_one(&fixture.store, &rename).await?;
        assert_eq!((older.outcome, older.created), (Outcome::Applied, false));
        let mut expected = profile;
        expected.merge(&renamed(3, "Anna"));
        assert_eq!(older.state, Some(State::Profile(expected)));
    }
    Ok(())
}

#[tokio::test]
async fn provisioning_never_overwrites() -> Result<()> {
    let fixture = Fixture::start().await?;
    let user = some_user();
    let provision = ProfileState::provisioned(&claims(), stamp(1));
    assert_eq!(fixture.store.find_profile(&user).await?, None);
    assert_eq!(
        fixture
            .store
            .insert_profile_if_absent(&user, &provision)
            .await?,
        provision
    );
    apply_one(&fixture.store, &edit_profile(&user, 2, "mine")).await?;
    let present = fixture.store.find_profile(&user).await?.expect("there");
    let again = ProfileState::provisioned(&claims(), stamp(9));
    assert_eq!(
        fixture
            .store
            .insert_profile_if_absent(&user, &again)
            .await?,
        present
    );
    Ok(())
}

#[tokio::test]
async fn a_condition_is_too_old_when_its_record_may_be_gone() -> Result<()> {
    let fixture = Fixture::start().await?;
    let (user, id) = (some_user(), TaskId::generate());
    apply_one(&fixture.store, &create(&user, id, 1)).await?;
    let mut old = buffered(conditional(
        retitle(&user, id, 2, "old"),
        Precondition::Exists,
    ));
    old.accepted_at = (chrono::Utc::now() - chrono::Duration::days(91)).into();
    assert_eq!(
        apply_one(&fixture.store, &old).await?.outcome,
        rejected(Rejection::TooOld)
    );
    let mut plain = buffered(retitle(&user, id, 3, "no condition"));
    plain.accepted_at = old.accepted_at;
    assert_eq!(
        apply_one(&fixture.store, &plain).await?.outcome,
        Outcome::Applied
    );
    Ok(())
}

#[tokio::test]
async fn records_are_listed_newest_first_and_removed_oldest_first() -> Result<()> {
    let fixture = Fixture::start().await?;
    let user = some_user();
    let mut ids = Vec::new();
    for number in 1..=5 {
        let operation = buffered(create(&user, TaskId::generate(), number));
        ids.push(operation.id);
        apply_one(&fixture.store, &operation).await?;
    }
    let refused = conditional(create(&user, TaskId::generate(), 6), Precondition::Exists);
    let refused = buffered(refused);
    apply_one(&fixture.store, &refused).await?;
    let list = async |state, before, limit| -> Result<Vec<_>> {
        let records = fixture
            .store
            .list_operations(&user, state, before, limit)
            .await?;
        Ok(records.into_iter().map(|record| record.id).collect())
    };
    assert_eq!(list(None, None, 3).await?, [refused.id, ids[4], ids[3]]);
    assert_eq!(list(None, Some(ids[3]), 3).await?, [ids[2], ids[1], ids[0]]);
    assert_eq!(
        list(Some(OperationState::Dead), None, 9).await?,
        [refused.id]
    );
    assert_eq!(list(Some(OperationState::Applied), None, 9).await?.len(), 5);
    let before_all = fixture
        .store
        .find_operation(&user, ids[0])
        .await?
        .and_then(|record| record.finished_at);
    assert_eq!(
        fixture
            .store
            .remove_old_records(before_all.expect("ended"), 9)
            .await?,
        0
    );
    let after_all =
        holdfast_shared::domain::Timestamp::from(chrono::Utc::now() + chrono::Duration::hours(1));
    assert_eq!(fixture.store.remove_old_records(after_all, 2).await?, 2);
    assert_eq!(
        list(None, None, 9).await?,
        [refused.id, ids[4], ids[3], ids[2]]
    );
    Ok(())
}

/// Another node's clock may be ahead: a direct write is newer than what it meets all the same, in each of its fields.
#[tokio::test]
async fn a_direct_write_that_is_overtaken_in_one_field_is_to_be_stamped_anew() -> Result<()> {
    let fixture = Fixture::start().await?;
    for is_keyed in [false, true] {
        let (user, id) = (some_user(), TaskId::generate());
        apply_one(&fixture.store, &create(&user, id, 1)).await?;
        apply_one(&fixture.store, &retitle(&user, id, 9, "of a faster clock")).await?;
        let mut whole = create(&user, id, 5);
        if is_keyed {
            whole = keyed(whole, "once", 1);
        }
        let met = apply_one(&fixture.store, &whole).await?;
        assert_eq!(met.outcome, Outcome::Superseded);
        whole.restamp(stamp(10));
        let applied = apply_one(&fixture.store, &whole).await?;
        assert_eq!(applied.outcome, Outcome::Applied);
        assert!(applied.replayed.is_none(), "nothing was recorded before");
        let state = applied.state.expect("a task");
        assert_eq!(row(&fixture.store, id).await?.state, state);
        assert!(whole.prevails(&state));
    }
    Ok(())
}

#[tokio::test]
async fn a_conditional_write_that_is_overtaken_changes_nothing_until_it_is_stamped_anew()
-> Result<()> {
    let fixture = Fixture::start().await?;
    let (user, id) = (some_user(), TaskId::generate());
    apply_one(&fixture.store, &create(&user, id, 1)).await?;
    apply_one(&fixture.store, &retitle(&user, id, 9, "of a faster clock")).await?;
    let before = row(&fixture.store, id).await?;
    let mut whole = conditional(
        create(&user, id, 5),
        Precondition::Match(vec![before.state.etag(&before.owner)]),
    );
    let met = apply_one(&fixture.store, &whole).await?;
    assert_eq!(met.outcome, Outcome::Superseded);
    assert_eq!(row(&fixture.store, id).await?, before);
    whole.restamp(stamp(10));
    let applied = apply_one(&fixture.store, &whole).await?;
    assert_eq!(applied.outcome, Outcome::Applied);
    Ok(())
}
