//! Parses the command line, runs the command, and turns an error into its chain on stderr and an exit code.

#![forbid(unsafe_code)]

use asft::cli::{Cli, Command, LogArgs};
use asft::commands;
use asft::console::log::{self, Verbosity};
use asft::ensure_valid;
use asft::error::Agreed;
use asft::ops::allocator::{self, Allocator};
use asft::ops::threads;
use asft::ranks::{self, Ranks};
use asft::stop::StopRequest;
use serde_json::json;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Stack of a worker thread, in bytes: as large as an ordinary main thread's, since commands run on one.
const STACK_BYTES: usize = 8 << 20;

fn main() -> ExitCode {
    allocator::keep_freed_buffers();
    let Cli { command, output } = Cli::from_command_line();
    let joined = ranks::join();
    log::init(verbosity(&output), output.log_format, Ranks::here().is_first());
    // Held to the end: MPI is started and shut down on the main thread, before and after all others.
    let _job = match joined {
        Ok(job) => job,
        Err(error) => return failed(&error),
    };
    let count = Ranks::here().threads();
    threads::announce(count);
    // Inside the pool, an operation distributes its work at once; from outside, each would wait for a thread to wake up
    // and take it. Fails only if a pool exists already, which serves as well.
    let _own_pool = rayon::ThreadPoolBuilder::new().num_threads(count).stack_size(STACK_BYTES).build_global();
    if Ranks::here().are_many() {
        let (ranks, threads) = (Ranks::here(), rayon::current_num_threads());
        let (size, local) = (ranks.size(), ranks.local_size());
        log::info(
            &format!("{size} ranks, {local} of them on this machine, threads for each: {threads}"),
            json!({"ranks": size, "local_ranks": local, "threads": threads}),
        );
    }
    if let Err(error) = StopRequest::listen(log::notice) {
        return failed(&error);
    }
    match rayon::scope(|_| run(command)) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn verbosity(args: &LogArgs) -> Verbosity {
    match (args.quiet, args.verbose) {
        (true, _) => Verbosity::Quiet,
        (false, true) => Verbosity::Verbose,
        (false, false) => Verbosity::Normal,
    }
}

/// Says what went wrong. With several ranks, the first rank does if all know of the error; otherwise the rank it
/// happened on does, and then ends the others, as they may be waiting for it.
fn failed(error: &anyhow::Error) -> ExitCode {
    let (exit_code, ranks) = (asft::error::exit_code(error), Ranks::here());
    let is_agreed = error.is::<Agreed>();
    let place = if is_agreed || !ranks.are_many() { String::new() } else { format!("{ranks}: ") };
    if ranks.is_first() || !is_agreed {
        log::error(&format!("{place}{error:#}"), json!({"exit_code": exit_code}));
    }
    if !is_agreed {
        ranks.abort(exit_code);
    }
    ExitCode::from(exit_code)
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    Ranks::here().agree(check_shared(&command))?;
    Ranks::here().agree(asft::ops::check_environment())?;
    let done = match command {
        Command::Train(args) => return commands::train::run(args),
        Command::Compare(args) => return commands::compare::run(args),
        Command::Direction(args) => commands::direction::run(args),
        Command::Data(args) => commands::data::run(args),
        Command::Eval(args) => commands::eval::run(*args),
        Command::Generate(args) => commands::generate::run(args),
        Command::Serve(args) => commands::serve::run(args),
        Command::Merge(args) => commands::merge::run(args),
        Command::Export(args) => commands::export::run(args),
        Command::Project(args) => commands::project::run(args),
        Command::Inspect(args) => commands::inspect::run(args),
        Command::Landscape(args) => commands::landscape::run(args),
        Command::Report(args) => commands::report::run(args),
        Command::Init(args) => commands::init::run(args),
        Command::Doctor(args) => commands::doctor::run(args),
        Command::Schema(args) => commands::meta::schema(args),
        Command::Completions(args) => commands::meta::completions(args),
        Command::Man(args) => commands::meta::man(args),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Refuses to do a command's work once per process.
fn check_shared(command: &Command) -> anyhow::Result<()> {
    ensure_valid!(
        matches!(command, Command::Train(_) | Command::Direction(_)) || !Ranks::here().are_many(),
        "only asft train and asft direction share their work out over several processes; start this command without \
         the MPI launcher"
    );
    Ok(())
}

/// The reader of our output has had enough (`asft ... | head`).
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}
