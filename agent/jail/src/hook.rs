//! Running hooks: a process that is told the container's state on its standard input, and has only so long.
//!
//! `prestart`, `createRuntime`, `poststart` and `poststop` run as the runtime; `createContainer` in the container's namespaces, but with the
//! runtime's files; `startContainer` comes out of the container's image, so it is confined like any other process of the container.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::time::{Duration, Instant};

use nacre_sys::exec::StringArray;
use oci_spec::runtime::{ContainerState, State};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::thread::ThreadNameSpaceType;

use crate::error::Error;
use crate::launch::{Launch, Serve, Start};
use crate::plan::{Hook, Hooks};
use crate::process::Process;
use crate::step::Step;

/// How much of a failed hook's standard error is repeated.
const MAX_COMPLAINT: u64 = 4096;

/// Where a hook runs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place<'a> {
    /// In the runtime's namespaces, in the bundle.
    Runtime,
    /// In those of the process, its pidfd and the kinds, in the container's root file system.
    Namespaces(BorrowedFd<'a>, ThreadNameSpaceType),
}

/// Runs `hooks` one after the other; the first that fails ends it.
///
/// # Errors
/// [`Error::Hook`] with what the hook wrote to its standard error.
pub(crate) fn run(
    point: &'static str,
    hooks: &[Hook],
    all: &Hooks,
    status: ContainerState,
    pid: i32,
    place: Place<'_>,
) -> Result<(), Error> {
    for hook in hooks {
        let told = told(&all.state, status, pid)?;
        run_one(point, hook, |io| launch(hook, all, place, io), &mut |_, _| Ok(Vec::new()), &told)?;
    }
    Ok(())
}

/// The state as a hook is told it.
pub(crate) fn told(state: &State, status: ContainerState, pid: i32) -> Result<Vec<u8>, Error> {
    let mut state = state.clone();
    state.set_status(status);
    if pid > 0 {
        state.set_pid(Some(pid));
    }
    serde_json::to_vec(&state)
        .map_err(|error| Error::system("write the container's state", std::io::Error::from(error)))
}

/// Runs one hook, which `launch` lays out around its streams; it is served by `serve` on its way.
pub(crate) fn run_one(
    point: &'static str,
    hook: &Hook,
    launch: impl FnOnce([OwnedFd; 3]) -> Result<Launch, Error>,
    serve: Serve<'_>,
    told: &[u8],
) -> Result<(), Error> {
    let fail = |reason: String| Error::Hook { point, path: hook.path.to_string_lossy().into_owned(), reason };
    let system = |error: Errno| fail(error.to_string());
    let complaints = memory().map_err(system)?;
    let stdin = memory().map_err(system)?;
    let mut told = told;
    while !told.is_empty() {
        let written = rustix::io::write(&stdin, told).map_err(system)?;
        told = told.get(written..).unwrap_or_default();
    }
    rustix::fs::seek(&stdin, rustix::fs::SeekFrom::Start(0)).map_err(system)?;
    // The state is the same for whoever reads it, even should the hook pass it on.
    let _ = rustix::fs::fcntl_add_seals(&stdin, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK);
    let null = rustix::fs::open(c"/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map_err(system)?;
    let stderr = rustix::io::fcntl_dupfd_cloexec(&complaints, 3).map_err(system)?;
    let spawned = launch([stdin, null, stderr])?.spawn(serve).map_err(|error| fail(error.to_string()))?;
    let process = Process::new(spawned);
    match wait(&process, hook.timeout) {
        Ok(Some(0)) => Ok(()),
        Ok(Some(code)) => Err(fail(format!("exit code {code}{}", complaint(complaints)))),
        Ok(None) => {
            let _ = process.signal(libc::SIGKILL); // it may just have ended
            let _ = process.wait();
            let seconds = hook.timeout.unwrap_or_default().as_secs();
            Err(fail(format!("not done within {seconds} s{}", complaint(complaints))))
        }
        Err(error) => Err(fail(error.to_string())),
    }
}

/// A file that is nowhere: a hook may read its input late, or never, and write as much as it likes.
fn memory() -> Result<OwnedFd, Errno> {
    use rustix::fs::MemfdFlags;
    rustix::fs::memfd_create(c"hook", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
}

fn launch(hook: &Hook, all: &Hooks, place: Place<'_>, io: [OwnedFd; 3]) -> Result<Launch, Error> {
    let mut steps = Vec::new();
    let [bundle, root] = &all.places;
    let mut path = bundle;
    if let Place::Namespaces(pidfd, kinds) = place {
        let pidfd = pidfd.try_clone_to_owned().map_err(|error| Error::system("copy a pidfd", error))?;
        steps.push(Step::JoinProcess { pidfd: Some(pidfd), kinds });
        if kinds.contains(ThreadNameSpaceType::USER) {
            steps.push(Step::MappedRoot);
        }
        path = root;
    }
    // The last hooks may come after the bundle is gone.
    let path = if rustix::fs::stat(path).is_ok() { path.clone() } else { c"/".into() };
    steps.push(Step::ChangeDirectory { path, last_chance: false });
    let own = || std::env::vars_os().filter_map(|(key, value)| variable(&key, &value)).collect();
    steps.extend([Step::Umask(0o022), Step::Stdio(io.map(Some)), Step::FindProgram, Step::Seal { first: 3 }]);
    Ok(Launch {
        namespaces: 0,
        joined_before: Vec::new(),
        user_namespace: None,
        pid_namespace: None,
        cgroup: None,
        steps,
        last_steps: Vec::new(),
        start: Start::AtOnce,
        kept: 0,
        candidates: StringArray::new(vec![hook.path.clone()]),
        argv: StringArray::new(hook.args.clone()),
        envp: StringArray::new(hook.env.clone().unwrap_or_else(own)),
    })
}

fn variable(key: &OsStr, value: &OsStr) -> Option<CString> {
    CString::new([key.as_bytes(), b"=", value.as_bytes()].concat()).ok()
}

/// The hook's exit code as a shell has it; `None` when its time is up.
fn wait(process: &Process, timeout: Option<Duration>) -> Result<Option<i32>, Error> {
    let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout)); // no clock goes further
    loop {
        if let Some(status) = process.try_wait()? {
            return Ok(Some(status.code()));
        }
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let limit = left
            .map(|left| rustix::time::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        match poll(&mut [PollFd::new(&process.pidfd(), PollFlags::IN)], limit.as_ref()) {
            Ok(0) => return Ok(None),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Error::system("wait for a hook", error)),
        }
    }
}

fn complaint(from: impl AsFd) -> String {
    let Ok(fd) = from.as_fd().try_clone_to_owned() else { return String::new() };
    let _ = rustix::fs::seek(&fd, rustix::fs::SeekFrom::Start(0)); // a file in memory can be sought in
    let mut text = Vec::new();
    let _ = File::from(fd).take(MAX_COMPLAINT).read_to_end(&mut text); // what can be read is what is told
    let text = String::from_utf8_lossy(&text);
    let text = text.trim();
    if text.is_empty() { String::new() } else { format!(": {text}") }
}
