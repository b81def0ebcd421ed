//! The debug console: a shell of the guest's, on a port or on the guest's own console.
//!
//! Two must allow it. The guest's image does so by a file, to which the host adds nothing; the policy by its rule `DebugConsoleRequest`, which is asked
//! before each shell starts. A session ends with its shell, and its shell with the connection.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nacre_protocol::connect::Stream;
use nacre_protocol::nacre::DebugConsoleRequest;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use crate::container::stream::{self, Pipe};
use crate::listener::{Caller, Listener};
use crate::policy::{Changes, Denied, Policy};

/// The file by which an image allows it.
const ALLOWED: &str = "/etc/nacre/debug-console";

/// In the order in which they are tried; the first is where Kata's development images have theirs.
const SHELLS: [&str; 3] = ["/run/kata-extensions/devkit/bin/devkit-sh", "/bin/bash", "/bin/sh"];

/// The most sessions at a time.
const MAX_SESSIONS: usize = 4;

/// How much is read at once.
const PIECE: usize = 4096;

/// How long a shell may take to end after its terminal, and a terminal's last output after its shell.
const GRACE: Duration = Duration::from_millis(500);

/// How long a shell may take to take what was typed.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);

/// The pauses before another shell on the guest's own console: each is twice the one before, until one shell has lasted longer.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A session did not come about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The policy says no.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// There are as many as there may be.
    #[error("{MAX_SESSIONS} debug consoles are open already")]
    TooMany,
    /// There is no terminal to be had.
    #[error("open a terminal")]
    Terminal(#[source] io::Error),
    /// No shell runs.
    #[error("start a shell, of {SHELLS:?}")]
    Shell(#[source] io::Error),
}

/// No console has been opened from that port.
#[derive(Debug, thiserror::Error)]
#[error("no debug console is open from port {0}")]
pub struct NoConsole(u32);

/// The sessions there are.
#[derive(Debug)]
pub struct Consoles {
    policy: Policy,
    free: Semaphore,
    /// The terminals, by the ports of their callers.
    open: Mutex<BTreeMap<u32, Arc<Pipe>>>,
}

/// Whether the image whose root is `root` allows a debug console.
pub fn allowed(root: &Path) -> bool {
    fs::symlink_metadata(root.join(ALLOWED.trim_start_matches('/'))).is_ok_and(|file| file.is_file())
}

impl Consoles {
    /// No session yet.
    pub fn new(policy: Policy) -> Consoles {
        Consoles { policy, free: Semaphore::new(MAX_SESSIONS), open: Mutex::default() }
    }

    /// A shell for whoever connects, for as long as the agent runs.
    pub async fn serve(self: Arc<Self>, listener: Listener) {
        loop {
            let caller = listener.next().await;
            tokio::spawn(self.clone().answer(caller));
        }
    }

    /// One shell after the other on the terminal `path`, for as long as the policy allows them.
    pub async fn serve_terminal(self: Arc<Self>, path: &Path) {
        let mut pause = FIRST_PAUSE;
        loop {
            let begun = Instant::now();
            if let Err(error) = self.session_on(path).await {
                tracing::warn!("debug console on {path:?}: {}", crate::chain(&error));
                if matches!(error, Error::Denied(_)) {
                    return;
                }
            }
            if begun.elapsed() > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
            sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    /// Tell the terminal of the session that was opened from `port` its size.
    pub fn resize(&self, port: u32, columns: u32, rows: u32) -> Result<(), NoConsole> {
        let terminal = self.lock().get(&port).cloned().ok_or(NoConsole(port))?;
        let short = |length| u16::try_from(length).unwrap_or(u16::MAX);
        // One that is gone has no size.
        stream::resize(&terminal, short(columns), short(rows)).map_err(|_| NoConsole(port))
    }

    async fn answer(self: Arc<Self>, caller: Caller) {
        let Caller { port, mut stream } = caller;
        tracing::warn!(port, "DEBUG CONSOLE: asked for");
        if let Err(error) = self.session(port, &mut stream).await {
            let text = crate::chain(&error);
            tracing::warn!(port, "DEBUG CONSOLE: {text}");
            let _ = stream.write_all(format!("{text}\r\n").as_bytes()).await; // it has hung up
        }
    }

    async fn session(&self, port: Option<u32>, stream: &mut Stream) -> Result<(), Error> {
        let _one = self.free.try_acquire().map_err(|_| Error::TooMany)?;
        let mut changes = self.policy.changes();
        self.policy.admit(DebugConsoleRequest::new()).await?;
        let (terminal, theirs) = terminal().map_err(Error::Terminal)?;
        let mut shell = shell(&theirs).map_err(Error::Shell)?;
        let group = shell.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        drop(theirs);
        let named = port.map(|port| self.name(port, &terminal));
        let denied = tokio::select! {
            () = carry(stream, &terminal, &mut shell) => None,
            denied = self.denied(&mut changes) => Some(denied),
        };
        drop(named);
        drop(terminal); // its processes get SIGHUP
        end(shell, group).await;
        tracing::info!(port, "DEBUG CONSOLE: closed");
        denied.map_or(Ok(()), |denied| Err(denied.into()))
    }

    /// Until a policy that was set meanwhile says no.
    async fn denied(&self, changes: &mut Changes) -> Denied {
        loop {
            changes.next().await;
            if let Err(denied) = self.policy.admit(DebugConsoleRequest::new()).await {
                return denied;
            }
        }
    }

    async fn session_on(&self, path: &Path) -> Result<(), Error> {
        let mut changes = self.policy.changes();
        self.policy.admit(DebugConsoleRequest::new()).await?;
        let terminal = rustix::fs::open(path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty());
        let mut shell = shell(&terminal.map_err(|e| Error::Terminal(e.into()))?).map_err(Error::Shell)?;
        let group = shell.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        tokio::select! {
            ended = shell.wait() => ended.map(drop).map_err(Error::Shell),
            denied = self.denied(&mut changes) => {
                if let Some(group) = group {
                    let _ = kill_process_group(group, Signal::KILL); // it has ended by itself
                }
                Err(denied.into())
            }
        }
    }

    fn name(&self, port: u32, terminal: &Arc<Pipe>) -> Named<'_> {
        self.lock().insert(port, terminal.clone());
        Named { consoles: self, port }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Pipe>>> {
        // Each change is one call, so a holder that panicked left a whole map.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session that can be found by its port, for as long as this is there.
struct Named<'a> {
    consoles: &'a Consoles,
    port: u32,
}

impl Drop for Named<'_> {
    fn drop(&mut self) {
        self.consoles.lock().remove(&self.port);
    }
}

/// A new terminal: our end and the shell's.
fn terminal() -> io::Result<(Arc<Pipe>, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let theirs = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    Ok((stream::register(ours)?, theirs))
}

/// The first shell that there is, at `terminal`.
fn shell(terminal: &OwnedFd) -> io::Result<Child> {
    let program = SHELLS.iter().find(|shell| fs::exists(shell).unwrap_or(false)).ok_or(io::ErrorKind::NotFound)?;
    let end = || io::Result::Ok(Stdio::from(File::from(terminal.try_clone()?)));
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/").env("TERM", "xterm");
    command.current_dir("/").stdin(end()?).stdout(end()?).stderr(end()?).kill_on_drop(true);
    nacre_sys::terminal::lead_session(command.as_std_mut());
    // Spawned by the runtime's only thread, which lives as long as the agent.
    nacre_sys::lifeline::be_killable(nacre_sys::lifeline::die_with_parent(command.as_std_mut()));
    command.spawn()
}

/// Carry both ways until the caller hangs up or the shell ends.
async fn carry(stream: &mut Stream, terminal: &Pipe, shell: &mut Child) {
    let (mut from, mut to) = tokio::io::split(stream);
    let input = async {
        let mut data = [0; PIECE];
        while let Ok(length @ 1..) = from.read(&mut data).await {
            // Who does not read for so long may have a caller that has hung up, which is seen only by reading on.
            let written = stream::write_all(terminal, data.get(..length).unwrap_or_default());
            if !timeout(TAKEN_WITHIN, written).await.is_ok_and(|written| written.is_ok()) {
                return;
            }
        }
    };
    let output = async {
        while let Ok(data) = stream::read_some(terminal, PIECE).await {
            if data.is_empty() || to.write_all(&data).await.is_err() {
                return;
            }
        }
    };
    let ended = async {
        let _ = shell.wait().await; // whatever it was, it has ended
        sleep(GRACE).await; // what it has left in the background may have the terminal
    };
    tokio::select! {
        () = input => {}
        () = output => {}
        () = ended => {}
    }
}

/// End `shell`, whose terminal is gone, and its process group.
async fn end(mut shell: Child, group: Option<Pid>) {
    let ended = timeout(GRACE, shell.wait()).await;
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::KILL); // all of it has ended
    }
    if ended.is_err() {
        let _ = shell.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use nacre_protocol::address::Address;
    use tokio::net::{UnixSocket, UnixStream};

    const SOON: Duration = Duration::from_secs(20);

    fn consoles(dir: &Path, policy: Policy) -> Arc<Consoles> {
        let consoles = Arc::new(Consoles::new(policy));
        let address = Address::Unix(dir.join("console"));
        tokio::spawn(consoles.clone().serve(Listener::bind(&address, "the debug console").unwrap()));
        consoles
    }

    async fn call(dir: &Path, port: u32) -> UnixStream {
        let socket = UnixSocket::new_stream().unwrap();
        socket.bind(dir.join(port.to_string())).unwrap();
        socket.connect(dir.join("console")).await.unwrap()
    }

    /// Reads until `text` has come; everything, if it does not.
    async fn read_until(stream: &mut UnixStream, text: &str) -> String {
        let (mut read, mut data) = (String::new(), [0; 1024]);
        let reading = async {
            while !read.contains(text) {
                let length = stream.read(&mut data).await.unwrap();
                if length == 0 {
                    break;
                }
                read.push_str(&String::from_utf8_lossy(&data[..length]));
            }
        };
        timeout(SOON, reading).await.unwrap();
        read
    }

    async fn say(stream: &mut UnixStream, text: &str) {
        stream.write_all(text.as_bytes()).await.unwrap();
    }

    #[tokio::test]
    async fn whoever_connects_has_a_shell_with_a_terminal_of_the_size_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let consoles = consoles(dir.path(), Policy::allow_all());
        let mut stream = call(dir.path(), 7).await;
        say(&mut stream, "echo $((6*7))x\n").await;
        read_until(&mut stream, "42x").await;
        consoles.resize(7, 132, 43).unwrap();
        say(&mut stream, "stty size\n").await;
        read_until(&mut stream, "43 132").await;
        say(&mut stream, "exit\n").await;
        read_until(&mut stream, "there is no such text").await; // the connection ends with the shell
        assert_eq!(consoles.resize(8, 1, 1).unwrap_err().to_string(), "no debug console is open from port 8");
    }

    #[tokio::test]
    async fn a_caller_that_hangs_up_ends_what_it_has_started() {
        let dir = tempfile::tempdir().unwrap();
        let _consoles = consoles(dir.path(), Policy::allow_all());
        let mut stream = call(dir.path(), 7).await;
        say(&mut stream, "echo p''id $$ e''nd; trap '' HUP; exec sleep 1000\n").await;
        let said = read_until(&mut stream, " end").await;
        let pid = said.split("pid ").last().unwrap().split_whitespace().next().unwrap();
        let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
        let shell = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        drop(stream);
        let ended = stream::watch_fd(shell, tokio::io::Interest::READABLE).unwrap();
        timeout(SOON, ended.readable()).await.unwrap().unwrap().retain_ready();
    }

    #[tokio::test]
    async fn only_so_many_are_open_and_one_that_ends_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let _consoles = consoles(dir.path(), Policy::allow_all());
        let mut open = Vec::new();
        for port in 1..=4 {
            let mut stream = call(dir.path(), port).await;
            say(&mut stream, "echo h''ere\n").await;
            read_until(&mut stream, "here").await;
            open.push(stream);
        }
        let refused = read_until(&mut call(dir.path(), 5).await, "\n").await;
        assert_eq!(refused, "4 debug consoles are open already\r\n");
        let mut first = open.swap_remove(0);
        say(&mut first, "exit\n").await;
        read_until(&mut first, "there is no such text").await;
        let mut stream = call(dir.path(), 6).await;
        say(&mut stream, "echo h''ere\n").await;
        assert!(read_until(&mut stream, "here").await.contains("here"));
    }

    #[tokio::test]
    async fn a_policy_that_says_nothing_of_it_allows_none() {
        let policy = Policy::allow_all();
        let dir = tempfile::tempdir().unwrap();
        let _consoles = consoles(dir.path(), policy.clone());
        for (rules, word) in [
            ("default CheckRequest := true", "blocked by policy"),
            ("default DebugConsoleRequest := false", "blocked by policy"),
            ("default DebugConsoleRequest := true", "here"),
        ] {
            policy.set(format!("package agent_policy\n{rules}\n")).await.unwrap();
            let mut stream = UnixStream::connect(dir.path().join("console")).await.unwrap();
            let _ = stream.write_all(b"echo h''ere\n").await; // it may be closed
            assert!(read_until(&mut stream, word).await.contains(word), "{rules}");
        }
    }

    #[tokio::test]
    async fn an_open_one_ends_with_a_policy_that_denies_it() {
        let policy = Policy::allow_all();
        let dir = tempfile::tempdir().unwrap();
        let _consoles = consoles(dir.path(), policy.clone());
        let mut stream = call(dir.path(), 7).await;
        say(&mut stream, "echo h''ere\n").await;
        read_until(&mut stream, "here").await;
        policy.set("package agent_policy\ndefault DebugConsoleRequest := true\n".into()).await.unwrap();
        say(&mut stream, "echo st''ill\n").await;
        read_until(&mut stream, "still").await;
        policy.set("package agent_policy\ndefault DebugConsoleRequest := false\n".into()).await.unwrap();
        let last = read_until(&mut stream, "there is no such text").await;
        assert!(last.contains("DebugConsoleRequest is blocked by policy"), "{last}");
    }

    #[tokio::test]
    async fn shells_follow_each_other_on_a_terminal() {
        let (host, guest) = terminal().unwrap();
        let name = ptsname(host.get_ref(), Vec::new()).unwrap().into_string().unwrap();
        let consoles = Arc::new(Consoles::new(Policy::allow_all()));
        let serving = tokio::spawn(async move { consoles.serve_terminal(Path::new(&name)).await });
        for _ in 0..2 {
            stream::write_all(&host, b"echo d''one; exit\n").await.unwrap();
            let mut said = String::new();
            while !said.contains("done") {
                let data = timeout(SOON, stream::read_some(&host, PIECE)).await.unwrap().unwrap();
                said.push_str(&String::from_utf8_lossy(&data));
            }
        }
        serving.abort();
        drop(guest);
    }

    #[test]
    fn an_image_allows_it_by_a_file_of_its_own() {
        let root = tempfile::tempdir().unwrap();
        assert!(!allowed(root.path()));
        fs::create_dir_all(root.path().join("etc/nacre")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("etc/nacre/debug-console")).unwrap();
        assert!(!allowed(root.path()));
        fs::remove_file(root.path().join("etc/nacre/debug-console")).unwrap();
        fs::write(root.path().join("etc/nacre/debug-console"), "").unwrap();
        assert!(allowed(root.path()));
    }
}
