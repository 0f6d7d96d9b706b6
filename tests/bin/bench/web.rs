//! Requests over HTTP: writes with PostgreSQL up and away, and reads, each against the bare handler.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use holdfast_tests::tokens;
use serde_json::Value;

use crate::bare::Bare;
use crate::keep_alive::{KeepAlive, request};
use crate::plan::Plan;
use crate::report::{Line, Report};
use crate::sample::Sample;
use crate::slices::{Contender, LoopClient, Measured};
use crate::stage::{Served, Stage};
use crate::statistics::Random;

const BARE: &str = "bare handler";
const ONLINE: &str = "holdfast, online";
const AWAY: &str = "holdfast, PostgreSQL away, empty buffer";
const AWAY_FULL: &str = "holdfast, PostgreSQL away, full backlog";

/// Tasks that each client of a read reads in turn.
const TASKS_READ: u64 = 20;

/// The lowest ratio that is good enough of buffered to online writes, and at how many clients.
const BUFFERED_TARGET: (usize, f64) = (16, 1.0);

/// The servers, each with the address of its own.
struct Servers {
    bare: Bare,
    online: Served,
    full: Served,
}

/// Measures writes and reads; `full` is an API on a backlog, whose PostgreSQL is away.
///
/// # Errors
/// When a server doesn't start or a connection breaks.
pub async fn measure(
    stage: &Stage,
    full: Served,
    plan: &Plan,
    random: &mut Random,
    report: &mut Report,
) -> Result<()> {
    stage.clean().await?;
    let online = Served::start_online(stage.node_online()?).await?;
    let bare = Bare::start(&stage.bare_url, online.node.directory()).await?;
    let servers = Servers { bare, online, full };
    let measured = writes(stage, &servers, plan, random).await?;
    report_writes(&measured, plan, random, report);
    let measured = reads(&servers, plan, random).await?;
    report_reads(&measured, plan, random, report);
    Ok(())
}

async fn writes(
    stage: &Stage,
    servers: &Servers,
    plan: &Plan,
    random: &mut Random,
) -> Result<Measured> {
    let most = plan.most_clients();
    let mut contenders = vec![
        Contender::new(BARE, writers(&servers.bare.address(), most, 201).await?),
        Contender::new(
            ONLINE,
            writers(&servers.online.node.api_address(), most, 201).await?,
        ),
        Contender::new(
            AWAY_FULL,
            writers(&servers.full.node.api_address(), most, 202).await?,
        ),
    ];
    let mut measured = Measured::default();
    let began = Instant::now();
    for round in 0..plan.rounds {
        // A fresh node each time: its buffer is empty at first and holds a few thousand at the end of a round.
        let fresh = Served::start(stage.node_away()?).await?;
        contenders.push(Contender::new(
            AWAY,
            writers(&fresh.node.api_address(), most, 202).await?,
        ));
        measured
            .round(&contenders, &plan.clients, plan.slice, random)
            .await?;
        contenders.pop();
        progress("writes", round, plan.rounds, began);
    }
    Ok(measured)
}

/// Clients that create tasks, each of a user of its own.
async fn writers(address: &str, count: usize, expected: u16) -> Result<Vec<LoopClient>> {
    let mut clients = Vec::new();
    for number in 0..count {
        let token = tokens::valid(&user_of_client(number));
        let body = Sample::new(number as u64).json();
        let post = request("POST", "/api/v1/tasks", &token, &body);
        clients.push(LoopClient::new(address, vec![post], expected).await?);
    }
    Ok(clients)
}

async fn reads(servers: &Servers, plan: &Plan, random: &mut Random) -> Result<Measured> {
    let most = plan.most_clients();
    let contenders = vec![
        Contender::new(BARE, readers(&servers.bare.address(), most).await?),
        Contender::new(
            ONLINE,
            readers(&servers.online.node.api_address(), most).await?,
        ),
        Contender::new(
            AWAY_FULL,
            readers(&servers.full.node.api_address(), most).await?,
        ),
    ];
    let mut measured = Measured::default();
    let began = Instant::now();
    for round in 0..plan.rounds {
        measured
            .round(&contenders, &plan.clients, plan.slice, random)
            .await?;
        progress("reads", round, plan.rounds, began);
    }
    Ok(measured)
}

/// Clients that read tasks of their own, which are created first.
async fn readers(address: &str, count: usize) -> Result<Vec<LoopClient>> {
    let mut clients = Vec::new();
    for number in 0..count {
        let token = tokens::valid(&user_of_client(number));
        let mut connection = KeepAlive::open(address).await?;
        let mut gets = Vec::new();
        for task in 0..TASKS_READ {
            let post = request("POST", "/api/v1/tasks", &token, &Sample::new(task).json());
            let status = connection.exchange(&post).await?;
            let body: Value =
                serde_json::from_slice(connection.body()).context("an answer that is no JSON")?;
            let id = body["id"]
                .as_str()
                .with_context(|| format!("status {status} and no id: {body}"))?;
            gets.push(request("GET", &format!("/api/v1/tasks/{id}"), &token, ""));
        }
        clients.push(LoopClient::new(address, gets, 200).await?);
    }
    Ok(clients)
}

fn user_of_client(number: usize) -> String {
    format!("client-{number:02}")
}

fn report_writes(measured: &Measured, plan: &Plan, random: &mut Random, report: &mut Report) {
    let pending = plan.pending;
    report.begin(
        "POST one task",
        &format!(
            "Closed loop, keep-alive, bodies of about 500 bytes, answers per second. `{ONLINE}` against the bare \
             handler says what Holdfast costs while all is well. The lines with PostgreSQL away are against Holdfast \
             online: 1 means that clients feel no difference; their buffer is empty (a few thousand at most), or \
             holds {pending} items at first."
        ),
    );
    for (name, against) in [
        (BARE, None),
        (ONLINE, Some(BARE)),
        (AWAY, Some(ONLINE)),
        (AWAY_FULL, Some(ONLINE)),
    ] {
        for count in &plan.clients {
            let mut line = web_line(measured, (name, against), *count, random);
            let buffered = name == AWAY || name == AWAY_FULL;
            line.target = (buffered && *count == BUFFERED_TARGET.0).then_some(BUFFERED_TARGET.1);
            report.add(line);
        }
    }
    report.note_all(measured.surprises());
}

fn report_reads(measured: &Measured, plan: &Plan, random: &mut Random, report: &mut Report) {
    report.begin(
        "GET one task",
        &format!(
            "As above, against the bare handler's SELECT by id. Online, the answer comes from PostgreSQL, after a look \
             whether something is pending; with PostgreSQL away, from a buffer of {} items and more.",
            plan.pending
        ),
    );
    for (name, against) in [(BARE, None), (ONLINE, Some(BARE)), (AWAY_FULL, Some(BARE))] {
        for count in &plan.clients {
            report.add(web_line(measured, (name, against), *count, random));
        }
    }
    report.note_all(measured.surprises());
}

fn web_line(
    measured: &Measured,
    (name, against): (&'static str, Option<&'static str>),
    count: usize,
    random: &mut Random,
) -> Line {
    let rate = measured.rate(name, count).unwrap_or_default();
    Line {
        clients: Some(count),
        ratio: against.and_then(|against| measured.ratio(name, against, count, random)),
        against: against.map(str::to_owned),
        latency: measured.latency(name, count),
        ..Line::new(name, rate, "/s")
    }
}

fn progress(what: &str, round: usize, rounds: usize, began: Instant) {
    let done = round + 1;
    let elapsed: Duration = began.elapsed();
    eprintln!(
        "{what}: round {done} of {rounds}, {:.0} s",
        elapsed.as_secs_f64()
    );
}
