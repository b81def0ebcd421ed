//! Images that the host's command line does not open.
//!
//! The command line is the host's. Where it is measured, a verifier sees what it says; but an image with a policy of its own is to keep it also where
//! nobody looks. The file that seals such an image has the words that it says itself, and of the host's words only those count that open nothing.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// The file, which a recipe with a policy has written.
const FILE: &str = "/etc/nacre/sealed";

/// The most of it that is read: what a kernel takes of a command line.
const MAX_BYTES: u64 = 2048;

/// What the host may say: by what ways it reaches the guest, where bytes are kept that are encrypted or checked anyway, and how long things may
/// take. A shell takes a file in the image and a rule of its policy, whatever the host says.
const OPEN: &[&str] = &[
    "agent.log_vport",
    "agent.debug_console",
    "agent.debug_console_vport",
    "agent.server_addr",
    "agent.passfd_listener_port",
    "agent.container_pipe_size",
    "agent.image_pull_timeout",
    "agent.https_proxy",
    "agent.no_proxy",
    "agent.hotplug_timeout",
    "agent.cdi_timeout",
    "agent.launch_process_timeout",
    "nacre.image_store",
    "nacre.image_store_size",
    "nacre.blob_cache_port",
    "nacre.ready_port",
    "cgroup_no_v1",
];

/// Whether the host may set `key` in a sealed image.
pub(super) fn is_open(key: &str) -> bool {
    OPEN.contains(&key)
}

/// The own words of the image whose root is `root`, if it is sealed. One whose file can't be read is sealed, and has none.
pub fn of_image(root: &Path) -> Option<String> {
    let mut words = String::new();
    match File::open(root.join(FILE.trim_start_matches('/'))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        file => {
            let read = file.and_then(|file| file.take(MAX_BYTES).read_to_string(&mut words));
            Some(read.map(|_| words).unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_sealed_by_a_file_whatever_is_in_it() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(of_image(root.path()), None);
        let file = root.path().join("etc/nacre/sealed");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "agent.log=warn\n").unwrap();
        assert_eq!(of_image(root.path()).as_deref(), Some("agent.log=warn\n"));
        std::fs::write(&file, [0xff, 0xfe]).unwrap();
        assert_eq!(of_image(root.path()).as_deref(), Some(""));
    }

    #[test]
    fn what_is_open_is_known() {
        for key in OPEN {
            assert!(super::super::KEYS.iter().any(|(known, _)| known == key), "{key}");
        }
    }
}
