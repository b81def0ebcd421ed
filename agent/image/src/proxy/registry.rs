//! A registry: one repository of it (distribution specification), with the token that it wants, and another try where that may help.

use std::io::Read;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use ureq::http::StatusCode;

use super::body::{Part, Source};
use super::http::{Failed, Http, Response, origin};
use super::lookaside::Store;
use super::manifest::{ACCEPTED, Found, INDEX, MAX_MANIFEST, Manifest};
use super::options::Options;
use super::stripes::Lines;
use crate::access::challenge::{self, Challenge};
use crate::access::credentials::Secret;
use crate::access::registries::Endpoint;
use crate::error::{Error, Kind, Result, quoted};
use crate::reference::DEFAULT_REGISTRY;

/// How long to wait before each further try of what may pass.
const WAITS: [Duration; 3] = [Duration::from_millis(300), Duration::from_secs(1), Duration::from_secs(3)];

/// The longest that a registry may ask us to wait.
const MAX_WAIT: u64 = 20;

/// The largest answer of a token server, and of a refusal.
const MAX_TOKEN: u64 = 1 << 20;
const MAX_REFUSAL: u64 = 64 << 10;

/// Docker's registry is not where its name says.
const DOCKER: (&str, &str) = (DEFAULT_REGISTRY, "registry-1.docker.io");

/// One repository.
pub(super) struct Registry {
    http: Http,
    base: String,
    repository: String,
    secret: Option<Secret>,
    insecure: bool,
    is_mirror: bool,
    /// The header that the registry took last.
    authorization: Mutex<Option<String>>,
    lines: Arc<Lines>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Registry {
    /// Finds the image `reference` at the first of its places that has it.
    pub(super) fn find(reference: &str, options: &Options) -> Result<(Registry, Manifest)> {
        let (mut first, begun) = (None, Instant::now());
        for endpoint in options.registries.endpoints(reference)? {
            // Mirrors may not take the time that the image's own place needs.
            if endpoint.is_mirror && begun.elapsed() >= options.silence {
                continue;
            }
            let found = Registry::at(&endpoint, options).and_then(|(registry, name)| {
                let manifest = Manifest::find(&name, |name| registry.manifest(name))?;
                Ok((registry, manifest))
            });
            match found {
                // The last place is the image's own: its error is the one that counts.
                Err(error) if endpoint.is_mirror => drop(first.get_or_insert(error)),
                found => return found,
            }
        }
        Err(first.unwrap_or_else(|| Error::new(Kind::NotFound, format!("{reference}: it has no place"))))
    }

    /// What vouches for the image `name`, which has its transport before it: how it is found; if `signed`, the signatures beside it; and those
    /// of the signature store.
    pub(super) fn find_evidence(
        name: &str,
        signed: bool,
        store: Option<&str>,
        options: &Options,
    ) -> Result<serde_json::Value> {
        let reference = name.strip_prefix("docker://").unwrap_or(name);
        let (registry, manifest) = Registry::find(reference, options)?;
        let store = store.map(|store| Store::new(store, options)).transpose()?;
        super::signatures::of(&registry, &manifest, signed, store.as_ref())
    }

    /// The index of what refers to a manifest; `None` from a registry that keeps none, or answers with something else.
    pub(super) fn referrers(&self, digest: &str, artifact_type: &str) -> Result<Option<Vec<u8>>> {
        let kind = artifact_type.replace('+', "%2B");
        let found = self.get(&format!("referrers/{digest}?artifactType={kind}"), &[], |response| {
            let is_index = media_type(&response).as_deref() == Some(INDEX);
            is_index.then(|| read(response, MAX_MANIFEST)).transpose()
        });
        match found {
            Err(error) if matches!(error.kind, Kind::NotFound | Kind::Unreachable) => Ok(None),
            found => found,
        }
    }

    /// The repository that an endpoint names, and the tag or digest in it.
    fn at(endpoint: &Endpoint, options: &Options) -> Result<(Registry, String)> {
        let (host, path, name) = take_apart(&endpoint.reference)?;
        let insecure = options.insecure || endpoint.insecure;
        let host = if host == DOCKER.0 { DOCKER.1 } else { host };
        let mut registry = Registry {
            http: Http::new(options, insecure)?,
            base: format!("https://{host}/v2/{path}"),
            repository: path.into(),
            secret: options.credentials.for_reference(&endpoint.reference)?,
            insecure,
            is_mirror: endpoint.is_mirror,
            authorization: Mutex::default(),
            lines: Arc::default(),
        };
        // Who takes any certificate takes none, too, if there is none.
        if insecure && registry.http.get(&format!("https://{host}/v2/"), &[]).is_err() {
            registry.base = format!("http://{host}/v2/{path}");
        }
        Ok((registry, name.into()))
    }

    /// Asks, and `take`s the answer, until there is one that will stay the same.
    fn get<T>(&self, path: &str, headers: &[(&str, &str)], take: impl Fn(Response) -> Result<T>) -> Result<T> {
        let mut waits = WAITS.iter();
        let mut may_be_silent = !self.is_mirror; // somebody else is asked then
        loop {
            let failure = match self.once(path, headers, &take) {
                Ok(taken) => return Ok(taken),
                Err(failure) => failure,
            };
            let wait = match failure.again {
                Again::Never => None,
                Again::Silent if !may_be_silent => None,
                Again::Silent | Again::AsUsual => waits.next().copied(),
                Again::After(asked) => waits.next().map(|_| asked),
            };
            may_be_silent &= !matches!(failure.again, Again::Silent);
            match wait {
                Some(wait) => std::thread::sleep(wait),
                None => return Err(failure.error),
            }
        }
    }

    fn once<T>(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        take: impl Fn(Response) -> Result<T>,
    ) -> std::result::Result<T, Failure> {
        let url = format!("{}/{path}", self.base);
        let ask = || {
            let authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut all = headers.to_vec();
            all.extend(authorization.as_deref().map(|value| ("authorization", value)));
            self.http.get(&url, &all)
        };
        let mut answer = ask()?;
        // Wherever a redirect leads is nobody who may ask for our credentials.
        if answer.response.status() == StatusCode::UNAUTHORIZED && origin(&answer.from) == origin(&url) {
            self.ask_for_leave(&answer.response)?;
            answer = ask()?;
        }
        if answer.response.status().is_success() {
            return take(answer.response).map_err(Failure::from);
        }
        Err(Failure::refused(path, answer.response))
    }

    /// Gets what the registry wants to see: a token from the server that it names, or the user's name and password.
    fn ask_for_leave(&self, refused: &Response) -> std::result::Result<(), Failure> {
        let headers: Vec<&str> =
            refused.headers().get_all("www-authenticate").iter().filter_map(|value| value.to_str().ok()).collect();
        let challenges = challenge::parse(&headers);
        let of = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        let value = match (of("bearer"), of("basic"), &self.secret) {
            (Some(bearer), _, _) => format!("Bearer {}", self.token(bearer)?),
            (None, Some(_), Some(Secret::Basic { username, password })) => basic(username, password),
            (None, Some(_), _) => return Err(unauthorized("it asks for a user name and a password").into()),
            (None, None, _) => return Err(unauthorized("it does not say what it asks for").into()),
        };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        Ok(())
    }

    fn token(&self, bearer: &Challenge) -> std::result::Result<String, Failure> {
        let url = challenge::bearer_url(bearer, &self.repository, self.insecure)?;
        let answer = match &self.secret {
            Some(Secret::IdentityToken(token)) => {
                let (realm, _) = url.split_once('?').unwrap_or((&url, ""));
                let scope = format!("repository:{}:pull", self.repository);
                let service =
                    bearer.parameters.iter().find(|(name, _)| name == "service").map_or("", |(_, value)| value);
                self.http.post(
                    realm,
                    &[
                        ("grant_type", "refresh_token"),
                        ("client_id", "nacre"),
                        ("service", service),
                        ("scope", &scope),
                        ("refresh_token", token),
                    ],
                )?
            }
            Some(Secret::Basic { username, password }) => {
                self.http.get(&url, &[("authorization", &basic(username, password))])?
            }
            None => self.http.get(&url, &[])?,
        };
        if !answer.response.status().is_success() {
            return Err(Failure::refused("the token", answer.response));
        }
        let bytes = read(answer.response, MAX_TOKEN)?;
        let token: Token = serde_json::from_slice(&bytes)
            .map_err(|_| Error::new(Kind::Unreachable, "the token server's answer makes no sense"))?;
        let usable = |token: &String| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        let token = token.token.filter(usable).or(token.access_token.filter(usable));
        Ok(token.ok_or_else(|| Error::new(Kind::Unreachable, "the token server gives no token"))?)
    }
}

/// Whether something is worth another try.
#[derive(Debug, Clone, Copy)]
enum Again {
    Never,
    AsUsual,
    /// Nobody said anything: once more at most.
    Silent,
    /// When it was asked for.
    After(Duration),
}

/// Why there is no answer, yet.
#[derive(Debug)]
struct Failure {
    error: Error,
    again: Again,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let again = if error.kind == Kind::Stalled { Again::AsUsual } else { Again::Never };
        Failure { error, again }
    }
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Failure {
        let failure = Failure::from(failed.error);
        if failed.silent { Failure { again: Again::Silent, ..failure } } else { failure }
    }
}

impl Failure {
    /// By an answer that is no success.
    fn refused(what: &str, response: Response) -> Failure {
        let again = match may_pass(response.status()) {
            true => asked_to_wait(&response).map_or(Again::AsUsual, Again::After),
            false => Again::Never,
        };
        Failure { error: refusal(what, response), again }
    }
}

impl Source for Registry {
    fn manifest(&self, name: &str) -> Result<Found> {
        self.get(&format!("manifests/{name}"), &[("accept", &ACCEPTED.join(", "))], |response| {
            let media_type = media_type(&response);
            Ok(Found { bytes: read(response, MAX_MANIFEST)?, media_type })
        })
    }

    fn open(&self, digest: &str, from: u64) -> Result<Part> {
        let path = format!("blobs/{digest}");
        let range = format!("bytes={from}-");
        let headers = [("range", range.as_str())];
        let response = self.get(&path, if from > 0 { &headers } else { &[] }, Ok)?;
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        let begins = response.headers().get("content-range").and_then(|value| value.to_str().ok());
        if partial && begins.is_some_and(|range| !range.starts_with(&format!("bytes {from}-"))) {
            return Err(Error::new(Kind::Stalled, "the registry goes on from another place than it was asked to"));
        }
        let length = response.body().content_length();
        let whole = length.map(|length| if partial { length.saturating_add(from) } else { length });
        let reader = response.into_body().into_with_config().limit(u64::MAX).reader();
        // One that can't go on from there sends the whole again.
        Ok(Part { reader: Box::new(reader), whole, skip: if partial { 0 } else { from } })
    }

    fn range(&self, digest: &str, part: Range<u64>, whole: u64) -> Result<Box<dyn Read + Send>> {
        let (first, last) = (part.start, part.end.saturating_sub(1));
        let range = format!("bytes={first}-{last}");
        let response = self.get(&format!("blobs/{digest}"), &[("range", &range)], Ok)?;
        let given = response.headers().get("content-range").and_then(|value| value.to_str().ok());
        let asked = given == Some(&format!("bytes {first}-{last}/{whole}"));
        if !asked || response.status() != StatusCode::PARTIAL_CONTENT {
            return Err(Error::new(Kind::Stalled, "the registry gives another part than it was asked for"));
        }
        Ok(Box::new(response.into_body().into_with_config().limit(u64::MAX).reader()))
    }

    fn lines(&self) -> Option<&Arc<Lines>> {
        Some(&self.lines)
    }
}

fn media_type(response: &Response) -> Option<String> {
    let value = response.headers().get("content-type")?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim().to_string())
}

/// Host, repository and tag or digest of a full reference.
fn take_apart(reference: &str) -> Result<(&str, &str, &str)> {
    let wrong = || Error::new(Kind::BadRequest, format!("{} is no full image reference", quoted(reference)));
    let (host, rest) = reference.split_once('/').ok_or_else(wrong)?;
    let (path, name) = match rest.split_once('@') {
        Some((path, digest)) => (path.split_once(':').map_or(path, |(path, _)| path), digest),
        None => rest.rsplit_once(':').unwrap_or((rest, "latest")),
    };
    if host.is_empty()
        || path.is_empty()
        || path.split('/').any(|part| matches!(part, "" | "." | ".."))
        || name.contains('/')
    {
        return Err(wrong());
    }
    Ok((host, path, name))
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

fn may_pass(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
}

fn asked_to_wait(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get("retry-after")?.to_str().ok()?.parse::<u64>().ok()?;
    Some(Duration::from_secs(seconds.min(MAX_WAIT)))
}

fn unauthorized(reason: &str) -> Error {
    Error::new(
        Kind::Unauthorized,
        format!("the registry refuses: are the user name and password right, and may they pull this image? [{reason}]"),
    )
}

/// What an answer that is no success means.
fn refusal(what: &str, response: Response) -> Error {
    let status = response.status();
    let text = read(response, MAX_REFUSAL).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let said: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect();
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => unauthorized(&format!("{what}: {status} {said}")),
        StatusCode::NOT_FOUND => Error::new(
            Kind::NotFound,
            format!("the registry has no such image: are its name and tag right? [{what}: {said}]"),
        ),
        status if may_pass(status) => Error::new(
            Kind::Stalled,
            format!("the registry has no time or is ill: try again [{what}: {status} {said}]"),
        ),
        _ => Error::new(Kind::Unreachable, format!("the registry answers {status} [{what}: {said}]")),
    }
}

fn read(response: Response, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut reader = response.into_body().into_with_config().limit(u64::MAX).reader().take(limit + 1);
    reader.read_to_end(&mut bytes).map_err(|error| {
        Error::new(Kind::Stalled, format!("the registry ended the transfer early: try again [{error}]"))
    })?;
    if bytes.len() as u64 > limit {
        return Err(Error::bad_image(format!("the registry's answer is longer than {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_reference_is_taken_apart() {
        assert_eq!(take_apart("h:5000/a/b:1").unwrap(), ("h:5000", "a/b", "1"));
        assert_eq!(take_apart("h/a").unwrap(), ("h", "a", "latest"));
        assert_eq!(take_apart("h/a:1@sha256:00").unwrap(), ("h", "a", "sha256:00"));
        for bad in ["a", "h/", "/a", "h/a/../b:1", "h//a"] {
            assert!(take_apart(bad).is_err(), "{bad}");
        }
    }
}
