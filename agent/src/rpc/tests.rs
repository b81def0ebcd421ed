//! The gate and the services behind it, without a socket.

use std::collections::HashMap;
use std::time::Duration;

use nacre_protocol::agent::{
    AddARPNeighborsRequest, AddSwapPathRequest, AddSwapRequest, GetDiagnosticDataRequest, ListInterfacesRequest,
    ListRoutesRequest, MemAgentMemcgConfig, MemHotplugByProbeRequest, RemoveContainerRequest, ResizeVolumeRequest,
    SetPolicyRequest, StartContainerRequest, VolumeStatsRequest, WaitProcessRequest,
};
use nacre_protocol::agent_ttrpc::AgentService;
use nacre_protocol::health::CheckRequest;
use nacre_protocol::health_ttrpc::Health;
use ttrpc::Code;
use ttrpc::r#async::TtrpcContext;

use super::*;
use crate::sandbox::Settings;
use crate::storage::pull::Pulls;

fn services(policy: Policy) -> (Services, watch::Sender<bool>) {
    let (sender, ready) = watch::channel(true);
    let devices = Arc::new(Devices::new(Duration::ZERO));
    let settings =
        Settings { pipe_size: None, scratch: "/nonexistent".into(), connections: None, devices: devices.clone() };
    let services = Services {
        helpers: Arc::default(),
        consoles: Arc::new(Consoles::new(policy.clone())),
        policy,
        ready,
        sandbox: Sandbox::new(settings, Pulls::for_tests()),
        boot: Arc::new(Boot::begin()),
        metrics: Metrics::new(),
        init_daemon: false,
        devices,
    };
    (services, sender)
}

fn context() -> TtrpcContext {
    TtrpcContext {
        mh: ttrpc::MessageHeader::default(),
        metadata: HashMap::new(),
        timeout_nano: 0,
        connection_data: Arc::default(),
    }
}

fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (Code, String) {
    match result.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message().into()),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn what_is_not_offered_is_unimplemented_and_never_not_found() {
    let (services, _ready) = services(Policy::allow_all());
    let (code, text) = code(services.mem_agent_memcg_set(&context(), MemAgentMemcgConfig::new()).await);
    assert_eq!((code, text.as_str()), (Code::UNIMPLEMENTED, "MemAgentMemcgSet is not implemented by this agent"));
}

#[tokio::test]
async fn a_denied_request_reaches_no_handler_and_health_is_not_judged() {
    let policy = Policy::allow_all();
    policy.set("package agent_policy\ndefault ListRoutesRequest := false\n".into()).await.unwrap();
    let (services, _ready) = services(policy);
    let (code, text) = code(services.list_routes(&context(), ListRoutesRequest::new()).await);
    assert_eq!(code, Code::PERMISSION_DENIED);
    assert!(text.contains("ListRoutesRequest is blocked by policy"), "{text}");
    assert!(services.check(&context(), CheckRequest::new()).await.is_ok());
}

#[tokio::test]
async fn a_policy_is_set_as_a_whole_or_not_at_all() {
    let (services, _ready) = services(Policy::allow_all());
    let set = async |policy: &str| {
        let request = SetPolicyRequest { policy: policy.into(), ..SetPolicyRequest::new() };
        services.set_policy(&context(), request).await
    };
    assert_eq!(code(set("package agent_policy\nListRoutesRequest := {").await).0, Code::INVALID_ARGUMENT);
    assert!(services.list_routes(&context(), ListRoutesRequest::new()).await.is_ok());
    set("package agent_policy\ndefault ListInterfacesRequest := true\n").await.unwrap();
    assert!(services.list_interfaces(&context(), ListInterfacesRequest::new()).await.is_ok());
    assert_eq!(code(services.list_routes(&context(), ListRoutesRequest::new()).await).0, Code::PERMISSION_DENIED);
    // It does not say that it may be replaced.
    assert_eq!(code(set("package agent_policy").await).0, Code::PERMISSION_DENIED);
}

#[tokio::test]
async fn unknown_containers_are_the_callers_mistake() {
    let (services, _ready) = services(Policy::allow_all());
    let request = WaitProcessRequest { container_id: "x".into(), ..WaitProcessRequest::new() };
    assert_eq!(code(services.wait_process(&context(), request).await).0, Code::INVALID_ARGUMENT);
    let request = StartContainerRequest { container_id: "x".into(), ..StartContainerRequest::new() };
    assert_eq!(code(services.start_container(&context(), request).await).0, Code::INVALID_ARGUMENT);
    let request = RemoveContainerRequest { container_id: "x".into(), ..RemoveContainerRequest::new() };
    let (_, text) = code(services.remove_container(&context(), request).await);
    assert!(text.contains("not found"), "{text}"); // hosts take that for "removed already"
}

#[tokio::test]
async fn what_makes_no_sense_is_the_callers_mistake() {
    let (services, _ready) = services(Policy::allow_all());
    let context = context();
    let neighbours = services.add_arp_neighbors(&context, AddARPNeighborsRequest::new()).await;
    let addresses = MemHotplugByProbeRequest { memHotplugProbeAddr: vec![0; 1 << 17], ..Default::default() };
    let path = || "/etc/passwd".to_string();
    let pci_swap = AddSwapRequest { PCIPath: vec![32], ..Default::default() };
    let swap = AddSwapPathRequest { path: path(), ..Default::default() };
    let stats = VolumeStatsRequest { volume_guest_path: path(), ..Default::default() };
    let resize = ResizeVolumeRequest { volume_guest_path: path(), ..Default::default() };
    let data = GetDiagnosticDataRequest { log_type: "dmesg".into(), ..Default::default() };
    for ((code, text), expected) in [
        (code(neighbours), "empty add arp neighbours request"),
        (code(services.mem_hotplug_by_probe(&context, addresses).await), "131072 memory blocks"),
        (code(services.add_swap(&context, pci_swap).await), "PCI path \"20\""),
        (code(services.add_swap_path(&context, swap).await), "is no block device"),
        (code(services.get_volume_stats(&context, stats).await), "is not below"),
        (code(services.resize_volume(&context, resize).await), "is not below"),
        (code(services.get_diagnostic_data(&context, data).await), "log_type \"dmesg\""),
    ] {
        assert!(code == Code::INVALID_ARGUMENT && text.contains(expected), "{code:?} {text}");
    }
}

#[tokio::test]
async fn requests_wait_until_the_guest_is_up() {
    let (mut services, _ready) = services(Policy::allow_all());
    let (sender, ready) = watch::channel(false);
    services.ready = ready;
    let context = context();
    let request = services.list_routes(&context, ListRoutesRequest::new());
    let waited = tokio::select! {
        biased;
        _ = request => false,
        () = tokio::task::yield_now() => true,
    };
    assert!(waited);
    sender.send_replace(true);
    assert!(services.list_routes(&context, ListRoutesRequest::new()).await.is_ok());
}
