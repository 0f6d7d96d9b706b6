//! A client: takes its script's steps and writes down what it was answered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder};
use serde_json::Value;
use uuid::Uuid;

use crate::history::{Ask, Exchange, Reply, Shown, Thing, Verb, Wanted};
use crate::script::{Action, Pick, Script, Step};
use crate::users::{User, Users};
use crate::values;
use crate::world::{Server, World};

/// Requests under keys that may be repeated: the newest few.
const REPEATABLE: usize = 8;

/// Operations that may be asked about: the newest few.
const FOLLOWED: usize = 20;

/// A client of one place, at home at one process.
pub struct Client {
    world: Arc<World>,
    users: Arc<Users>,
    place: usize,
    home: usize,
    script: Script,
    repeatable: VecDeque<(Arc<User>, Wanted)>,
}

impl Client {
    /// The client of this number.
    pub fn new(world: &Arc<World>, users: &Arc<Users>, number: usize, script: Script) -> Self {
        Self {
            world: Arc::clone(world),
            users: Arc::clone(users),
            place: number % users.places(),
            home: number % world.servers.len(),
            script,
            repeatable: VecDeque::new(),
        }
    }

    /// Works until told to stop.
    pub async fn work(mut self, stopping: Arc<AtomicBool>) {
        while !stopping.load(Ordering::Relaxed) {
            let step = self.script.next();
            self.take(step).await;
            tokio::time::sleep(step.pause).await;
        }
    }

    async fn take(&mut self, step: Step) {
        let user = self.users.at(self.place);
        let server = self.server(step);
        if let Action::Repeat = step.action {
            let Some(index) = step.pick.index(self.repeatable.len()) else {
                return;
            };
            let (user, wanted) = self.repeatable[index].clone();
            return self.write(server, &user, wanted).await;
        }
        let picked = || pick(step.pick, &user.tasks());
        let (verb, thing) = match step.action {
            Action::Create => (Verb::Create, None),
            Action::PutNew => (Verb::Put, Some(Thing::Task(Uuid::now_v7()))),
            Action::PutOver => (Verb::Put, picked()),
            Action::Patch(field) => (Verb::Patch(field), picked()),
            Action::Delete => (Verb::Delete, picked()),
            Action::PutProfile => (Verb::Put, Some(Thing::Profile)),
            Action::PatchProfile(field) => (Verb::Patch(field), Some(Thing::Profile)),
            Action::ReadProfile => {
                return self.read(server, &user, Ask::Read(Thing::Profile)).await;
            }
            Action::List => return self.read(server, &user, Ask::List).await,
            Action::Read | Action::Follow | Action::Repeat => {
                let ask = match step.action {
                    Action::Read => picked().map(Ask::Read),
                    _ => follow(step.pick, &user, self.world.servers[server].api.node),
                };
                if let Some(ask) = ask {
                    self.read(server, &user, ask).await;
                }
                return;
            }
        };
        if thing.is_none() && verb != Verb::Create {
            return;
        }
        let wanted = Wanted {
            token: self.users.next_token(),
            verb,
            thing,
            keyed: step.keyed && matches!(verb, Verb::Create | Verb::Patch(_)),
        };
        if wanted.keyed {
            self.repeatable.push_back((Arc::clone(&user), wanted));
            if self.repeatable.len() > REPEATABLE {
                self.repeatable.pop_front();
            }
        }
        self.write(server, &user, wanted).await;
    }

    fn server(&self, step: Step) -> usize {
        let count = self.world.servers.len() as u64;
        match step.elsewhere {
            Some(number) => usize::try_from(number % count).unwrap_or(self.home),
            None => self.home,
        }
    }

    async fn write(&self, server: usize, user: &User, wanted: Wanted) {
        // Others may be at it from the moment it is asked for.
        if let (Some(Thing::Task(id)), Verb::Put) = (wanted.thing, wanted.verb) {
            user.note_task(id);
        }
        let server = &self.world.servers[server];
        let exchange = exchange(&self.world, server, user, Ask::Write(wanted)).await;
        let Some(exchange) = exchange else { return };
        if let Some(Thing::Task(id)) = exchange.seen().map(|seen| seen.thing) {
            user.note_task(id);
        }
        let operation = exchange.reply.as_ref().and_then(|reply| reply.operation);
        if let Some(id) = operation.filter(|_| exchange.is_acknowledged()) {
            user.note_operation(server.api.node, id);
        }
        self.world.recorder.exchanged(exchange);
    }

    async fn read(&self, server: usize, user: &User, ask: Ask) {
        let server = &self.world.servers[server];
        if let Some(exchange) = exchange(&self.world, server, user, ask).await {
            self.world.recorder.exchanged(exchange);
        }
    }
}

fn pick(pick: Pick, tasks: &[Uuid]) -> Option<Thing> {
    pick.index(tasks.len())
        .map(|index| Thing::Task(tasks[index]))
}

fn follow(pick: Pick, user: &User, node: u8) -> Option<Ask> {
    let operations = user.operations(node);
    let newest = &operations[operations.len().saturating_sub(FOLLOWED)..];
    pick.index(newest.len())
        .map(|index| Ask::Follow(newest[index]))
}

/// Reads everything of a user's through every process, once.
pub async fn read_all(world: &World, user: &User) {
    for server in &world.servers {
        let tasks = user.tasks().into_iter().map(Thing::Task);
        let singles = tasks.chain([Thing::Profile]).map(Ask::Read);
        for ask in [Ask::List].into_iter().chain(singles) {
            if let Some(exchange) = exchange(world, server, user, ask).await {
                world.recorder.exchanged(exchange);
            }
        }
    }
}

/// Asks, and gives what came of it; `None` when nothing was sent because the
/// process is down.
async fn exchange(world: &World, server: &Server, user: &User, ask: Ask) -> Option<Exchange> {
    let life = server.life();
    let invoked = world.recorder.now();
    let request = request(server, user, &ask);
    let answered = async {
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let json = serde_json::from_str(&response.text().await?).unwrap_or(Value::Null);
        Ok::<_, reqwest::Error>(reply(status, &headers, &json))
    };
    let answered = answered.await;
    let ended = world.recorder.now();
    let reply = match answered {
        Err(error) if error.is_connect() && (life.is_none() || server.life() != life) => {
            return None;
        }
        answered => answered.ok(),
    };
    Some(Exchange {
        api: server.api,
        life: life.filter(|_| server.life() == life),
        user: user.number,
        invoked,
        ended,
        ask,
        reply,
    })
}

fn request(server: &Server, user: &User, ask: &Ask) -> RequestBuilder {
    let (method, path) = match ask {
        Ask::List => (Method::GET, String::from("/tasks?limit=200")),
        Ask::Follow(id) => (Method::GET, format!("/operations/{id}")),
        Ask::Read(thing) => (Method::GET, path(Some(*thing))),
        Ask::Write(wanted) => (method(wanted.verb), path(wanted.thing)),
    };
    let url = format!("{}/api/v1{path}", server.origin);
    let mut request = server.http().request(method, url).bearer_auth(&user.bearer);
    let Ask::Write(wanted) = ask else {
        return request;
    };
    if wanted.verb != Verb::Delete {
        let is_task = wanted.thing != Some(Thing::Profile);
        let body = values::body(is_task, wanted.token, |field| wanted.verb.sets(field));
        request = request.json(&body);
    }
    if matches!(wanted.verb, Verb::Patch(_)) {
        request = request.header("content-type", "application/merge-patch+json");
    }
    if wanted.keyed {
        request = request.header("idempotency-key", format!("w{}", wanted.token));
    }
    request
}

fn method(verb: Verb) -> Method {
    match verb {
        Verb::Create => Method::POST,
        Verb::Put => Method::PUT,
        Verb::Patch(_) => Method::PATCH,
        Verb::Delete => Method::DELETE,
    }
}

fn path(thing: Option<Thing>) -> String {
    match thing {
        None => String::from("/tasks"),
        Some(Thing::Task(id)) => format!("/tasks/{id}"),
        Some(Thing::Profile) => String::from("/profile"),
    }
}

fn reply(status: u16, headers: &HeaderMap, json: &Value) -> Reply {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let named = text("operation-location").and_then(|path| path.rsplit('/').next());
    let is_operation = json.get("entity_id").is_some();
    let own = json["id"].as_str().filter(|_| is_operation);
    let operation = named.or(own).and_then(|id| Uuid::parse_str(id).ok());
    Reply {
        status,
        operation,
        replayed: text("idempotency-replayed") == Some("true"),
        shown: if status / 100 == 2 {
            shown(json)
        } else {
            Shown::Nothing
        },
    }
}

fn shown(json: &Value) -> Shown {
    if let Some(items) = json["items"].as_array() {
        return Shown::Page {
            items: items.iter().filter_map(values::seen).collect(),
            complete: json["complete"] != false,
            more: !json["next_cursor"].is_null(),
        };
    }
    values::seen(json).map_or(Shown::Nothing, Shown::One)
}
