//! KVM or TCG: told by running a virtual CPU, not by looking at a device.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};
use nacre_sys::kvm::{Trial, trial};

use crate::cli;

/// The trial's loop takes a few milliseconds where a processor runs it, and for ever where each instruction is emulated.
const FAST: Duration = Duration::from_millis(250);

/// What makes the guest's processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor's own virtualisation.
    Kvm,
    /// Emulation.
    Tcg,
}

/// A choice and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// What was chosen.
    pub accelerator: Accelerator,
    /// Why.
    pub reason: String,
}

impl Accelerator {
    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.accelerator.name().to_uppercase(), self.reason)
    }
}

/// Chooses, by a trial where the user leaves it open.
///
/// # Errors
/// KVM that was asked for and does not run.
pub fn choose(asked: cli::Accelerator) -> Result<Choice> {
    if asked == cli::Accelerator::Tcg {
        return Ok(Choice { accelerator: Accelerator::Tcg, reason: "as asked".into() });
    }
    let result = judge(trial(FAST).map_err(|error| error.to_string()));
    match (asked, result) {
        (_, Ok(reason)) => Ok(Choice { accelerator: Accelerator::Kvm, reason }),
        (cli::Accelerator::Kvm, Err(reason)) => {
            bail!("KVM is no use here: {reason}; leave --accel out, or say --accel tcg")
        }
        (_, Err(reason)) => Ok(Choice { accelerator: Accelerator::Tcg, reason: format!("KVM: {reason}") }),
    }
}

fn judge(trial: Result<Trial, String>) -> Result<String, String> {
    match trial {
        Ok(Trial::Halted(time)) if time <= FAST => Ok(format!("a trial took {} ms", time.as_millis())),
        Ok(Trial::Halted(time)) => Err(format!("too slow, a trial took {} ms", time.as_millis())),
        Ok(Trial::TimedOut) => Err(format!("too slow, a trial took more than {} ms", FAST.as_millis())),
        Ok(Trial::Refused { step, errno: 0 }) => Err(format!("{step} failed")),
        Ok(Trial::Refused { step, errno }) => Err(format!("{step}: {}", std::io::Error::from_raw_os_error(errno))),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_fast_trial_speaks_for_kvm() {
        assert!(judge(Ok(Trial::Halted(Duration::from_millis(3)))).is_ok());
        assert!(judge(Ok(Trial::Halted(Duration::from_secs(3)))).is_err());
        assert!(judge(Ok(Trial::TimedOut)).unwrap_err().contains("too slow"));
        let refused = Trial::Refused { step: "open /dev/kvm", errno: 2 };
        assert!(judge(Ok(refused)).unwrap_err().starts_with("open /dev/kvm: No such file"));
    }
}
