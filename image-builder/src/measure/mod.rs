//! What hardware and firmware will have measured once an image has booted: pure functions of the bytes that boot.
//!
//! A launch measurement is of one shape of VM: firmware, processors and their type count. What depends on more than is known here is not
//! guessed; it is listed as not predicted, with the reason.

mod authenticode;
pub mod command;
pub mod firmware;
pub mod initdata;
#[cfg(test)]
mod made;
pub mod pcr;
pub mod snp;
pub mod tdx;
mod vmsa;

use sha2::Digest;

pub use authenticode::authenticode;

/// What a kernel is booted with directly, without a boot loader.
#[derive(Debug, Clone, Copy)]
pub struct Kernel<'a> {
    /// The compressed kernel.
    pub image: &'a [u8],
    /// Its initrd, if there is one.
    pub initrd: Option<&'a [u8]>,
    /// Its command line.
    pub command_line: &'a str,
}

/// A register that can only be extended: a TPM's PCR, a trust domain's RTMR.
#[derive(Debug, Clone)]
struct Register<D: Digest>(sha2::digest::Output<D>);

impl<D: Digest> Register<D> {
    /// As it is after a reset.
    fn zero() -> Register<D> {
        Register(sha2::digest::Output::<D>::default())
    }

    /// Takes in the digest of `data`.
    fn measure(&mut self, data: &[u8]) {
        self.extend(&D::digest(data));
    }

    /// Takes in a digest.
    fn extend(&mut self, digest: &[u8]) {
        self.0 = D::new().chain_update(&self.0).chain_update(digest).finalize();
    }

    fn hex(&self) -> String {
        hex::encode(&self.0)
    }
}

/// As UEFI writes text, with the NUL at its end.
fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}
