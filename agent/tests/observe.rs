//! What an operator sees of an agent that runs as a plain process: its log, and what it says of the one before it.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nacre_protocol::address::Address;
use nacre_protocol::connect;
use nacre_protocol::nacre::{GetBootTimesRequest, SetLogLevelRequest};
use nacre_protocol::nacre_ttrpc::GuestClient;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::UnixStream;
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
        Agent::start_in(tempfile::tempdir().unwrap(), &[])
    }

    fn start_in(dir: tempfile::TempDir, options: &[&str]) -> Agent {
        let unix = |name: &str| format!("unix://{}", dir.path().join(name).display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_nacre-agent"));
        command.args(["--listen", &unix("agent"), "--log", &unix("log"), "--store"]).arg(dir.path().join("images"));
        command.args(options).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Agent { child: command.spawn().unwrap(), dir }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    async fn connect(&self) -> GuestClient {
        let address = Address::Unix(self.path("agent"));
        let client = GuestClient::new(connect::connect(&address, Instant::now() + SOON).await.unwrap());
        client.get_boot_times(limit(), &GetBootTimesRequest::new()).await.unwrap(); // it is up
        client
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
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
