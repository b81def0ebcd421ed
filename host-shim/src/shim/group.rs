//! Which pod a container belongs to: its annotations say, in the words of whoever asks.

use std::collections::HashMap;

/// A container's part in its pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The pod itself: it has a VM, and no process in it.
    Sandbox,
    /// A container of the pod of this name.
    Container(String),
    /// A container with a pod of its own, as `ctr run` makes them.
    Single,
}

/// The words of containerd's CRI, of CRI-O and of cri-dockerd: type, its two values, and the pod's name.
const DIALECTS: [(&str, &str, &str, &str); 3] = [
    ("io.kubernetes.cri.container-type", "sandbox", "container", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "sandbox", "container", "io.kubernetes.cri-o.SandboxID"),
    ("io.kubernetes.docker.type", "podsandbox", "container", "io.kubernetes.sandbox.id"),
];

/// Where containerd's CRI and CRI-O say which image a container has.
const IMAGES: [&str; 2] = ["io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName"];

/// The part that annotations say.
pub fn role(annotations: &HashMap<String, String>) -> Role {
    for (kind, sandbox, container, pod) in DIALECTS {
        match annotations.get(kind) {
            Some(value) if value == sandbox => return Role::Sandbox,
            Some(value) if value == container => {
                return annotations.get(pod).map_or(Role::Single, |pod| Role::Container(pod.clone()));
            }
            _ => {}
        }
    }
    Role::Single
}

/// The image that annotations name.
pub fn image(annotations: &HashMap<String, String>) -> Option<&str> {
    IMAGES.iter().find_map(|key| annotations.get(*key)).map(String::as_str).filter(|image| !image.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
    }

    #[test]
    fn each_manager_is_understood() {
        let pairs = [("io.kubernetes.cri.container-type", "sandbox"), ("io.kubernetes.cri.sandbox-id", "p")];
        assert_eq!(role(&of(&pairs)), Role::Sandbox);
        let pairs = [("io.kubernetes.cri-o.ContainerType", "container"), ("io.kubernetes.cri-o.SandboxID", "p")];
        assert_eq!(role(&of(&pairs)), Role::Container("p".into()));
        assert_eq!(role(&of(&[("io.kubernetes.docker.type", "podsandbox")])), Role::Sandbox);
        assert_eq!(role(&of(&[("other", "sandbox")])), Role::Single);
    }

    #[test]
    fn the_image_is_named_by_the_cri() {
        assert_eq!(image(&of(&[("io.kubernetes.cri.image-name", "r.example/a:1")])), Some("r.example/a:1"));
        assert_eq!(image(&of(&[("io.kubernetes.cri.image-name", "")])), None);
    }
}
