//! Storages as a whole.

use std::fs;
use std::time::Duration;

use super::*;

fn storage(driver: &str, mount_point: &str) -> Storage {
    Storage { driver: driver.into(), mount_point: mount_point.into(), ..Storage::new() }
}

fn context<'a>(mounts: &'a Arc<Mounts>, pulls: &'a Arc<Pulls>, devices: &'a Devices) -> Context<'a> {
    Context { owner: "c", scratch: Path::new("/nonexistent"), mounts, pulls, devices }
}

async fn try_prepare(storages: &[Storage]) -> Result<Prepared, Error> {
    let (mounts, pulls, devices) = (Mounts::new(), Pulls::for_tests(), Devices::new(Duration::ZERO));
    prepare(storages, &context(&mounts, &pulls, &devices)).await
}

#[tokio::test]
async fn an_unknown_driver_is_named() {
    let error = try_prepare(&[storage("nvdimm", "/a")]).await.unwrap_err();
    assert!(error.is_unimplemented());
    assert!(error.to_string().contains("\"nvdimm\""), "{error}");
}

#[tokio::test]
async fn mount_points_that_are_none_are_refused() {
    for bad in ["", "relative", "/", "/a/../b", "/a\0b"] {
        assert!(try_prepare(&[storage("local", bad)]).await.unwrap_err().is_invalid(), "{bad:?}");
    }
    assert!(try_prepare(&vec![storage("local", "/a"); MAX_STORAGES + 1]).await.unwrap_err().is_invalid());
}

#[tokio::test]
async fn a_local_directory_goes_with_its_last_user() {
    let dir = tempfile::tempdir().unwrap();
    let point = dir.path().join("a/b");
    let mut wanted = storage("local", point.to_str().unwrap());
    wanted.options = vec!["mode=0750".into()];
    let (mounts, pulls, devices) = (Mounts::new(), Pulls::for_tests(), Devices::new(Duration::ZERO));
    let first = prepare(std::slice::from_ref(&wanted), &context(&mounts, &pulls, &devices)).await.unwrap();
    let second = prepare(&[wanted], &context(&mounts, &pulls, &devices)).await.unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&point).unwrap().permissions()) & 0o7777, 0o750);
    first.release().unwrap();
    assert!(point.exists());
    drop(second);
    assert!(!point.exists());
}

#[tokio::test]
async fn a_link_in_a_mount_point_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
    let point = dir.path().join("link/x");
    assert!(try_prepare(&[storage("local", point.to_str().unwrap())]).await.is_err());
}

#[tokio::test]
async fn what_was_prepared_before_an_error_is_undone() {
    let dir = tempfile::tempdir().unwrap();
    let point = dir.path().join("a");
    assert!(try_prepare(&[storage("local", point.to_str().unwrap()), storage("blk", "/b")]).await.is_err());
    assert!(!point.exists());
}
