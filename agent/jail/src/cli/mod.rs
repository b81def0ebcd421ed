//! The command line: arguments in, one call of the engine, and what came of it as an exit code, a line on standard error and one in the
//! log.

mod args;
mod console;
mod directory;
mod exec;
mod foreground;
mod lifecycle;
mod log;
mod process_spec;
mod report;
mod signals;
mod size;
mod time;
mod update;

use anyhow::Result;
use clap::{CommandFactory as _, Parser as _};

use args::{Args, Command, Completion, Delete, Id, Nothing, Ps, Spec};
use directory::Root;

/// Runs the command line; returns its exit code.
pub fn main() -> u8 {
    let _ = rustix::thread::set_name(c"nacre-jail"); // and not what the descriptor is called from which it started again
    if let Err(error) = nacre_sys::early::protected() {
        log::error(&format!("start again from a read-only mount: {error}"));
        return 1;
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let failed = error.use_stderr();
            let _ = error.print(); // who closed the stream does not want it
            return failed.into();
        }
    };
    if let Some(path) = &args.log {
        log::start(path.clone(), args.log_format);
    }
    match dispatch(&args) {
        Ok(code) => code,
        Err(error) => {
            log::error(&describe(&error));
            failure(&args.command, &error)
        }
    }
}

/// An error with its causes; some say theirs themselves.
fn describe(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        said if said.contains(&cause) => text,
        said => format!("{said}: {cause}"),
    })
}

/// As a shell says that a program is not there (127) or can't be run (126), where one was to be run in front of the caller; else 1 and, of exec, 255
/// as with runc.
fn failure(command: &Command, error: &anyhow::Error) -> u8 {
    let program = match error.downcast_ref::<nacre_jail::Error>() {
        Some(nacre_jail::Error::Program { source, .. }) => Some(source.kind()),
        _ => None,
    };
    match (command, program) {
        (Command::Run(_) | Command::Exec(_), Some(std::io::ErrorKind::NotFound)) => 127,
        (Command::Run(_) | Command::Exec(_), Some(_)) => 126,
        (Command::Exec(_), None) => 255,
        _ => 1,
    }
}

fn dispatch(args: &Args) -> Result<u8> {
    let root = Root::new(args.root.clone());
    nacre_jail::keep_filters_in(&args.root.join("+filters")); // which is no container's name
    match &args.command {
        Command::Create(create) => lifecycle::create(&root, create)?,
        Command::Run(run) => return lifecycle::run(&root, run),
        Command::Start(Id { id }) => lifecycle::start(&root, id)?,
        Command::Kill(kill) => lifecycle::kill(&root, kill)?,
        Command::Delete(Delete { force, id }) => lifecycle::delete(&root, id, *force)?,
        Command::Pause(Id { id }) => lifecycle::pause(&root, id)?,
        Command::Resume(Id { id }) => lifecycle::resume(&root, id)?,
        Command::Exec(exec) => return exec::exec(&root, exec),
        Command::Update(update) => update::update(&root, update)?,
        Command::State(Id { id }) => report::state(&root, id)?,
        Command::List(list) => report::list(&root, list)?,
        Command::Ps(Ps { format, id, ps_args }) => report::ps(&root, id, *format, ps_args)?,
        Command::Events(events) => report::events(&root, events)?,
        Command::Stats(Id { id }) => report::stats(&root, id)?,
        Command::Features(Nothing {}) => report::features()?,
        Command::Spec(Spec { bundle, rootless }) => process_spec::write_spec(bundle, *rootless)?,
        Command::Completion(Completion { shell }) => {
            clap_complete::generate(*shell, &mut Args::command(), "nacre-jail", &mut std::io::stdout());
        }
    }
    Ok(0)
}
