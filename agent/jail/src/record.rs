//! What is left of a container when its maker ends: enough for another process to take it up.

use std::path::PathBuf;

use nacre_sys::seccomp::Program;
use rustix::thread::ThreadNameSpaceType;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::plan::{Confinement, Filter, Interior, Listener};
use crate::shared_root::Mounted;

/// What a maker has done so far, a line of JSON each: for whoever cleans up after one that was killed. See [`crate::Plan::journal`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Note {
    /// The cgroup is the container's: what is in it is, too.
    Cgroup,
    /// This is, or will be, a mount in the runtime's mount namespace.
    Root(Mounted),
    /// The container is whole.
    Whole(Box<Record>),
}

impl Note {
    /// Appends it to a journal.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn write(&self, mut journal: &std::fs::File) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        std::io::Write::write_all(&mut journal, &line)
    }
}

/// See [`crate::Container::record`]. Its form belongs to this version of the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The first process.
    pub(crate) pid: i32,
    /// When it started, in clock ticks since boot: what tells it from a later one of the same number.
    pub(crate) start_time: u64,
    /// The cgroup, below the hierarchy's root.
    pub(crate) cgroup: PathBuf,
    /// The kinds of namespaces that a further process joins.
    pub(crate) namespaces: u32,
    pub(crate) own_pid_namespace: bool,
    pub(crate) leads_pid_namespace: bool,
    pub(crate) own_mount_namespace: bool,
    /// The start gate's name, while nobody has opened it.
    pub(crate) gate: Option<PathBuf>,
    /// What the steps behind the gate are about, numbered from the first before it.
    pub(crate) steps: Vec<String>,
    /// The mount of its root in the runtime's mount namespace, if it has none of its own.
    pub(crate) shared_root: Option<Mounted>,
    /// The personality of its processes.
    pub(crate) personality: Option<u64>,
    /// The filter of its processes.
    pub(crate) filter: Option<FilterRecord>,
}

/// A compiled filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FilterRecord {
    /// The program's bytes in hexadecimal.
    program: String,
    flags: u64,
    listener: Option<Listener>,
}

impl FilterRecord {
    pub(crate) fn new(filter: &Filter) -> FilterRecord {
        let mut program = String::new();
        for byte in filter.program.to_bytes() {
            for digit in [byte >> 4, byte & 0xf] {
                program.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
            }
        }
        FilterRecord { program, flags: filter.flags, listener: filter.listener.clone() }
    }

    fn filter(&self) -> Option<Filter> {
        let digits: Option<Vec<u8>> = self.program.chars().map(|c| Some(c.to_digit(16)? as u8)).collect();
        let digits = digits?;
        let pairs = digits.chunks_exact(2).filter_map(|pair| <[u8; 2]>::try_from(pair).ok());
        let bytes: Vec<u8> = pairs.map(|[high, low]| high << 4 | low).collect();
        Some(Filter { program: Program::from_bytes(&bytes)?, flags: self.flags, listener: self.listener.clone() })
    }
}

impl Record {
    /// The first process's number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The cgroup, below the hierarchy's root.
    pub fn cgroup(&self) -> &std::path::Path {
        &self.cgroup
    }

    pub(crate) fn interior(&self) -> Result<Interior, Error> {
        Ok(Interior {
            namespaces: ThreadNameSpaceType::from_bits_retain(self.namespaces),
            own_pid_namespace: self.own_pid_namespace,
            leads_pid_namespace: self.leads_pid_namespace,
            own_mount_namespace: self.own_mount_namespace,
            confinement: self.confinement()?,
        })
    }

    fn confinement(&self) -> Result<Confinement, Error> {
        let filter = match &self.filter {
            None => None,
            Some(record) => Some(record.filter().ok_or(Error::State("recorded with a filter that can't be read"))?),
        };
        Ok(Confinement { filter, personality: self.personality })
    }
}
