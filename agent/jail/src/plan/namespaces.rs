//! `linux.namespaces`, and what belongs to them: id mappings, clock offsets, the loopback device.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::OwnedFd;

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespace, LinuxNamespaceType};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};

use super::c_string;
use crate::channel::Point;
use crate::error::Error;
use crate::step::{IdSource, Maps, Step};

/// The most lines that the kernel takes in one map (user_namespaces(7)).
const MAX_MAPPINGS: usize = 340;

/// The mappings that a specification asks for.
pub(super) fn maps(property: &str, uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<Maps, Error> {
    if uids.is_empty() || gids.is_empty() {
        return Err(Error::spec(property, "both uidMappings and gidMappings are needed"));
    }
    Ok(Maps { uids: lines(property, uids)?, gids: lines(property, gids)? })
}

fn lines(property: &str, mappings: &[LinuxIdMapping]) -> Result<String, Error> {
    if mappings.len() > MAX_MAPPINGS {
        return Err(Error::spec(property, format!("{} id mappings are more than {MAX_MAPPINGS}", mappings.len())));
    }
    let ends = |start: u32, size: u32| start.checked_add(size - 1).is_some();
    if mappings.iter().any(|m| m.size() == 0 || !ends(m.container_id(), m.size()) || !ends(m.host_id(), m.size())) {
        return Err(Error::spec(property, "an id mapping is empty or runs past the last id"));
    }
    Ok(mappings.iter().map(|m| format!("{} {} {}\n", m.container_id(), m.host_id(), m.size())).collect())
}

/// The namespaces of a container.
#[derive(Debug)]
pub(crate) struct Namespaces {
    /// `CLONE_NEW…` of those in which the first process is born: there is no other way into them.
    pub(crate) born: u64,
    /// `CLONE_NEW…` of those that it makes itself, while its parent goes on with something else.
    made: u64,
    /// An existing user namespace.
    pub(crate) user: Option<OwnedFd>,
    /// An existing PID namespace.
    pub(crate) pid: Option<OwnedFd>,
    /// The steps that join other existing ones.
    joined: Vec<Step>,
    /// The steps that furnish new ones.
    steps: Vec<Step>,
    /// The offsets of its new time namespace.
    pub(crate) offsets: Option<CString>,
    /// Those that wait until the process is in its cgroup.
    pub(crate) in_cgroup: Vec<Step>,
    /// What a process that joins the container later enters.
    pub(crate) joinable: ThreadNameSpaceType,
    /// Whether it has a PID namespace that is not the runtime's.
    pub(crate) has_pid: bool,
    /// Whether that is a new one.
    pub(crate) leads_pid: bool,
    /// Whether it has a user namespace that is not the runtime's.
    pub(crate) has_user: bool,
    /// Whether it makes a mount namespace.
    pub(crate) own_mounts: bool,
    /// Whether it lives in the runtime's mount namespace.
    pub(crate) shares_mounts: bool,
    /// Whether it has a UTS namespace that is not the runtime's.
    pub(crate) has_names: bool,
    /// The mappings of its new user namespace.
    pub(crate) maps: Option<Maps>,
    /// The mappings of its user namespace, new or not.
    pub(super) ids: Option<IdSource>,
}

/// What setns(2) and clone3(2) call a namespace.
fn kind_of(namespace: LinuxNamespaceType) -> (LinkNameSpaceType, ThreadNameSpaceType) {
    match namespace {
        LinuxNamespaceType::Mount => (LinkNameSpaceType::Mount, ThreadNameSpaceType::MOUNT),
        LinuxNamespaceType::Cgroup => (LinkNameSpaceType::ControlGroup, ThreadNameSpaceType::CONTROL_GROUP),
        LinuxNamespaceType::Uts => {
            (LinkNameSpaceType::HostNameAndNISDomainName, ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME)
        }
        LinuxNamespaceType::Ipc => {
            (LinkNameSpaceType::InterProcessCommunication, ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION)
        }
        LinuxNamespaceType::Network => (LinkNameSpaceType::Network, ThreadNameSpaceType::NETWORK),
        LinuxNamespaceType::Pid => (LinkNameSpaceType::ProcessID, ThreadNameSpaceType::PROCESS_ID),
        LinuxNamespaceType::User => (LinkNameSpaceType::User, ThreadNameSpaceType::USER),
        LinuxNamespaceType::Time => (LinkNameSpaceType::Time, ThreadNameSpaceType::TIME),
    }
}

impl Namespaces {
    pub(super) fn new(linux: &Linux) -> Result<Namespaces, Error> {
        let mut taken = Namespaces {
            born: 0,
            made: 0,
            user: None,
            pid: None,
            joined: Vec::new(),
            steps: Vec::new(),
            offsets: None,
            in_cgroup: Vec::new(),
            joinable: ThreadNameSpaceType::empty(),
            has_pid: false,
            leads_pid: false,
            has_user: false,
            own_mounts: false,
            shares_mounts: false,
            has_names: false,
            maps: None,
            ids: None,
        };
        let offsets = time_offsets(linux)?;
        let mut has_time = false;
        for (i, namespace) in linux.namespaces().iter().flatten().enumerate() {
            let property = format!("linux.namespaces[{i}]");
            let (kind, joinable) = kind_of(namespace.typ());
            if taken.joinable.contains(joinable) {
                return Err(Error::spec(property, "names a kind a second time"));
            }
            taken.joinable |= joinable;
            match namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty()) {
                Some(_) => taken.join(&property, namespace, kind)?,
                None => taken.make(namespace.typ(), joinable, offsets.as_ref())?,
            }
            has_time |= namespace.typ() == LinuxNamespaceType::Time && namespace.path().is_none();
        }
        taken.has_pid = taken.joinable.contains(ThreadNameSpaceType::PROCESS_ID);
        taken.leads_pid = taken.has_pid && taken.pid.is_none();
        taken.has_user = taken.joinable.contains(ThreadNameSpaceType::USER);
        taken.shares_mounts = !taken.joinable.contains(ThreadNameSpaceType::MOUNT);
        // The PID namespace is not joined by a process, but chosen for its children.
        taken.joinable -= ThreadNameSpaceType::PROCESS_ID;
        taken.map(linux)?;
        if offsets.is_some() && !has_time {
            return Err(Error::spec("linux.timeOffsets", "need a new time namespace"));
        }
        Ok(taken)
    }

    /// Joins the namespace that the specification names by its path.
    fn join(&mut self, property: &str, namespace: &LinuxNamespace, kind: LinkNameSpaceType) -> Result<(), Error> {
        let path = namespace.path().clone().unwrap_or_default();
        let fd: OwnedFd = File::open(&path)
            .map_err(|error| Error::spec(format!("{property}.path"), format!("{}: {error}", path.display())))?
            .into();
        match kind {
            LinkNameSpaceType::ProcessID => self.pid = Some(fd),
            LinkNameSpaceType::User => {
                self.user = Some(fd);
                self.ids = Some(IdSource::Namespace(path));
            }
            _ => {
                self.has_names |= kind == LinkNameSpaceType::HostNameAndNISDomainName;
                let name = format!("{} namespace {}", namespace.typ(), path.display());
                self.joined.push(Step::JoinNamespace { fd: Some(fd), kind, name });
            }
        }
        Ok(())
    }

    fn make(
        &mut self,
        kind: LinuxNamespaceType,
        flag: ThreadNameSpaceType,
        offsets: Option<&CString>,
    ) -> Result<(), Error> {
        match kind {
            // Its root is the cgroup in which it is made: that must be the container's.
            LinuxNamespaceType::Cgroup => {
                self.in_cgroup.push(Step::NewCgroupNamespace);
                return Ok(());
            }
            // Its offsets are set before anybody is in it.
            LinuxNamespaceType::Time => {
                self.steps.push(Step::NewTimeNamespace);
                self.offsets = offsets.cloned();
                return Ok(());
            }
            LinuxNamespaceType::Pid | LinuxNamespaceType::User => {
                self.born |= u64::from(flag.bits());
                return Ok(());
            }
            LinuxNamespaceType::Network => self.steps.push(Step::LoopbackUp),
            LinuxNamespaceType::Mount => self.own_mounts = true,
            LinuxNamespaceType::Uts => self.has_names = true,
            LinuxNamespaceType::Ipc => {}
        }
        self.made |= u64::from(flag.bits());
        Ok(())
    }

    /// Makes those that are made, joins those that exist, and furnishes them.
    pub(super) fn into_steps(self) -> impl Iterator<Item = Step> {
        let made = (self.made != 0).then_some(Step::NewNamespaces(self.made));
        // In a user namespace a process that hides may not write to its own file in /proc.
        let offsets = self.offsets.map(|value| match self.has_user {
            true => Step::Sync(Point::Clocks),
            false => Step::Write { path: c"/proc/self/timens_offsets".into(), value },
        });
        made.into_iter().chain(self.joined).chain(self.steps).chain(offsets)
    }

    /// The steps that join existing ones, if they must be joined before a user namespace is.
    pub(super) fn joined_before(&mut self) -> Vec<Step> {
        if self.has_user { std::mem::take(&mut self.joined) } else { Vec::new() }
    }

    fn map(&mut self, linux: &Linux) -> Result<(), Error> {
        let uids = linux.uid_mappings().as_deref().unwrap_or_default();
        let gids = linux.gid_mappings().as_deref().unwrap_or_default();
        let new = self.has_user && self.user.is_none();
        if new {
            let maps = maps("linux", uids, gids)?;
            self.ids = Some(IdSource::Maps(maps.clone()));
            self.maps = Some(maps);
        } else if !(self.has_user || uids.is_empty() && gids.is_empty()) {
            return Err(Error::spec("linux.uidMappings, linux.gidMappings", "need a user namespace"));
        }
        Ok(())
    }

    /// Whether the container has a namespace of the kind that is not the runtime's.
    pub(super) fn has(&self, kind: ThreadNameSpaceType) -> bool {
        self.joinable.contains(kind)
    }
}

/// The form of `/proc/PID/timens_offsets` (time_namespaces(7)).
fn time_offsets(linux: &Linux) -> Result<Option<CString>, Error> {
    let property = "linux.timeOffsets";
    let Some(offsets) = linux.time_offsets().as_ref().filter(|offsets| !offsets.is_empty()) else { return Ok(None) };
    let mut lines = Vec::new();
    for (clock, offset) in offsets {
        if clock != "monotonic" && clock != "boottime" {
            return Err(Error::spec(property, format!("{clock:?} is no clock with an offset (monotonic, boottime)")));
        }
        let nanoseconds = offset.nanosecs().unwrap_or(0);
        if nanoseconds >= 1_000_000_000 {
            return Err(Error::spec(property, format!("{clock}: {nanoseconds} nanoseconds are more than a second")));
        }
        lines.push(format!("{clock} {} {nanoseconds}\n", offset.secs().unwrap_or(0)));
    }
    lines.sort_unstable();
    c_string(property, &lines.concat()).map(Some)
}
