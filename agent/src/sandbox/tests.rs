//! What the pod refuses, without a container being run.

use super::*;

fn sandbox() -> Arc<Sandbox> {
    Sandbox::new(Settings { pipe_size: None, scratch: "/nonexistent".into() }, Pulls::for_tests())
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
    assert_eq!(error.to_string(), "stdio ports are not supported by this agent");
    assert!(matches!(sandbox.create_container(request("../a")).await, Err(Error::Invalid(_))));
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
async fn a_destroyed_pod_stops_the_agent() {
    let sandbox = sandbox();
    sandbox.destroy().await.unwrap();
    sandbox.stopped().await;
}
