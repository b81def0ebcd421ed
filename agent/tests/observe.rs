//! What an operator sees of an agent that runs as a plain process: its log, and what it says of the one before it.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nacre_protocol::address::Address;
use nacre_protocol::connect;
use nacre_protocol::nacre::{GetBootTimesRequest, ResizeConsoleRequest, SetLogLevelRequest};
use nacre_protocol::nacre_ttrpc::GuestClient;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::{UnixSocket, UnixStream};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};
use ttrpc::context::{Context, with_timeout};

/// How long anything may take.
const SOON: Duration = Duration::from_secs(20);

struct Agent {
    child: Child,
    dir: tempfile::TempDir,
}

impl Agent {
    fn start() -> Agent {
        let dir = tempfile::tempdir().unwrap();
        let child = command(dir.path()).spawn().unwrap();
        Agent { child, dir }
    }

    fn command(&self) -> Command {
        command(self.dir.path())
    }

    /// Another one in the place of this one, which has ended.
    fn again(mut self) -> Agent {
        self.remove_sockets();
        self.child = self.command().spawn().unwrap();
        self
    }

    async fn ended(&mut self) -> ExitStatus {
        ended(&mut self.child).await
    }

    fn remove_sockets(&self) {
        for name in ["agent", "log", "console"] {
            let _ = std::fs::remove_file(self.path(name)); // it was not made
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn connect(&self) -> GuestClient {
        let address = Address::Unix(self.path("agent"));
        let client = GuestClient::new(connect::connect(&address, Instant::now() + SOON).await.unwrap());
        client.get_boot_times(limit(), &GetBootTimesRequest::new()).await.unwrap(); // it is up
        client
    }
}

fn command(dir: &Path) -> Command {
    let unix = |name: &str| format!("unix://{}", dir.join(name).display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_nacre-agent"));
    command.args(["--listen", &unix("agent"), "--log", &unix("log"), "--store"]).arg(dir.join("images"));
    command.args(["--console", &unix("console"), "--last-words"]).arg(dir.join("last-words"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command
}

async fn ended(child: &mut Child) -> ExitStatus {
    timeout(SOON, child.wait()).await.unwrap().unwrap()
}

fn limit() -> Context {
    with_timeout(i64::try_from(SOON.as_nanos()).unwrap())
}

async fn lines(path: &Path) -> Lines<BufReader<UnixStream>> {
    BufReader::new(UnixStream::connect(path).await.unwrap()).lines()
}

/// Reads until a line holds `text`.
async fn find(lines: &mut Lines<BufReader<UnixStream>>, text: &str) -> String {
    let found = async {
        loop {
            let line = lines.next_line().await.unwrap().expect("the log ends");
            if line.contains(text) {
                return line;
            }
        }
    };
    timeout(SOON, found).await.unwrap_or_else(|_| panic!("no line holds {text:?}"))
}

/// Types `line` until the answer is `text`: a shell that is just taking over its terminal may throw away what was typed before.
async fn type_until(lines: &mut Lines<BufReader<UnixStream>>, line: &str, text: &str) {
    let begun = Instant::now();
    loop {
        lines.get_mut().write_all(line.as_bytes()).await.unwrap();
        if timeout(Duration::from_secs(2), find(lines, text)).await.is_ok() {
            return;
        }
        assert!(begun.elapsed() < SOON, "{line:?} is not answered");
    }
}

async fn set(client: &GuestClient, level: &str) -> ttrpc::Result<String> {
    let request = SetLogLevelRequest { level: level.into(), ..SetLogLevelRequest::new() };
    client.set_log_level(limit(), &request).await.map(|answer| answer.previous)
}

#[tokio::test]
async fn the_log_has_several_readers_and_another_level_when_the_host_says_so() {
    let agent = Agent::start();
    let client = agent.connect().await;
    let (mut one, mut other) = (lines(&agent.path("log")).await, lines(&agent.path("log")).await);
    assert_eq!(set(&client, "debug").await.unwrap(), "info");
    // This is told only now, and the readers' connections may have been accepted after it.
    for lines in [&mut one, &mut other] {
        loop {
            client.get_boot_times(limit(), &GetBootTimesRequest::new()).await.unwrap();
            let told = timeout(Duration::from_millis(100), find(lines, "GetBootTimes")).await;
            if told.is_ok_and(|line| line.contains("\"DEBUG\"")) {
                break;
            }
        }
    }
    assert_eq!(set(&client, "critical").await.unwrap(), "debug");
    find(&mut one, "changed the log's level").await;
    client.get_boot_times(limit(), &GetBootTimesRequest::new()).await.unwrap();
    assert_eq!(set(&client, "warning").await.unwrap(), "error");
    let next = one.next_line().await.unwrap().unwrap();
    assert!(next.contains("changed the log's level"), "{next}");
    let error = set(&client, "loud").await.unwrap_err().to_string();
    assert!(error.contains("not a log level"), "{error}");
}

#[tokio::test]
async fn a_debug_consoles_terminal_has_the_size_that_the_host_says() {
    let agent = Agent::start();
    let client = agent.connect().await;
    let socket = UnixSocket::new_stream().unwrap();
    socket.bind(agent.path("7")).unwrap();
    let console = socket.connect(agent.path("console")).await.unwrap();
    let mut lines = BufReader::new(console).lines();
    type_until(&mut lines, "echo h''ere\n", "here").await;
    let resize = async |port| {
        let request = ResizeConsoleRequest { port, row: 43, column: 132, ..ResizeConsoleRequest::new() };
        client.resize_console(limit(), &request).await
    };
    resize(7).await.unwrap();
    type_until(&mut lines, "stty size\n", "43 132").await;
    let error = resize(8).await.unwrap_err().to_string();
    assert!(error.contains("no debug console is open from port 8"), "{error}");
}

/// Ends an agent, starts another in its place, and says what that one tells of the first: how many there were, and its words.
async fn after(end: impl FnOnce(&mut Agent)) -> (u32, String) {
    let mut first = Agent::start();
    first.connect().await;
    end(&mut first);
    first.ended().await;
    let next = first.again();
    let answer = next.connect().await.get_boot_times(limit(), &GetBootTimesRequest::new()).await.unwrap();
    (answer.restarts, answer.last_words)
}

fn signal(agent: &Agent, signal: Signal) {
    let pid = agent.child.id().unwrap().cast_signed();
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

#[tokio::test]
async fn an_agent_tells_how_the_one_before_it_ended() {
    assert_eq!(after(|agent| signal(agent, Signal::SEGV)).await, (1, "ended by SIGSEGV".into()));
    assert_eq!(after(|agent| signal(agent, Signal::ABORT)).await, (1, "ended by SIGABRT".into()));
    assert_eq!(after(|agent| signal(agent, Signal::KILL)).await, (1, String::new()));
    assert_eq!(after(|agent| signal(agent, Signal::TERM)).await, (0, String::new()));
}

#[tokio::test]
async fn an_agent_that_fails_says_why_and_each_one_is_counted() {
    let mut agent = Agent::start();
    agent.connect().await;
    for restarts in 1..3 {
        signal(&agent, Signal::KILL);
        agent.ended().await;
        // It can't listen: the socket is still there.
        let mut failing = agent.command().spawn().unwrap();
        assert_eq!(ended(&mut failing).await.code(), Some(1));
        agent = agent.again();
        let answer = agent.connect().await.get_boot_times(limit(), &GetBootTimesRequest::new()).await.unwrap();
        assert_eq!(answer.restarts, 2 * restarts);
        assert!(answer.last_words.starts_with("failed: listen on unix://"), "{}", answer.last_words);
    }
}

#[tokio::test]
async fn two_agents_do_not_take_each_others_words() {
    let first = Agent::start();
    first.connect().await;
    let mut other = Agent::start();
    signal(&other, Signal::KILL);
    other.ended().await;
    other.remove_sockets();
    let mut command = other.command();
    other.child = command.arg("--last-words").arg(first.path("last-words")).spawn().unwrap();
    let answer = other.connect().await.get_boot_times(limit(), &GetBootTimesRequest::new()).await.unwrap();
    assert_eq!(answer.restarts, 0);
    signal(&other, Signal::TERM);
    other.ended().await;
    assert!(first.path("last-words").exists());
}

#[tokio::test]
async fn the_log_s_readers_get_its_last_lines() {
    let mut agent = Agent::start();
    let client = agent.connect().await;
    let mut log = lines(&agent.path("log")).await;
    loop {
        set(&client, "info").await.unwrap(); // the reader's connection may be accepted after it
        if timeout(Duration::from_millis(100), find(&mut log, "changed the log's level")).await.is_ok() {
            break;
        }
    }
    signal(&agent, Signal::TERM);
    find(&mut log, "asked to end").await;
    assert!(agent.ended().await.success());
}
