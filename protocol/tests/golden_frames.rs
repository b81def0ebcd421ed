//! The bytes on the wire are a contract with clients we did not write: these frames are theirs.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use nacre_protocol::{agent, health, types};
use protobuf::Message as _;
use ttrpc::proto::{Code, KeyValue, Request, Response, Status};

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

/// A frame: length, stream id, type, flags, body.
fn frame(stream: u32, kind: u8, body: &[u8]) -> String {
    let mut bytes = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(stream.to_be_bytes());
    bytes.extend([kind, 0]);
    bytes.extend(body);
    hex::encode(bytes)
}

fn request(service: &str, method: &str, payload: &impl protobuf::Message) -> Request {
    Request {
        service: service.into(),
        method: method.into(),
        payload: payload.write_to_bytes().unwrap(),
        ..Default::default()
    }
}

fn response(payload: &impl protobuf::Message) -> Vec<u8> {
    let mut response = Response::new();
    response.set_status(Status::default());
    response.payload = payload.write_to_bytes().unwrap();
    response.write_to_bytes().unwrap()
}

#[test]
fn check_is_asked_and_answered() {
    let asked = request("grpc.Health", "Check", &health::CheckRequest::new()).write_to_bytes().unwrap();
    assert_eq!(frame(1, REQUEST, &asked), "000000140000000101000a0b677270632e4865616c74681205436865636b");

    let answer = health::HealthCheckResponse {
        status: health::health_check_response::ServingStatus::SERVING.into(),
        ..Default::default()
    };
    assert_eq!(frame(1, RESPONSE, &response(&answer)), "000000060000000102000a0012020801");
}

#[test]
fn a_deadline_travels_with_its_request() {
    let mut asked = request("grpc.Health", "Version", &health::CheckRequest::new());
    asked.timeout_nano = 1_000_000_000;
    assert_eq!(
        frame(3, REQUEST, &asked.write_to_bytes().unwrap()),
        "0000001c0000000301000a0b677270632e4865616c7468120756657273696f6e208094ebdc03"
    );
}

#[test]
fn metadata_travels_with_its_request() {
    let details = agent::GuestDetailsRequest { mem_block_size: true, mem_hotplug_probe: true, ..Default::default() };
    let mut asked = request("grpc.AgentService", "GetGuestDetails", &details);
    asked.metadata = vec![KeyValue { key: "agent-ctl-cfg".into(), value: "auto-values".into(), ..Default::default() }];
    assert_eq!(
        frame(5, REQUEST, &asked.write_to_bytes().unwrap()),
        "000000480000000501000a11677270632e4167656e7453657276696365120f476574477565737444657461696c73\
         1a04080110012a1c0a0d6167656e742d63746c2d636667120b6175746f2d76616c756573"
    );
}

#[test]
fn wait_is_asked_answered_and_refused() {
    let wait = agent::WaitProcessRequest { container_id: "c1".into(), exec_id: "c1".into(), ..Default::default() };
    let asked = request("grpc.AgentService", "WaitProcess", &wait).write_to_bytes().unwrap();
    assert_eq!(
        frame(7, REQUEST, &asked),
        "0000002a0000000701000a11677270632e4167656e7453657276696365120b5761697450726f636573731a080a02633112026331"
    );

    let killed = agent::WaitProcessResponse { status: 137, ..Default::default() };
    assert_eq!(frame(7, RESPONSE, &response(&killed)), "000000070000000702000a001203088901");

    let mut gone = Response::new();
    gone.set_status(Status { code: Code::NOT_FOUND.into(), message: "x".into(), ..Default::default() });
    assert_eq!(frame(7, RESPONSE, &gone.write_to_bytes().unwrap()), "000000070000000702000a050805120178");
}

#[test]
fn an_interface_keeps_its_field_numbers() {
    let interface = types::Interface {
        device: "eth0".into(),
        name: "eth0".into(),
        IPAddresses: vec![types::IPAddress { address: "10.0.0.2".into(), mask: "24".into(), ..Default::default() }],
        mtu: 1500,
        hwAddr: "02:00:00:00:00:01".into(),
        devicePath: "02".into(),
        ..Default::default()
    };
    let asked = agent::UpdateInterfaceRequest { interface: Some(interface).into(), ..Default::default() };
    let asked = request("grpc.AgentService", "UpdateInterface", &asked).write_to_bytes().unwrap();
    assert_eq!(
        frame(9, REQUEST, &asked),
        "0000005e0000000901000a11677270632e4167656e7453657276696365120f557064617465496e74657266616365\
         1a380a360a04657468301204657468301a0e120831302e302e302e321a02323420dc0b2a1130323a30303a30303a30303a30303a303132023032"
    );
}
