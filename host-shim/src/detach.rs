//! `nacre run -d`: the pod's process goes on in the background.
//!
//! The background process is the same command, started anew in a session of its own. Its progress passes through our standard error, and
//! one byte on its standard output says that the container runs; then it lets go of both.

use std::io::{Read as _, Write as _, stderr, stdout};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use rustix::fs::{Mode, OFlags};

/// Set in the environment of the background process.
const MARK: &str = "NACRE_BACKGROUND";

/// The byte that says that the container runs.
const RUNS: u8 = b'+';

/// Whether this is the background process.
pub fn is_background() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Starts the background process, the pod being called `name`. Returns our exit code: 0 once the container runs, else the background
/// process's own.
///
/// # Errors
/// A process that can't be started.
pub fn start(name: &str) -> Result<i32> {
    let program = std::env::current_exe().context("find this program's own file")?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).env(MARK, name);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().context("start the background process")?;
    let mut words = child.stderr.take().context("the background process has no standard error")?;
    let relay = std::thread::spawn(move || std::io::copy(&mut words, &mut stderr()));
    let mut said = Vec::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_end(&mut said).context("hear the background process")?;
    }
    let _ = relay.join(); // it copies until the other side lets go
    if said.first() == Some(&RUNS) {
        writeln!(stdout(), "{name}").context("say the pod's name")?;
        return Ok(0);
    }
    let status = child.wait().context("wait for the background process")?;
    Ok(status.code().unwrap_or(crate::failure::NACRE))
}

/// The name that the foreground process has made up.
pub fn name() -> Option<String> {
    std::env::var(MARK).ok()
}

/// The container runs: say so, and let go of the caller's streams.
///
/// # Errors
/// A system without /dev/null.
pub fn running() -> Result<()> {
    let mut out = stdout();
    let _ = out.write_all(&[RUNS]).and_then(|()| out.flush()); // a caller that is gone need not know
    let null =
        rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).context("open /dev/null")?;
    rustix::stdio::dup2_stdout(&null).context("let go of standard output")?;
    rustix::stdio::dup2_stderr(&null).context("let go of standard error")?;
    let _ = rustix::process::setsid(); // refused to the leader of a group, which it is: then its group is enough
    Ok(())
}
