//! Helper processes: what the guest's image has run beside the agent.
//!
//! Each has a task that starts it when those are ready which it needs, says in the log what it prints, and starts it anew when its table says so,
//! later each time. When the agent ends they are asked to end, the last one first.

mod socket;
mod table;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use socket::Awaited;
use table::{Helper, Restart};

/// The pause before the first new start, and the longest: each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Who has run for so long has started well: the next pause is the first one.
const STARTED_WELL: Duration = Duration::from_secs(60);

/// How long all of them together may take to end.
const END_WITHIN: Duration = Duration::from_secs(5);

/// The longest line of output that is one line of the log.
const MAX_LINE: u64 = 1024;

/// All helpers.
#[derive(Debug, Default)]
pub struct Helpers {
    /// In the order in which they start.
    helpers: Vec<Arc<Supervised>>,
    /// How long one may take to be ready.
    patience: Duration,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Supervised {
    helper: Helper,
    starts: AtomicU64,
    readiness: watch::Sender<Readiness>,
    /// When it must have ended, once it is asked to.
    end_by: watch::Sender<Option<Instant>>,
}

/// Whether those can start that need a helper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readiness {
    Pending,
    Ready,
    /// They need not wait any more.
    GivenUp,
}

impl Helpers {
    /// The helpers of the image whose root is `root`. A table that makes no sense has none.
    pub fn of_image(root: &Path, patience: Duration) -> Helpers {
        let helpers = table::of_image(root).unwrap_or_else(|error| {
            tracing::error!("no helper is started: {}", crate::chain(&error));
            Vec::new()
        });
        Helpers::of(helpers, patience)
    }

    fn of(helpers: Vec<Helper>, patience: Duration) -> Helpers {
        let supervised = |helper| {
            let (readiness, end_by) = (watch::Sender::new(Readiness::Pending), watch::Sender::new(None));
            Arc::new(Supervised { helper, starts: AtomicU64::new(0), readiness, end_by })
        };
        Helpers { helpers: helpers.into_iter().map(supervised).collect(), patience, tasks: Mutex::default() }
    }

    /// Start them.
    pub fn start(&self) {
        let task = |one: &Arc<Supervised>| {
            let needed = self.helpers.iter().filter(|other| one.helper.after.contains(&other.helper.name)).cloned();
            tokio::spawn(one.clone().run(needed.collect(), self.patience))
        };
        let tasks = self.helpers.iter().map(task).collect();
        *self.tasks.lock().unwrap_or_else(PoisonError::into_inner) = tasks;
    }

    /// How often each has been started.
    pub fn starts(&self) -> Vec<(String, u64)> {
        self.helpers.iter().map(|one| (one.helper.name.clone(), one.starts.load(Relaxed))).collect()
    }

    /// End them, each before those that it needs.
    pub async fn end(&self) {
        let end_by = Instant::now() + END_WITHIN;
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for (one, task) in self.helpers.iter().zip(tasks).rev() {
            one.end_by.send_replace(Some(end_by));
            let _ = task.await; // one that was ended has left nothing
        }
    }
}

impl Supervised {
    async fn run(self: Arc<Self>, needed: Vec<Arc<Supervised>>, patience: Duration) {
        let mut ending = self.end_by.subscribe();
        tokio::select! {
            () = self.wait_for(&needed) => {}
            _ = ending.wait_for(Option::is_some) => return,
        }
        let (mut pause, first) = (FIRST_PAUSE, Instant::now());
        loop {
            let begun = Instant::now();
            let ended = self.once(patience).await;
            let again = self.is_wanted(&ended);
            self.readiness.send_replace(match &ended {
                Ok(status) if status.success() && !again => Readiness::Ready,
                _ if again && first.elapsed() < patience => Readiness::Pending,
                _ => Readiness::GivenUp,
            });
            if self.end_by.borrow().is_some() || !again {
                return;
            }
            if begun.elapsed() >= STARTED_WELL {
                pause = FIRST_PAUSE;
            }
            tokio::select! {
                () = sleep(pause) => pause = LONGEST_PAUSE.min(pause * 2),
                _ = ending.wait_for(Option::is_some) => return,
            }
        }
    }

    /// Each of them is ready in its time, or gives up.
    async fn wait_for(&self, needed: &[Arc<Supervised>]) {
        for other in needed {
            let mut readiness = other.readiness.subscribe();
            let known = readiness.wait_for(|readiness| *readiness != Readiness::Pending).await;
            if known.is_ok_and(|readiness| *readiness == Readiness::GivenUp) {
                tracing::error!(helper = self.helper.name, "{} is not ready; started without it", other.helper.name);
            }
        }
    }

    /// Run it until it ends.
    async fn once(&self, patience: Duration) -> io::Result<ExitStatus> {
        let helper = self.helper.name.as_str();
        self.starts.fetch_add(1, Relaxed);
        let ended = self.start(patience).await;
        match &ended {
            Ok(status) if status.success() => tracing::info!(helper, "the helper has finished"),
            Ok(status) => tracing::error!(helper, "the helper has failed: {status}"),
            Err(error) => tracing::error!(helper, "start the helper {:?}: {error}", self.helper.program),
        }
        ended
    }

    async fn start(&self, patience: Duration) -> io::Result<ExitStatus> {
        let socket = self
            .helper
            .ready
            .as_deref()
            .map(|path| Awaited::new(path, self.helper.uid, self.helper.gid))
            .transpose()?;
        let (mut child, output) = self.helper.spawn()?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let name = self.helper.name.clone();
        tokio::spawn(log(name, output));
        let ready = async {
            self.until_ready(socket, patience).await;
            std::future::pending::<()>().await;
        };
        let mut ending = self.end_by.subscribe();
        let end_by = tokio::select! {
            ended = child.wait() => {
                send(group, Signal::KILL); // what it has left
                return ended;
            }
            end_by = ending.wait_for(Option::is_some) => end_by.ok().and_then(|end_by| *end_by),
            () = ready => None,
        };
        end(child, group, end_by.unwrap_or_else(Instant::now)).await
    }

    /// Waits until it is ready, and has others know. Nothing is watched for any longer.
    async fn until_ready(&self, socket: Option<Awaited>, patience: Duration) {
        let helper = self.helper.name.as_str();
        let is_there = match &socket {
            Some(socket) => timeout(patience, socket.appears()).await,
            None => Ok(Ok(())),
        };
        let readiness = match is_there {
            Ok(Ok(())) => Readiness::Ready,
            Ok(Err(error)) => {
                tracing::error!(helper, "wait for {:?}: {error}", self.helper.ready);
                Readiness::GivenUp
            }
            Err(_) => {
                tracing::error!(helper, "{:?} is not there after {patience:?}", self.helper.ready);
                Readiness::GivenUp
            }
        };
        self.readiness.send_replace(readiness);
    }

    fn is_wanted(&self, ended: &io::Result<ExitStatus>) -> bool {
        match self.helper.restart {
            Restart::Always => true,
            Restart::OnFailure => !ended.as_ref().is_ok_and(ExitStatus::success),
            Restart::Never => false,
        }
    }
}

impl Helper {
    /// Start it. What it prints comes out of the pipe.
    fn spawn(&self) -> io::Result<(Child, OwnedFd)> {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut command = Command::new(&self.program);
        command.args(&self.args).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs(&self.env);
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::from(theirs.try_clone()?)).stderr(theirs);
        command.uid(self.uid).gid(self.gid).process_group(0).kill_on_drop(true);
        // Spawned by the runtime's only thread, which lives as long as the agent.
        nacre_sys::lifeline::die_with_parent(command.as_std_mut());
        let child = command.spawn()?;
        if let Some(id) = child.id() {
            fs::write(format!("/proc/{id}/oom_score_adj"), self.oom_score_adj.to_string())?;
        }
        Ok((child, ours))
    }
}

/// Have `child` end, and kill what is left of its group then, or at `end_by`.
async fn end(mut child: Child, group: Option<Pid>, end_by: Instant) -> io::Result<ExitStatus> {
    send(group, Signal::TERM);
    let ended = timeout_at(end_by, child.wait()).await;
    send(group, Signal::KILL);
    match ended {
        Ok(ended) => ended,
        Err(_) => child.wait().await,
    }
}

fn send(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        let _ = kill_process_group(group, signal); // ESRCH once all have ended
    }
}

/// Say in the log what comes out of `output`.
async fn log(helper: String, output: OwnedFd) {
    if let Ok(output) = pipe::Receiver::from_owned_fd(output) {
        each_line(output, |line| tracing::info!(helper, "{line}")).await;
    }
}

/// Say `output` line by line. A line that is too long is several.
async fn each_line(output: impl AsyncRead + Unpin, say: impl Fn(&str)) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while let Ok(1..) = (&mut output).take(MAX_LINE).read_until(b'\n', &mut line).await {
        say(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
}

#[cfg(test)]
mod tests;
