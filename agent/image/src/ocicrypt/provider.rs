//! ocicrypt's key provider protocol: whoever wrapped a layer's key is asked, in JSON, to unwrap it.
//!
//! The exchange is the same over every transport: a program's standard input and output, or a service on a socket. What else can carry it implements
//! [`Unwrap`] with [`request`] and [`reply`].

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use nacre_protocol::address::Address;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;
use zeroize::Zeroizing;

use super::secret::Secret;
use super::service;
use crate::error::{Error, Kind, Result};

/// The most bytes of an answer: 64 KiB as numbers of up to three digits, and what stands around them.
const MAX_REPLY: u64 = 320 << 10;

/// How long a program may take: it may have to attest first.
const DEADLINE: Duration = Duration::from_secs(60);

/// The most bytes of a configuration.
const MAX_CONFIG: usize = 64 << 10;

/// What key providers are told besides the wrapped key: values by name, as `skopeo --decryption-key provider:…` has them.
pub type Parameters = BTreeMap<String, Vec<Vec<u8>>>;

/// Unwraps keys.
pub trait Unwrap: Send + Sync {
    /// What `provider` has wrapped in `annotation`, which is base64.
    fn unwrap(&self, provider: &str, annotation: &str, parameters: &Parameters) -> Result<Zeroizing<Vec<u8>>>;
}

/// What to ask.
pub fn request(annotation: &str, parameters: &Parameters) -> Zeroizing<Vec<u8>> {
    let encode = |values: &Vec<Vec<u8>>| values.iter().map(|value| BASE64_STANDARD.encode(value)).collect::<Vec<_>>();
    let parameters: BTreeMap<_, _> = parameters.iter().map(|(name, values)| (name, encode(values))).collect();
    let request = json!({
        "op": "keyunwrap",
        "keywrapparams": { "ec": null, "optsdata": null },
        "keyunwrapparams": { "dc": { "Parameters": parameters }, "annotation": annotation },
    });
    Zeroizing::new(request.to_string().into_bytes())
}

/// What the answer holds.
pub fn reply(json: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
    #[derive(Deserialize)]
    struct Reply {
        keyunwrapresults: Results,
    }
    #[derive(Deserialize)]
    struct Results {
        optsdata: Secret,
    }
    let reply: std::result::Result<Reply, _> = serde_json::from_slice(json);
    // serde's message could quote the key.
    let bad = |error: serde_json::Error| locked(format!("its answer makes no sense at byte {}", error.column()));
    reply.map(|reply| reply.keyunwrapresults.optsdata.0).map_err(bad)
}

fn locked(why: impl Into<String>) -> Error {
    Error::new(Kind::Locked, why)
}

/// Key providers by name.
#[derive(Debug, Clone)]
pub struct Providers {
    providers: BTreeMap<String, Provider>,
    deadline: Duration,
}

#[derive(Debug, Clone)]
enum Provider {
    /// A program, which reads the question and writes the answer.
    Command(Program),
    /// A service.
    Ttrpc(Address),
}

impl Providers {
    /// What `OCICRYPT_KEYPROVIDER_CONFIG` has: JSON, `{"key-providers":{"NAME":{"cmd":{"path":"…","args":[…]}}}}` or
    /// `{"key-providers":{"NAME":{"ttrpc":"unix:///…"}}}`.
    pub fn from_config(json: &str) -> Result<Providers> {
        #[derive(Deserialize)]
        struct Config {
            #[serde(rename = "key-providers")]
            providers: BTreeMap<String, Entry>,
        }
        let bad = |why: String| Error::new(Kind::BadRequest, format!("key providers: {why}"));
        if json.len() > MAX_CONFIG {
            return Err(bad("their configuration has more than 64 KiB".into()));
        }
        let config: Config = serde_json::from_str(json).map_err(|error| bad(error.to_string()))?;
        let provider = |(name, entry): (String, Entry)| match entry.provider() {
            Ok(provider) => Ok((name, provider)),
            Err(why) => Err(bad(format!("{name}: {why}"))),
        };
        let providers = config.providers.into_iter().map(provider).collect::<Result<_>>()?;
        Ok(Providers { providers, deadline: DEADLINE })
    }

    /// The same, with another patience.
    pub fn within(self, deadline: Duration) -> Providers {
        Providers { deadline, ..self }
    }
}

impl Unwrap for Providers {
    fn unwrap(&self, provider: &str, annotation: &str, parameters: &Parameters) -> Result<Zeroizing<Vec<u8>>> {
        let provider = self.providers.get(provider).ok_or_else(|| locked("it is not configured"))?;
        let request = request(annotation, parameters);
        reply(&match provider {
            Provider::Command(program) => program.run(request, self.deadline)?,
            Provider::Ttrpc(address) => service::ask(address, &request, self.deadline)?,
        })
    }
}

/// A provider as the configuration has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    cmd: Option<Program>,
    ttrpc: Option<String>,
    grpc: Option<IgnoredAny>,
    native: Option<IgnoredAny>,
}

impl Entry {
    fn provider(self) -> std::result::Result<Provider, String> {
        match self {
            Entry { grpc: Some(_), .. } => Err("grpc is not supported, cmd and ttrpc are".into()),
            Entry { native: Some(_), .. } => Err("native is not supported, cmd and ttrpc are".into()),
            Entry { cmd: Some(program), ttrpc: None, .. } if program.path.is_absolute() => {
                Ok(Provider::Command(program))
            }
            Entry { cmd: Some(_), ttrpc: None, .. } => Err("the path of its cmd must be absolute".into()),
            Entry { cmd: None, ttrpc: Some(address), .. } => match address.parse() {
                Ok(address @ (Address::Unix(_) | Address::Abstract(_))) => Ok(Provider::Ttrpc(address)),
                _ => Err("its ttrpc must be the address of a socket, unix:///PATH".into()),
            },
            _ => Err("it has not one of cmd and ttrpc".into()),
        }
    }
}

/// A program, and its arguments.
#[derive(Debug, Clone, Deserialize)]
struct Program {
    path: PathBuf,
    #[serde(default)]
    args: Vec<String>,
}

/// A program that runs. It and its children end when this does.
struct Running {
    child: Child,
    status: Option<ExitStatus>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

impl Program {
    fn run(&self, input: Zeroizing<Vec<u8>>, deadline: Duration) -> Result<Zeroizing<Vec<u8>>> {
        let end = Instant::now() + deadline;
        let failed = |act: &str, why: String| locked(format!("{act} {}: {why}", self.path.display()));
        let late = || failed("run", format!("no answer within {} s", deadline.as_secs()));
        let mut command = Command::new(&self.path);
        command.args(&self.args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let running = command.spawn().map(|child| Running { child, status: None });
        let mut running = running.map_err(|error| failed("start", error.to_string()))?;
        let (Some(mut stdin), Some(stdout)) = (running.child.stdin.take(), running.child.stdout.take()) else {
            return Err(failed("start", "it has no pipes".into()));
        };
        // One that does not read its input may answer all the same.
        thread::spawn(move || stdin.write_all(&input));
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut output = Zeroizing::new(Vec::with_capacity(MAX_REPLY as usize + 1));
            let read = stdout.take(MAX_REPLY + 1).read_to_end(&mut output);
            sender.send(read.map(|_| output))
        });
        let output = receiver.recv_timeout(deadline).map_err(|_| late())?;
        let output = output.map_err(|error| failed("read from", error.to_string()))?;
        if output.len() as u64 > MAX_REPLY {
            return Err(failed("run", format!("it answers with more than {} KiB", MAX_REPLY >> 10)));
        }
        if !running.ends(end).map_err(|error| failed("wait for", error.to_string()))? {
            return Err(late());
        }
        let status = running.end().map_err(|error| failed("wait for", error.to_string()))?;
        if !status.success() {
            return Err(failed("run", status.to_string()));
        }
        Ok(output)
    }
}

impl Running {
    fn pid(&self) -> rustix::io::Result<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH)
    }

    /// Ends it, if it has not ended, and what it has started.
    fn end(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        // Until it is waited for, its number is nobody else's.
        let _ = self.pid().and_then(|group| kill_process_group(group, Signal::KILL));
        let status = self.child.wait()?;
        self.status = Some(status);
        Ok(status)
    }

    /// Whether it ends in time.
    fn ends(&self, end: Instant) -> rustix::io::Result<bool> {
        let pidfd = pidfd_open(self.pid()?, PidfdFlags::empty())?;
        loop {
            let left = Timespec::try_from(end.saturating_duration_since(Instant::now()));
            match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], left.ok().as_ref()) {
                Err(rustix::io::Errno::INTR) => {}
                polled => return polled.map(|ready| ready > 0),
            }
        }
    }
}
