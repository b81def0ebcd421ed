//! Errors as ttRPC codes, in one total match for each kind of error.
//!
//! Hosts depend on some of them: NOT_FOUND means that a process is gone and nothing else, UNIMPLEMENTED that an agent is older than its
//! host.

use ttrpc::Code;

use crate::console::NoConsole;
use crate::container::shared_mounts;
use crate::network::iptables::FilterError;
use crate::storage::pull::AccessError;
use crate::{container, copy_file, device, guest, metrics, network, passthrough, policy, sandbox, storage};

/// Whatever a request can end in.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This method is not offered.
    #[error("{0} is not implemented by this agent")]
    Unimplemented(&'static str),
    /// A task of ours was ended.
    #[error("a task was ended before it was done")]
    Task,
    /// The policy says no.
    #[error(transparent)]
    Denied(#[from] policy::Denied),
    /// A policy to be set makes no sense.
    #[error("the policy makes no sense, the one before it stays")]
    Policy(#[from] policy::Invalid),
    /// The pod.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    /// A container.
    #[error(transparent)]
    Container(#[from] container::Error),
    /// The network.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// A file to be copied.
    #[error(transparent)]
    CopyFile(#[from] copy_file::Error),
    /// The clock.
    #[error(transparent)]
    Clock(#[from] guest::ClockError),
    /// Entropy.
    #[error(transparent)]
    Entropy(#[from] guest::EntropyError),
    /// The guest's details.
    #[error(transparent)]
    Details(#[from] guest::DetailsError),
    /// Processors and memory.
    #[error(transparent)]
    Hotplug(#[from] guest::HotplugError),
    /// Swap space.
    #[error(transparent)]
    Swap(#[from] guest::SwapError),
    /// A device.
    #[error(transparent)]
    Device(#[from] device::Error),
    /// A volume.
    #[error(transparent)]
    Volume(#[from] guest::VolumeError),
    /// The packet filter.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// What a container left.
    #[error(transparent)]
    Diagnostics(#[from] guest::DiagnosticsError),
    /// Metrics.
    #[error(transparent)]
    Metrics(#[from] metrics::Error),
    /// How to reach a registry.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// A debug console.
    #[error(transparent)]
    Console(#[from] NoConsole),
    /// A word that names no level.
    #[error("level: not a log level (error, warn, info, debug, trace)")]
    LogLevel,
}

impl Error {
    /// The code that the host sees.
    pub fn code(&self) -> Code {
        match self {
            Error::Unimplemented(_) => Code::UNIMPLEMENTED,
            Error::Task | Error::Metrics(_) | Error::Details(_) => Code::INTERNAL,
            Error::Denied(_) => Code::PERMISSION_DENIED,
            Error::Sandbox(error) => of_sandbox(error),
            Error::Container(error) => of_container(error),
            Error::Network(error) => invalid_or_internal(error.is_invalid()),
            Error::CopyFile(error) => invalid_or_internal(error.is_invalid()),
            Error::Clock(error) => invalid_or_internal(error.is_invalid()),
            Error::Entropy(error) => invalid_or_internal(error.is_invalid()),
            Error::Hotplug(error) => of_hotplug(error),
            Error::Swap(error) => invalid_or_internal(error.is_invalid()),
            Error::Device(error) => of_device(error),
            Error::Volume(error) => of_volume(error),
            Error::Filter(error) => of_filter(error),
            Error::Diagnostics(error) => of_diagnostics(error),
            Error::Access(_) | Error::Policy(_) | Error::Console(_) | Error::LogLevel => Code::INVALID_ARGUMENT,
        }
    }
}

fn of_sandbox(error: &sandbox::Error) -> Code {
    match error {
        sandbox::Error::Invalid(_) | sandbox::Error::Convert(_) | sandbox::Error::NoContainer(_) => {
            Code::INVALID_ARGUMENT
        }
        sandbox::Error::Unsupported(_) => Code::UNIMPLEMENTED,
        sandbox::Error::Exists(_) => Code::ALREADY_EXISTS,
        sandbox::Error::TooMany => Code::RESOURCE_EXHAUSTED,
        sandbox::Error::RemovalTakesLong { .. } => Code::DEADLINE_EXCEEDED,
        sandbox::Error::Destroyed => Code::FAILED_PRECONDITION,
        sandbox::Error::Container(error) => of_container(error),
        sandbox::Error::Device(error) => of_device(error),
        sandbox::Error::Storage(error) => of_storage(error),
        sandbox::Error::SharedMounts(error) => of_shared_mounts(error),
        sandbox::Error::Passthrough(passthrough::Error::Off) => Code::FAILED_PRECONDITION,
        sandbox::Error::Passthrough(passthrough::Error::NoConnection { .. }) => Code::DEADLINE_EXCEEDED,
        sandbox::Error::System { .. } | sandbox::Error::Task => Code::INTERNAL,
    }
}

fn of_container(error: &container::Error) -> Code {
    match error {
        container::Error::Spec(..) | container::Error::Merge(_) => Code::INVALID_ARGUMENT,
        container::Error::NoProcess { .. } => Code::NOT_FOUND,
        container::Error::Exists(_) => Code::ALREADY_EXISTS,
        container::Error::TooMany => Code::RESOURCE_EXHAUSTED,
        container::Error::NoTerminal => Code::UNAVAILABLE,
        container::Error::Gone
        | container::Error::NoTerminationLog
        | container::Error::NotRunning(_)
        | container::Error::NotPaused(_)
        | container::Error::Paused => Code::FAILED_PRECONDITION,
        container::Error::Engine(error) | container::Error::Update(error) => of_engine(error),
        container::Error::Release(error) => of_storage(error),
        container::Error::Rootfs { .. }
        | container::Error::Stream { .. }
        | container::Error::NoStream(_)
        | container::Error::Task => Code::INTERNAL,
    }
}

fn of_shared_mounts(error: &shared_mounts::Error) -> Code {
    match error {
        shared_mounts::Error::Invalid { .. } => Code::INVALID_ARGUMENT,
        shared_mounts::Error::Missing { .. } => Code::DEADLINE_EXCEEDED,
        shared_mounts::Error::System { .. } | shared_mounts::Error::Task => Code::INTERNAL,
    }
}

fn of_engine(error: &nacre_jail::Error) -> Code {
    match error {
        nacre_jail::Error::Ended | nacre_jail::Error::State(_) => Code::FAILED_PRECONDITION,
        error => invalid_or_internal(error.is_invalid()),
    }
}

fn of_storage(error: &storage::Error) -> Code {
    match error {
        error if error.is_unimplemented() => Code::UNIMPLEMENTED,
        error if error.is_denied() => Code::PERMISSION_DENIED,
        error if error.is_deadline() => Code::DEADLINE_EXCEEDED,
        error if error.is_exhausted() => Code::RESOURCE_EXHAUSTED,
        error => invalid_or_internal(error.is_invalid()),
    }
}

fn of_device(error: &device::Error) -> Code {
    match error {
        device::Error::Invalid { .. } => Code::INVALID_ARGUMENT,
        device::Error::Unsupported(_) | device::Error::Cdi { .. } => Code::UNIMPLEMENTED,
        device::Error::Missing { .. } => Code::DEADLINE_EXCEEDED,
        device::Error::System { .. } | device::Error::Listen(_) => Code::INTERNAL,
    }
}

fn of_hotplug(error: &guest::HotplugError) -> Code {
    match error {
        guest::HotplugError::TooFew { .. } => Code::DEADLINE_EXCEEDED,
        guest::HotplugError::TooMany(_) => Code::INVALID_ARGUMENT,
        guest::HotplugError::NoProbe(_) => Code::FAILED_PRECONDITION,
        guest::HotplugError::System { .. } | guest::HotplugError::Wait(_) => Code::INTERNAL,
    }
}

fn of_volume(error: &guest::VolumeError) -> Code {
    match error {
        guest::VolumeError::Path(error) => invalid_or_internal(error.is_invalid()),
        guest::VolumeError::Invalid { .. } => Code::INVALID_ARGUMENT,
        guest::VolumeError::FileSystem { .. } => Code::FAILED_PRECONDITION,
        guest::VolumeError::System { .. } => Code::INTERNAL,
    }
}

fn of_filter(error: &FilterError) -> Code {
    match error {
        FilterError::NoTool(_) => Code::UNIMPLEMENTED,
        FilterError::Slow(_) => Code::DEADLINE_EXCEEDED,
        FilterError::TooMuch(_) => Code::RESOURCE_EXHAUSTED,
        FilterError::Run { .. } | FilterError::Failed { .. } => Code::INTERNAL,
    }
}

fn of_diagnostics(error: &guest::DiagnosticsError) -> Code {
    match error {
        guest::DiagnosticsError::Kind(_) => Code::INVALID_ARGUMENT,
        guest::DiagnosticsError::Path(error) => invalid_or_internal(error.is_invalid()),
        guest::DiagnosticsError::Read { .. } => Code::INTERNAL,
    }
}

fn invalid_or_internal(is_invalid: bool) -> Code {
    if is_invalid { Code::INVALID_ARGUMENT } else { Code::INTERNAL }
}
