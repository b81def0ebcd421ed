//! Hooks: when, where and with what they run, and what their failure does.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::path::Path;

use common::{Bundle, bundle, drain, pipes, spec};
use nacre_jail::{Container, Error, Plan, Status};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

/// A hook that appends its name, the status it is told and `more` to a file of the bundle.
fn hook(bundle: &Bundle, name: &str, more: &str) -> Value {
    let log = bundle.0.path().join("log");
    let script = format!(
        "state=$(cat); status=$(echo \"$state\" | grep -o '\"status\":\"[a-z]*\"'); echo {name} $status $COLOUR {more} >> {}",
        log.display()
    );
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["COLOUR=red", "PATH=/bin:/usr/bin"] })
}

fn log(bundle: &Bundle) -> String {
    fs::read_to_string(bundle.0.path().join("log")).unwrap_or_default()
}

fn create(bundle: &Bundle, id: &str, spec: &Value) -> Result<Container, Error> {
    let spec: Spec = serde_json::from_value(spec.clone()).unwrap();
    Container::create(Plan::new(id, &spec, bundle.0.path()).unwrap(), pipes().1)
}

#[test]
fn every_hook_runs_at_its_point_in_its_place() {
    let Some(bundle) = bundle() else { return };
    let mut spec = spec("sleep 1000");
    spec["annotations"] = json!({ "colour": "green" });
    let rootfs = bundle.0.path().join("rootfs");
    // Inside the container, confined as its program is.
    fs::write(
        rootfs.join("hook"),
        "#!/bin/sh\nbusybox cat > /dev/shm/told; busybox grep CapEff /proc/self/status > /dev/shm/caps\n",
    )
    .unwrap();
    let mut mode = fs::metadata(rootfs.join("hook")).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
    fs::set_permissions(rootfs.join("hook"), mode).unwrap();
    spec["hooks"] = json!({
        "prestart": [hook(&bundle, "prestart", "$(hostname)")],
        "createRuntime": [hook(&bundle, "createRuntime", ""), hook(&bundle, "createRuntime2", "")],
        // The runtime's files, but the container's names.
        "createContainer": [hook(&bundle, "createContainer", "$(hostname)")],
        "startContainer": [{ "path": "/hook", "env": ["PATH=/bin"] }],
        "poststart": [hook(&bundle, "poststart", "")],
        "poststop": [hook(&bundle, "poststop", "")],
    });
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let container = create(&bundle, "hooks", &spec).unwrap();
    let created = format!(
        "prestart \"status\":\"creating\" red {host}\ncreateRuntime \"status\":\"creating\" red\ncreateRuntime2 \"status\":\"creating\" red\n\
         createContainer \"status\":\"creating\" red pod\n"
    );
    assert_eq!(log(&bundle), created);
    container.start().unwrap();
    assert_eq!(log(&bundle), format!("{created}poststart \"status\":\"running\" red\n"));
    let mut process = serde_json::from_value::<Spec>(spec).unwrap().process().clone().unwrap();
    process.set_args(Some(["cat", "/dev/shm/told", "/dev/shm/caps"].map(String::from).to_vec()));
    let (read, io) = pipes();
    container.exec(&process, io, 0).unwrap();
    let told = drain(read);
    assert!(told.contains("\"status\":\"created\"") && told.contains("\"colour\":\"green\""), "{told}");
    assert!(told.ends_with("CapEff:\t00000000000000ab\n"), "{told}");
    container.delete().unwrap();
    assert!(log(&bundle).ends_with("poststop \"status\":\"stopped\" red\n"), "{}", log(&bundle));
}

#[test]
fn a_hook_that_fails_unmakes_the_container_and_says_why() {
    let Some(bundle) = bundle() else { return };
    let cgroup = || common::processes_of("hookfail");
    for point in ["prestart", "createRuntime", "createContainer"] {
        let mut spec = spec("sleep 1000");
        spec["linux"]["cgroupsPath"] = "/nacre-test/hookfail".into();
        spec["hooks"] = json!({
            point: [{ "path": "/bin/sh", "args": ["sh", "-c", "echo no room >&2; exit 3"] }],
            "poststop": [hook(&bundle, point, "")],
        });
        let error = create(&bundle, "hookfail", &spec).unwrap_err().to_string();
        assert_eq!(error, format!("{point} hook /bin/sh: exit code 3: no room"));
        assert_eq!(cgroup(), None);
        assert!(log(&bundle).ends_with(&format!("{point} \"status\":\"stopped\" red\n")), "{}", log(&bundle));
    }
    for point in ["startContainer", "poststart"] {
        let mut spec = spec("sleep 1000");
        spec["hooks"] = json!({ point: [{ "path": "/bin/busybox", "args": ["busybox", "false"] }] });
        let container = create(&bundle, "hookfail2", &spec).unwrap();
        let error = container.start().unwrap_err().to_string();
        assert_eq!(error, format!("{point} hook /bin/busybox: exit code 1"));
        container.init().wait().unwrap();
        assert_eq!(container.status().unwrap(), Status::Stopped);
        container.delete().unwrap();
    }
}

#[test]
fn a_hook_is_called_as_its_arguments_say_with_an_environment_and_a_place() {
    let Some(bundle) = bundle() else { return };
    let path = bundle.0.path();
    let mut spec = spec("cat /dev/shm/told");
    spec["process"]["env"] = json!(["PATH=/bin", "COLOUR=blue"]);
    let pwd = |file: &str| json!({ "path": "/bin/sh", "args": ["sh", "-c", format!("pwd > {}; echo ${{HOME:+home}} >> {}", path.join(file).display(), path.join(file).display())] });
    spec["hooks"] = json!({
        "createRuntime": [pwd("runtime")],
        "createContainer": [pwd("container")],
        // busybox does what its first argument says.
        "startContainer": [{ "path": "/bin/busybox", "args": ["sh", "-c", "echo $COLOUR > /dev/shm/told"] }],
    });
    let spec: Spec = serde_json::from_value(spec).unwrap();
    let (read, io) = pipes();
    let container = Container::run(Plan::new("places", &spec, path).unwrap(), io).unwrap();
    assert_eq!(drain(read), "blue\n");
    container.delete().unwrap();
    let told = |file: &str| fs::read_to_string(path.join(file)).unwrap();
    let home = if std::env::var_os("HOME").is_some() { "home" } else { "" };
    assert_eq!(told("runtime"), format!("{}\n{home}\n", path.display()));
    assert_eq!(told("container"), format!("{}\n{home}\n", path.join("rootfs").display()));
}

#[test]
fn a_hook_has_only_so_long() {
    let Some(bundle) = bundle() else { return };
    let mut spec = spec("sleep 1000");
    spec["hooks"] =
        json!({ "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", "exec sleep 1000"], "timeout": 1 }] });
    let error = create(&bundle, "slow", &spec).unwrap_err().to_string();
    assert_eq!(error, "createRuntime hook /bin/sh: not done within 1 s");
}

#[test]
fn every_poststop_hook_runs_whatever_the_others_do() {
    let Some(bundle) = bundle() else { return };
    let mut spec = spec("true");
    spec["hooks"] = json!({ "poststop": [{ "path": "/nowhere" }, hook(&bundle, "second", "")] });
    let container = create(&bundle, "poststop", &spec).unwrap();
    let error = container.delete().unwrap_err().to_string();
    assert!(error.starts_with("poststop hook /nowhere: run \"/nowhere\": No such file"), "{error}");
    assert_eq!(log(&bundle), "second \"status\":\"stopped\" red\n");
}

#[test]
fn hooks_that_cannot_be_are_refused() {
    for (hook, expected) in [
        (json!({ "path": "bin/sh" }), "hooks.prestart[0].path: bin/sh is not absolute"),
        (json!({ "path": "/bin/sh", "timeout": 0 }), "hooks.prestart[0].timeout: 0 is not positive"),
        (json!({ "path": "/bin/sh", "env": ["A\0B"] }), "hooks.prestart[0]: holds a NUL"),
    ] {
        let mut json = spec("true");
        json["hooks"] = json!({ "prestart": [hook] });
        let spec: Spec = serde_json::from_value(json).unwrap();
        assert_eq!(Plan::new("c", &spec, Path::new("/b")).unwrap_err().to_string(), expected);
    }
}

#[test]
fn a_hook_in_a_user_namespace_is_its_root() {
    let Some(bundle) = bundle() else { return };
    let mut spec = spec("true");
    common::set_namespace(&mut spec, json!({ "type": "user" }));
    spec["linux"]["uidMappings"] = common::mapping(200_000);
    spec["linux"]["gidMappings"] = common::mapping(200_000);
    for path in ["", "rootfs", "rootfs/bin"] {
        std::os::unix::fs::chown(bundle.0.path().join(path), Some(200_000), Some(200_000)).unwrap();
    }
    spec["hooks"] = json!({ "createContainer": [hook(&bundle, "user", "$(id -u)")] });
    create(&bundle, "mapped", &spec).unwrap().delete().unwrap();
    assert_eq!(log(&bundle), "user \"status\":\"creating\" red 0\n");
}

#[test]
fn a_hook_may_have_all_the_time_there_is() {
    let Some(bundle) = bundle() else { return };
    let mut spec = spec("true");
    spec["hooks"] = json!({ "prestart": [{ "path": "/bin/true", "timeout": i64::MAX }] });
    create(&bundle, "patient", &spec).unwrap().delete().unwrap();
}
