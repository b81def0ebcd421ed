//! What a place is like before and after it has been set up.

use super::*;

#[tokio::test]
async fn a_pull_waits_until_the_place_is_set_up() {
    let (setup, place) = Place::later();
    let waiting = tokio::spawn(async move { place.ready().await });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    setup.0.send_replace(Some(Ok(Arc::default())));
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_failure_is_told_to_everybody_and_no_other_place_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    if disk::find().unwrap().is_some() {
        return println!("skipped: this machine has a scratch disk");
    }
    let (setup, place) = Place::later();
    setup.run(dir.path(), Some(ImageStore::Disk), None);
    for _ in 0..2 {
        assert!(place.ready().await.unwrap_err().to_string().contains("nacre run --scratch SIZE"));
        assert!(place.keep().await.is_err());
    }
}

#[tokio::test]
async fn a_place_that_is_never_set_up_ends_the_wait() {
    let (setup, place) = Place::later();
    drop(setup);
    assert!(matches!(*place.ready().await.unwrap_err(), Error::Ended));
}

#[tokio::test]
async fn what_was_lost_once_is_never_trusted_again() {
    let medium = Medium { root: Some(File::open("/").unwrap()), lost: Mutex::new(true), _device: None };
    assert!(matches!(medium.keep(), Err(Error::Lost)));
    let place = Place(watch::channel(Some(Ok(Arc::new(medium)))).1);
    assert!(matches!(*place.ready().await.unwrap_err(), Error::Lost));
}
