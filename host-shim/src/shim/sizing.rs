//! How large a pod's VM is: what its containers may use together, and what the guest needs beside them.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxResources, Spec};

use super::config::Vm;
use super::error::{Error, Result};
use crate::size::Size;

/// Where containerd's CRI says what all containers of a pod may use (kubelet 1.23 and later).
const PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

/// A VM's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sized {
    /// Its processors.
    pub cpus: u8,
    /// Its memory.
    pub memory: Size,
}

/// Limits of a pod: processor time as quota and period, and memory in bytes, where there are any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Limits {
    quota: Option<i64>,
    period: Option<u64>,
    memory: Option<i64>,
}

/// The size of the VM for a sandbox, or for a container that has one of its own.
///
/// # Errors
/// More memory than a pod may have.
pub fn size(spec: &Spec, annotations: &HashMap<String, String>, config: &Vm) -> Result<Sized> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let of_annotations = of_annotations(annotations);
    let limits = if of_annotations == Limits::default() {
        resources.map(of_resources).unwrap_or_default()
    } else {
        of_annotations
    };
    let memory = limits.memory.and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0);
    // What is beyond any machine is no limit.
    let memory = memory
        .filter(|bytes| *bytes < 1 << 50)
        .map_or(config.memory, |bytes| Size::of(config.memory.bytes().saturating_add(bytes)));
    if memory > config.max_memory {
        return Err(Error::Invalid(format!(
            "memory: the pod's VM would have {memory}, and the host gives a pod at most {}",
            config.max_memory
        )));
    }
    let asked = match (limits.quota.and_then(|quota| u64::try_from(quota).ok()), limits.period) {
        (Some(quota), Some(period)) if quota > 0 && period > 0 => quota.div_ceil(period),
        _ => u64::from(config.cpus),
    };
    Ok(Sized { cpus: u8::try_from(asked.max(1)).unwrap_or(u8::MAX), memory })
}

fn of_annotations(annotations: &HashMap<String, String>) -> Limits {
    fn number<T: std::str::FromStr>(annotations: &HashMap<String, String>, key: &str) -> Option<T> {
        annotations.get(key)?.parse().ok()
    }
    let memory = number(annotations, MEMORY).filter(|memory| *memory != 0_i64);
    let quota = number(annotations, QUOTA).filter(|quota| *quota != 0_i64);
    Limits { quota, memory, period: quota.and_then(|_| number(annotations, PERIOD)) }
}

fn of_resources(resources: &LinuxResources) -> Limits {
    let cpu = resources.cpu().as_ref();
    Limits {
        quota: cpu.and_then(oci_spec::runtime::LinuxCpu::quota),
        period: cpu.and_then(oci_spec::runtime::LinuxCpu::period),
        memory: resources.memory().as_ref().and_then(oci_spec::runtime::LinuxMemory::limit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(annotations: &[(&str, &str)], resources: serde_json::Value) -> Result<Sized> {
        let spec =
            serde_json::from_value(json!({ "ociVersion": "1.0.2", "linux": { "resources": resources } })).unwrap();
        let annotations = annotations.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        size(&spec, &annotations, &Vm::default())
    }

    #[test]
    fn limits_are_added_to_what_the_guest_needs() {
        let base = Vm::default().memory;
        assert_eq!(of(&[], json!({})).unwrap(), Sized { cpus: 1, memory: base });
        let pod =
            of(&[(PERIOD, "100000"), (QUOTA, "250000"), (MEMORY, "1073741824")], json!({ "cpu": { "shares": 2 } }))
                .unwrap();
        assert_eq!(pod, Sized { cpus: 3, memory: Size::mib(1024 + base.as_mib()) });
        let single =
            of(&[], json!({ "memory": { "limit": 268_435_456 }, "cpu": { "quota": 50_000, "period": 100_000 } }))
                .unwrap();
        assert_eq!(single, Sized { cpus: 1, memory: Size::mib(256 + base.as_mib()) });
    }

    #[test]
    fn no_limit_is_the_default_and_too_much_is_refused() {
        let none =
            of(&[(MEMORY, "0"), (QUOTA, "0"), (PERIOD, "100000")], json!({ "memory": { "limit": -1 } })).unwrap();
        assert_eq!(none.memory, Vm::default().memory);
        assert_eq!(of(&[(MEMORY, "9223372036854771712")], json!({})).unwrap().memory, Vm::default().memory);
        assert!(of(&[(MEMORY, "1099511627776")], json!({})).is_err());
    }
}
