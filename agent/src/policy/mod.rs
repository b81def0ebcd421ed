//! What the host may ask for.
//!
//! Handlers take [`Authorized`] requests, and only [`Policy::admit`] makes them. A development image has no policy and allows everything. One
//! that carries a policy is ruled by it, and so is every image from the moment that a host which may set a policy has set one. What can't be
//! judged is refused: a policy that can't be read, a rule that is not there, an evaluation that fails.

mod document;
mod input;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use protobuf::MessageFull;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

pub use document::{Invalid, Reason};

use document::Document;

/// Where images carry their policy: ours, and Kata's.
const POLICIES: [&str; 2] = ["/etc/nacre/policy.rego", "/etc/kata-opa/default-policy.rego"];

/// A request that may be served.
#[derive(Debug)]
pub struct Authorized<R>(R);

impl<R> Authorized<R> {
    /// The request.
    pub fn into_inner(self) -> R {
        self.0
    }
}

/// A request that may not be served. What it holds is not said: answers and logs leave the guest.
#[derive(Debug, thiserror::Error)]
#[error("{request} is blocked by policy: {reason}")]
pub struct Denied {
    request: &'static str,
    reason: Reason,
}

/// The guest's policy.
#[derive(Debug, Clone)]
pub struct Policy(Arc<watch::Sender<Rules>>);

/// Tells when another policy rules.
#[derive(Debug)]
pub struct Changes(watch::Receiver<Rules>);

impl Changes {
    /// Wait for the next one.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await; // nobody can set one any more
        }
    }
}

#[derive(Debug, Clone)]
enum Rules {
    AllowAll,
    /// The image's policy can't be used.
    DenyAll,
    Document(Arc<Document>),
}

impl Policy {
    fn of(rules: Rules) -> Policy {
        Policy(Arc::new(watch::Sender::new(rules)))
    }

    /// What changes from now on.
    pub fn changes(&self) -> Changes {
        Changes(self.0.subscribe())
    }

    /// Serve every request.
    pub fn allow_all() -> Policy {
        Policy::of(Rules::AllowAll)
    }

    /// The policy of the image whose root is `root`; and what is wrong with it.
    pub fn of_image(root: &Path) -> (Policy, Option<Unusable>) {
        let mut paths = POLICIES.iter().map(|path| root.join(path.trim_start_matches('/')));
        let Some(path) = paths.find(|path| path.exists()) else { return (Policy::allow_all(), None) };
        let (rules, fault) = match Document::read(&path) {
            Ok(document) => (Rules::Document(Arc::new(document)), None),
            Err(source) => (Rules::DenyAll, Some(Unusable { path, source })),
        };
        (Policy::of(rules), fault)
    }

    /// Whether there is none.
    pub fn allows_all(&self) -> bool {
        matches!(*self.0.borrow(), Rules::AllowAll)
    }

    /// Put `text` in the place of what rules now. When it makes no sense all stays as it was.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn set(&self, text: String) -> Result<(), Invalid> {
        let document = spawn_blocking(move || Document::compile(text)).await.unwrap_or(Err(Invalid::Ended))?;
        self.0.send_replace(Rules::Document(Arc::new(document)));
        Ok(())
    }

    /// Judge a request. Its rule has the name of its message, as Kata's policies call them.
    ///
    /// # Errors
    /// Which rule says no.
    pub async fn admit<R: MessageFull>(&self, request: R) -> Result<Authorized<R>, Denied> {
        let denied = |reason| Denied { request: R::NAME, reason };
        let document = match &*self.0.borrow() {
            Rules::AllowAll => return Ok(Authorized(request)),
            Rules::DenyAll => return Err(denied(Reason::Unusable)),
            Rules::Document(document) => document.clone(),
        };
        match document.fixed(R::NAME) {
            Some(true) => return Ok(Authorized(request)),
            Some(false) => return Err(denied(Reason::No)),
            None => {}
        }
        let input = input::of(&request);
        // Evaluating takes its time; other requests do not wait for it, except those that are to be evaluated, too.
        let judged = spawn_blocking(move || document.judge(R::NAME, input));
        judged.await.unwrap_or(Err(Reason::Failed)).map(|()| Authorized(request)).map_err(denied)
    }
}

/// What the policy in the file `path` says to the rule `rule` and the input `input`, a request as JSON: for its author, away from any guest.
///
/// # Errors
/// The policy or the input makes no sense.
pub fn explain(path: &Path, rule: &str, input: &str) -> anyhow::Result<Explained> {
    let document = Document::read(path).with_context(|| format!("use the policy {}", path.display()))?;
    let input = regorus::Value::from_json_str(input).context("read the request as JSON")?;
    let (judged, prints) = document.explain(rule, input);
    Ok(Explained { denied: judged.err(), prints })
}

/// A policy's word, for its author.
#[derive(Debug)]
pub struct Explained {
    /// Why the request would be denied, if it would.
    pub denied: Option<Reason>,
    /// What the rules have printed (`print(…)`).
    pub prints: Vec<String>,
}

/// An image's policy that can't be used: everything is refused.
#[derive(Debug, thiserror::Error)]
#[error("the image's policy {path:?} can't be used, so everything is refused")]
pub struct Unusable {
    path: PathBuf,
    source: Invalid,
}

#[cfg(test)]
mod tests;
