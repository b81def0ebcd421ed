//! Streams that pass the API by: the host's connections are a program's standard input, output and error.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::time::{Duration, Instant};

use nacre_protocol::agent::{
    CreateContainerRequest, ExecProcessRequest, ReadStreamRequest, TtyWinResizeRequest, WriteStreamRequest,
};
use nacre_protocol::oci;
use nacre_tests::agent::{Client, Process, limit};
use nacre_tests::{dist, suite};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// An agent and its client; nothing where that can't be.
async fn agent() -> Option<(Process, Client)> {
    if !dist::root() || !dist::have(&["unshare", "ip", "busybox"]) {
        return None;
    }
    let agent = Process::start(&dist::program("nacre-agent")).unwrap();
    let client = agent.connect().await.unwrap();
    Some((agent, client))
}

/// Creates the container "c".
async fn create(
    client: &Client,
    args: &[&str],
    terminal: bool,
    [stdin, stdout, stderr]: [u32; 3],
) -> ttrpc::Result<()> {
    let root = suite::root_file_system(client, "c").await.unwrap();
    let request = CreateContainerRequest {
        container_id: "c".into(),
        exec_id: "c".into(),
        OCI: Some(suite::spec("c", &root, args, terminal).unwrap()).into(),
        stdin_port: stdin,
        stdout_port: stdout,
        stderr_port: stderr,
        ..Default::default()
    };
    client.agent.create_container(limit(), &request).await.map(drop)
}

async fn text(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn input_and_output_pass_to_their_ends() {
    let Some((agent, client)) = agent().await else { return };
    let (mut stdin, mut stdout, mut stderr) =
        (agent.pass(1).await.unwrap(), agent.pass(2).await.unwrap(), agent.pass(3).await.unwrap());
    create(&client, &["busybox", "sh", "-c", "busybox cat; echo no >&2; exit 7"], false, [1, 2, 3]).await.unwrap();
    suite::start(&client, "c").await.unwrap();
    let data: Vec<u8> = (0..9_000_000_u32).map(|i| (i % 251) as u8).collect();
    let mut read = Vec::new();
    let (written, output, errors) = tokio::join!(
        async {
            stdin.write_all(&data).await?;
            stdin.shutdown().await
        },
        stdout.read_to_end(&mut read),
        text(&mut stderr),
    );
    written.unwrap();
    output.unwrap();
    assert!(read == data, "{} bytes of {}, or others", read.len(), data.len());
    assert_eq!((errors.as_str(), suite::wait(&client, "c", "c").await.unwrap()), ("no\n", 7));
    suite::remove(&client, "c").await.unwrap();
}

#[tokio::test]
async fn a_terminal_is_passed_through_both_ways() {
    let Some((agent, client)) = agent().await else { return };
    let (mut stdin, mut stdout) = (agent.pass(1).await.unwrap(), agent.pass(2).await.unwrap());
    let script = "read line; busybox stty size; busybox cat";
    create(&client, &["busybox", "sh", "-c", script], true, [1, 2, 0]).await.unwrap();
    let request = TtyWinResizeRequest {
        container_id: "c".into(),
        exec_id: "c".into(),
        row: 30,
        column: 100,
        ..Default::default()
    };
    client.agent.tty_win_resize(limit(), &request).await.unwrap();
    suite::start(&client, "c").await.unwrap();
    stdin.write_all(b"go\nhello\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    let output = text(&mut stdout).await;
    assert!(output.contains("30 100\r\n") && output.contains("hello\r\n"), "{output:?}");
    assert_eq!(suite::wait(&client, "c", "c").await.unwrap(), 0);
    suite::remove(&client, "c").await.unwrap();
}

#[tokio::test]
async fn streams_without_a_port_are_empty_and_not_to_be_had() {
    let Some((agent, client)) = agent().await else { return };
    create(&client, &["busybox", "sleep", "1000"], false, [0; 3]).await.unwrap();
    suite::start(&client, "c").await.unwrap();
    let mut stderr = agent.pass(5).await.unwrap();
    let script = "busybox head -c 1000000 /dev/zero; busybox cat; echo end >&2";
    let process = oci::Process {
        Args: ["busybox", "sh", "-c", script].map(String::from).to_vec(),
        Env: vec!["PATH=/bin".into()],
        Cwd: "/".into(),
        ..Default::default()
    };
    let request = ExecProcessRequest {
        container_id: "c".into(),
        exec_id: "e".into(),
        process: Some(process).into(),
        stderr_port: 5,
        ..Default::default()
    };
    client.agent.exec_process(limit(), &request).await.unwrap();
    let request = ReadStreamRequest { container_id: "c".into(), exec_id: "e".into(), len: 9, ..Default::default() };
    let error = client.agent.read_stdout(limit(), &request).await.unwrap_err().to_string();
    assert!(error.contains("cannot get stream reader"), "{error}");
    let request =
        WriteStreamRequest { container_id: "c".into(), exec_id: "e".into(), data: vec![1], ..Default::default() };
    assert!(client.agent.write_stdin(limit(), &request).await.is_err());
    assert_eq!(text(&mut stderr).await, "end\n");
    assert_eq!(suite::wait(&client, "c", "e").await.unwrap(), 0);
    suite::remove(&client, "c").await.unwrap();
}

#[tokio::test]
async fn the_end_is_told_once_the_host_has_all_output_or_the_container_is_removed() {
    let Some((agent, client)) = agent().await else { return };
    let mut stdout = agent.pass(2).await.unwrap();
    let args = ["busybox", "head", "-c", "2000000", "/dev/zero"]; // more than the pipe and the socket hold
    create(&client, &args, false, [0, 2, 0]).await.unwrap();
    suite::start(&client, "c").await.unwrap();
    let mut read = Vec::new();
    let status = tokio::join!(suite::wait(&client, "c", "c"), stdout.read_to_end(&mut read)).0;
    assert_eq!((status.unwrap(), read.len()), (0, 2_000_000));
    suite::remove(&client, "c").await.unwrap();

    let _unread = agent.pass(4).await.unwrap();
    create(&client, &["busybox", "cat", "/dev/zero"], false, [0, 4, 0]).await.unwrap();
    suite::start(&client, "c").await.unwrap();
    let (status, removed) = tokio::join!(suite::wait(&client, "c", "c"), suite::remove(&client, "c"));
    removed.unwrap();
    assert_eq!(status.unwrap(), 128 + 9);
}

#[tokio::test]
async fn a_program_whose_reader_hangs_up_hears_of_it() {
    let Some((agent, client)) = agent().await else { return };
    let mut stdout = agent.pass(2).await.unwrap();
    create(&client, &["busybox", "cat", "/dev/zero"], false, [0, 2, 0]).await.unwrap();
    suite::start(&client, "c").await.unwrap();
    assert_eq!(stdout.read_u8().await.unwrap(), 0);
    drop(stdout);
    assert_eq!(suite::wait(&client, "c", "c").await.unwrap(), 1); // an error, for the first process of a namespace gets no SIGPIPE
    suite::remove(&client, "c").await.unwrap();
}

#[tokio::test]
async fn a_port_that_nobody_called_by_fails_the_request_and_closes_the_others() {
    let Some((agent, client)) = agent().await else { return };
    let mut stdin = agent.pass(1).await.unwrap();
    let begun = Instant::now();
    let error = create(&client, &["busybox", "true"], false, [1, 9, 0]).await.unwrap_err().to_string();
    assert!(error.contains("no connection from port 9") && error.contains("DEADLINE_EXCEEDED"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!(text(&mut stdin).await, "");
    create(&client, &["busybox", "true"], false, [0; 3]).await.unwrap();
    suite::remove(&client, "c").await.unwrap();
}
