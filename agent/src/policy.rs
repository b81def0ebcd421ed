//! What the host may ask for.
//!
//! Handlers take [`Authorized`] requests, and only [`Policy::admit`] makes them. There is no engine yet that evaluates a policy: a
//! development image has none and allows everything; an image that carries one asks for protection that this agent can't give, and
//! everything that the policy would have to judge is refused.

use std::path::Path;

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

/// A request that may not be served.
#[derive(Debug, thiserror::Error)]
#[error("{0} is blocked by policy: this agent can't evaluate the policy that the image carries")]
pub struct Denied(&'static str);

/// The guest's policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Serve every request.
    AllowAll,
    /// Serve none.
    DenyAll,
}

impl Policy {
    /// The policy of the image whose root is `root`.
    pub fn of_image(root: &Path) -> Policy {
        let carried = POLICIES.iter().any(|path| root.join(path.trim_start_matches('/')).exists());
        if carried { Policy::DenyAll } else { Policy::AllowAll }
    }

    /// Judge the request `name`.
    pub fn admit<R>(self, name: &'static str, request: R) -> Result<Authorized<R>, Denied> {
        match self {
            Policy::AllowAll => Ok(Authorized(request)),
            Policy::DenyAll => Err(Denied(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_cannot_be_evaluated_denies() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Policy::of_image(root.path()), Policy::AllowAll);
        std::fs::create_dir_all(root.path().join("etc/kata-opa")).unwrap();
        std::fs::write(root.path().join("etc/kata-opa/default-policy.rego"), "").unwrap();
        let policy = Policy::of_image(root.path());
        assert!(policy.admit("CreateContainerRequest", ()).unwrap_err().to_string().contains("is blocked by policy"));
    }
}
