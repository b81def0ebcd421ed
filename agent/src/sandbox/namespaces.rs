//! Namespaces that the containers of a pod share.
//!
//! A namespace lives as long as a descriptor of it is open; containers join it by the descriptor's path, so nothing has to be mounted
//! and nothing has to be cleaned up.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::thread;

use nacre_sys::reaper::Reaper;
use rustix::thread::UnshareFlags;

/// A namespace, held.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// The `kind` namespace of process `pid`.
    pub fn of(pid: i32, kind: &str) -> io::Result<Namespace> {
        File::open(format!("/proc/{pid}/ns/{kind}")).map(Namespace)
    }

    /// A path by which this process, and no other, opens it.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

/// The namespaces of a pod.
#[derive(Debug)]
pub struct Pod {
    /// System V and POSIX objects.
    pub ipc: Namespace,
    /// The host name.
    pub uts: Namespace,
}

impl Pod {
    /// New namespaces, with `hostname` if there is one. They are made by a thread that ends, so that no other is moved.
    pub fn new(hostname: &str) -> io::Result<Pod> {
        let hostname = hostname.to_string();
        let made = thread::Builder::new().name("namespaces".into()).spawn(move || {
            nacre_sys::clone::unshare((UnshareFlags::NEWIPC | UnshareFlags::NEWUTS).bits().into())?;
            if !hostname.is_empty() {
                rustix::system::sethostname(hostname.as_bytes())?;
            }
            let open = |kind: &str| File::open(format!("/proc/thread-self/ns/{kind}")).map(Namespace);
            Ok(Pod { ipc: open("ipc")?, uts: open("uts")? })
        })?;
        made.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    }
}

/// The PID namespace of containers that share one.
#[derive(Debug)]
pub struct Pids {
    namespace: Namespace,
    _reaper: Option<Reaper>,
}

impl Pids {
    /// A new namespace. Its first process is no container's, so that each may end and the others go on.
    pub fn new() -> io::Result<Pids> {
        let reaper = Reaper::spawn()?;
        Ok(Pids { namespace: Namespace::of(reaper.pid(), "pid")?, _reaper: Some(reaper) })
    }

    /// That of the process `pid`, which keeps it: a pod's `pause`.
    pub fn of(pid: i32) -> io::Result<Pids> {
        Ok(Pids { namespace: Namespace::of(pid, "pid")?, _reaper: None })
    }

    /// As [`Namespace::path`].
    pub fn path(&self) -> PathBuf {
        self.namespace.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_namespaces_are_not_ours() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs CAP_SYS_ADMIN");
            return;
        }
        let before = rustix::system::uname().nodename().to_owned();
        let pod = match Pod::new("another") {
            Ok(pod) => pod,
            Err(error) => return println!("skipped: no namespaces here: {error}"),
        };
        let id = |path: PathBuf| std::fs::read_link(path).unwrap();
        assert_ne!(id(pod.uts.path()), id("/proc/self/ns/uts".into()));
        assert!(id(pod.ipc.path()).to_string_lossy().starts_with("ipc:["));
        assert_eq!(rustix::system::uname().nodename(), before.as_c_str());
    }
}
