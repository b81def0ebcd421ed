//! The digest of initdata, by which a host can't give a guest another configuration than its owner's.

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use super::Register;

const MAX_BYTES: usize = 16 << 20;

/// The fields of hardware's reports that take the digest.
const HOST_DATA: usize = 32;
const MR_CONFIG_ID: usize = 48;

/// What is read of the document here.
#[derive(Deserialize)]
struct Document {
    version: String,
    algorithm: String,
}

/// The document's digest, and the fields that carry it: each name with its value in hex.
///
/// # Errors
/// What is no such document.
pub fn initdata(text: &str) -> Result<Vec<(&'static str, String)>> {
    ensure!(text.len() <= MAX_BYTES, "it has {} bytes, of {MAX_BYTES} at most", text.len());
    let document: Document = toml::from_str(text).context("it is no initdata")?;
    ensure!(document.version == "0.1.0", "its version is {:?}, not \"0.1.0\"", document.version);
    let digest = match &*document.algorithm {
        "sha256" => Sha256::digest(text).to_vec(),
        "sha384" => Sha384::digest(text).to_vec(),
        "sha512" => Sha512::digest(text).to_vec(),
        other => bail!("its algorithm is {other:?}, not sha256, sha384 or sha512"),
    };
    let field = |bytes| {
        let mut value = digest.clone();
        value.resize(bytes, 0);
        hex::encode(value)
    };
    let mut register = Register::<Sha256>::zero();
    register.extend(&Sha256::digest(text));
    Ok(vec![
        ("digest", hex::encode(&digest)),
        ("snp_host_data", field(HOST_DATA)),
        ("tdx_mrconfigid", field(MR_CONFIG_ID)),
        ("pcr8_sha256", register.hex()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_has_its_own_length() {
        let text = "version = \"0.1.0\"\nalgorithm = \"sha512\"\n[data]\n";
        let values = initdata(text).unwrap();
        assert_eq!(values.iter().map(|(_, value)| value.len()).collect::<Vec<_>>(), [128, 64, 96, 64]);
        assert!(values.iter().take(3).all(|(_, value)| values[0].1.starts_with(value)));
        let short = initdata(&text.replace("512", "256")).unwrap();
        assert_eq!(short[2].1, format!("{}{}", short[0].1, "0".repeat(32)));
        for bad in ["", "version = \"0.1.0\"\nalgorithm = \"md5\"\n", "version = \"2\"\nalgorithm = \"sha256\"\n"] {
            assert!(initdata(bad).is_err(), "{bad}");
        }
    }
}
