//! `hooks`, judged.

use std::ffi::CString;
use std::path::Path;
use std::time::Duration;

use oci_spec::runtime::{self, Spec};

use super::c_string;
use crate::error::Error;

/// One program to run at a point of a container's life.
#[derive(Debug, Clone)]
pub(crate) struct Hook {
    pub(crate) path: CString,
    pub(crate) args: Vec<CString>,
    /// `None`: what the one that runs it has.
    pub(crate) env: Option<Vec<CString>>,
    pub(crate) timeout: Option<Duration>,
}

/// A container's hooks by their points, in the specification's order, and what they are told.
#[derive(Debug, Clone)]
pub(crate) struct Hooks {
    pub(crate) prestart: Vec<Hook>,
    pub(crate) create_runtime: Vec<Hook>,
    pub(crate) create_container: Vec<Hook>,
    pub(crate) start_container: Vec<Hook>,
    pub(crate) poststart: Vec<Hook>,
    pub(crate) poststop: Vec<Hook>,
    /// The state that is told, but for status and PID.
    pub(crate) state: runtime::State,
    /// The bundle, and the root file system.
    pub(crate) places: [CString; 2],
}

impl Hooks {
    pub(crate) fn new(id: &str, spec: &Spec, bundle: &Path) -> Result<Hooks, Error> {
        let mut state = runtime::State::default();
        state
            .set_version(spec.version().clone())
            .set_id(id.into())
            .set_bundle(bundle.into())
            .set_annotations(spec.annotations().clone());
        let none = runtime::Hooks::default();
        let asked = spec.hooks().as_ref().unwrap_or(&none);
        let prestart = asked.prestart();
        let root = spec.root().as_ref().map_or(bundle.to_path_buf(), |root| bundle.join(root.path()));
        let place = |path: &Path| c_string("root.path", &path.to_string_lossy());
        Ok(Hooks {
            places: [place(bundle)?, place(&root)?],
            prestart: judge("hooks.prestart", prestart.as_deref())?,
            create_runtime: judge("hooks.createRuntime", asked.create_runtime().as_deref())?,
            create_container: judge("hooks.createContainer", asked.create_container().as_deref())?,
            start_container: judge("hooks.startContainer", asked.start_container().as_deref())?,
            poststart: judge("hooks.poststart", asked.poststart().as_deref())?,
            poststop: judge("hooks.poststop", asked.poststop().as_deref())?,
            state,
        })
    }

    pub(super) fn come_before_root(&self) -> bool {
        !(self.prestart.is_empty() && self.create_runtime.is_empty() && self.create_container.is_empty())
    }

    pub(super) fn come_before_program(&self) -> bool {
        !self.start_container.is_empty()
    }
}

fn judge(property: &str, hooks: Option<&[runtime::Hook]>) -> Result<Vec<Hook>, Error> {
    let hooks = hooks.unwrap_or_default().iter().enumerate();
    hooks.map(|(i, hook)| judge_one(&format!("{property}[{i}]"), hook)).collect()
}

fn judge_one(property: &str, hook: &runtime::Hook) -> Result<Hook, Error> {
    let path = hook.path();
    if !path.is_absolute() {
        return Err(Error::spec(format!("{property}.path"), format!("{} is not absolute", path.display())));
    }
    let timeout = match hook.timeout() {
        None => None,
        Some(seconds @ 1..) => Some(Duration::from_secs(seconds.unsigned_abs())),
        Some(seconds) => return Err(Error::spec(format!("{property}.timeout"), format!("{seconds} is not positive"))),
    };
    let strings = |strings: &Option<Vec<String>>| {
        strings.iter().flatten().map(|text| c_string(property, text)).collect::<Result<Vec<_>, Error>>()
    };
    let path = c_string(property, &path.to_string_lossy())?;
    let mut args = strings(hook.args())?;
    if args.is_empty() {
        args.push(path.clone());
    }
    let env = hook.env().is_some().then(|| strings(hook.env())).transpose()?;
    Ok(Hook { path, args, env, timeout })
}
