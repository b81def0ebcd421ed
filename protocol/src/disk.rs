//! By what a guest knows the disks that its host attaches. It is a name and no more: what is on a disk, the guest believes by other means.

/// The serial number of the scratch disk.
pub const SCRATCH: &str = "nacre-scratch";

/// Where a manifest names the ready-made form of a layer: this annotation of its descriptor, `sha256:ROOT;blocks=N`.
pub const LAYER_ANNOTATION: &str = "dev.nacre.layer.verity";

/// How many letters of a ready-made layer's root hash are its disk's serial number: virtio has 20 bytes for it.
pub const LAYER_SERIAL: usize = 20;

/// The serial number of the disk with the layer that has this root hash, in hexadecimal.
pub fn layer_serial(root_hash: &str) -> String {
    root_hash.chars().take(LAYER_SERIAL).collect()
}
