//! What a guest and the host's cache of blobs say to each other. Neither trusts the other: the digest alone says what a blob is.
//!
//! A connection is about one blob. The guest begins with one line of JSON ([`Ask`]), the host answers with another ([`Answer`]). After
//! `"have"` the blob's bytes come. After `"fill"` the guest sends them, as soon as it has them from the registry, and the host says `"kept"`.

use std::fmt;
use std::io::{self, Read};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest line, in bytes and without its end.
pub const MAX_LINE: usize = 256;

/// A SHA-256 digest: the only kind, and so the only names that a blob can have.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; 32];
        let small = |text: &&str| !text.contains(|c: char| c.is_ascii_uppercase());
        let hex = text.strip_prefix("sha256:").filter(small);
        match hex.map(|hex| hex::decode_to_slice(hex, &mut bytes)) {
            Some(Ok(())) => Ok(Digest(bytes)),
            _ => Err(serde::de::Error::custom("not a digest (sha256:HEX)")),
        }
    }
}

/// What a guest asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// The blob.
    pub digest: Digest,
    /// How many bytes it has.
    pub size: u64,
    /// Whether the guest would send it, if it is not there.
    pub fill: bool,
}

/// What the host says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The blob's bytes follow.
    Have,
    /// It is not there.
    Missing,
    /// It is not there: send it.
    Fill,
    /// What was sent is kept.
    Kept,
}

/// As it is sent.
pub fn to_line(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).unwrap_or_default(); // numbers and plain names: there is nothing that JSON could not say
    line.push(b'\n');
    line
}

/// The next message, and not a byte more.
///
/// # Errors
/// Those of the reader; a line that is too long, or makes no sense.
pub fn read<T: DeserializeOwned>(reader: &mut impl Read) -> io::Result<T> {
    let mut line = Vec::with_capacity(MAX_LINE);
    let mut byte = [0];
    loop {
        reader.read_exact(&mut byte)?;
        match byte {
            [b'\n'] => break,
            [byte] if line.len() < MAX_LINE => line.push(byte),
            _ => return Err(invalid(format!("a line of more than {MAX_LINE} bytes"))),
        }
    }
    serde_json::from_slice(&line).map_err(|error| invalid(format!("a line that makes no sense: {error}")))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_lines_are_these() {
        let ask = Ask { digest: Digest([0xab; 32]), size: 7, fill: true };
        let line = format!("{{\"digest\":\"sha256:{}\",\"size\":7,\"fill\":true}}\n", "ab".repeat(32));
        assert_eq!(String::from_utf8(to_line(&ask)).unwrap(), line);
        let mut stream = &*[line.as_bytes(), b"rest"].concat();
        assert_eq!(read::<Ask>(&mut stream).unwrap(), ask);
        assert_eq!(stream, b"rest");
        for (answer, text) in
            [(Answer::Have, "have"), (Answer::Missing, "missing"), (Answer::Fill, "fill"), (Answer::Kept, "kept")]
        {
            assert_eq!(to_line(&answer), format!("\"{text}\"\n").as_bytes());
        }
        let longest = to_line(&Ask { size: u64::MAX, fill: false, ..ask });
        assert!(longest.len() <= MAX_LINE, "{}", longest.len());
    }

    #[test]
    fn a_line_that_makes_no_sense_is_refused() {
        let hex = "ab".repeat(32);
        for digest in [
            "",
            "sha256:",
            "sha512:00",
            &format!("sha256:{}", hex.to_uppercase()),
            &format!("sha256:{hex}00"),
            "sha256:../../x",
            &format!("sha256:{}/.", &hex[2..]),
            &hex,
        ] {
            let line = format!("{}\n", serde_json::json!({ "digest": digest, "size": 1, "fill": false }));
            assert!(read::<Ask>(&mut line.as_bytes()).is_err(), "{digest:?}");
        }
        let endless = io::repeat(b'a');
        assert_eq!(read::<Ask>(&mut endless.take(u64::MAX)).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read::<Answer>(&mut &b"\"ha"[..]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fail(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = read::<Ask>(&mut &*bytes);
            let _ = read::<Answer>(&mut &*bytes);
        }

        #[test]
        fn what_is_written_is_read(digest: [u8; 32], size: u64, fill: bool) {
            let ask = Ask { digest: Digest(digest), size, fill };
            prop_assert_eq!(read::<Ask>(&mut &*to_line(&ask)).unwrap(), ask);
        }
    }
}
