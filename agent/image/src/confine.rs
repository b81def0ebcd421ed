//! What the processes of a pull may do once they work on what strangers sent.
//!
//! Three walls, each of which holds by itself: capabilities, Landlock where the kernel has it, and an allow-list of system calls. All are a
//! thread's own and pass to the threads that it makes. The server is confined before it has a second thread. The worker's threads are confined
//! as they begin, whatever the one that made them was; its first one has to start the server and key providers, and is confined when it has started
//! the last.

mod calls;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreated,
    RulesetCreatedAttr as _,
};
use rustix::process::{Gid, Resource, Rlimit, Signal, Uid, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::BpfProgram;

use crate::error::{Error, Result};

/// What unpacking takes: files of all owners and modes, device nodes, capabilities of files, and `trusted.overlay.opaque` (SYS_ADMIN).
const UNPACKING: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SYS_ADMIN);

/// The newest rules of Landlock that we know; a kernel keeps to those that it knows.
const RULES: ABI = ABI::V5;

/// The most descriptors. Who removes a layer holds one for each directory on the way, three times at once.
const MAX_FILES: u64 = 1024;

/// The most memory that a process has to itself. What it writes into a store in memory does not count.
const MAX_MEMORY: u64 = 512 << 20;

/// What the threads of a process are confined to.
#[derive(Debug)]
pub(crate) struct Confinement {
    user: Option<u32>,
    capabilities: CapabilitySet,
    paths: RulesetCreated,
    filters: [BpfProgram; 2],
}

impl Confinement {
    /// A worker's: it writes below `places`, reads nothing else, and starts nothing. It calls nobody but by sockets of `family`, which are a cache's.
    pub(crate) fn of_worker(places: &[PathBuf], family: Option<i32>) -> Result<Confinement> {
        let all = AccessFs::from_all(RULES);
        let inside = all & !(AccessFs::Execute | AccessFs::IoctlDev);
        Confinement::new(None, UNPACKING, only(all, inside, places)?, calls::worker(family))
    }

    /// A server's: it writes nothing, and is `user` from now on.
    pub(crate) fn of_server(user: Option<u32>) -> Result<Confinement> {
        let written = AccessFs::from_write(RULES) | AccessFs::Execute;
        Confinement::new(user, reading(user), only(written, written, None::<&Path>)?, calls::server())
    }

    /// skopeo's, in a server's place: as a server, but that it may begin programs in its own place, which are as confined, and write below `scratch`.
    pub(crate) fn of_skopeo(user: Option<u32>, scratch: Option<&Path>) -> Result<Confinement> {
        let written = AccessFs::from_write(RULES);
        Confinement::new(user, reading(user), only(written, written, scratch)?, calls::skopeo())
    }

    fn new(
        user: Option<u32>,
        capabilities: CapabilitySet,
        paths: RulesetCreated,
        filters: std::result::Result<[BpfProgram; 2], seccompiler::BackendError>,
    ) -> Result<Confinement> {
        Ok(Confinement { user, capabilities, paths, filters: filters.map_err(failed("prepare seccomp"))? })
    }

    /// Confines the first thread, and limits the process.
    pub(crate) fn process(&self) -> Result<()> {
        for (resource, most) in [(Resource::Core, 0), (Resource::Nofile, MAX_FILES), (Resource::Data, MAX_MEMORY)] {
            limit(resource, most)?;
        }
        self.thread()
    }

    /// Confines a thread that has begun. One that is confined already has nothing to lose by it: each step only ever takes, and none of them may be
    /// left out, for a thread can't tell whether the one that made it was confined by then.
    pub(crate) fn thread(&self) -> Result<()> {
        rustix::thread::set_no_new_privs(true).map_err(failed("set no_new_privs"))?;
        bound(self.capabilities).map_err(failed("bound the capabilities"))?;
        if let Some(user) = self.user {
            become_user(user).map_err(failed("change the user"))?;
        }
        reduce(self.capabilities).map_err(failed("drop capabilities"))?;
        let paths = self.paths.try_clone().map_err(failed("enter Landlock"))?;
        paths.restrict_self().map_err(failed("enter Landlock"))?; // a kernel without it changes nothing
        self.filters.iter().try_for_each(|filter| seccompiler::apply_filter(filter)).map_err(failed("enter seccomp"))
    }
}

/// Of what is `handled`, only `allowed`, and that below `places`.
fn only(
    handled: BitFlags<AccessFs>,
    allowed: BitFlags<AccessFs>,
    places: impl IntoIterator<Item = impl AsRef<Path>>,
) -> Result<RulesetCreated> {
    let mut paths = Ruleset::default().handle_access(handled).and_then(Ruleset::create);
    for place in places {
        let root = PathFd::new(place).map_err(failed("open where it may write"))?;
        paths = paths.and_then(|paths| paths.add_rule(PathBeneath::new(root, allowed)));
    }
    paths.map_err(failed("prepare Landlock"))
}

/// One that stays root may read what is somebody's.
fn reading(user: Option<u32>) -> CapabilitySet {
    if user.is_some() { CapabilitySet::empty() } else { CapabilitySet::DAC_READ_SEARCH }
}

fn failed<E: std::fmt::Display>(act: &'static str) -> impl Fn(E) -> Error {
    move |error| Error::new(crate::Kind::Internal, format!("confine the image puller: {act}: {error}"))
}

/// Lowers a limit, never raises it.
fn limit(resource: Resource, most: u64) -> Result<()> {
    let most = rustix::process::getrlimit(resource).maximum.map_or(most, |maximum| maximum.min(most));
    let limit = Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(resource, limit).map_err(failed("limit its resources"))
}

/// Takes from what a program could ever get back. Without the right to do so there is nothing to take.
fn bound(kept: CapabilitySet) -> rustix::io::Result<()> {
    if !rustix::thread::capabilities(None)?.effective.contains(CapabilitySet::SETPCAP) {
        return Ok(());
    }
    for capability in CapabilitySet::all().difference(kept).iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Err(rustix::io::Errno::INVAL) => {} // newer than the kernel
            removed => removed?,
        }
    }
    Ok(())
}

fn reduce(kept: CapabilitySet) -> rustix::io::Result<()> {
    let kept = rustix::thread::capabilities(None)?.permitted & kept;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)
}

fn become_user(user: u32) -> rustix::io::Result<()> {
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    // Another user's death signal is forgotten (prctl(2)). Should the parent be gone already, so is the socket.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
}
