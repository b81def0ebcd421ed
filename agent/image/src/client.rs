//! Starting a worker and hearing from it.

use std::collections::HashSet;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

use crate::ready::Verity;
use crate::store::{layers, ready};
use crate::{Event, Image, Kind, Request};

/// The longest line of a worker: a configuration has at most 8 MiB, and escapes may lengthen it.
const MAX_LINE: u64 = 64 << 20;

/// How much of a worker's last words is kept.
const MAX_WORDS: u64 = 4 << 10;

/// What is said of one that the kernel ended for a system call ([`crate::confine`]).
const SIGSYS: i32 = rustix::process::Signal::SYS.as_raw();
const FORBIDDEN: &str = ": it made a system call that it may not, which the kernel's log names: the image may have broken it, do not run it";

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The worker gave up.
    #[error("{message}")]
    Failed {
        /// Whose fault it was.
        kind: Kind,
        /// What failed, and what to do.
        message: String,
    },
    /// The worker could not be started or heard.
    #[error("{act}: {source}")]
    Io {
        /// What was to be done.
        act: &'static str,
        /// Why it was not.
        source: std::io::Error,
    },
    /// What the worker says can't be true.
    #[error("the image puller names {0:?}, which is no layer of the store")]
    Foreign(PathBuf),
    /// The worker ended without a result.
    #[error("the image puller ended without a result ({status}){words}")]
    Died {
        /// How it ended.
        status: String,
        /// Its last words.
        words: String,
    },
}

impl Error {
    /// Whose fault it was.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Failed { kind, .. } => *kind,
            Error::Io { .. } | Error::Foreign(_) | Error::Died { .. } => Kind::Internal,
        }
    }
}

/// Has a worker, started by `command`, pull what `request` says; `on_event` hears how far it is. Dropping the future
/// ends the worker.
///
/// # Errors
/// Why there is no image.
pub async fn pull(mut command: Command, request: Request, mut on_event: impl FnMut(&Event)) -> Result<Image, Error> {
    let io = |act| move |source| Error::Io { act, source };
    let text = serde_json::to_vec(&request).map_err(|error| io("write the request")(error.into()))?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(io("start the image puller"))?;
    let (Some(mut stdin), Some(stdout), Some(mut stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(io("start the image puller")(std::io::ErrorKind::BrokenPipe.into()));
    };
    // Its last words must not fill the pipe while we listen to its events.
    let words = tokio::spawn(async move {
        let mut words = Vec::new();
        let _ = (&mut stderr).take(MAX_WORDS).read_to_end(&mut words).await; // what came, came
        let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
        String::from_utf8_lossy(&words).trim().to_string()
    });
    // A worker that ends before it has read all says why itself.
    let _ = stdin.write_all(&text).await;
    drop(stdin);
    let mut lines = BufReader::new(stdout);
    let result = loop {
        let mut line = Vec::new();
        let n = (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line).await.map_err(io("hear the image puller"))?;
        if n == 0 {
            break None;
        }
        let event: Event =
            serde_json::from_slice(&line).map_err(|error| io("understand the image puller")(error.into()))?;
        on_event(&event);
        match event {
            Event::Done(image) => break Some(check(*image, &request)),
            Event::Failed { kind, message } => break Some(Err(Error::Failed { kind, message })),
            _ => {}
        }
    };
    let status = child.wait().await.map_err(io("wait for the image puller"))?;
    match result {
        Some(result) => result,
        None => {
            let words = words.await.unwrap_or_default();
            let words = if words.is_empty() { words } else { format!(": {words}") };
            let words = if status.signal() == Some(SIGSYS) { format!("{FORBIDDEN}{words}") } else { words };
            Err(Error::Died { status: status.to_string(), words })
        }
    }
}

/// How long a worker that was killed may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(1);

/// Removes what workers that were killed have left in `store`; what live ones write stays.
pub fn sweep(store: &Path) {
    if !store.exists() {
        return;
    }
    std::thread::sleep(GONE_WITHIN); // it holds the lock until then, and whose child it was is not known here
    let _ = crate::store::Store::open(store); // the next pull tries again
}

/// Removes the layers of `store` that are not `used`; returns how many. No pull into the store may run.
///
/// # Errors
/// A store that can't be read, a layer that can't be removed.
pub fn collect(store: &Path, used: &HashSet<PathBuf>) -> Result<usize, crate::Error> {
    if !store.exists() {
        return Ok(0);
    }
    crate::store::Store::open(store)?.collect(used)
}

/// The worker has parsed what strangers sent; what it names is going to be mounted.
fn check(image: Image, request: &Request) -> Result<Image, Error> {
    let unpacked = |layer: &Path| {
        let name = layer.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let digest = name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        digest && *layer == layers(&request.store).join(&*name)
    };
    let attached = |layer: &Path, verity: &Verity| {
        *layer == ready(&request.store, verity)
            && request.attached.contains(&verity.serial())
            && image.layers.iter().any(|named| named == layer)
    };
    let foreign = image.ready.iter().find(|(layer, verity)| !attached(layer, verity)).map(|(layer, _)| layer);
    let foreign = foreign
        .or_else(|| image.layers.iter().find(|layer| !unpacked(layer) && !image.ready.contains_key(layer.as_path())));
    match foreign {
        Some(foreign) => Err(Error::Foreign(foreign.clone())),
        None => Ok(image),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn image(layer: &str) -> Image {
        let config = serde_json::json!({ "os": "linux", "architecture": "amd64",
            "rootfs": { "type": "layers", "diff_ids": [] } });
        Image {
            reference: "a".into(),
            manifest_digest: "sha256:0".into(),
            layers: vec![layer.into()],
            ready: BTreeMap::new(),
            config: serde_json::from_value(config).unwrap(),
        }
    }

    pub(crate) fn request() -> Request {
        serde_json::from_value(serde_json::json!({ "reference": "a", "store": "/s", "skip_tls_verification": false }))
            .unwrap()
    }

    /// A worker that says `said`, whatever it is asked.
    async fn worker(said: &str) -> (Result<Image, Error>, usize) {
        let mut command = Command::new("sh");
        command.args(["-c", "cat >/dev/null; printf '%s' \"$0\"; echo last words >&2", said]);
        let mut heard = 0;
        let result = pull(command, request(), |_| heard += 1).await;
        (result, heard)
    }

    #[tokio::test]
    async fn what_a_worker_says_is_heard_and_judged() {
        let layer = format!("/s/layers/{}", "0a".repeat(32));
        let done = |layer: &str| serde_json::to_string(&Event::Done(Box::new(image(layer)))).unwrap() + "\n";
        let (result, heard) = worker(&format!("\"Resolving\"\n{}", done(&layer))).await;
        assert_eq!((result.unwrap(), heard), (image(&layer), 2));

        for foreign in ["/etc", "/s/layers/../../etc", "/s/partial/x/root", &layer.to_uppercase()] {
            assert!(matches!(worker(&done(foreign)).await.0, Err(Error::Foreign(_))), "{foreign}");
        }
        let failed = Event::Failed { kind: Kind::NotFound, message: "no such image".into() };
        let (result, _) = worker(&(serde_json::to_string(&failed).unwrap() + "\n")).await;
        assert_eq!(result.unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn a_disk_that_is_not_there_or_not_asked_for_is_mounted_nowhere() {
        let verity = Verity { root: [10; 32], blocks: 2 };
        let place = format!("/s/ready/{}-2", "0a".repeat(32));
        let answer = |layer: &str, at: &str| Image { ready: [(at.into(), verity)].into(), ..image(layer) };
        let request = Request { attached: vec![verity.serial()], ..request() };
        assert!(check(answer(&place, &place), &request).is_ok());
        let other = Request { attached: vec!["0b".repeat(10)], ..request.clone() };
        assert!(check(answer(&place, &place), &other).is_err());
        let unpacked = format!("/s/layers/{}", "0a".repeat(32));
        for (layer, at) in
            [(&*unpacked, &*unpacked), (&unpacked, &place), ("/etc", "/etc"), ("/s/ready/x", "/s/ready/x")]
        {
            assert!(check(answer(layer, at), &request).is_err(), "{layer} {at}");
        }
        assert!(check(image(&place), &request).is_err());
    }

    #[tokio::test]
    async fn a_worker_that_does_what_it_may_not_is_told_of_as_such() {
        let mut command = Command::new("sh");
        command.args(["-c", "kill -SYS $$"]);
        let error = pull(command, request(), |_| ()).await.unwrap_err().to_string();
        assert!(error.contains("SIGSYS") && error.contains("do not run it"), "{error}");
    }

    #[tokio::test]
    async fn a_worker_that_dies_is_quoted() {
        let error = worker("\"Resolving\"\n").await.0.unwrap_err();
        assert!(matches!(error, Error::Died { .. }), "{error}");
        assert!(error.to_string().contains("last words"), "{error}");
        assert!(matches!(worker("garbage\n").await.0, Err(Error::Io { .. })));
    }
}
