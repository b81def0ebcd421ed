//! Entropy that the host sends, so that guests cloned from one memory image do not draw the same numbers.
//!
//! The data is mixed in and never credited: the host is not trusted, and a generator that believed it would call itself
//! seeded by numbers that the host knows. Mixing known numbers in cannot make the generator's state easier to guess.

use std::fs::OpenOptions;
use std::io::{self, Write};

/// The most that one request may carry; the kernel's pool holds far less.
pub const MAX_SEED: usize = 64 << 10;

/// The generator was not reseeded.
#[derive(Debug, thiserror::Error)]
pub enum EntropyError {
    /// The request carries nothing, or too much.
    #[error("reseed the random number generator with {0} bytes: 1 to {MAX_SEED} are expected")]
    Size(usize),
    /// The data could not be mixed in.
    #[error("write to /dev/random")]
    Write(#[source] io::Error),
    /// The data was mixed in, but no new key was drawn.
    #[error("ioctl(/dev/random, RNDRESEEDCRNG)")]
    Reseed(#[source] io::Error),
}

impl EntropyError {
    /// Whether the request itself is at fault.
    pub fn is_invalid(&self) -> bool {
        matches!(self, EntropyError::Size(_))
    }
}

/// Mix `data` into the kernel's random number generator and have it draw a new key.
pub fn reseed(data: &[u8]) -> Result<(), EntropyError> {
    if data.is_empty() || data.len() > MAX_SEED {
        return Err(EntropyError::Size(data.len()));
    }
    let mut random = OpenOptions::new().write(true).open("/dev/random").map_err(EntropyError::Write)?;
    random.write_all(data).map_err(EntropyError::Write)?;
    match nacre_sys::random::reseed(&random) {
        Err(e) if !is_not_ready(&e) => Err(EntropyError::Reseed(e)),
        _ => Ok(()),
    }
}

/// Before the first key is drawn there is none to replace.
fn is_not_ready(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NODATA.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_bounded() {
        assert!(reseed(&[]).unwrap_err().is_invalid());
        assert!(reseed(&vec![0; MAX_SEED + 1]).unwrap_err().is_invalid());
    }

    #[test]
    fn root_reseeds_the_generator() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs CAP_SYS_ADMIN");
            return;
        }
        reseed(b"not very random").unwrap();
    }
}
