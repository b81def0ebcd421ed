//! The process that pulls: a [`Request`] on standard input, [`Event`]s on standard output, nothing else in or out.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use oci_spec::image::{Arch, ImageConfiguration, Os};
use serde::Serialize;

use crate::access::registries::Registries;
use crate::cache::Cache;
use crate::confine::Confinement;
use crate::error::{Error, Kind, Result};
use crate::layer::{self, Layer};
use crate::ocicrypt::{Keys, PrivateKey, Unwrap, provider};
use crate::ready::Verity;
use crate::reference::Sha256;
use crate::registry::{Found, Registry};
use crate::space::{Budget, Space};
use crate::store::Store;
use crate::stream::Workers;
use crate::{Event, Image, Request, reference, signatures};

/// How long a registry may say nothing.
const SILENCE: Duration = Duration::from_secs(30);

/// How many layers are on their way at once.
const AT_ONCE: usize = 3;

/// The largest request.
const MAX_REQUEST: u64 = 1 << 20;

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// How long half-made layers may take to go when a pull has failed. The next pull removes what is left.
const CLEAN_WITHIN: Duration = Duration::from_secs(2);

/// Pulls what standard input asks for. The exit code is 0 when the last event is `Done`.
pub fn main() -> ExitCode {
    run(SILENCE)
}

/// As [`main`], with another limit to how long the registry may say nothing.
pub fn run(silence: Duration) -> ExitCode {
    match serve(silence) {
        Ok(image) => {
            tell(&Event::Done(Box::new(image)));
            ExitCode::SUCCESS
        }
        Err(error) => {
            tell(&Event::Failed { kind: error.kind, message: error.message });
            ExitCode::FAILURE
        }
    }
}

fn serve(silence: Duration) -> Result<Image> {
    pull_now(&read_request()?, silence, Then::End).map(|pulled| pulled.image)
}

/// An image, and the manifest that it was made by.
pub(crate) struct Pulled {
    pub(crate) image: Image,
    pub(crate) manifest: Vec<u8>,
}

/// What the process does when it has pulled.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Then {
    /// It ends.
    End,
    /// It goes on, and so its first thread can't be confined as the others are.
    GoOn,
}

/// Pulls, and returns when it is done. Events go to standard output.
pub(crate) fn pull_now(asked: &Request, silence: Duration, then: Then) -> Result<Pulled> {
    reference::check(&asked.reference)?;
    signatures::judge_name(asked)?;
    let request = with_full_name(asked)?;
    tell(&Event::Resolving);
    let store = Store::open(&request.store)?;
    let cache = Cache::of(&request, tell)?;
    let confinement = Arc::new(Confinement::of_worker(&store.places(), cache.family())?);
    let of_threads = confinement.clone();
    let begin = move || of_threads.thread().unwrap_or_else(give_up);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().on_thread_start(begin).build();
    let runtime = runtime.map_err(|error| Error::system("start", error))?;
    let nothing_more_starts = || if then == Then::End { confinement.process() } else { Ok(()) };
    let result = runtime.block_on(pull(&request, (&store, &cache), nothing_more_starts, silence));
    // Dropping it would wait for the registry's server, which may itself wait for a registry that is silent.
    runtime.shutdown_timeout(CLEAN_WITHIN);
    let named = |image| Image { reference: asked.reference.clone(), ..image };
    result.map(|pulled| Pulled { image: named(pulled.image), ..pulled })
}

/// Ends the process: one of its threads can't begin.
fn give_up(error: Error) {
    tell(&Event::Failed { kind: error.kind, message: error.message });
    std::process::exit(1);
}

fn read_request() -> Result<Request> {
    let mut text = String::new();
    let read = std::io::stdin().take(MAX_REQUEST).read_to_string(&mut text);
    read.map_err(|error| Error::system("read the request", error))?;
    serde_json::from_str(&text).map_err(|error| Error::new(Kind::BadRequest, format!("the request: {error}")))
}

/// A reader that is gone ends this process by its lifeline; there is nothing to do about it here.
pub(crate) fn tell(event: &impl Serialize) {
    let Ok(mut line) = serde_json::to_vec(event) else { return };
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(&line).and_then(|()| out.flush());
}

async fn pull(
    request: &Request,
    (store, cache): (&Store, &Cache),
    nothing_more_starts: impl FnOnce() -> Result<()>,
    silence: Duration,
) -> Result<Pulled> {
    let registry = Registry::open(request, store, silence).await?;
    let found = registry.find(&request.reference, cache).await?;
    // Before anything of it is used, also what the store has already.
    signatures::judge(request, &found, silence)?;
    let Found { manifest_digest, bytes: raw, manifest, config, .. } = found;
    check_platform(&config)?;
    let layers = layer::plan(&manifest, config.rootfs().diff_ids(), &keys(request)?)?;
    let space = Space::of(&request.store)?;
    nothing_more_starts()?;
    let bytes = total(&layers);
    tell(&Event::Resolved { manifest_digest: manifest_digest.clone(), layers: layers.len(), bytes });
    let ready: HashMap<_, _> = layers.iter().filter_map(|layer| ready(layer, request, store)).collect();
    let missing = layers.iter().filter(|layer| !ready.contains_key(layer.diff_id()) && layer.known(store).is_none());
    // Unpacked layers are hardly ever smaller than compressed ones: what does not fit now will not fit later.
    space.check(total(missing))?;

    let (progress, budget, workers) = (Arc::new(Progress::default()), Budget::new(space), Arc::new(Workers::new()));
    let mut fetches: Vec<_> = layers.iter().enumerate().collect();
    // The largest first, lest it be waited for when all others are done.
    fetches.sort_by_key(|(_, layer)| std::cmp::Reverse(layer.size()));
    let fetches = fetches.into_iter().map(async |(place, layer)| {
        let dir = match ready.get(layer.diff_id()) {
            Some(verity) => {
                progress.add(1, layer.size());
                store.ready(verity)
            }
            None => one((layer, &workers), (&registry, cache), store, &budget, &progress).await?,
        };
        Ok::<_, Error>((place, dir))
    });
    let mut dirs: Vec<_> = stream::iter(fetches).buffer_unordered(AT_ONCE).try_collect().await?;
    dirs.sort_unstable();
    let layers = topmost(dirs.into_iter().map(|(_, dir)| dir));
    let ready = ready.into_values().map(|verity| (store.ready(&verity), verity)).collect();
    let image = Image { reference: request.reference.clone(), manifest_digest, layers, ready, config };
    Ok(Pulled { image, manifest: raw })
}

/// A layer that is not in the store and that a disk may stand for.
fn ready<'a>(layer: &'a Layer, request: &Request, store: &Store) -> Option<(&'a Sha256, Verity)> {
    let verity = layer.verity(&request.known)?;
    let is_there = layer.known(store).is_none() && request.attached.contains(&verity.serial());
    is_there.then(|| (layer.diff_id(), verity))
}

/// Without the lower ones of directories that are the same: a manifest may name one disk for two layers.
fn topmost(dirs: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    dirs.fold(Vec::new(), |mut layers, dir| {
        layers.retain(|lower| *lower != dir);
        layers.push(dir);
        layers
    })
}

/// The request with the image's full name, which is fetched and judged. Credentials were given for the registry of the name that was asked for:
/// to another, where an alias leads, they are not shown.
fn with_full_name(request: &Request) -> Result<Request> {
    let asked = &request.reference;
    if reference::is_local(asked) {
        return Ok(request.clone());
    }
    let registries = request.registries.as_deref().map(Registries::parse).transpose()?.unwrap_or_default();
    let (reference, plain) = (registries.resolve(asked)?, Registries::default().resolve(asked)?);
    let same = reference::registry(&reference) == reference::registry(&plain);
    Ok(Request { reference, auth: request.auth.clone().filter(|_| same), ..request.clone() })
}

/// What may open encrypted layers.
fn keys(request: &Request) -> Result<Keys> {
    let private = request.decryption_keys.iter().map(|pem| PrivateKey::from_pem(pem)).collect::<Result<_>>()?;
    let provider = request.key_providers.as_deref().map(provider::Providers::from_config).transpose()?;
    let provider = provider.map(|providers| Box::new(providers) as Box<dyn Unwrap>);
    Ok(Keys { private, provider, ..Keys::default() })
}

async fn one(
    (layer, workers): (&Layer, &Arc<Workers>),
    from: (&Registry, &Cache),
    store: &Store,
    budget: &Budget,
    progress: &Arc<Progress>,
) -> Result<PathBuf> {
    if let Some(dir) = layer.known(store) {
        progress.add(1, layer.size());
        return Ok(dir);
    }
    let heard = progress.clone();
    let dir = layer.fetch(from, store, budget, workers, move |bytes| heard.add(0, bytes)).await?;
    progress.add(1, 0);
    Ok(dir)
}

fn total<'a>(layers: impl IntoIterator<Item = &'a Layer>) -> u64 {
    layers.into_iter().fold(0, |sum, layer| sum.saturating_add(layer.size()))
}

/// An image of another platform is chosen when a registry has no other.
fn check_platform(config: &ImageConfiguration) -> Result<()> {
    let here = if cfg!(target_arch = "aarch64") { Arch::ARM64 } else { Arch::Amd64 };
    if *config.os() == Os::Linux && *config.architecture() == here {
        return Ok(());
    }
    let (os, arch) = (config.os(), config.architecture());
    Err(Error::bad_image(format!("the image is for {os}/{arch}, this machine is linux/{here}: choose another")))
}

/// Counts what arrives and tells it now and then.
#[derive(Debug, Default)]
struct Progress(Mutex<Count>);

#[derive(Debug, Default)]
struct Count {
    layers: usize,
    bytes: u64,
    told: Option<Instant>,
}

impl Progress {
    fn add(&self, layers: usize, bytes: u64) {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        count.layers = count.layers.saturating_add(layers);
        count.bytes = count.bytes.saturating_add(bytes);
        if layers > 0 || count.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            count.told = Some(Instant::now());
            tell(&Event::Progress { layers_done: count.layers, bytes_done: count.bytes });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_for_another_platform_is_refused() {
        let config = |os: &str, arch: &str| -> ImageConfiguration {
            let rootfs = serde_json::json!({ "type": "layers", "diff_ids": [] });
            serde_json::from_value(serde_json::json!({ "os": os, "architecture": arch, "rootfs": rootfs })).unwrap()
        };
        let here = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        assert!(check_platform(&config("linux", here)).is_ok());
        assert_eq!(check_platform(&config("linux", "s390x")).unwrap_err().kind, Kind::BadImage);
        assert_eq!(check_platform(&config("windows", here)).unwrap_err().kind, Kind::BadImage);
    }
}
