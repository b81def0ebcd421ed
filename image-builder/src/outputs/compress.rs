//! Compression that the kernel undoes, in the forms that it knows (lib/decompress_*.c). One thread and fixed levels: same bytes everywhere.

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all: the kernel only copies it.
    #[default]
    None,
    /// Fast to undo.
    Lz4,
    /// Small.
    Zstd,
}

/// What an LZ4 file of the old form begins with, and the most that one of its blocks holds. The kernel knows no other form.
pub const LZ4_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const LZ4_BLOCK: usize = 8 << 20;

/// Beyond it, compressing takes ten times as long for one part in a hundred.
const ZSTD_LEVEL: i32 = 19;

impl Compression {
    /// Compresses `bytes`.
    ///
    /// # Errors
    /// None that can happen in memory.
    pub fn apply(self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        match self {
            Compression::None => Ok(bytes),
            Compression::Lz4 => lz4(&bytes),
            Compression::Zstd => zstd::bulk::compress(&bytes, ZSTD_LEVEL).context("compress with Zstandard"),
        }
    }
}

fn lz4(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = LZ4_MAGIC.to_vec();
    for block in bytes.chunks(LZ4_BLOCK) {
        let packed = lz4_flex::block::compress(block);
        out.extend(u32::try_from(packed.len()).context("compress with LZ4")?.to_le_bytes());
        out.extend(packed);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    fn undone_by(program: &str, bytes: &[u8]) -> Vec<u8> {
        let mut child = Command::new(program).arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let bytes = bytes.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&bytes));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        output.stdout
    }

    #[test]
    fn what_is_compressed_is_undone_by_the_usual_tools() {
        let bytes: Vec<u8> = (0u32..3 << 20).flat_map(|n| (n / 3).to_le_bytes()).collect();
        let few = &bytes[..1 << 20];
        for (compression, program, bytes) in [(Compression::Lz4, "lz4", &*bytes), (Compression::Zstd, "zstd", few)] {
            let packed = compression.apply(bytes.to_vec()).unwrap();
            assert!(packed.len() < bytes.len() / 2, "{program}: {}", packed.len());
            assert!(undone_by(program, &packed) == bytes, "{program}");
        }
        assert_eq!(Compression::None.apply(vec![1, 2]).unwrap(), [1, 2]);
    }
}
