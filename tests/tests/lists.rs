//! Is a walk through all pages of a list whole while the list changes under it,
//! and while PostgreSQL dies and comes back in the middle?

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_tests::{Client, Node, Postgres, Program, eventually, tokens};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

const DATABASE: &str = "holdfast";
const SETTLE: Duration = Duration::from_secs(60);

/// Tasks that nobody touches.
const STILL: usize = 30;

/// Tasks of which only what isn't sorted by, but the time of the change, changes.
const TOUCHED: usize = 15;

/// Tasks that are there at the same time and come and go.
const PASSING: usize = 12;

const SORTS: [&str; 8] = [
    "created_at",
    "-created_at",
    "updated_at",
    "-updated_at",
    "due_at",
    "-due_at",
    "priority",
    "-priority",
];

struct Site {
    postgres: Postgres,
    api: Program,
    client: Client,
    still: BTreeSet<String>,
    touched: BTreeSet<String>,
    _syncd: Program,
    _node: Node,
}

async fn start() -> Result<Site> {
    let postgres = Postgres::start().await?;
    let url = postgres.create_database(DATABASE).await?;
    let node = Node::new()?.with("DATABASE_URL", &url);
    node.syncd(&["migrate"]).await?.expect_code(0);
    let syncd = node.start_syncd().await?;
    let api = node.start_api().await?;
    api.wait_status(SETTLE, "online").await?;
    let client = api.client(&tokens::valid("somebody"));
    let still = create(&client, "still", STILL).await?;
    let touched = create(&client, "touched", TOUCHED).await?;
    Ok(Site {
        postgres,
        api,
        client,
        still,
        touched,
        _syncd: syncd,
        _node: node,
    })
}

/// A task whose sort keys tie with many others', or are missing.
fn task(title: &str, number: usize) -> Value {
    let due = match number % 3 {
        0 => Value::Null,
        1 => json!("2030-01-01T00:00:00Z"),
        _ => json!(format!("2030-01-01T00:00:00.00000{}Z", number % 10)),
    };
    json!({"title": title, "priority": number % 2 + 2, "due_at": due})
}

async fn create(client: &Client, title: &str, count: usize) -> Result<BTreeSet<String>> {
    let mut ids = BTreeSet::new();
    for number in 0..count {
        let created = client.create_task(&task(title, number)).await?;
        created.expect_in(&[201, 202]);
        ids.insert(created.id().to_owned());
    }
    Ok(ids)
}

/// Somebody who changes the list all the time.
struct Unrest {
    stop: Arc<AtomicBool>,
    changes: Arc<AtomicU64>,
    running: JoinHandle<Result<()>>,
}

impl Unrest {
    fn begin(client: Client, touched: &BTreeSet<String>) -> Self {
        let (stop, changes) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let touched: Vec<String> = touched.iter().cloned().collect();
        let running = tokio::spawn(change_all_the_time(
            client,
            touched,
            Arc::clone(&stop),
            Arc::clone(&changes),
        ));
        Unrest {
            stop,
            changes,
            running,
        }
    }

    fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    async fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.running.await.context("the unrest has panicked")?
    }
}

/// Makes, changes and deletes passing tasks, and changes touched ones.
async fn change_all_the_time(
    client: Client,
    touched: Vec<String>,
    stop: Arc<AtomicBool>,
    changes: Arc<AtomicU64>,
) -> Result<()> {
    let mut passing: Vec<String> = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let created = client.create_task(&task("passing", number)).await?;
        passing.push(created.expect_in(&[201, 202]).id().to_owned());
        let changed = &passing[number % passing.len()];
        let keys = json!({"priority": number % 5 + 1, "due_at": null});
        let patched = client.patch(&format!("/tasks/{changed}"), &keys).await?;
        patched.expect_in(&[200, 202]);
        let touched = &touched[number % touched.len()];
        let words = json!({"description": format!("touched {number} times")});
        let patched = client.patch(&format!("/tasks/{touched}"), &words).await?;
        patched.expect_in(&[200, 202]);
        if passing.len() > PASSING {
            let gone = passing.remove(number % passing.len());
            let deleted = client.delete(&format!("/tasks/{gone}")).await?;
            deleted.expect_in(&[202, 204]);
        }
        changes.fetch_add(4, Ordering::Relaxed);
    }
    Ok(())
}

/// How often each task was shown on a walk, and what the walk was like.
#[derive(Default)]
struct Walk {
    seen: BTreeMap<String, usize>,
    pages: usize,
    incomplete: usize,
    last_key: Option<(Option<String>, String)>,
}

impl Walk {
    /// Takes in a page; gives where the next one begins.
    fn take(&mut self, page: &Value, sort: &str, limit: usize) -> Result<Option<String>> {
        let items = page["items"].as_array().context("items")?;
        ensure!(
            items.len() <= limit,
            "{} items on a page of {limit}",
            items.len()
        );
        self.pages += 1;
        self.incomplete += usize::from(page["complete"] == false);
        for item in items {
            let id = item["id"].as_str().context("an id")?.to_owned();
            self.check_order(item, sort)?;
            *self.seen.entry(id).or_default() += 1;
        }
        let next = page["next_cursor"].as_str().map(str::to_owned);
        ensure!(
            next.is_none() || items.len() == limit,
            "a short page in the middle"
        );
        Ok(next)
    }

    /// Each item comes after the one before, over the ends of pages too.
    fn check_order(&mut self, item: &Value, sort: &str) -> Result<()> {
        let field = sort.trim_start_matches('-');
        let key = match &item[field] {
            Value::Null => None,
            Value::String(text) => Some(comparable(text)),
            number => Some(number.to_string()),
        };
        let id = item["id"].as_str().context("an id")?.to_owned();
        let descending = sort.starts_with('-');
        if let Some((last, last_id)) = &self.last_key {
            let in_order = match (last, &key) {
                (None, Some(_)) => false,
                (Some(_), None) => true,
                (last, key) if last == key => (*last_id < id) != descending,
                (last, key) => (last < key) != descending,
            };
            ensure!(in_order, "{sort}: {key:?} {id} after {last:?} {last_id}");
        }
        self.last_key = Some((key, id));
        Ok(())
    }

    /// These were there all the time, at the same place: each is shown once.
    fn expect_once(&self, ids: &BTreeSet<String>, what: &str) -> Result<()> {
        for id in ids {
            let times = self.seen.get(id).copied().unwrap_or(0);
            ensure!(
                times == 1,
                "{what}: {id} was shown {times} times in {} pages",
                self.pages
            );
        }
        Ok(())
    }
}

/// A time with its fraction filled up, so that texts compare as times do.
fn comparable(time: &str) -> String {
    let (whole, fraction) = match time.trim_end_matches('Z').split_once('.') {
        Some((whole, fraction)) => (whole, fraction),
        None => (time.trim_end_matches('Z'), ""),
    };
    format!("{whole}.{fraction:0<9}")
}

impl Site {
    async fn page(&self, sort: &str, limit: usize, cursor: Option<&str>) -> Result<Value> {
        let cursor = cursor.map_or(String::new(), |cursor| format!("&cursor={cursor}"));
        let path = format!("/tasks?sort={sort}&limit={limit}{cursor}");
        Ok(self.client.get(&path).await?.expect(200).json().clone())
    }

    async fn walk(&self, sort: &str, limit: usize) -> Result<Walk> {
        let mut walk = Walk::default();
        let mut cursor = None;
        loop {
            let page = self.page(sort, limit, cursor.as_deref()).await?;
            cursor = walk.take(&page, sort, limit)?;
            if cursor.is_none() {
                return Ok(walk);
            }
        }
    }

    /// A walk by pages of one, with PostgreSQL dead for its middle third.
    async fn walk_through_an_outage(&mut self, sort: &str) -> Result<Walk> {
        let third = (STILL + TOUCHED) / 3;
        let mut walk = Walk::default();
        let mut cursor = None;
        loop {
            if walk.pages == third {
                self.postgres.kill9().await?;
            }
            if walk.pages == 2 * third {
                self.postgres.start_again().await?;
            }
            let page = self.page(sort, 1, cursor.as_deref()).await?;
            cursor = walk.take(&page, sort, 1)?;
            if cursor.is_none() {
                return Ok(walk);
            }
        }
    }

    fn check(&self, walk: &Walk, sort: &str, what: &str) -> Result<()> {
        walk.expect_once(&self.still, &format!("{sort}, {what}"))?;
        if !sort.ends_with("updated_at") {
            walk.expect_once(&self.touched, &format!("{sort}, {what}, touched"))?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_walk_shows_what_was_there_all_the_time_once() -> Result<()> {
    let mut site = start().await?;
    let everything = site.walk("created_at", 200).await?;
    site.check(&everything, "created_at", "at rest")?;
    let unrest = Unrest::begin(site.client.clone(), &site.touched);
    println!(
        "{:<14} {:>12} {:>12} {:>12} {:>26}",
        "sort", "limit 200", "limit 7", "limit 1", "limit 1, and an outage"
    );
    for sort in SORTS {
        let mut shown = Vec::new();
        for limit in [200, 7, 1] {
            let walk = site.walk(sort, limit).await?;
            site.check(&walk, sort, &format!("limit {limit}"))?;
            shown.push(format!("{} pages", walk.pages));
        }
        let walk = site.walk_through_an_outage(sort).await?;
        site.check(&walk, sort, "an outage in the middle")?;
        ensure!(walk.incomplete > 0, "{sort}: the outage was never seen");
        shown.push(format!(
            "{} pages, {} from memory",
            walk.pages, walk.incomplete
        ));
        println!(
            "{sort:<14} {:>12} {:>12} {:>12} {:>26}",
            shown[0], shown[1], shown[2], shown[3]
        );
        up_again(&site).await?;
    }
    ensure!(unrest.changes() > 100, "hardly anything changed");
    unrest.end().await?;
    site.api.wait_status(SETTLE, "online").await?;
    let after = site.walk("-created_at", 7).await?;
    site.check(&after, "-created_at", "afterwards")
}

async fn up_again(site: &Site) -> Result<()> {
    eventually(SETTLE, "PostgreSQL to be seen", async || {
        let health = site.api.health().await.map_err(|error| error.to_string())?;
        match health["stores"]["postgres"]["state"].as_str() {
            Some("up") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}
