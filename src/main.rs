//! Parses the command line, runs the command, and turns an error into its chain on stderr and an exit code.

#![forbid(unsafe_code)]

use asft::cli::{Cli, Command};
use asft::commands;
use asft::report::log;
use clap::Parser;
use serde_json::json;
use std::process::ExitCode;

/// Stack of a worker thread, in bytes: that of an ordinary main thread, since commands run on one.
const STACK_BYTES: usize = 8 << 20;

fn main() -> ExitCode {
    asft::ops::allocator::keep_freed_buffers();
    let Cli { command, output } = Cli::parse();
    log::init(output.verbosity(), output.log_format.into());
    // Inside the pool, an operation shares its work out at once; from outside, each would wait for a thread to wake up
    // and take it. Fails only where a pool exists already, which serves as well.
    let _own_pool = rayon::ThreadPoolBuilder::new().stack_size(STACK_BYTES).build_global();
    match rayon::scope(|_| run(command)) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let exit_code = asft::error::exit_code(&error);
            log::error(&format!("{error:#}"), json!({"exit_code": exit_code}));
            ExitCode::from(exit_code)
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
        Command::Report(args) => commands::report::run(args),
        Command::Init(args) => commands::init::run(args),
        Command::Schema => commands::meta::schema(),
        Command::Completions(args) => commands::meta::completions(args),
        Command::Man(args) => commands::meta::man(args),
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
