//! The image engine: a reference in, verified layers and the image's configuration out.
//!
//! A pull runs in a process of its own ([`worker`]), started by [`client::pull`]: it parses what a registry sends, and
//! whoever breaks it has broken nothing else. Each layer streams from the registry through digest, decompression and
//! DiffID into its directory, which appears in the store by a rename and only when both digests are right. [`merge`]
//! applies an image's configuration to a process. [`policy`] says which images may be used, and whose signatures they
//! need for that. A layer that the host has [`ready`]-made is not fetched at all; [`seal`] makes such layers.

pub mod client;
pub mod proxy;
pub mod skopeo;
pub mod worker;

pub mod access;

mod confine;

mod cache;
mod reference;
mod registry;

mod signatures;

mod layer;
pub mod ocicrypt;

mod archive;
mod frames;
mod stream;
mod unpack;

pub mod erofs;
pub mod ready;
pub mod seal;
pub mod verity;

mod limited;
mod space;
mod store;

pub mod merge;

pub mod policy;

#[cfg(fuzzing)]
pub mod fuzzing;

mod error;

pub use error::{Error, Kind};
pub use reference::registry as registry_of;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use oci_spec::image::ImageConfiguration;
use ready::{Known, Verity};
use serde::{Deserialize, Serialize};

/// What to pull, from where, to where. Equal requests have equal results, so that one pull can do for all.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The image: `registry/name:tag` or `registry/name@sha256:…`.
    pub reference: String,
    /// Where unpacked layers are kept.
    pub store: PathBuf,
    /// Who asks.
    pub auth: Option<Auth>,
    /// Who asks, in the form of containers-auth.json(5); `auth` comes before it.
    #[serde(default)]
    pub auth_file: Option<String>,
    /// Other places of images, in the form of containers-registries.conf(5).
    #[serde(default)]
    pub registries: Option<String>,
    /// Certificates to trust, besides the system's.
    pub ca_pem: Option<String>,
    /// Take any certificate, or none. For development.
    pub skip_tls_verification: bool,
    /// Which images may be used, in the form of containers-policy.json(5); without one, any.
    #[serde(default)]
    pub policy: Option<String>,
    /// Where signatures by GPG are kept: the files of a containers-registries.d(5).
    #[serde(default)]
    pub lookaside: Vec<String>,
    /// Refuse a name without a digest.
    #[serde(default)]
    pub require_digest: bool,
    /// Private keys for encrypted layers (PEM).
    #[serde(default)]
    pub decryption_keys: Vec<String>,
    /// Who unwraps the keys of encrypted layers: ocicrypt's configuration of key providers.
    #[serde(default)]
    pub key_providers: Option<String>,
    /// Who talks to the registry.
    #[serde(default)]
    pub server: Server,
    /// The serial numbers of the disks that are there: layers that may be ready-made.
    #[serde(default)]
    pub attached: Vec<String>,
    /// Ready-made layers that are known beforehand.
    #[serde(default)]
    pub known: Vec<Known>,
    /// Where the host's cache of blobs is, which is asked first: `vsock://CID:PORT` or `unix:///PATH`.
    #[serde(default)]
    pub blob_cache: Option<String>,
}

impl fmt::Debug for Request {
    /// Without what is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Request { reference, store, skip_tls_verification, require_digest, server, blob_cache, .. } = self;
        let mut shown = f.debug_struct("Request");
        shown.field("reference", reference).field("store", store).field("server", server);
        shown.field("skip_tls_verification", skip_tls_verification).field("require_digest", require_digest);
        shown.field("blob_cache", blob_cache);
        shown.finish_non_exhaustive()
    }
}

/// Who talks to registries: a process of its own that serves containers-image-proxy's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Server {
    /// Our own, a role of the program that pulls ([`proxy`]).
    #[default]
    Own,
    /// skopeo, 1.19 or later.
    Skopeo,
}

/// Credentials.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// The user's name.
    pub username: String,
    /// The password or token.
    pub password: String,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").finish_non_exhaustive()
    }
}

/// What a worker says, a line of JSON each.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Event {
    /// It asks the registry for the manifest.
    Resolving,
    /// It has the manifest.
    Resolved {
        /// The manifest's digest.
        manifest_digest: String,
        /// How many layers there are.
        layers: usize,
        /// Their compressed bytes.
        bytes: u64,
    },
    /// It goes on.
    Progress {
        /// Layers that are whole.
        layers_done: usize,
        /// Compressed bytes that were fetched, or not needed.
        bytes_done: u64,
    },
    /// The host's cache of blobs did something wrong, and the pull goes on without it.
    Cache {
        /// What it did, and for which blob.
        message: String,
    },
    /// It is done.
    Done(Box<Image>),
    /// It gave up.
    Failed {
        /// Whose fault it was.
        kind: Kind,
        /// What failed, and what to do.
        message: String,
    },
}

/// An image whose layers are there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// As it was asked for.
    pub reference: String,
    /// The manifest's digest.
    pub manifest_digest: String,
    /// The layers' directories, the lowest first, none twice: overlayfs takes no directory twice.
    pub layers: Vec<PathBuf>,
    /// Those of the layers that are not unpacked: which disks are to be mounted there.
    #[serde(default)]
    pub ready: BTreeMap<PathBuf, Verity>,
    /// The image's configuration.
    pub config: ImageConfiguration,
}
