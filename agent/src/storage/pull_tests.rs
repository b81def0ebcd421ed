//! Access to registries, and what a container sees of its pull. Joined pulls are tested with [`flight`](super::super::flight).

use nacre_protocol::nacre::pull_status::Phase;

use super::*;

#[test]
fn the_registry_of_a_reference_is_a_host() {
    for (reference, registry) in [
        ("alpine", "docker.io"),
        ("library/alpine:3", "docker.io"),
        ("localhost/x", "localhost"),
        ("10.0.2.2:5000/demo:1", "10.0.2.2:5000"),
        ("ghcr.io/a/b@sha256:00", "ghcr.io"),
    ] {
        assert_eq!(nacre_pull::registry_of(reference), registry);
    }
}

#[test]
fn access_that_makes_no_sense_is_refused() {
    let pulls = Pulls::for_tests();
    let set = |registry: &str, ca_pem: &str| {
        let request = SetRegistryAccessRequest {
            registry: registry.into(),
            ca_pem: ca_pem.into(),
            ..SetRegistryAccessRequest::new()
        };
        pulls.set_registry_access(&request)
    };
    let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(set("10.0.2.2:5000", "").is_ok());
    assert!(set("registry.example", pem).is_ok());
    for (registry, ca) in [("", ""), ("a/b", ""), ("a b", ""), ("a", "garbage"), ("a", "-----BEGIN CERTIFICATE-----\n")]
    {
        assert!(set(registry, ca).is_err(), "{registry:?} {ca:?}");
    }
    assert!(pulls.request("registry.example/a").ca_pem.is_some());
    assert!(pulls.request("other.example/a").ca_pem.is_none());
}

#[tokio::test]
async fn a_pull_can_be_watched_before_it_begins_and_its_failure_is_seen() {
    let pulls = Pulls::for_tests();
    let watcher = tokio::spawn({
        let pulls = pulls.clone();
        async move { pulls.watch("c", 0).await }
    });
    tokio::task::yield_now().await;
    assert!(pulls.pull("c", "registry.example/a").await.is_err());
    let seen = watcher.await.unwrap();
    assert!(seen.revision > 0);
    assert_eq!(seen.reference, "registry.example/a");
    let last = pulls.watch("c", 0).await;
    assert_eq!(last.phase.enum_value(), Ok(Phase::FAILED));
    assert!(last.error.contains("registry.example/a"), "{}", last.error);
}

#[tokio::test]
async fn an_image_without_a_name_is_refused() {
    assert!(matches!(Pulls::for_tests().pull("c", "").await, Err(PullError::Reference(_))));
}
