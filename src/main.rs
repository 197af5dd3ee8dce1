//! Parses the command line, runs the command, and turns an error into its chain on stderr and an exit code.

#![forbid(unsafe_code)]

use asft::cli::{Cli, Command};
use asft::commands;
use clap::Parser;
use std::process::ExitCode;

/// Stack of a worker thread, in bytes: that of an ordinary main thread, since commands run on one.
const STACK_BYTES: usize = 8 << 20;

fn main() -> ExitCode {
    asft::memory::keep_freed_buffers();
    let command = Cli::parse().command;
    // Inside the pool, an operation shares its work out at once; from outside, each would wait for a thread to wake up
    // and take it. Fails only where a pool exists already, which serves as well.
    let _own_pool = rayon::ThreadPoolBuilder::new().stack_size(STACK_BYTES).build_global();
    match rayon::scope(|_| run(command)) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(asft::error::exit_code(&error))
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let done = match command {
        Command::Train(args) => return commands::train::run(args),
        Command::Compare(args) => return commands::compare::run(args),
        Command::Direction(args) => commands::direction::run(args),
        Command::Data(args) => commands::data::run(args),
        Command::Eval(args) => commands::eval::run(args),
        Command::Generate(args) => commands::generate::run(args),
        Command::Merge(args) => commands::merge::run(args),
        Command::Project(args) => commands::project::run(args),
        Command::Inspect(args) => commands::inspect::run(args),
        Command::Landscape(args) => commands::landscape::run(args),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// The reader of our output has had enough (`asft ... | head`).
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}
