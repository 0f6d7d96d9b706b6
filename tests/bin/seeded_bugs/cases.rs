//! Which test is to catch which bug. `ARCHITECTURE.md` has the same table.

/// What a test cannot run without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing that isn't everywhere.
    Nothing,
    /// A file system whose power can be cut.
    LoopDisk,
}

/// A bug and the fastest test that catches it.
#[derive(Debug)]
pub struct Case {
    /// Its name in `shared/src/seeded.rs`.
    pub bug: &'static str,
    /// The promise it breaks.
    pub promise: u8,
    /// The test executable's target: a library's unit tests or a file of tests.
    pub executable: &'static str,
    /// The test's whole name in it.
    pub test: &'static str,
    /// What it cannot run without.
    pub needs: Needs,
}

const fn case(
    bug: &'static str,
    promise: u8,
    executable: &'static str,
    test: &'static str,
) -> Case {
    Case {
        bug,
        promise,
        executable,
        test,
        needs: Needs::Nothing,
    }
}

/// Every bug.
pub const CASES: &[Case] = &[
    case(
        "AckBeforeCommit",
        1,
        "holdfast_shared",
        "buffer::model::a_power_cut_at_any_step_that_spares_only_what_was_synced_loses_nothing",
    ),
    case(
        "CommitUnsynced",
        1,
        "holdfast_shared",
        "buffer::model::a_power_cut_at_any_step_that_spares_only_what_was_synced_loses_nothing",
    ),
    Case {
        needs: Needs::LoopDisk,
        ..case(
            "CommitUnsynced",
            1,
            "power",
            "acknowledged_writes_survive_power_cuts",
        )
    },
    case(
        "RemovedBeforeApplied",
        1,
        "syncd",
        "drain::tests::an_outage_in_the_middle_counts_nothing_and_loses_nothing",
    ),
    case(
        "SettledUnseen",
        1,
        "holdfast_shared",
        "buffer::tests::an_item_that_changed_since_it_was_read_is_not_settled",
    ),
    case(
        "WithdrawnCarriedOut",
        2,
        "holdfast_shared",
        "buffer::tests::a_stopped_peer_inside_a_transaction_costs_a_refusal_at_the_deadline",
    ),
    case(
        "LedgerSkipped",
        2,
        "stores",
        "apply::a_replay_gets_the_recorded_outcome_whatever_happened_since",
    ),
    case(
        "ConditionBeforeLedger",
        2,
        "stores",
        "apply::a_replay_gets_the_recorded_outcome_whatever_happened_since",
    ),
    case(
        "RustMergeIgnoresStamps",
        3,
        "holdfast_shared",
        "domain::convergence::any_order_and_any_repetition_makes_the_same_row",
    ),
    case(
        "SqlMergeIgnoresStamps",
        3,
        "stores",
        "apply::an_older_write_keeps_out_of_newer_fields_only",
    ),
    case(
        "TombstonePurged",
        3,
        "stores",
        "apply::a_deleted_task_stays_deleted_with_its_body_cleared",
    ),
    case(
        "PriorityReorders",
        3,
        "holdfast_shared",
        "buffer::tests::a_later_item_of_a_resource_is_never_more_urgent_than_an_earlier_one",
    ),
    case(
        "HighWaterForgotten",
        3,
        "holdfast_shared",
        "buffer::model::whatever_is_done_and_whatever_fails_the_buffer_is_what_it_must_be",
    ),
    case(
        "StoreBeforeView",
        4,
        "reads",
        "a_write_is_never_missed_while_it_is_drained",
    ),
    case(
        "OutageFailsWrites",
        5,
        "outage",
        "an_operation_tells_what_became_of_a_buffered_write",
    ),
    case(
        "ReadOnlyProbe",
        5,
        "stores",
        "health::a_read_only_server_is_down",
    ),
    case(
        "LockedRowStopsLane",
        6,
        "syncd",
        "drain::tests::a_locked_row_is_put_off_and_counts_nothing",
    ),
    case(
        "RetryCountedInOutage",
        7,
        "syncd",
        "drain::tests::an_outage_in_the_middle_counts_nothing_and_loses_nothing",
    ),
    case(
        "RemovedUnarchived",
        7,
        "holdfast_shared",
        "buffer::tests::a_letter_that_the_archive_cannot_take_stays",
    ),
    case(
        "ChecksumIgnored",
        7,
        "holdfast_shared",
        "buffer::schema::tests::every_flipped_bit_of_an_encoded_value_is_noticed",
    ),
    case(
        "CapIgnored",
        8,
        "holdfast_shared",
        "buffer::tests::a_full_buffer_refuses_ordinary_items_and_keeps_reserved_ones",
    ),
    case(
        "RevocationIgnored",
        9,
        "outage",
        "with_redis_dead_tokens_work_and_a_log_out_holds_at_once_and_afterwards",
    ),
    case(
        "LostRevocationsLeft",
        9,
        "redis_topologies",
        "lost::a_restart_that_costs_redis_everything_costs_no_revocation",
    ),
    case(
        "ExpiredTokenAccepted",
        9,
        "holdfast_api",
        "middleware::token::tests::clocks_may_differ_by_the_leeway",
    ),
    case(
        "BodyUnbounded",
        10,
        "holdfast_api",
        "transport::body::tests::a_chunked_body_over_the_limit_is_413",
    ),
];

#[cfg(test)]
mod tests {
    use super::CASES;

    const BUGS: &str = include_str!("../../../shared/src/seeded.rs");
    const ARCHITECTURE: &str = include_str!("../../../ARCHITECTURE.md");

    #[test]
    fn every_bug_has_a_case_and_every_case_is_in_the_architecture() {
        let declared: Vec<&str> = BUGS
            .lines()
            .filter_map(|line| line.strip_prefix("    Bug::")?.strip_suffix(','))
            .collect();
        assert!(declared.len() > 10, "the bugs are declared in another form");
        for bug in declared {
            assert!(
                CASES.iter().any(|case| case.bug == bug),
                "{bug} has no case"
            );
        }
        for case in CASES {
            let test = case.test.rsplit("::").next().unwrap_or_default();
            let row = |line: &&str| {
                line.starts_with(&format!("| `{}` ", case.bug))
                    && line.contains(&format!("| {} |", case.promise))
            };
            let named = ARCHITECTURE.lines().find(row);
            assert!(
                named.is_some_and(|line| line.contains(test)),
                "ARCHITECTURE.md doesn't say that {test} catches {}",
                case.bug
            );
        }
    }
}
