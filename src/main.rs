//! Parses the command line, runs the command, and turns an error into its chain on stderr and an exit code.

use asft::cli::{Cli, Command};
use asft::commands;
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    asft::memory::keep_freed_buffers();
    let result = match Cli::parse().command {
        Command::Direction(args) => commands::direction::run(args),
        Command::Data(args) => commands::data::run(args),
        Command::Train(args) => commands::train::run(args),
        Command::Eval(args) => commands::eval::run(args),
        Command::Generate(args) => commands::generate::run(args),
        Command::Merge(args) => commands::merge::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(asft::error::exit_code(&error))
        }
    }
}

/// The reader of our output has had enough (`asft ... | head`).
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}
