//! `syncd config`: whether the settings are sound, and which are in force.

use holdfast_shared::config::{Config, exit};

use super::arguments::ConfigCommand;
use super::output;
use crate::Failure;

/// Checks or shows.
///
/// # Errors
/// Every fault of the settings.
pub fn config(command: &ConfigCommand) -> Result<u8, Failure> {
    let config = Config::load()?;
    let text = match command {
        ConfigCommand::Check => "the configuration is sound\n".to_owned(),
        ConfigCommand::Show => config.render(),
    };
    output::print(&text)?;
    Ok(exit::OK)
}
