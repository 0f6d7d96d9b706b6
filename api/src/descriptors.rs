//! Room for connections: each takes a file descriptor, of which the system allows a process only so many.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors for all but those connections: the buffer and its locks, Redis, the probes' own
/// connections, the journal, and files that are open for a moment.
const OTHERS: usize = 128;

/// Asks the system for room for so many clients' connections, and as many others; gives how many of the clients' fit:
/// fewer where the process may not have that many open files, as they must never take a descriptor that the store needs.
pub fn room_for(connections: usize, others: usize) -> usize {
    let others = others.saturating_add(OTHERS);
    let wanted = connections.saturating_add(others);
    let allowed = raise_to(wanted as u64);
    let room = usize::try_from(allowed).unwrap_or(usize::MAX);
    if room >= wanted {
        return connections;
    }
    let fitting = room.saturating_sub(others).max(1);
    tracing::warn!(
        open_files = room,
        needed = wanted,
        connections = fitting,
        "MAX_CONNECTIONS is more than the open files this process may have: fewer connections are taken; raise the \
         hard limit (LimitNOFILE= in a unit, ulimit -Hn) or lower MAX_CONNECTIONS"
    );
    fitting
}

/// Raises the soft limit of open files to this number, or as far as the hard limit allows; gives what it is then.
fn raise_to(wanted: u64) -> u64 {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            tracing::warn!(%error, "can't ask how many files may be open; taking it that they are enough");
            return u64::MAX;
        }
    };
    let raised = wanted.min(hard);
    if soft >= raised {
        return soft;
    }
    match setrlimit(Resource::RLIMIT_NOFILE, raised, hard) {
        Ok(()) => raised,
        Err(error) => {
            tracing::warn!(%error, soft, "can't raise the limit of open files");
            soft
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_fit_are_all_taken_and_others_leave_room_for_the_stores() {
        assert_eq!(room_for(10, 5), 10);
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        let hard = usize::try_from(hard).expect("a machine word");
        // Where the system sets no limit, nothing can be beyond it.
        if hard < 1 << 40 {
            assert_eq!(room_for(hard, 5), hard - OTHERS - 5);
            assert_eq!(room_for(hard, hard), 1);
        }
    }
}
