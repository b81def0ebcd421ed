//! An image's configuration, applied to a process (image specification, "conversion.md").
//!
//! Names of users and groups are looked up in the image's own files, which are as hostile as the rest of it: they are
//! opened inside the root, must be regular files, and are read to a limit.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::BorrowedFd;

use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::Process;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

/// The most bytes of `/etc/passwd` or `/etc/group` that are read.
const MAX_FILE: u64 = 4 << 20;

/// The most groups that a user is in.
const MAX_GROUPS: usize = 1024;

/// For an image that names no search path.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the arguments of the process are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArgsRule {
    /// The whole command line. When there are none, the image's entry point and command.
    Full,
    /// In place of the image's command, after its entry point. When there are none, the image's command.
    ReplaceCmd,
}

/// Why a configuration could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither the image nor the caller says what to run.
    #[error("the image names no program: say which to run")]
    NoProgram,
    /// The user does not exist in the image.
    #[error("the image has no user {0:?} in /etc/passwd")]
    NoUser(String),
    /// The group does not exist in the image.
    #[error("the image has no group {0:?} in /etc/group")]
    NoGroup(String),
    /// The working directory is relative.
    #[error("the image's working directory {0:?} is not absolute")]
    WorkingDirectory(String),
}

/// Gives `process` what the image in `rootfs` says and the caller left open.
///
/// # Errors
/// Nothing to run, or a user, group or directory that makes no sense.
pub fn process(
    config: &ImageConfiguration,
    process: &mut Process,
    rule: ArgsRule,
    rootfs: BorrowedFd<'_>,
) -> Result<(), Error> {
    let empty = oci_spec::image::Config::default();
    let config = config.config().as_ref().unwrap_or(&empty);
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();

    let given = process.args().clone().unwrap_or_default();
    let args = match rule {
        ArgsRule::Full if !given.is_empty() => given,
        ArgsRule::ReplaceCmd if !given.is_empty() => [list(config.entrypoint()), given].concat(),
        _ => [list(config.entrypoint()), list(config.cmd())].concat(),
    };
    if args.first().is_none_or(String::is_empty) {
        return Err(Error::NoProgram);
    }
    process.set_args(Some(args));

    let account = account(config.user().as_deref().unwrap_or(""), process, rootfs)?;
    let mut env = merge_env(list(config.env()), process.env().clone().unwrap_or_default());
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.push(DEFAULT_PATH.into());
    }
    if !env.iter().any(|variable| variable.starts_with("HOME=")) {
        env.push(format!("HOME={}", account.home));
    }
    process.set_env(Some(env));

    let user = process.user_mut();
    user.set_uid(account.uid).set_gid(account.gid);
    let mut groups = user.additional_gids().clone().unwrap_or_default();
    groups.extend(account.groups);
    groups.sort_unstable();
    groups.dedup();
    user.set_additional_gids((!groups.is_empty()).then_some(groups));

    // "/" is what a caller says that has no opinion.
    let directory = config.working_dir().as_deref().filter(|dir| !dir.is_empty());
    if let Some(directory) =
        directory.filter(|_| process.cwd().as_os_str().is_empty() || process.cwd().as_os_str() == "/")
    {
        if !directory.starts_with('/') {
            return Err(Error::WorkingDirectory(directory.into()));
        }
        process.set_cwd(directory.into());
    }
    Ok(())
}

/// The image's variables, each replaced by the caller's of the same name; the caller's others after them.
fn merge_env(image: Vec<String>, given: Vec<String>) -> Vec<String> {
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut merged: Vec<String> = Vec::new();
    for variable in image.into_iter().chain(given) {
        let name = variable.split('=').next().unwrap_or_default().to_string();
        let place = *places.entry(name).or_insert(merged.len());
        match merged.get_mut(place) {
            Some(known) => *known = variable,
            None => merged.push(variable),
        }
    }
    merged
}

struct Account {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    home: String,
}

/// Who `user[:group]` is. A caller that names another than root has decided; so do nodes on a pod's `runAsUser`.
fn account(text: &str, process: &Process, rootfs: BorrowedFd<'_>) -> Result<Account, Error> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let asked = process.user();
    let (user, group, gid) = match user {
        _ if asked.uid() != 0 => (asked.uid().to_string(), None, Some(asked.gid())),
        "" => ("0".to_string(), group, None),
        name => (name.to_string(), group, None),
    };
    let passwd = read(rootfs, "etc/passwd");
    let line = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| match fields[..] {
        [name, _, uid, ..] => name == user || (user.parse::<u32>().is_ok() && uid == user),
        _ => false,
    });
    let field = |index: usize| line.as_ref().and_then(|fields| fields.get(index).copied());
    let number = |index: usize| field(index).and_then(|text| text.parse::<u32>().ok());
    let uid = number(2).or_else(|| user.parse().ok()).ok_or_else(|| Error::NoUser(user.clone()))?;
    let home = field(5).filter(|home| home.starts_with('/')).unwrap_or("/").to_string();
    let group_file = read(rootfs, "etc/group");
    let gid = match group {
        Some(group) => group_id(&group_file, group)?,
        None => gid.or(number(3)).unwrap_or(0),
    };
    // A group that was named is the only one (docker run --user does the same).
    let groups = match (group, field(0)) {
        (None, Some(name)) => groups_of(&group_file, name, gid),
        _ => Vec::new(),
    };
    Ok(Account { uid, gid, groups, home })
}

fn group_id(file: &str, group: &str) -> Result<u32, Error> {
    let by_name = file.lines().find_map(|line| match line.split(':').collect::<Vec<_>>()[..] {
        [name, _, gid, ..] if name == group => gid.parse().ok(),
        _ => None,
    });
    by_name.or_else(|| group.parse().ok()).ok_or_else(|| Error::NoGroup(group.into()))
}

/// The groups that list the user as a member.
fn groups_of(file: &str, user: &str, primary: u32) -> Vec<u32> {
    let member = |line: &str| match line.split(':').collect::<Vec<_>>()[..] {
        [_, _, gid, members, ..] if members.split(',').any(|member| member == user) => gid.parse::<u32>().ok(),
        _ => None,
    };
    file.lines().filter_map(member).filter(|gid| *gid != primary).take(MAX_GROUPS).collect()
}

/// A text file of the image; one that is absent, no file, or too large reads as empty, and names in it are not found.
fn read(rootfs: BorrowedFd<'_>, path: &str) -> String {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let open = |flags| rustix::fs::openat2(rootfs, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
    // Opening a device may do something, and opening a FIFO may wait: looking at it does neither.
    let regular = open(OFlags::PATH).and_then(rustix::fs::fstat);
    if !regular.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile) {
        return String::new();
    }
    let Ok(fd) = open(OFlags::RDONLY | OFlags::NONBLOCK) else { return String::new() };
    let mut bytes = Vec::new();
    if File::from(fd).take(MAX_FILE + 1).read_to_end(&mut bytes).is_err() || bytes.len() as u64 > MAX_FILE {
        return String::new();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    struct Rootfs(tempfile::TempDir, File);

    fn rootfs() -> Rootfs {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:www:/srv/web:/bin/false\nbroken\n";
        std::fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(dir.path().join("etc/group"), "root:x:0:\nstaff:x:50:web,other\nweb:x:34:\nbroken\n").unwrap();
        let file = File::open(dir.path()).unwrap();
        Rootfs(dir, file)
    }

    fn merged(config: serde_json::Value, given: serde_json::Value, rule: ArgsRule) -> Result<Process, Error> {
        let rootfs = rootfs();
        let config: ImageConfiguration = serde_json::from_value(serde_json::json!({
            "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] }, "config": config,
        }))
        .unwrap();
        let mut base = serde_json::json!({ "user": { "uid": 0, "gid": 0 }, "cwd": "/" });
        base.as_object_mut().unwrap().extend(given.as_object().unwrap().clone());
        let mut process: Process = serde_json::from_value(base).unwrap();
        super::process(&config, &mut process, rule, rootfs.1.as_fd()).map(|()| process)
    }

    #[test]
    fn arguments_follow_their_rule() {
        use serde_json::json;
        let config = json!({ "Entrypoint": ["/entry"], "Cmd": ["one", "two"] });
        for (given, rule, expected) in [
            (json!([]), ArgsRule::Full, vec!["/entry", "one", "two"]),
            (json!(["sh"]), ArgsRule::Full, vec!["sh"]),
            (json!([]), ArgsRule::ReplaceCmd, vec!["/entry", "one", "two"]),
            (json!(["three"]), ArgsRule::ReplaceCmd, vec!["/entry", "three"]),
        ] {
            let process = merged(config.clone(), json!({ "args": given }), rule).unwrap();
            assert_eq!(process.args().as_deref().unwrap(), expected);
        }
        assert!(matches!(merged(json!({}), json!({}), ArgsRule::Full), Err(Error::NoProgram)));
    }

    #[test]
    fn users_and_groups_are_the_images() {
        use serde_json::json;
        for (user, expected) in [
            ("", Ok((0, 0, vec![], "/root"))),
            ("web", Ok((33, 34, vec![50], "/srv/web"))),
            ("33", Ok((33, 34, vec![50], "/srv/web"))),
            ("web:staff", Ok((33, 50, vec![], "/srv/web"))),
            ("web:7", Ok((33, 7, vec![], "/srv/web"))),
            ("1234", Ok((1234, 0, vec![], "/"))),
            ("nobody-here", Err("no user \"nobody-here\"")),
            ("web:none", Err("no group \"none\"")),
        ] {
            let result = merged(json!({ "User": user, "Cmd": ["x"] }), json!({}), ArgsRule::Full);
            match expected {
                Ok((uid, gid, groups, home)) => {
                    let process = result.unwrap();
                    let found = process.user().additional_gids().clone().unwrap_or_default();
                    assert_eq!((process.user().uid(), process.user().gid(), found), (uid, gid, groups), "{user}");
                    assert!(process.env().as_ref().unwrap().contains(&format!("HOME={home}")), "{user}");
                }
                Err(text) => assert!(result.unwrap_err().to_string().contains(text), "{user}"),
            }
        }
    }

    #[test]
    fn a_caller_that_names_a_user_has_decided() {
        use serde_json::json;
        let given = json!({ "user": { "uid": 1000, "gid": 5, "additionalGids": [9] } });
        let process = merged(json!({ "User": "web:staff", "Cmd": ["x"] }), given, ArgsRule::Full).unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (1000, 5));
        assert_eq!(process.user().additional_gids().as_deref(), Some(&[9][..]));
    }

    #[test]
    fn the_callers_variables_win_and_a_path_there_always_is() {
        use serde_json::json;
        let config = json!({ "Env": ["A=1", "B=2"], "Cmd": ["x"], "WorkingDir": "/srv" });
        let process = merged(config, json!({ "env": ["B=3", "C=4"] }), ArgsRule::Full).unwrap();
        assert_eq!(process.env().as_deref().unwrap(), ["A=1", "B=3", "C=4", DEFAULT_PATH, "HOME=/root"]);
        assert_eq!(process.cwd().to_str(), Some("/srv"));
        let bad = merged(json!({ "Cmd": ["x"], "WorkingDir": "srv" }), json!({}), ArgsRule::Full);
        assert!(matches!(bad, Err(Error::WorkingDirectory(_))));
    }

    #[test]
    fn a_hostile_passwd_is_neither_followed_out_nor_waited_for() {
        let rootfs = rootfs();
        let passwd = rootfs.0.path().join("etc/passwd");
        std::fs::remove_file(&passwd).unwrap();
        std::os::unix::fs::symlink("/proc/self/environ", &passwd).unwrap();
        assert_eq!(read(rootfs.1.as_fd(), "etc/passwd"), "");
        std::fs::remove_file(&passwd).unwrap();
        let fifo = FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &passwd, fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert_eq!(read(rootfs.1.as_fd(), "etc/passwd"), "");
    }
}
