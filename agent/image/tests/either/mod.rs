//! Claims that hold whoever talks to the registry: our own server, and skopeo where a new one can be had.

mod images;
mod trust;

/// Tries each claim with either.
macro_rules! whoever_talks {
    ($($claim:ident)*) => {
        mod own {
            $(#[tokio::test] async fn $claim() { super::$claim(super::Server::Own).await })*
        }
        mod skopeo {
            $(#[tokio::test] async fn $claim() {
                if nacre_tests::newer::tree().is_some() {
                    super::$claim(super::Server::Skopeo).await
                }
            })*
        }
    };
}
use whoever_talks;
