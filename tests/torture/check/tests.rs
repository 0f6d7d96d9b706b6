//! The checker against histories that each hold one violation, and against ones
//! that look like one and aren't: a checker that can't fail is worth nothing, and
//! one that cries wolf isn't believed.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{Breach, Verdict, answers, check, order};
use crate::history::*;

const HERE: Api = Api { node: 0, number: 0 };
const BESIDE: Api = Api { node: 0, number: 1 };
const FAR: Api = Api { node: 1, number: 0 };

/// A second, in the history's unit.
const SECOND: Micros = 1_000_000;

/// A history under construction, of one user and one task.
struct Tale {
    history: History,
    task: Thing,
    now: Micros,
    life: u32,
}

/// What a request is answered.
#[derive(Clone, Copy)]
enum Told {
    /// 201, 200 or 204 with these tokens.
    Direct([Token; FIELDS]),
    /// 202 with these tokens; its operation ends so long afterwards.
    Buffered([Token; FIELDS], Micros),
    /// A status without a resource.
    Status(u16),
    /// Nothing.
    Silence,
}

fn operation_of(token: Token) -> Uuid {
    Uuid::from_u128(0xA000 + u128::from(token))
}

impl Tale {
    fn new() -> Self {
        Self {
            history: History {
                outcome: Outcome {
                    books: vec![Books::default(), Books::default()],
                    ..Outcome::default()
                },
                ..History::default()
            },
            task: Thing::Task(Uuid::from_u128(1)),
            now: 10 * SECOND,
            life: 0,
        }
    }

    fn resource(&self) -> Resource {
        Resource {
            user: 1,
            thing: self.task,
        }
    }

    fn add(&mut self, api: Api, ask: Ask, reply: Option<Reply>) -> &mut Exchange {
        let invoked = self.now;
        self.now += 20_000;
        self.history.exchanges.push(Exchange {
            api,
            life: Some(self.life),
            user: 1,
            invoked,
            ended: invoked + 10_000,
            ask,
            reply,
        });
        self.history.exchanges.last_mut().expect("just added")
    }

    fn write(&mut self, api: Api, token: Token, verb: Verb, told: Told) -> &mut Self {
        self.attempt(api, (token, verb, false), told)
    }

    fn attempt(
        &mut self,
        api: Api,
        (token, verb, keyed): (Token, Verb, bool),
        told: Told,
    ) -> &mut Self {
        let thing = (verb != Verb::Create).then_some(self.task);
        let ended = self.now + 10_000;
        let show = |tokens, sync| match verb {
            Verb::Delete => Shown::Nothing,
            _ => Shown::One(Seen {
                thing: self.task,
                tokens,
                sync,
            }),
        };
        let reply = match told {
            Told::Direct(tokens) => Some((
                if verb == Verb::Delete { 204 } else { 200 },
                None,
                show(tokens, Sync::Synced),
            )),
            Told::Buffered(tokens, _) => {
                Some((202, Some(operation_of(token)), show(tokens, Sync::Pending)))
            }
            Told::Status(status) => Some((status, None, Shown::Nothing)),
            Told::Silence => None,
        };
        if let Told::Buffered(_, lasts) = told {
            let entry = Entry {
                user: 1,
                key: keyed.then_some(token),
                end: End::Applied,
                finished: ended + lasts,
            };
            self.history
                .outcome
                .ledger
                .insert(operation_of(token), entry);
            let books = &mut self.history.outcome.books[usize::from(api.node)];
            books.accepted += 1;
            books.applied += 1;
        }
        let wanted = Wanted {
            token,
            verb,
            thing,
            keyed,
        };
        let reply = reply.map(|(status, operation, shown)| Reply {
            status,
            operation,
            replayed: false,
            shown,
        });
        self.add(api, Ask::Write(wanted), reply);
        self
    }

    fn create(&mut self, api: Api, token: Token) -> &mut Self {
        self.write(api, token, Verb::Create, Told::Direct([token; FIELDS]))
    }

    fn read(&mut self, api: Api, tokens: [Token; FIELDS], sync: Sync) -> &mut Self {
        let seen = Seen {
            thing: self.task,
            tokens,
            sync,
        };
        self.answer(api, Ask::Read(self.task), 200, Shown::One(seen))
    }

    fn answer(&mut self, api: Api, ask: Ask, status: u16, shown: Shown) -> &mut Self {
        let reply = Reply {
            status,
            operation: None,
            replayed: false,
            shown,
        };
        self.add(api, ask, Some(reply));
        self
    }

    fn list(&mut self, api: Api, items: &[[Token; FIELDS]], complete: bool) -> &mut Self {
        let items = items.iter().map(|tokens| Seen {
            thing: self.task,
            tokens: *tokens,
            sync: if complete { Sync::Synced } else { Sync::Stale },
        });
        let shown = Shown::Page {
            items: items.collect(),
            complete,
            more: false,
        };
        self.answer(api, Ask::List, 200, shown)
    }

    fn pause(&mut self, time: Micros) -> &mut Self {
        self.now += time;
        self
    }

    fn restart(&mut self) -> &mut Self {
        self.life += 2;
        self
    }

    fn trouble(&mut self, trouble: Trouble) -> &mut Self {
        self.history.troubles.push(Span {
            trouble,
            from: 0,
            to: u64::MAX,
        });
        self
    }

    fn row(&mut self, tokens: [Token; FIELDS]) -> &mut Self {
        let deleted = false;
        let resource = self.resource();
        self.history
            .outcome
            .rows
            .insert(resource, Row { tokens, deleted });
        self
    }

    fn tombstone(&mut self) -> &mut Self {
        let row = Row {
            tokens: [0; FIELDS],
            deleted: true,
        };
        let resource = self.resource();
        self.history.outcome.rows.insert(resource, row);
        self
    }

    fn dies(&mut self, token: Token, reason: &str) -> &mut Self {
        let outcome = &mut self.history.outcome;
        outcome.ledger.remove(&operation_of(token));
        outcome
            .dead
            .insert(operation_of(token), String::from(reason));
        for books in &mut outcome.books {
            if books.applied > 0 {
                books.applied -= 1;
                books.dead += 1;
                break;
            }
        }
        self
    }

    fn judge(&self) -> Verdict {
        check(&self.history)
    }

    #[track_caller]
    fn is_clean(&self) {
        let verdict = self.judge();
        assert_eq!(verdict.violations, [], "{:#?}", self.history);
    }

    #[track_caller]
    fn breaks(&self, breach: Breach) {
        let counts = self.judge().counts();
        let only: BTreeMap<Breach, usize> = [(breach, 1)].into();
        assert_eq!(
            counts.keys().collect::<Vec<_>>(),
            only.keys().collect::<Vec<_>>(),
            "{counts:?}"
        );
    }
}

const LONG: Micros = 60 * SECOND;

#[test]
fn a_history_that_keeps_everything_is_clean() {
    let mut tale = Tale::new();
    tale.create(HERE, 1)
        .read(HERE, [1; 4], Sync::Synced)
        .write(
            HERE,
            2,
            Verb::Patch(0),
            Told::Buffered([2, 1, 1, 1], SECOND),
        )
        .read(HERE, [2, 1, 1, 1], Sync::Pending)
        .list(HERE, &[[2, 1, 1, 1]], false)
        .pause(2 * SECOND)
        .read(FAR, [2, 1, 1, 1], Sync::Synced)
        .list(FAR, &[[2, 1, 1, 1]], true)
        .row([2, 1, 1, 1])
        .is_clean();
    assert_eq!(tale.judge().looked.acknowledged, 2);
}

#[test]
fn an_acknowledged_task_without_a_row_is_lost() {
    Tale::new().create(HERE, 1).breaks(Breach::Lost);
}

#[test]
fn an_operation_that_nobody_knows_any_more_is_lost() {
    let mut tale = Tale::new();
    tale.write(HERE, 1, Verb::Create, Told::Buffered([1; 4], SECOND))
        .row([1; 4]);
    tale.history.outcome.ledger.clear();
    tale.history.outcome.books[0] = Books::default();
    tale.breaks(Breach::Lost);
}

#[test]
fn a_task_that_nobody_deleted_and_that_is_a_tombstone_is_lost() {
    Tale::new().create(HERE, 1).tombstone().breaks(Breach::Lost);
}

#[test]
fn a_profile_s_field_that_is_as_before_is_lost() {
    let mut tale = Tale::new();
    tale.task = Thing::Profile;
    tale.write(HERE, 1, Verb::Patch(1), Told::Direct([0, 1, 0, 0]))
        .row([0; 4]);
    tale.breaks(Breach::Lost);
}

#[test]
fn two_rows_of_one_post_are_doubled() {
    let mut tale = Tale::new();
    tale.create(HERE, 1).row([1; 4]);
    tale.task = Thing::Task(Uuid::from_u128(2));
    tale.row([1; 4]).breaks(Breach::Doubled);
}

#[test]
fn an_unanswered_post_may_have_made_one_task_but_not_two() {
    let mut tale = Tale::new();
    tale.trouble(Trouble::Down(HERE))
        .write(HERE, 1, Verb::Create, Told::Silence)
        .row([1; 4])
        .is_clean();
    tale.task = Thing::Task(Uuid::from_u128(2));
    tale.row([1; 4]).breaks(Breach::Doubled);
}

#[test]
fn two_ids_under_one_key_are_doubled() {
    let mut tale = Tale::new();
    tale.attempt(HERE, (1, Verb::Create, true), Told::Direct([1; 4]))
        .row([1; 4]);
    tale.task = Thing::Task(Uuid::from_u128(2));
    tale.attempt(HERE, (1, Verb::Create, true), Told::Direct([1; 4]));
    tale.breaks(Breach::Doubled);
}

#[test]
fn a_value_that_nobody_wrote_or_that_was_refused_is_doubled() {
    Tale::new()
        .create(HERE, 1)
        .row([ALIEN, 1, 1, 1])
        .breaks(Breach::Doubled);
    let mut refused = Tale::new();
    refused
        .create(HERE, 1)
        .write(HERE, 2, Verb::Delete, Told::Direct([0; 4]))
        .write(HERE, 3, Verb::Patch(0), Told::Status(404));
    refused.row([3, 1, 1, 1]);
    let counts = refused.judge().counts();
    assert!(counts.contains_key(&Breach::Doubled), "{counts:?}");
}

#[test]
fn an_older_value_that_won_is_stale() {
    Tale::new()
        .create(HERE, 1)
        .write(HERE, 2, Verb::Patch(0), Told::Direct([2, 1, 1, 1]))
        .write(HERE, 3, Verb::Patch(0), Told::Direct([3, 1, 1, 1]))
        .row([2, 1, 1, 1])
        .breaks(Breach::Stale);
}

#[test]
fn an_old_buffered_write_that_overwrites_a_newer_direct_one_is_stale() {
    let mut tale = Tale::new();
    tale.create(HERE, 1)
        .write(FAR, 2, Verb::Patch(0), Told::Buffered([2, 1, 1, 1], LONG))
        .pause(order::CLOCK_SLACK)
        .write(HERE, 3, Verb::Patch(0), Told::Direct([3, 1, 1, 1]));
    tale.row([3, 1, 1, 1]).is_clean();
    tale.row([2, 1, 1, 1]).breaks(Breach::Stale);
}

#[test]
fn two_nodes_within_their_clocks_error_may_win_either_way() {
    let mut tale = Tale::new();
    tale.create(HERE, 1)
        .pause(2 * SECOND)
        .write(FAR, 2, Verb::Patch(0), Told::Buffered([2, 1, 1, 1], SECOND))
        .write(
            HERE,
            3,
            Verb::Patch(0),
            Told::Buffered([3, 1, 1, 1], SECOND),
        );
    tale.row([2, 1, 1, 1]).is_clean();
    tale.row([3, 1, 1, 1]).is_clean();
}

#[test]
fn writes_that_overlap_may_win_either_way() {
    let mut tale = Tale::new();
    tale.create(HERE, 1)
        .write(HERE, 2, Verb::Patch(0), Told::Direct([2, 1, 1, 1]))
        .write(HERE, 3, Verb::Patch(0), Told::Direct([3, 1, 1, 1]));
    let other = tale.history.exchanges[1].invoked;
    tale.history.exchanges[2].invoked = other;
    tale.row([2, 1, 1, 1]).is_clean();
    tale.row([3, 1, 1, 1]).is_clean();
}

#[test]
fn another_field_s_newer_value_taken_along_is_stale() {
    Tale::new()
        .create(HERE, 1)
        .write(HERE, 2, Verb::Patch(2), Told::Direct([1, 1, 2, 1]))
        .write(HERE, 3, Verb::Patch(0), Told::Direct([3, 1, 2, 1]))
        .row([3, 1, 1, 1])
        .breaks(Breach::Stale);
}

#[test]
fn a_deleted_task_that_is_there_is_undeleted() {
    Tale::new()
        .create(HERE, 1)
        .write(HERE, 2, Verb::Delete, Told::Direct([0; 4]))
        .row([1; 4])
        .breaks(Breach::Undeleted);
}

#[test]
fn a_deleted_task_that_is_read_again_is_undeleted() {
    let mut tale = Tale::new();
    tale.create(HERE, 1)
        .write(HERE, 2, Verb::Delete, Told::Buffered([0; 4], LONG));
    tale.tombstone();
    tale.read(BESIDE, [1; 4], Sync::Stale)
        .breaks(Breach::Undeleted);
}

#[test]
fn a_read_that_forgets_its_own_process_write_is_caught() {
    for sync in [Sync::Stale, Sync::Pending, Sync::Synced] {
        let mut tale = Tale::new();
        tale.create(HERE, 1)
            .write(HERE, 2, Verb::Patch(0), Told::Buffered([2, 1, 1, 1], LONG))
            .row([2, 1, 1, 1]);
        tale.read(HERE, [1; 4], sync).breaks(Breach::Forgotten);
    }
}

#[test]
fn a_list_that_forgets_is_caught() {
    let mut missing = Tale::new();
    missing.create(HERE, 1).list(HERE, &[], false).row([1; 4]);
    missing.breaks(Breach::Forgotten);
    let mut old = Tale::new();
    old.create(HERE, 1)
        .write(HERE, 2, Verb::Patch(0), Told::Direct([2, 1, 1, 1]))
        .list(HERE, &[[1; 4]], true)
        .row([2, 1, 1, 1]);
    old.breaks(Breach::Forgotten);
}

#[test]
fn a_sibling_on_the_buffer_sees_what_waits_there_and_may_miss_what_has_left_it() {
    let mut tale = Tale::new();
    tale.create(HERE, 1)
        .write(
            HERE,
            2,
            Verb::Patch(0),
            Told::Buffered([2, 1, 1, 1], SECOND),
        )
        .row([2, 1, 1, 1]);
    let waiting = tale.history.clone();
    tale.read(BESIDE, [1; 4], Sync::Stale)
        .breaks(Breach::Forgotten);
    tale.history = waiting;
    tale.pause(2 * SECOND)
        .read(BESIDE, [1; 4], Sync::Stale)
        .is_clean();
}

#[test]
fn an_answer_from_postgres_shows_what_postgres_took() {
    let mut tale = Tale::new();
    tale.create(HERE, 1)
        .write(HERE, 2, Verb::Patch(0), Told::Direct([2, 1, 1, 1]))
        .row([2, 1, 1, 1]);
    let before = tale.history.clone();
    tale.read(FAR, [1; 4], Sync::Synced)
        .breaks(Breach::Forgotten);
    tale.history = before;
    tale.read(FAR, [1; 4], Sync::Stale).is_clean();
}

#[test]
fn what_a_process_has_shown_it_doesn_t_take_back() {
    let mut tale = Tale::new();
    tale.create(HERE, 1)
        .write(HERE, 2, Verb::Patch(0), Told::Direct([2, 1, 1, 1]))
        .read(FAR, [2, 1, 1, 1], Sync::Synced)
        .row([2, 1, 1, 1]);
    let before = tale.history.clone();
    tale.read(FAR, [1; 4], Sync::Stale)
        .breaks(Breach::Forgotten);
    tale.history = before;
    tale.restart().read(FAR, [1; 4], Sync::Stale).is_clean();
}

#[test]
fn a_known_task_that_is_unknown_all_at_once_is_forgotten() {
    for status in [404, 503] {
        let mut tale = Tale::new();
        tale.trouble(Trouble::Store(0)).create(HERE, 1).row([1; 4]);
        let task = tale.task;
        tale.answer(HERE, Ask::Read(task), status, Shown::Nothing)
            .breaks(Breach::Forgotten);
    }
}

#[test]
fn a_write_s_own_answer_shows_it() {
    let mut tale = Tale::new();
    tale.create(HERE, 1)
        .pause(2 * SECOND)
        .write(HERE, 2, Verb::Patch(0), Told::Buffered([1; 4], LONG))
        .row([2, 1, 1, 1])
        .breaks(Breach::Forgotten);
}

#[test]
fn an_operation_that_dies_of_nothing_a_client_did_is_buried() {
    for reason in [
        "not_found",
        "deleted",
        "value too long (22001)",
        "blocked_by nobody",
    ] {
        let mut tale = Tale::new();
        tale.create(HERE, 1)
            .write(
                HERE,
                2,
                Verb::Patch(0),
                Told::Buffered([2, 1, 1, 1], SECOND),
            )
            .dies(2, reason)
            .row([1; 4]);
        tale.breaks(Breach::Buried);
    }
}

#[test]
fn an_operation_that_dies_of_what_a_client_did_is_not() {
    let mut deleted = Tale::new();
    deleted
        .create(HERE, 1)
        .write(FAR, 2, Verb::Patch(0), Told::Buffered([2, 1, 1, 1], SECOND))
        .write(HERE, 3, Verb::Delete, Told::Direct([0; 4]))
        .dies(2, "deleted")
        .tombstone();
    deleted.is_clean();
    let mut never_there = Tale::new();
    never_there
        .write(HERE, 1, Verb::Create, Told::Buffered([1; 4], LONG))
        .write(FAR, 2, Verb::Patch(0), Told::Buffered([2, 1, 1, 1], SECOND))
        .row([1; 4]);
    never_there.history.outcome.books.swap(0, 1);
    never_there.dies(2, "not_found").is_clean();
}

#[test]
fn a_refused_write_needs_a_stopped_process_or_a_full_disk() {
    let refused = || {
        let mut tale = Tale::new();
        tale.create(HERE, 1)
            .write(HERE, 2, Verb::Patch(0), Told::Status(503))
            .row([1; 4]);
        tale
    };
    refused().breaks(Breach::Unjustified);
    refused()
        .trouble(Trouble::Store(0))
        .breaks(Breach::Unjustified);
    refused()
        .trouble(Trouble::Frozen(1))
        .breaks(Breach::Unjustified);
    refused().trouble(Trouble::Frozen(0)).is_clean();
    refused().trouble(Trouble::DiskFull(0)).is_clean();
}

#[test]
fn a_refused_read_needs_an_outage() {
    let mut tale = Tale::new();
    tale.create(FAR, 1).row([1; 4]);
    let task = tale.task;
    tale.answer(HERE, Ask::Read(task), 503, Shown::Nothing);
    tale.breaks(Breach::Unjustified);
    tale.trouble(Trouble::Store(0)).is_clean();
}

#[test]
fn a_read_may_be_refused_just_after_its_process_was_stopped() {
    let mut tale = Tale::new();
    tale.create(FAR, 1).row([1; 4]);
    let task = tale.task;
    tale.answer(HERE, Ask::Read(task), 503, Shown::Nothing);
    tale.trouble(Trouble::Frozen(1)).breaks(Breach::Unjustified);
    tale.trouble(Trouble::Frozen(0)).is_clean();
}

#[test]
fn silence_needs_a_process_that_was_down() {
    let mut tale = Tale::new();
    tale.create(HERE, 1)
        .write(HERE, 2, Verb::Patch(0), Told::Silence)
        .row([1; 4]);
    tale.breaks(Breach::Unjustified);
    tale.trouble(Trouble::Down(BESIDE))
        .breaks(Breach::Unjustified);
    tale.trouble(Trouble::Down(HERE)).is_clean();
}

#[test]
fn client_errors_have_to_be_borne_out() {
    for (status, verb) in [
        (404, Verb::Patch(0)),
        (410, Verb::Put),
        (409, Verb::Patch(0)),
    ] {
        let mut tale = Tale::new();
        tale.create(HERE, 1)
            .write(HERE, 2, verb, Told::Status(status))
            .row([1; 4]);
        tale.breaks(Breach::Unjustified);
    }
    let mut gone = Tale::new();
    gone.create(HERE, 1)
        .write(HERE, 2, Verb::Delete, Told::Direct([0; 4]))
        .write(HERE, 3, Verb::Patch(0), Told::Status(404))
        .write(HERE, 4, Verb::Put, Told::Status(410))
        .tombstone()
        .is_clean();
    let mut repeated = Tale::new();
    let keyed = (1, Verb::Create, true);
    repeated
        .attempt(HERE, keyed, Told::Direct([1; 4]))
        .attempt(HERE, keyed, Told::Status(410))
        .row([1; 4])
        .breaks(Breach::Unjustified);
    let mut gone = Tale::new();
    gone.attempt(HERE, keyed, Told::Direct([1; 4]))
        .write(HERE, 2, Verb::Delete, Told::Direct([0; 4]))
        .attempt(FAR, keyed, Told::Status(410))
        .tombstone()
        .is_clean();
}

#[test]
fn only_under_the_id_that_a_key_makes_a_put_may_find_nothing() {
    let ids = [Uuid::now_v7(), Uuid::from_u128(8 << 76)];
    for (id, is_right) in ids.into_iter().zip([false, true]) {
        let mut tale = Tale::new();
        tale.task = Thing::Task(id);
        tale.write(
            FAR,
            1,
            Verb::Create,
            Told::Buffered([1; FIELDS], 5 * SECOND),
        )
        .write(HERE, 2, Verb::Put, Told::Status(404))
        .row([1; FIELDS]);
        if is_right {
            tale.is_clean();
        } else {
            tale.breaks(Breach::Unjustified);
        }
    }
}

#[test]
fn a_server_s_error_is_never_right() {
    let mut tale = Tale::new();
    tale.create(HERE, 1).row([1; 4]).trouble(Trouble::Frozen(0));
    tale.write(HERE, 2, Verb::Patch(0), Told::Status(500));
    tale.breaks(Breach::Unjustified);
}

#[test]
fn a_machine_that_stands_still_excuses_what_waited_for_it_and_no_more() {
    let refused = |took: Micros, stalled: Micros| {
        let mut tale = Tale::new();
        tale.create(HERE, 1).row([1; 4]);
        tale.write(HERE, 2, Verb::Patch(0), Told::Status(503));
        let exchange = &mut tale.history.exchanges[1];
        exchange.ended = exchange.invoked + took;
        let (from, to) = (exchange.invoked, exchange.invoked + stalled);
        let trouble = Trouble::Stalled;
        tale.history.troubles.push(Span { trouble, from, to });
        tale
    };
    refused(5 * SECOND, 4 * SECOND).is_clean();
    refused(5 * SECOND, 2 * SECOND).breaks(Breach::Unjustified);
    refused(3 * SECOND, 3 * SECOND).breaks(Breach::Unjustified);
    let mut late = Tale::new();
    late.create(HERE, 1).row([1; 4]);
    late.history.exchanges[0].ended += answers::SLOWEST;
    late.trouble(Trouble::Stalled).is_clean();
}

#[test]
fn an_answer_beyond_the_bound_is_slow_unless_a_process_was_stopped() {
    let mut tale = Tale::new();
    tale.create(HERE, 1).row([1; 4]);
    tale.history.exchanges[0].ended += answers::SLOWEST;
    tale.breaks(Breach::Slow);
    assert!(answers::slowest(&tale.history) > answers::SLOWEST);
    tale.trouble(Trouble::Frozen(0)).is_clean();
}

#[test]
fn counters_that_disagree_with_themselves_or_the_ledger_are_unbalanced() {
    let buffered = || {
        let mut tale = Tale::new();
        tale.write(HERE, 1, Verb::Create, Told::Buffered([1; 4], SECOND))
            .row([1; 4]);
        tale
    };
    buffered().is_clean();
    let spoils: [fn(&mut Books); 4] = [
        |books| books.accepted += 1,
        |books| books.pending = 1,
        |books| books.astray = 1,
        |books| {
            books.accepted += 1;
            books.applied += 1;
        },
    ];
    for spoil in spoils {
        let mut tale = buffered();
        spoil(&mut tale.history.outcome.books[0]);
        tale.breaks(Breach::Unbalanced);
    }
}

#[test]
fn a_key_s_repeat_that_was_buffered_too_is_explained_by_its_answer() {
    let mut tale = Tale::new();
    tale.attempt(
        HERE,
        (1, Verb::Create, true),
        Told::Buffered([1; 4], SECOND),
    )
    .row([1; 4]);
    tale.is_clean();
    // Another operation under the same key, which the ledger knows by the key.
    tale.history.outcome.books[1] = Books {
        accepted: 1,
        applied: 1,
        ..Books::default()
    };
    tale.breaks(Breach::Unbalanced);
    let mut again = tale.history.exchanges[0].clone();
    again.api = FAR;
    if let Some(reply) = &mut again.reply {
        reply.operation = Some(operation_of(77));
    }
    tale.history.exchanges.push(again);
    tale.is_clean();
}
