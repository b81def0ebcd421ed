//! An image's configuration, applied to a process (image specification, "conversion.md").
//!
//! What the caller says counts first. Names of users and groups are looked up in the image's own files.

pub(crate) mod account;

use std::collections::HashMap;
use std::os::fd::BorrowedFd;

use account::{Account, Wanted};
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::Process;

/// The most letters of an image's words that an error repeats.
const MAX_SHOWN: usize = 256;

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
    /// The number is too high.
    #[error("{0:?} is no user or group ID")]
    Number(String),
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
    groups.extend(account.groups.into_iter().filter(|group| *group != account.gid));
    groups.sort_unstable();
    groups.dedup();
    user.set_additional_gids((!groups.is_empty()).then_some(groups));

    // "/" is what a caller says that has no opinion.
    if matches!(process.cwd().to_str(), Some("" | "/")) {
        let directory = config.working_dir().as_deref().filter(|dir| !dir.is_empty()).unwrap_or("/");
        if !directory.starts_with('/') {
            return Err(Error::WorkingDirectory(shown(directory)));
        }
        process.set_cwd(directory.into());
    }
    Ok(())
}

fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN).collect()
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

/// Who the process runs as. A caller that names another than root has decided; so do nodes on a pod's `runAsUser`. So has one that names
/// another group than root's (`runAsGroup`).
fn account(text: &str, process: &Process, rootfs: BorrowedFd<'_>) -> Result<Account, Error> {
    let (uid, gid) = (process.user().uid(), process.user().gid());
    let wanted = if uid == 0 { Wanted::parse(text)? } else { Wanted::number(uid) };
    let mut account = wanted.look_up(rootfs)?;
    if (uid, gid) != (0, 0) {
        account.gid = gid;
    }
    Ok(account)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd as _;

    fn rootfs() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:www:/srv/web:/bin/false\nbroken\n";
        std::fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(
            dir.path().join("etc/group"),
            "root:x:0:\nstaff:x:50:web,other\nlog:x:4:web\nweb:x:34:web\nbroken\n",
        )
        .unwrap();
        dir
    }

    fn merged(config: serde_json::Value, given: serde_json::Value, rule: ArgsRule) -> Result<Process, Error> {
        let rootfs = rootfs();
        let root = File::open(rootfs.path()).unwrap();
        let config: ImageConfiguration = serde_json::from_value(serde_json::json!({
            "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] }, "config": config,
        }))
        .unwrap();
        let mut base = serde_json::json!({ "user": { "uid": 0, "gid": 0 }, "cwd": "/" });
        base.as_object_mut().unwrap().extend(given.as_object().unwrap().clone());
        let mut process: Process = serde_json::from_value(base).unwrap();
        super::process(&config, &mut process, rule, root.as_fd()).map(|()| process)
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
            ("web", Ok((33, 34, vec![4, 50], "/srv/web"))),
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

        let given = json!({ "user": { "uid": 33, "gid": 50, "additionalGids": [9, 7] } });
        let process = merged(json!({ "User": "root", "Cmd": ["x"] }), given, ArgsRule::Full).unwrap();
        assert_eq!(process.user().additional_gids().as_deref(), Some(&[4, 7, 9, 34][..]));

        let group_only = json!({ "user": { "uid": 0, "gid": 5 } });
        let process = merged(json!({ "User": "web", "Cmd": ["x"] }), group_only, ArgsRule::Full).unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (33, 5));
    }

    #[test]
    fn the_callers_variables_and_directory_win_and_a_path_there_always_is() {
        use serde_json::json;
        let config = json!({ "Env": ["A=1", "B=2"], "Cmd": ["x"], "WorkingDir": "/srv" });
        let process = merged(config, json!({ "env": ["B=3", "C=4"] }), ArgsRule::Full).unwrap();
        assert_eq!(process.env().as_deref().unwrap(), ["A=1", "B=3", "C=4", DEFAULT_PATH, "HOME=/root"]);
        assert_eq!(process.cwd().to_str(), Some("/srv"));
        for (image, given, expected) in [("", "", "/"), ("", "/", "/"), ("/srv", "", "/srv"), ("/srv", "/own", "/own")]
        {
            let config = json!({ "Cmd": ["x"], "WorkingDir": image });
            let process = merged(config, json!({ "cwd": given }), ArgsRule::Full).unwrap();
            assert_eq!(process.cwd().to_str(), Some(expected), "{image:?} {given:?}");
        }
        let bad = merged(json!({ "Cmd": ["x"], "WorkingDir": "srv" }), json!({}), ArgsRule::Full);
        assert!(matches!(bad, Err(Error::WorkingDirectory(_))));
    }
}
