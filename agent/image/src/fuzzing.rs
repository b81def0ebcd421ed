//! What strangers send, read as a pull reads it: for the fuzz targets beside this crate, and there only when they are built.

use std::io;

use oci_spec::image::{ImageConfiguration, ImageManifest};

use crate::archive::{Archive, What};
use crate::error::Result;
use crate::merge::account::Wanted;
use crate::ocicrypt::Keys;
use crate::proxy::manifest::{Found, Manifest};
use crate::{layer, reference};

/// A layer's archive, to its end. How many entries there were.
pub fn archive(bytes: &[u8]) -> Result<usize> {
    let mut archive = Archive::new(bytes);
    let mut entries = 0;
    while let Some(entry) = archive.next()? {
        let stored = io::copy(&mut archive, &mut io::sink());
        if let (What::Sparse(map), Ok(stored)) = (&entry.what, stored) {
            let pieces = map.pieces();
            assert_eq!(pieces.iter().map(|piece| piece.length).sum::<u64>(), stored);
            assert!(pieces.iter().all(|piece| piece.offset + piece.length <= map.size()));
        }
        entries += 1;
    }
    Ok(entries)
}

/// A manifest or an index, as our own server reads it. The digest that it leads to.
pub fn manifest(bytes: &[u8]) -> Result<String> {
    let found = |_: &str| Ok(Found { bytes: bytes.to_vec(), media_type: None });
    Manifest::find("tag", found).and_then(|manifest| manifest.layer_info().map(|_| manifest.digest))
}

/// A manifest and a configuration, as the worker reads them. How many layers are to be fetched.
pub fn plan(manifest: &[u8], config: &[u8], keys: &Keys) -> Option<Result<usize>> {
    let manifest: ImageManifest = serde_json::from_slice(manifest).ok()?;
    let config: ImageConfiguration = serde_json::from_slice(config).ok()?;
    Some(layer::plan(&manifest, config.rootfs().diff_ids(), keys).map(|layers| layers.len()))
}

/// An image's name: what is asked for, and where.
pub fn reference(text: &str) -> Result<(String, &str)> {
    reference::check(text).map(|()| (reference::transport(text), reference::registry(text)))
}

/// `user[:group]` by the texts of `/etc/passwd` and `/etc/group`: the numbers, and the home directory.
pub fn account(user: &str, passwd: &str, group: &str) -> Option<(u32, u32, Vec<u32>, String)> {
    let account = Wanted::parse(user).and_then(|wanted| wanted.find(passwd, group)).ok()?;
    Some((account.uid, account.gid, account.groups, account.home))
}
