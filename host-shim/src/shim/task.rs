//! A task of containerd's: a container, or the sandbox, with the processes that were added to it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use nacre_protocol::oci;
use tokio::task::AbortHandle;

use super::error::{Error, Result};
use super::process::Process;

/// How many processes may be added to a container at a time.
const MAX_EXECS: usize = 1024;

/// A container or a sandbox.
#[derive(Debug)]
pub struct Task {
    /// Its name.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Whether the guest has a container of it. A sandbox has none.
    pub in_guest: bool,
    /// Its first process.
    pub init: Arc<Process>,
    /// Whether it is paused.
    pub paused: AtomicBool,
    /// Where the host has what it wrote to its termination log.
    pub termination_log: Option<PathBuf>,
    /// What keeps copies of the host's files up to date.
    pub watch: Mutex<Option<AbortHandle>>,
    execs: Mutex<HashMap<String, Arc<Exec>>>,
}

/// A process that is added to a container.
#[derive(Debug)]
pub struct Exec {
    /// The process.
    pub process: Arc<Process>,
    /// What it is to be.
    pub spec: oci::Process,
}

impl Task {
    /// A task whose first process is made.
    pub fn new(id: &str, bundle: PathBuf, in_guest: bool, init: Process) -> Task {
        Task {
            id: id.into(),
            bundle,
            in_guest,
            init: Arc::new(init),
            paused: AtomicBool::new(false),
            termination_log: None,
            watch: Mutex::new(None),
            execs: Mutex::new(HashMap::new()),
        }
    }

    /// The process that containerd calls `exec`: the first for "".
    ///
    /// # Errors
    /// One that is not there.
    pub fn process(&self, exec: &str) -> Result<Arc<Process>> {
        if exec.is_empty() {
            return Ok(self.init.clone());
        }
        self.exec(exec).map(|exec| exec.process.clone())
    }

    /// The added process `exec`.
    ///
    /// # Errors
    /// One that is not there.
    pub fn exec(&self, exec: &str) -> Result<Arc<Exec>> {
        let found = self.execs().get(exec).cloned();
        found.ok_or_else(|| Error::NotFound(format!("process {exec} of container {}", self.id)))
    }

    /// Adds a process.
    ///
    /// # Errors
    /// One that is there, or too many.
    pub fn add(&self, exec: Exec) -> Result<()> {
        let mut execs = self.execs();
        let name = exec.process.exec.clone();
        if execs.contains_key(&name) {
            return Err(Error::AlreadyExists(format!("process {name} of container {}", self.id)));
        }
        if execs.len() >= MAX_EXECS {
            return Err(Error::State(format!(
                "container {}: {MAX_EXECS} processes were added and not deleted",
                self.id
            )));
        }
        execs.insert(name, Arc::new(exec));
        Ok(())
    }

    /// Forgets an added process.
    pub fn remove(&self, exec: &str) {
        self.execs().remove(exec);
    }

    /// How many processes are known.
    pub fn processes(&self) -> usize {
        1 + self.execs().len()
    }

    fn execs(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Exec>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(watch) = self.watch.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            watch.abort();
        }
    }
}
