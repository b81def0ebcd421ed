//! The guest's packet filter, read and written by the image's own tools: the API carries what they write and read.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::sync::Semaphore;

/// Where images have the tools.
const DIRECTORIES: [&str; 2] = ["usr/sbin", "sbin"];

/// What images without a chosen one call them.
const FLAVOURS: [&str; 3] = ["", "-nft", "-legacy"];

/// How long a tool may take; it waits up to 5 s for others that change the rules.
const PATIENCE: Duration = Duration::from_secs(30);

/// The most that a tool may write: what fits into one answer.
const MAX_OUTPUT: u64 = (4 << 20) - 1024;

/// How much of a tool's complaints is told.
const MAX_COMPLAINT: u64 = 4096;

/// One tool at a time: each has the kernel's lock to itself, and memory for all rules.
static RUNNING: Semaphore = Semaphore::const_new(1);

/// The packet filter was not read or not changed.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The image has no such tool.
    #[error("{0} is not offered: this guest's image has no such program in /usr/sbin or /sbin")]
    NoTool(String),
    /// The tool could not be run.
    #[error("run {tool:?}")]
    Run {
        /// Its path.
        tool: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It did not come to an end.
    #[error("{0:?} is not done after {PATIENCE:?}")]
    Slow(PathBuf),
    /// It wrote more than an answer holds.
    #[error("{0:?} wrote more than {MAX_OUTPUT} bytes")]
    TooMuch(PathBuf),
    /// It failed.
    #[error("{tool:?} failed: {complaint} ({status})")]
    Failed {
        /// Its path.
        tool: PathBuf,
        /// What it wrote to its standard error.
        complaint: String,
        /// How it ended.
        status: ExitStatus,
    },
}

/// The rules, as `iptables-save` writes them, of the tools below `root`.
pub async fn save(root: &Path, v6: bool) -> Result<Vec<u8>, FilterError> {
    run(find(root, v6, "save")?, &[], &[]).await
}

/// Have `iptables-restore` of the tools below `root` read `rules`.
pub async fn restore(root: &Path, v6: bool, rules: &[u8]) -> Result<Vec<u8>, FilterError> {
    run(find(root, v6, "restore")?, &["--wait", "5"], rules).await
}

fn find(root: &Path, v6: bool, act: &str) -> Result<PathBuf, FilterError> {
    let family = if v6 { "ip6tables" } else { "iptables" };
    let names = FLAVOURS.map(|flavour| format!("{family}{flavour}-{act}"));
    let paths = names.iter().flat_map(|name| DIRECTORIES.map(|directory| root.join(directory).join(name)));
    paths.into_iter().find(|path| path.exists()).ok_or_else(|| FilterError::NoTool(format!("{family}-{act}")))
}

async fn run(tool: PathBuf, args: &[&str], input: &[u8]) -> Result<Vec<u8>, FilterError> {
    let _turn = RUNNING.acquire().await; // never closed
    let (mut output, mut complaint) = (Vec::new(), Vec::new());
    let ended = tokio::time::timeout(PATIENCE, talk(&tool, args, input, &mut output, &mut complaint)).await;
    let status = match ended {
        Err(_) => return Err(FilterError::Slow(tool)),
        Ok(Err(e)) if e.kind() == io::ErrorKind::FileTooLarge => return Err(FilterError::TooMuch(tool)),
        Ok(ended) => ended.map_err(|source| FilterError::Run { tool: tool.clone(), source })?,
    };
    if status.success() {
        return Ok(output);
    }
    let complaint = String::from_utf8_lossy(&complaint).trim().into();
    Err(FilterError::Failed { tool, complaint, status })
}

/// Run `tool`, which is killed should this be dropped.
async fn talk(
    tool: &Path,
    args: &[&str],
    input: &[u8],
    output: &mut Vec<u8>,
    complaint: &mut Vec<u8>,
) -> io::Result<ExitStatus> {
    let mut command = Command::new(tool);
    command.args(args).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").kill_on_drop(true);
    nacre_sys::lifeline::be_killable(command.as_std_mut());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(mut stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    let feed = async move {
        match stdin.write_all(input).await {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()), // its status tells why
            fed => fed,
        }
    };
    let listen = async {
        match stdout.take(MAX_OUTPUT + 1).read_to_end(output).await? as u64 {
            0..=MAX_OUTPUT => Ok(()),
            _ => Err(io::ErrorKind::FileTooLarge.into()),
        }
    };
    let hear = async {
        let mut stderr = stderr.take(MAX_COMPLAINT);
        stderr.read_to_end(complaint).await?;
        tokio::io::copy(&mut stderr.into_inner(), &mut tokio::io::sink()).await
    };
    tokio::try_join!(feed, listen, hear)?;
    child.wait().await
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process;
    use std::thread;

    use super::*;

    /// A root with one tool, a script. Nobody but `cp` has it open for writing, as a fork of another test could inherit that.
    fn tools(path: &str, script: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let (text, tool) = (root.path().join("text"), root.path().join(path));
        fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::create_dir_all(tool.parent().unwrap()).unwrap();
        let copied = process::Command::new("install").arg("-m755").args([text, tool]).status().unwrap();
        assert!(copied.success());
        root
    }

    #[tokio::test]
    async fn a_tool_is_found_under_each_of_its_names() {
        for (path, v6) in
            [("usr/sbin/iptables-save", false), ("sbin/iptables-legacy-save", false), ("sbin/ip6tables-nft-save", true)]
        {
            let root = tools(path, "echo \"$# $0\"");
            let saved = String::from_utf8(save(root.path(), v6).await.unwrap()).unwrap();
            assert!(saved.starts_with("0 ") && saved.trim().ends_with(path), "{saved}");
            let error = save(root.path(), !v6).await.unwrap_err();
            assert!(matches!(error, FilterError::NoTool(_)), "{error}");
        }
    }

    #[tokio::test]
    async fn rules_are_fed_to_the_tool_and_its_word_is_the_answer() {
        let root = tools("sbin/iptables-restore", "echo \"$@\"; cat");
        let rules = vec![b'#'; 1 << 20]; // more than pipes hold
        let answer = restore(root.path(), false, &rules).await.unwrap();
        assert_eq!(answer, [b"--wait 5\n", &rules[..]].concat());
    }

    #[tokio::test]
    async fn a_failure_is_told_in_the_tools_words_and_no_more_than_fits() {
        let root = tools("sbin/iptables-restore", "echo no such chain >&2; head -c 9999999 /dev/zero >&2; exit 2");
        let error = restore(root.path(), false, b"rules").await.unwrap_err().to_string();
        assert!(
            error.contains("iptables-restore\" failed: no such chain") && error.contains("exit status: 2"),
            "{error}"
        );
        assert!(error.len() < 5000);
        let root = tools("sbin/iptables-save", "cat /dev/zero");
        let error = save(root.path(), false).await.unwrap_err();
        assert!(matches!(error, FilterError::TooMuch(_)), "{error}");
    }

    #[test]
    fn the_kernels_rules_are_read_and_written() {
        let test = || {
            if let Err(e) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
                return println!("skipped: unshare(CLONE_NEWNET): {e}");
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let root = Path::new("/");
            let rules = b"*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -s 192.0.2.1/32 -j DROP\nCOMMIT\n";
            if let Err(error) = runtime.block_on(restore(root, false, rules)) {
                return println!("skipped: {error}");
            }
            let saved = String::from_utf8(runtime.block_on(save(root, false)).unwrap()).unwrap();
            assert!(saved.contains("-A INPUT -s 192.0.2.1/32 -j DROP"), "{saved}");
        };
        thread::spawn(test).join().unwrap();
    }
}
