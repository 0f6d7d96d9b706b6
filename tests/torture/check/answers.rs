//! Answers: none missing, none refused, none late, without an excuse.

use std::time::Duration;

use super::order::Writes;
use super::{Breach, Verdict};
use crate::history::{
    Api, Ask, Exchange, History, Micros, Resource, Span, Thing, Trouble, Verb, Wanted,
};

/// The longest that an answer may take: the store's deadline (750 ms) and the
/// buffer's (5 s, for a disk that others keep busy), and as much again as a
/// machine with more processes than cores may add.
pub const SLOWEST: Micros = 8_000_000;

/// A stall of the machine that may make a direct write late: it has 750 ms, for several round trips and a commit.
pub const LONG_STALL: Duration = Duration::from_millis(400);

/// The buffer's deadline, as a client sees it at least.
const BUFFER_DEADLINE: Micros = 4_900_000;

/// How long after a store's trouble a node may still not have found it well
/// again: a probe, a connection, and PostgreSQL's recovery.
const RECOVERY: Micros = 5_000_000;

/// Connections of a process that has ended are noticed by their next use.
const STALE_CONNECTION: Micros = 1_000_000;

/// Judges each answer, and each lack of one.
pub fn check(history: &History, writes: &Writes<'_>, verdict: &mut Verdict) {
    let troubles = Troubles(&history.troubles);
    for exchange in &history.exchanges {
        let resource = resource_of(exchange, writes);
        if let Some(complaint) = failure(exchange, writes, &troubles) {
            verdict.add(Breach::Unjustified, resource, complaint);
        }
        let took = exchange.ended - exchange.invoked;
        let waited = took - troubles.stalled(exchange);
        if exchange.reply.is_some() && waited > SLOWEST && !troubles.frozen(exchange) {
            let detail = format!("{} ms: {exchange}", took / 1000);
            verdict.add(Breach::Slow, resource, detail);
        }
    }
}

/// The slowest answer that nothing excuses.
pub fn slowest(history: &History) -> Micros {
    let troubles = Troubles(&history.troubles);
    let answered = history
        .exchanges
        .iter()
        .filter(|exchange| exchange.reply.is_some() && !troubles.frozen(exchange));
    let times = answered.map(|exchange| exchange.ended - exchange.invoked);
    times.max().unwrap_or(0)
}

fn resource_of(exchange: &Exchange, writes: &Writes<'_>) -> Option<Resource> {
    let user = exchange.user;
    match &exchange.ask {
        Ask::Write(wanted) => writes.find(wanted.token)?.resource,
        Ask::Read(thing) => Some(Resource {
            user,
            thing: *thing,
        }),
        Ask::List | Ask::Follow(_) => None,
    }
}

fn failure(exchange: &Exchange, writes: &Writes<'_>, troubles: &Troubles<'_>) -> Option<String> {
    let Some(status) = exchange.status() else {
        let excused = troubles.down(exchange);
        return (!excused).then(|| format!("no answer from a living process: {exchange}"));
    };
    let excused = match &exchange.ask {
        _ if status / 100 == 2 => true,
        Ask::Write(_) if status == 503 => troubles.excuse_refusal(exchange),
        Ask::Write(wanted) => is_borne_out(exchange, wanted, status, writes),
        // Whether it should have been known is judged with the other reads.
        Ask::Read(_) if status == 404 => true,
        _ if status == 503 => troubles.outage(exchange) || troubles.excuse_refusal(exchange),
        _ => false,
    };
    (!excused).then(|| format!("{exchange}"))
}

/// Whether a refusal is right by what the clients did.
fn is_borne_out(exchange: &Exchange, wanted: &Wanted, status: u16, writes: &Writes<'_>) -> bool {
    let Some(resource) = resource_of(exchange, writes) else {
        return status == 409 && is_twin_running(exchange, wanted, writes);
    };
    let deleted = writes.may_be_deleted(resource, exchange.ended);
    match status {
        404 => {
            let made = writes.is_made(resource, exchange.api.node, exchange.invoked);
            wants_it_there(wanted) && (deleted || !made)
        }
        409 => is_twin_running(exchange, wanted, writes),
        // The id of a task made under a key is used again by a repeat.
        410 => deleted && (wanted.verb == Verb::Put || wanted.keyed && wanted.verb == Verb::Create),
        _ => false,
    }
}

/// Whether it makes nothing that isn't there. Under the id of a task that a key makes, nothing else does.
fn wants_it_there(wanted: &Wanted) -> bool {
    match (wanted.verb, wanted.thing) {
        (Verb::Patch(_) | Verb::Delete, _) => true,
        (Verb::Put, Some(Thing::Task(id))) => id.get_version_num() == 8,
        _ => false,
    }
}

/// Whether another request under the same key ran at the same time.
fn is_twin_running(exchange: &Exchange, wanted: &Wanted, writes: &Writes<'_>) -> bool {
    let twins = writes.find(wanted.token).map(|write| &write.attempts);
    wanted.keyed
        && twins.into_iter().flatten().any(|twin| {
            let other = !std::ptr::eq(*twin, exchange);
            other && twin.invoked < exchange.ended && twin.ended > exchange.invoked
        })
}

struct Troubles<'h>(&'h [Span]);

impl Troubles<'_> {
    fn any(&self, exchange: &Exchange, before: Micros, fits: impl Fn(Trouble) -> bool) -> bool {
        self.0.iter().any(|span| {
            fits(span.trouble)
                && span.from < exchange.ended
                && span.to.saturating_add(before) > exchange.invoked
        })
    }

    fn down(&self, exchange: &Exchange) -> bool {
        let its_own = |trouble| trouble == Trouble::Down(exchange.api);
        self.any(exchange, STALE_CONNECTION, its_own)
    }

    fn frozen(&self, exchange: &Exchange) -> bool {
        let Api { node, .. } = exchange.api;
        self.any(exchange, 0, |trouble| trouble == Trouble::Frozen(node))
    }

    fn excuse_refusal(&self, exchange: &Exchange) -> bool {
        let Api { node, .. } = exchange.api;
        let full = |trouble| trouble == Trouble::DiskFull(node);
        self.frozen(exchange)
            || self.any(exchange, RECOVERY, full)
            || self.outlasted_by_stalls(exchange)
    }

    /// For how long of an exchange the machine stood still.
    fn stalled(&self, exchange: &Exchange) -> Micros {
        let stalls = self
            .0
            .iter()
            .filter(|span| span.trouble == Trouble::Stalled);
        let common = stalls.map(|span| {
            let end = span.to.min(exchange.ended);
            end.saturating_sub(span.from.max(exchange.invoked))
        });
        common.sum()
    }

    /// Whether it was given up at the buffer's deadline, of which the machine stood still for the greater part.
    fn outlasted_by_stalls(&self, exchange: &Exchange) -> bool {
        let took = exchange.ended - exchange.invoked;
        took >= BUFFER_DEADLINE && self.stalled(exchange) > BUFFER_DEADLINE / 2
    }

    /// A process that was stopped finds its deadlines passed, and so its store too slow, until it has probed it anew.
    fn outage(&self, exchange: &Exchange) -> bool {
        let Api { node, .. } = exchange.api;
        let excuses = [
            Trouble::Store(node),
            Trouble::Frozen(node),
            Trouble::Down(exchange.api),
            Trouble::Stalled,
        ];
        self.any(exchange, RECOVERY, |trouble| excuses.contains(&trouble))
    }
}
