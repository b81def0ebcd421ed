//! What the pod refuses, without a container being run.

use nacre_protocol::agent::Device;

use super::*;
use crate::storage::group::Group;
use crate::storage::place::Place;
use crate::storage::pull;
use crate::storage::rules::Rules;

fn settings() -> Settings {
    let devices = Arc::new(Devices::new(Duration::ZERO));
    Settings { pipe_size: None, scratch: "/nonexistent".into(), connections: None, devices }
}

fn sandbox() -> Arc<Sandbox> {
    Sandbox::new(settings(), Pulls::for_tests())
}

fn request(id: &str) -> CreateContainerRequest {
    CreateContainerRequest {
        container_id: id.into(),
        OCI: Some(nacre_protocol::oci::Spec::new()).into(),
        ..CreateContainerRequest::new()
    }
}

#[tokio::test]
async fn a_container_that_fails_gives_its_name_back() {
    let sandbox = sandbox();
    for _ in 0..2 {
        let error = sandbox.create_container(request("a")).await.unwrap_err();
        assert!(matches!(error, Error::Container(_)), "{error}");
        assert_eq!(sandbox.count(), 0);
    }
}

#[tokio::test]
async fn a_name_is_taken_while_its_container_is_being_made() {
    let sandbox = sandbox();
    let name = sandbox.reserve(&ContainerId::parse("a").unwrap()).unwrap();
    assert!(matches!(sandbox.create_container(request("a")).await, Err(Error::Exists(_))));
    assert!(matches!(sandbox.process("a", ""), Err(Error::NoContainer(_))));
    assert!(matches!(sandbox.remove_container("a", 1).await, Err(Error::NoContainer(_))));
    drop(name);
    assert_eq!(sandbox.count(), 0);
}

#[tokio::test]
async fn what_is_not_offered_is_said() {
    let sandbox = sandbox();
    let mut with_port = request("a");
    with_port.stdout_port = 7;
    let error = sandbox.create_container(with_port).await.unwrap_err();
    assert!(error.to_string().contains("agent.passfd_listener_port is not set"), "{error}");
    assert!(matches!(sandbox.create_container(request("../a")).await, Err(Error::Invalid(_))));
}

#[tokio::test]
async fn a_device_that_does_not_come_gives_the_name_back() {
    let sandbox = sandbox();
    let mut wanted = Device::new();
    (wanted.type_, wanted.id, wanted.container_path) = ("blk".into(), "1f/1f".into(), "/dev/a".into());
    let mut request = request("a");
    request.devices.push(wanted);
    let error = sandbox.create_container(request).await.unwrap_err();
    assert!(matches!(error, Error::Device(device::Error::Missing { .. })), "{error}");
    assert_eq!(sandbox.count(), 0);
}

#[tokio::test]
async fn containers_are_bounded() {
    let sandbox = sandbox();
    let names: Vec<_> =
        (0..MAX_CONTAINERS).map(|i| sandbox.reserve(&ContainerId::parse(&i.to_string()).unwrap()).unwrap()).collect();
    assert!(matches!(sandbox.create_container(request("one-more")).await, Err(Error::TooMany)));
    drop(names);
}

#[tokio::test]
async fn images_wanted_early_are_pulled_once_the_pod_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    let mut started = tokio::net::unix::pipe::OpenOptions::new().read_write(true).open_receiver(&fifo).unwrap();
    let args = ["-c".into(), "echo >\"$0\"".into(), fifo.into()].into();
    let pulls = Pulls::new(pull::Settings {
        store: dir.path().into(),
        place: Place::default(),
        timeout: Duration::from_secs(600),
        worker: pull::WorkerCommand { program: "sh".into(), args, alone: false },
        group: Group::default(),
        rules: Rules { prefetch: vec!["a".into()], ..Rules::default() },
    });
    let sandbox = Sandbox::new(settings(), pulls);
    match sandbox.create(CreateSandboxRequest::new()).await {
        Err(error @ Error::System { .. }) => return println!("skipped: {}", crate::chain(&error)),
        created => created.unwrap(),
    }
    assert_eq!(tokio::io::AsyncReadExt::read_u8(&mut started).await.unwrap(), b'\n');
    sandbox.destroy().await.unwrap();
}

#[tokio::test]
async fn a_destroyed_pod_stops_the_agent() {
    let sandbox = sandbox();
    sandbox.destroy().await.unwrap();
    sandbox.stopped().await;
}
