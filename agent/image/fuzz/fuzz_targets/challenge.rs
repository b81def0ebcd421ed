//! Any header `WWW-Authenticate`: a plain address of the web to ask for a token, or none.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_pull::access::challenge::{bearer_url, parse};

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    for challenge in parse(&text.lines().collect::<Vec<_>>()) {
        for insecure in [false, true] {
            let Ok(url) = bearer_url(&challenge, "library/alpine", insecure) else { continue };
            assert!(url.starts_with("https://") || insecure && url.starts_with("http://"), "{url}");
            assert!(url.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'), "{url}");
            assert!(url.contains("scope=repository%3Alibrary%2Falpine%3Apull"), "{url}");
        }
    }
});
