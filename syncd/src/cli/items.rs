//! `syncd items`: what is waiting.

use holdfast_shared::buffer::{Item, Lane};
use holdfast_shared::config::{Config, exit};
use holdfast_shared::domain::OperationId;

use super::arguments::{ItemsCommand, LaneName};
use super::operation::{OperationView, print_list, print_one};
use super::output::{self, Form};
use super::place;
use crate::Failure;

/// Lists or shows.
///
/// # Errors
/// When the buffer can't be read, or what was asked for isn't waiting.
pub fn items(command: &ItemsCommand) -> Result<u8, Failure> {
    let config = Config::load()?;
    match *command {
        ItemsCommand::List { lane, limit, json } => list(&config, lane, limit, json.into()),
        ItemsCommand::Show { id, json } => show(&config, id, json.into()),
    }
}

fn list(config: &Config, lane: Option<LaneName>, limit: usize, form: Form) -> Result<u8, Failure> {
    let lanes = match lane {
        None => vec![Lane::Redis, Lane::Postgres],
        Some(LaneName::Postgres) => vec![Lane::Postgres],
        Some(LaneName::Redis) => vec![Lane::Redis],
    };
    let mut views = Vec::new();
    let mut is_cut_off = false;
    if let Some(reader) = place::reader(config)? {
        for lane in lanes {
            // One more than is shown tells whether there are more.
            let items = reader.list_items(lane, limit + 1)?;
            is_cut_off |= items.len() > limit;
            views.extend(items.iter().take(limit).map(|queued| view(&queued.item)));
        }
    }
    print_list(&views, form)?;
    if is_cut_off {
        output::complain_of_more(limit);
    }
    Ok(exit::OK)
}

fn show(config: &Config, id: OperationId, form: Form) -> Result<u8, Failure> {
    let reader = place::reader(config)?;
    let item = reader
        .map(|reader| reader.find_item(id))
        .transpose()?
        .flatten();
    let Some(item) = item else {
        return Err(Failure::unavailable(format!(
            "operation {id} is not waiting: see `syncd dead show {id}`"
        )));
    };
    print_one(view(&item), form)?;
    Ok(exit::OK)
}

fn view(item: &Item) -> OperationView {
    OperationView::new(&item.operation, item.record())
}
