//! Draining: `syncd run` on a full buffer, against COPY of as many rows of the same width.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use holdfast_tests::{Node, Program};
use sqlx::Row;
use sqlx::postgres::PgConnection;
use tokio::io::AsyncReadExt;

use crate::backlog;
use crate::bare::stamp_now;
use crate::footprint;
use crate::plan::Plan;
use crate::report::{Line, Report};
use crate::sample::{COPY_COLUMNS, Sample};
use crate::stage::Stage;
use crate::statistics::{Random, Ratio, median};

/// Between two looks at the backlog: each costs a read transaction of some microseconds.
const LOOK_GAP: Duration = Duration::from_millis(10);

/// A drain that gets nowhere for this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes handed to COPY at once.
const COPY_CHUNK_BYTES: usize = 256 * 1024;

/// The least share of COPY's rate that is good enough.
const TARGET: f64 = 0.5;

/// What one drain took.
struct Drained {
    /// Items per second, from the first batch seen to the last.
    rate: f64,
    /// From the start of the process to the first batch seen.
    first_after: Duration,
    /// From the start of the process to the empty buffer.
    whole: Duration,
    /// The most memory syncd had, in bytes.
    memory_peak_bytes: Option<u64>,
}

/// Measures draining of a small and of the whole backlog.
///
/// # Errors
/// When a drain doesn't end, or rows are missing afterwards.
pub async fn measure(
    stage: &Stage,
    plan: &Plan,
    random: &mut Random,
    report: &mut Report,
) -> Result<()> {
    report.begin(
        "Drain",
        &format!(
            "`syncd run` empties a buffer into PostgreSQL, in rows per second between its first and its last batch, \
             against COPY of as many rows of the same width into the same table in another database. The drain also \
             merges each row, records each operation beside it, and takes the items off the buffer with durable \
             commits. The target is {TARGET} of COPY."
        ),
    );
    for (items, rounds) in plan.drains() {
        measure_size(stage, (items, rounds), random, report).await?;
    }
    Ok(())
}

async fn measure_size(
    stage: &Stage,
    (items, rounds): (u64, usize),
    random: &mut Random,
    report: &mut Report,
) -> Result<()> {
    let (mut copied, mut drained) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let mut order = [Turn::Copy, Turn::Drain];
        random.shuffle(&mut order);
        for turn in order {
            match turn {
                Turn::Copy => copied.push(copy(stage, items).await?),
                Turn::Drain => drained.push(drain(stage, items).await?),
            }
        }
        eprintln!("drain of {items}: round {} of {rounds}", round + 1);
    }
    let rates: Vec<f64> = drained.iter().map(|drain| drain.rate).collect();
    let against = format!("COPY of {items} rows");
    report.add(Line::new(
        &against,
        median(&copied).unwrap_or_default(),
        " rows/s",
    ));
    report.add(Line {
        ratio: Ratio::of(&rates, &copied, random),
        against: Some(against),
        target: Some(TARGET),
        ..Line::new(
            &format!("drain of {items} items"),
            median(&rates).unwrap_or_default(),
            " items/s",
        )
    });
    report_around(&drained, items, report);
    Ok(())
}

#[derive(Debug, Clone, Copy)]
enum Turn {
    Copy,
    Drain,
}

fn report_around(drained: &[Drained], items: u64, report: &mut Report) {
    let milliseconds = |of: fn(&Drained) -> Duration| {
        let all: Vec<f64> = drained
            .iter()
            .map(|drain| of(drain).as_secs_f64() * 1000.0)
            .collect();
        median(&all).unwrap_or_default()
    };
    let name = |what: &str| format!("{what}, {items} items");
    report.add(Line::new(
        &name("start of syncd to its first batch"),
        milliseconds(|drain| drain.first_after),
        " ms",
    ));
    report.add(Line::new(
        &name("start of syncd to an empty buffer"),
        milliseconds(|drain| drain.whole),
        " ms",
    ));
    let peaks: Vec<f64> = drained
        .iter()
        .filter_map(|drain| drain.memory_peak_bytes)
        .map(footprint::mebibytes)
        .collect();
    if let Some(peak) = median(&peaks) {
        report.add(Line::new(
            &name("peak memory of syncd while draining"),
            peak,
            " MiB",
        ));
    }
}

/// Drains a new buffer of `items` into an empty table.
async fn drain(stage: &Stage, items: u64) -> Result<Drained> {
    let node = stage.node_online()?;
    backlog::fill(&node.buffer_path(), items).await?;
    stage.clean().await?;
    let (syncd, timing) = watch(&node, items).await?;
    let memory_peak_bytes =
        footprint::of("syncd", &node.syncd_address()).map(|memory| memory.peak_bytes);
    drop(syncd);
    let mut connection = stage.connect_holdfast().await?;
    expect_rows(
        &mut connection,
        "SELECT count(*) AS count FROM tasks",
        items,
    )
    .await?;
    expect_rows(
        &mut connection,
        "SELECT count(*) AS count FROM applied_operations",
        items,
    )
    .await?;
    Ok(Drained {
        memory_peak_bytes,
        ..timing
    })
}

/// Starts syncd and follows the backlog to its end.
async fn watch(node: &Node, items: u64) -> Result<(Program, Drained)> {
    let path = node.buffer_path();
    let reader = tokio::task::spawn_blocking(move || backlog::open_to_read(&path)).await??;
    let started = Instant::now();
    let syncd = node.launch_syncd(&["run"])?;
    let (mut left, mut changed, mut first) = (items, started, None);
    while left > 0 {
        tokio::time::sleep(LOOK_GAP).await;
        let now_left = reader.counters().context("cannot read the buffer")?.pending;
        let now = Instant::now();
        if now_left < left {
            (left, changed) = (now_left, now);
            first.get_or_insert((now, now_left));
        } else if now - changed > PATIENCE {
            bail!(
                "{left} of {items} items left, and none was drained for {PATIENCE:?}:\n{}",
                syncd.log()
            );
        }
    }
    let (first_at, first_left) = first.context("the buffer was empty before it was drained")?;
    let drained = Drained {
        rate: per_second(first_left, changed - first_at),
        first_after: first_at - started,
        whole: changed - started,
        memory_peak_bytes: None,
    };
    Ok((syncd, drained))
}

async fn expect_rows(
    connection: &mut PgConnection,
    count: &'static str,
    expected: u64,
) -> Result<()> {
    let row = sqlx::query(count)
        .fetch_one(connection)
        .await
        .context("cannot count")?;
    let found: i64 = row.try_get("count")?;
    ensure!(
        u64::try_from(found).is_ok_and(|found| found == expected),
        "{count}: {found} instead of {expected}"
    );
    Ok(())
}

/// Copies `items` new rows into an empty table; gives rows per second.
async fn copy(stage: &Stage, items: u64) -> Result<f64> {
    let directory = tempfile::Builder::new()
        .prefix("holdfast-copy-")
        .tempdir()
        .context("cannot make a directory")?;
    let path = directory.path().join("rows.txt");
    let written = path.clone();
    tokio::task::spawn_blocking(move || write_rows(&written, items)).await??;
    stage.clean().await?;
    let mut connection = stage.connect_bare().await?;
    let began = Instant::now();
    copy_file(&mut connection, &path).await?;
    let rate = per_second(items, began.elapsed());
    expect_rows(
        &mut connection,
        "SELECT count(*) AS count FROM tasks",
        items,
    )
    .await?;
    Ok(rate)
}

/// Beforehand, so that making the rows isn't measured.
fn write_rows(path: &PathBuf, items: u64) -> Result<()> {
    let file =
        std::fs::File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut file = std::io::BufWriter::new(file);
    let mut line = String::new();
    for number in 0..items {
        line.clear();
        Sample::new(number).write_copy_line(stamp_now(), &mut line);
        file.write_all(line.as_bytes())
            .context("cannot write the rows")?;
    }
    file.flush().context("cannot write the rows")
}

async fn copy_file(connection: &mut PgConnection, path: &Path) -> Result<()> {
    let mut rows = tokio::fs::File::open(path)
        .await
        .context("cannot open the rows")?;
    let statement = format!("COPY tasks ({COPY_COLUMNS}) FROM STDIN");
    let mut copying = connection
        .copy_in_raw(&statement)
        .await
        .context("cannot begin to copy")?;
    loop {
        let mut chunk = Vec::with_capacity(COPY_CHUNK_BYTES);
        let mut limited = (&mut rows).take(COPY_CHUNK_BYTES as u64);
        if limited
            .read_to_end(&mut chunk)
            .await
            .context("cannot read the rows")?
            == 0
        {
            break;
        }
        copying.send(chunk).await.context("cannot send the rows")?;
    }
    copying.finish().await.context("cannot finish copying")?;
    Ok(())
}

fn per_second(items: u64, elapsed: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 items")]
    let items = items as f64;
    items / elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
}
