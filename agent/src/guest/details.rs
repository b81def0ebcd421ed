//! What the host asks about the guest before it starts containers.

use std::fs;
use std::io;
use std::path::Path;

use nacre_protocol::agent::{AgentDetails, GuestDetailsRequest, GuestDetailsResponse};

use crate::{device, storage};

const MEMORY: &str = "/sys/devices/system/memory";

/// The details could not be told.
#[derive(Debug, thiserror::Error)]
pub enum DetailsError {
    /// sysfs could not be read.
    #[error("read {MEMORY}/block_size_bytes")]
    Read(#[source] io::Error),
    /// sysfs says something else than a number.
    #[error("{MEMORY}/block_size_bytes: Invalid block size {0:?}")]
    BlockSize(String),
}

/// Answer `request`; `init_daemon` says whether the agent brought up the guest itself.
pub fn details(request: &GuestDetailsRequest, init_daemon: bool) -> Result<GuestDetailsResponse, DetailsError> {
    let mut response = GuestDetailsResponse::new();
    response.agent_details = Some(AgentDetails {
        version: env!("CARGO_PKG_VERSION").into(),
        init_daemon,
        device_handlers: device::HANDLERS.iter().map(|&h| h.into()).collect(),
        storage_handlers: storage::HANDLERS.iter().map(|&h| h.into()).collect(),
        supports_seccomp: true,
        ..AgentDetails::new()
    })
    .into();
    if request.mem_block_size {
        response.mem_block_size_bytes = mem_block_size(Path::new(MEMORY))?;
    }
    if request.mem_hotplug_probe {
        response.support_mem_hotplug_probe = Path::new(MEMORY).join("probe").exists();
    }
    Ok(response)
}

/// The size of one hotpluggable memory block; 0 where the kernel has no memory hotplug.
fn mem_block_size(memory: &Path) -> Result<u64, DetailsError> {
    let text = match fs::read_to_string(memory.join("block_size_bytes")) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(DetailsError::Read(e)),
    };
    u64::from_str_radix(text.trim(), 16).map_err(|_| DetailsError::BlockSize(text.trim().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_hexadecimal_and_may_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(mem_block_size(dir.path()).unwrap(), 0);
        fs::write(dir.path().join("block_size_bytes"), "8000000\n").unwrap();
        assert_eq!(mem_block_size(dir.path()).unwrap(), 128 << 20);
        fs::write(dir.path().join("block_size_bytes"), "much\n").unwrap();
        assert!(mem_block_size(dir.path()).unwrap_err().to_string().contains("Invalid block size"));
    }

    #[test]
    fn agent_details_are_always_there() {
        let response = details(&GuestDetailsRequest::new(), true).unwrap();
        let agent = response.agent_details.unwrap();
        assert!(agent.init_daemon && agent.supports_seccomp);
        assert!(agent.storage_handlers.iter().any(|h| h == "image_guest_pull"));
        assert!(agent.device_handlers.iter().any(|h| h == "blk"));
        assert_eq!(response.mem_block_size_bytes, 0);
    }
}
