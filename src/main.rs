//! Parses the command line, runs the command, and turns an error into its chain on stderr and an exit code.

use asft::cli::{Cli, Command};
use asft::commands;
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Direction(args) => done(commands::direction::run(args)),
        Command::Train(args) => commands::train::run(args),
        Command::Eval(args) => done(commands::eval::run(args)),
        Command::Generate(args) => done(commands::generate::run(args)),
        Command::Merge(args) => done(commands::merge::run(args)),
    };
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(asft::error::exit_code(&error))
        }
    }
}

fn done(result: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}

/// The reader of our output has had enough (`asft ... | head`).
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}
