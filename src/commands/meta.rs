//! `asft schema`, `asft completions` and `asft man`: what asft says about itself.

use super::print;
use crate::checkpoint::write_atomic;
use crate::cli::{Cli, CompletionsArgs, ManArgs, SchemaArgs, SchemaOf};
use crate::compare::CompareOptions;
use crate::config::Settings;
use crate::console::log;
use crate::eval::Suite;
use crate::outputs::Outputs;
use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use serde_json::json;
use std::io::Write;
use std::path::Path;

pub fn schema(args: SchemaArgs) -> Result<()> {
    let schema = match args.of {
        SchemaOf::Run => Settings::json_schema(),
        SchemaOf::Suite => Suite::json_schema(),
        SchemaOf::Compare => CompareOptions::json_schema(),
    };
    print(&format!("{}\n", serde_json::to_string_pretty(&schema)?))
}

pub fn completions(args: CompletionsArgs) -> Result<()> {
    // Into memory first: the generator panics if it cannot write.
    let mut script = vec![];
    clap_complete::generate(args.shell, &mut Cli::command(), "asft", &mut script);
    print(&String::from_utf8(script)?)
}

pub fn man(args: ManArgs) -> Result<()> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let pages = pages(command)?;
    if args.dir == Path::new("-") {
        return print(&String::from_utf8(pages.into_iter().flat_map(|(_, text)| text).collect())?);
    }
    Outputs::new(args.overwrite).file("DIR", pages.iter().map(|(name, _)| args.dir.join(name))).check()?;
    for (name, text) in &pages {
        write_atomic(&args.dir.join(name), |file| Ok(file.write_all(text)?))?;
    }
    let count = pages.len();
    log::info(&format!("wrote {count} pages to {}", args.dir.display()), json!({"pages": count, "dir": args.dir}));
    Ok(())
}

/// The page of a command and those of its subcommands, each with its file's name.
fn pages(command: Command) -> Result<Vec<(String, Vec<u8>)>> {
    let subcommands: Vec<Command> = command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned().collect();
    let page = Man::new(command);
    let mut text = vec![];
    page.render(&mut text).context("making a man page")?;
    let mut all = vec![(page.get_filename(), text)];
    for subcommand in subcommands {
        all.extend(pages(subcommand)?);
    }
    Ok(all)
}
