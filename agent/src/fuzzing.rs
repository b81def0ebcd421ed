//! What hosts send and say, taken in as the agent takes it in: for the fuzz targets in `agent/fuzz`, and for the property tests below, which
//! run the same. None of it does what is asked for.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use nacre_jail::Plan;
use nacre_protocol::agent::{CopyFileRequest, CreateContainerRequest};
use nacre_protocol::{agent_ttrpc, convert, health_ttrpc, nacre_ttrpc, oci};
use protobuf::Message as _;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use ttrpc::Code;
use ttrpc::r#async::{Service, TtrpcContext};
use ttrpc::proto::Request;

use crate::boot::Boot;
use crate::config;
use crate::console::Consoles;
use crate::container::spec::{self, Namespaces};
use crate::device::Devices;
use crate::metrics::Metrics;
use crate::policy::Policy;
use crate::rpc::Services;
use crate::sandbox::{Sandbox, Settings};
use crate::storage::group::Group;
use crate::storage::place::Place;
use crate::storage::pull::{self, Pulls, WorkerCommand};
use crate::storage::rules::Rules;

/// A policy without rules.
const NO_RULES: &str = "package agent_policy";

/// The services, without a socket and behind a policy that refuses everything: each request is decoded and judged, and none does anything.
pub struct Gate {
    runtime: Runtime,
    services: HashMap<String, Service>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

impl Gate {
    /// A closed one.
    pub fn new() -> anyhow::Result<Gate> {
        let runtime = Builder::new_current_thread().enable_all().build().context("start the async runtime")?;
        let policy = Policy::allow_all();
        runtime.block_on(policy.set(NO_RULES.into()))?;
        let pulls = pull::Settings {
            store: "/nonexistent".into(),
            place: Place::default(),
            timeout: Duration::ZERO,
            worker: WorkerCommand::find(),
            group: Group::default(),
            rules: Rules::default(),
        };
        let devices = Arc::new(Devices::new(Duration::ZERO));
        let settings =
            Settings { pipe_size: None, scratch: "/nonexistent".into(), connections: None, devices: devices.clone() };
        let services = Arc::new(Services {
            consoles: Arc::new(Consoles::new(policy.clone())),
            policy,
            ready: watch::channel(true).1,
            sandbox: Sandbox::new(settings, Pulls::new(pulls)),
            boot: Arc::new(Boot::begin()),
            metrics: Metrics::new(),
            init_daemon: false,
            helpers: Arc::default(),
            devices,
        });
        let mut all = agent_ttrpc::create_agent_service(services.clone());
        all.extend(health_ttrpc::create_health(services.clone()));
        all.extend(nacre_ttrpc::create_guest(services));
        Ok(Gate { runtime, services: all })
    }

    /// A frame's body. The code of the answer; nothing where no method is called.
    pub fn frame(&self, body: &[u8]) -> Option<Code> {
        let request = Request::parse_from_bytes(body).ok()?;
        let method = self.services.get(&request.service)?.methods.get(&request.method)?;
        let metadata = ttrpc::context::from_pb(&request.metadata);
        let (mh, connection_data) = (ttrpc::MessageHeader::default(), Arc::default());
        let context = TtrpcContext { mh, metadata, timeout_nano: request.timeout_nano, connection_data };
        let answer = self.runtime.block_on(method.handler(context, request));
        Some(answer.map_or(Code::UNKNOWN, |answer| answer.status.code.enum_value_or_default()))
    }
}

/// A specification as it comes over the wire, as far as to what would be done.
pub fn specification(bytes: &[u8]) -> Result<(), String> {
    let text = |error: &dyn std::error::Error| crate::chain(error);
    let spec = oci::Spec::parse_from_bytes(bytes).map_err(|error| text(&error))?;
    let mut spec = convert::spec_to_oci(&spec).map_err(|error| text(&error))?;
    spec::join(&mut spec, &Namespaces::default()).map_err(|error| text(&error))?;
    Plan::new("fuzz", &spec, Path::new("/bundle")).map(drop).map_err(|error| text(&error))
}

/// A kernel's command line. How many words were complained about.
pub fn command_line(line: &str) -> usize {
    config::parse(line).1.len()
}

/// A policy, and requests that it judges. Whether it is one, and lets each pass.
pub fn policy(runtime: &Runtime, text: &str, request: &[u8]) -> Option<(bool, bool)> {
    runtime.block_on(async {
        let policy = Policy::allow_all();
        policy.set(text.into()).await.ok()?;
        let create = CreateContainerRequest::parse_from_bytes(request).unwrap_or_default();
        let copy = CopyFileRequest::parse_from_bytes(request).unwrap_or_default();
        Some((policy.admit(create).await.is_ok(), policy.admit(copy).await.is_ok()))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A body that makes sense, of any method, with a payload that may.
    fn bodies() -> impl Strategy<Value = Vec<u8>> {
        let services = nacre_protocol::agent::file_descriptor()
            .services()
            .chain(nacre_protocol::health::file_descriptor().services());
        let methods: Vec<_> = services
            .flat_map(|service| {
                let name = format!("grpc.{}", service.proto().name());
                service.methods().map(|method| (name.clone(), method.proto().name().to_string())).collect::<Vec<_>>()
            })
            .collect();
        let payload = prop_oneof![proptest::collection::vec(any::<u8>(), 0..40), specifications()];
        (proptest::sample::select(methods), payload, any::<i64>()).prop_map(
            |((service, method), payload, timeout_nano)| {
                let request = Request { service, method, payload, timeout_nano, ..Request::new() };
                request.write_to_bytes().unwrap()
            },
        )
    }

    /// The bytes of a specification, with some of them changed.
    fn specifications() -> impl Strategy<Value = Vec<u8>> {
        let json = serde_json::json!({
            "ociVersion": "1.2.0", "root": { "path": "/rootfs" }, "hostname": "box",
            "process": { "args": ["true", "x"], "cwd": "/", "user": { "uid": 1, "gid": 2, "additionalGids": [3] }, "env": ["A=b"],
                         "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 1, "hard": 2 }],
                         "capabilities": { "bounding": ["CAP_KILL"] } },
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"] }],
            "linux": { "namespaces": [{ "type": "mount" }, { "type": "uts" }], "cgroupsPath": "/a/b", "maskedPaths": ["/proc/kcore"],
                       "devices": [{ "path": "/dev/x", "type": "c", "major": 1, "minor": 3 }],
                       "resources": { "memory": { "limit": 1 }, "cpu": { "shares": 2 } },
                       "seccomp": { "defaultAction": "SCMP_ACT_ALLOW" } },
        });
        let spec = convert::spec_from_oci(&serde_json::from_value(json).unwrap()).unwrap();
        let bytes = spec.write_to_bytes().unwrap();
        proptest::collection::vec((0..bytes.len(), any::<u8>()), 0..4).prop_map(move |changes| {
            let mut bytes = bytes.clone();
            changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
            bytes
        })
    }

    thread_local! {
        static GATE: Gate = Gate::new().unwrap();
    }

    proptest! {
        #[test]
        fn no_frame_passes_a_policy_that_has_no_rule(body in prop_oneof![bodies(), proptest::collection::vec(any::<u8>(), 0..80)]) {
            let asks_for_health = body.windows(11).any(|name| name == b"grpc.Health");
            let code = GATE.with(|gate| gate.frame(&body));
            let refused = matches!(code, None | Some(Code::PERMISSION_DENIED | Code::INVALID_ARGUMENT | Code::UNKNOWN));
            prop_assert!(refused || asks_for_health, "{code:?}");
        }

        #[test]
        fn no_specification_off_the_wire_panics(bytes in specifications()) {
            if let Err(text) = specification(&bytes) {
                prop_assert!(!text.is_empty());
            }
        }

        #[test]
        fn no_policy_panics(tail in "\\PC{0,40}", bytes in specifications()) {
            let text = format!("package agent_policy\ndefault CopyFileRequest := true\nCreateContainerRequest if {tail}");
            GATE.with(|gate| policy(&gate.runtime, &text, &bytes));
        }
    }

    #[test]
    fn what_makes_sense_is_taken() {
        let spec = oci::Spec::new().write_to_bytes().unwrap();
        assert!(specification(&spec).unwrap_err().contains("linux"));
        let allowed =
            GATE.with(|gate| policy(&gate.runtime, "package agent_policy\ndefault CopyFileRequest := true", b""));
        assert_eq!(allowed, Some((false, true)));
        assert_eq!(command_line("agent.log=loud agent.log=debug quiet"), 1);
    }
}
