//! Users: lines of `/etc/passwd` and `/etc/group`. Files are none of theirs, for all belong to root.

use anyhow::{Result, ensure};

use super::{At, Source, written};

/// A user.
#[derive(Debug, Clone)]
pub(super) struct User {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

/// A user, as far as it makes sense alone.
pub(super) fn checked(source: &Source, user: &written::User) -> Result<At<User>> {
    let place = source.place(&user.name);
    let name = user.name.get_ref();
    let is_legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    let is_name = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_') && name.chars().all(is_legal);
    ensure!(is_name && name.len() <= 32, place.fault("a user's name has small letters, digits, - and _, at most 32"));
    let home = user.home.as_ref().map_or("/nonexistent", |home| home.get_ref());
    let is_path = home.starts_with('/') && !home.contains([':', '\n']);
    ensure!(is_path, place.fault(format!("the home {home:?} is no whole path")));
    Ok(At { place, value: User { name: name.clone(), uid: user.uid, gid: user.gid, home: home.into() } })
}

/// `/etc/passwd` and `/etc/group`: root, then those of the recipe.
pub(super) fn accounts(users: &[At<User>]) -> Result<(String, String)> {
    let mut passwd = String::from("root:x:0:0:root:/:/sbin/nologin\n");
    let mut group = String::from("root:x:0:\n");
    let mut known = vec![("root", 0)];
    let mut groups = vec![0];
    for At { place, value: User { name, uid, gid, home } } in users {
        let is_new = known.iter().all(|(other, id)| other != name && id != uid);
        ensure!(is_new, place.fault(format!("there is a user {name} or a uid {uid} already")));
        known.push((name, *uid));
        passwd.push_str(&format!("{name}:x:{uid}:{gid}::{home}:/sbin/nologin\n"));
        if !groups.contains(gid) {
            groups.push(*gid);
            group.push_str(&format!("{name}:x:{gid}:\n"));
        }
    }
    Ok((passwd, group))
}
