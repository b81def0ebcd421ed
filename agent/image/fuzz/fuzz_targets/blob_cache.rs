//! Any bytes from the host's cache, or from a guest: a message, or none; and nothing is read past its line.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_protocol::blob_cache::{Answer, Ask, MAX_LINE, read, to_line};

fuzz_target!(|bytes: &[u8]| {
    let line = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| end + 1);
    let mut rest = bytes;
    if let Ok(ask) = read::<Ask>(&mut rest) {
        assert_eq!(bytes.len() - rest.len(), line);
        assert_eq!(read::<Ask>(&mut to_line(&ask).as_slice()).unwrap(), ask);
        assert!(ask.digest.to_string().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b':'));
    }
    let mut rest = bytes;
    let _ = read::<Answer>(&mut rest);
    assert!(bytes.len() - rest.len() <= line.min(MAX_LINE + 1));
});
