//! Any `user[:group]`, `/etc/passwd` and `/etc/group`, with a NUL between them: a user that the kernel takes, or none.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.splitn(3, '\0').chain(std::iter::repeat(""));
    let mut part = || parts.next().unwrap_or_default();
    let user = part();
    let Some((uid, gid, groups, home)) = nacre_pull::fuzzing::account(user, part(), part()) else { return };
    assert!(![uid, gid].iter().chain(&groups).any(|id| *id == u32::MAX));
    assert!(home.starts_with('/') && !home.contains('\0'));
    // Who reads digits as a number is right.
    let name = user.split(':').next().unwrap_or_default();
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
        assert_eq!(name.parse(), Ok(uid));
    }
});
