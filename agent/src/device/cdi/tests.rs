//! Files of the tests' making.

use std::time::Duration;

use oci_spec::runtime::{LinuxDeviceType, Process};

use super::*;
use crate::device::tests::Machine;

const KIND: &str = "example.com/gpu";

/// Devices whose files are in a directory of the machine's.
fn devices(machine: &Machine, seconds: u64, by_variable: bool) -> Devices {
    let directories = vec![machine.sys().join("run"), machine.sys().join("etc")];
    machine.devices(Duration::ZERO).with_cdi(Settings {
        directories,
        patience: Duration::from_secs(seconds),
        by_variable,
    })
}

fn spec(annotations: &[(&str, &str)], env: &[&str]) -> Spec {
    let mut spec = Spec::default();
    let annotations = annotations.iter().map(|(key, value)| ((*key).into(), (*value).into()));
    spec.set_annotations(Some(annotations.collect()));
    let mut process = Process::default();
    process.set_env(Some(env.iter().map(|variable| (*variable).into()).collect()));
    spec.set_process(Some(process));
    spec.set_mounts(None);
    spec
}

fn env(spec: &Spec) -> Vec<String> {
    spec.process().as_ref().unwrap().env().clone().unwrap()
}

fn named(device: &str) -> Spec {
    spec(&[("cdi.k8s.io/a", &format!("{KIND}={device}"))], &[])
}

/// A file with devices that each set a variable.
fn file(devices: &[&str]) -> String {
    let device = |name: &&str| serde_json::json!({ "name": name, "containerEdits": { "env": [format!("D{name}=1")] } });
    let devices: Vec<_> = devices.iter().map(device).collect();
    let edits = serde_json::json!({ "env": ["ALL=1"] });
    serde_json::json!({ "cdiVersion": "0.8.0", "kind": KIND, "devices": devices, "containerEdits": edits }).to_string()
}

#[tokio::test]
async fn a_container_gets_what_the_file_says_of_its_device() {
    let machine = Machine::new();
    machine.file(
        "sys/run/gpu.json",
        r#"{
            "cdiVersion": "0.7.0",
            "kind": "example.com/gpu",
            "containerEdits": { "env": ["ONE=two", "NEW=1"], "additionalGids": [44] },
            "devices": [{
                "name": "0",
                "annotations": { "a": "b" },
                "containerEdits": {
                    "deviceNodes": [
                        { "path": "/dev/gpu0", "hostPath": "/dev/null", "permissions": "rw" },
                        { "path": "/dev/gpuctl", "type": "c", "major": 195, "minor": 255, "uid": 7 }
                    ],
                    "mounts": [
                        { "hostPath": "/usr/lib/gpu.so", "containerPath": "/lib/gpu.so", "options": ["ro", "bind"] }
                    ]
                }
            }]
        }"#,
    );
    let mut spec = spec(&[("cdi.k8s.io/vfio0", "example.com/gpu=0"), ("other", "x")], &["ONE=1", "TWO=2"]);
    devices(&machine, 0, false).inject(&mut spec).await.unwrap();
    assert_eq!(env(&spec), ["TWO=2", "ONE=two", "NEW=1"]);
    assert_eq!(spec.process().as_ref().unwrap().user().additional_gids().as_deref(), Some(&[44][..]));
    let mount = spec.mounts().as_ref().unwrap().first().unwrap();
    assert_eq!(
        (mount.source().as_deref(), mount.destination().as_path()),
        (Some("/usr/lib/gpu.so".as_ref()), "/lib/gpu.so".as_ref())
    );
    let nodes = spec.linux().as_ref().unwrap().devices().as_ref().unwrap();
    let node = |node: &oci_spec::runtime::LinuxDevice| {
        (node.path().to_str().unwrap().to_string(), node.typ(), node.major(), node.minor(), node.uid())
    };
    let nodes: Vec<_> = nodes.iter().map(node).collect();
    assert_eq!(
        nodes,
        [
            ("/dev/gpu0".into(), LinuxDeviceType::C, 1, 3, None),
            ("/dev/gpuctl".into(), LinuxDeviceType::C, 195, 255, Some(7)),
        ]
    );
}

#[tokio::test]
async fn a_file_is_waited_for() {
    let machine = Machine::new();
    machine.dir("sys/run");
    machine.file("sys/run/half.json", "{\"cdiVersion\": \"0.5"); // somebody is writing it
    let mut spec = named("0");
    let error = devices(&machine, 0, false).inject(&mut spec).await.unwrap_err();
    assert!(error.is_deadline() && error.to_string().contains("CDI device example.com/gpu=0 is not there"), "{error}");
    assert!(error.to_string().contains("half.json"), "{error}");
    machine.file("sys/run/old.yaml", "kind: example.com/gpu");
    let error = devices(&machine, 0, false).inject(&mut spec).await.unwrap_err().to_string();
    assert!(error.contains("old.yaml") && error.contains("YAML is not read"), "{error}");
    let waiting = devices(&machine, 60, false);
    let waiting = tokio::spawn(async move { waiting.inject(&mut spec).await.map(|()| spec) });
    machine.file("sys/run/other.json", &file(&["0"]).replace(KIND, "example.com/nic"));
    machine.file("sys/run/gpu.json", &file(&["0"]));
    assert_eq!(env(&waiting.await.unwrap().unwrap()), ["ALL=1", "D0=1"]);
}

#[tokio::test]
async fn devices_are_named_in_annotations_and_where_allowed_in_a_variable() {
    let machine = Machine::new();
    machine.file("sys/etc/gpu.json", &file(&["0", "1", "2"]));
    let visible = "VISIBLE_CDI_DEVICES=example.com/gpu=1,2";
    for (annotations, variable, by_variable, expected) in [
        (vec![("cdi.k8s.io/b", "example.com/gpu=1"), ("cdi.k8s.io/a", "example.com/gpu=0")], "", false, "ALL D0 D1"),
        (vec![("cdi.k8s.io/a", "example.com/gpu=0,example.com/gpu=1")], visible, false, "ALL D0 D1"),
        (vec![], visible, true, "ALL D1 D2"),
        (vec![], "VISIBLE_CDI_DEVICES=example.com/gpu=0:example.com/gpu=1", true, "ALL D0 D1"),
        (vec![], "VISIBLE_CDI_DEVICES=example.com/gpu=all", true, "ALL D0 D1 D2"),
        (vec![], "VISIBLE_CDI_DEVICES=void", true, ""),
        (vec![("cdi.k8s.io/a", "example.com/gpu=9"), ("io.kubernetes.cri.container-type", "sandbox")], "", false, ""),
    ] {
        let mut spec = spec(&annotations, &[variable]);
        devices(&machine, 0, by_variable).inject(&mut spec).await.unwrap();
        let names: Vec<_> = env(&spec).iter().skip(1).map(|variable| variable.replace("=1", "")).collect();
        assert_eq!(names.join(" "), expected, "{annotations:?} {variable}");
    }
}

#[tokio::test]
async fn a_file_of_the_first_directory_counts_before_others() {
    let machine = Machine::new();
    machine.file("sys/etc/gpu.json", &file(&["0"]).replace("D0", "ETC").replace("ALL", "NONE"));
    machine.file("sys/run/gpu.json", &file(&["0"]));
    let mut spec = named("0");
    devices(&machine, 0, false).inject(&mut spec).await.unwrap();
    assert_eq!(env(&spec), ["ALL=1", "D0=1"]);
}

#[tokio::test]
async fn what_cannot_be_given_is_refused_at_once() {
    let machine = Machine::new();
    let path = "sys/run/gpu.json";
    machine.file(path, &file(&["0"]));
    let refused = async |device: &str| devices(&machine, 3600, false).inject(&mut named(device)).await.unwrap_err();
    for name in ["1", "", "a b", "../0", &"0".repeat(200)] {
        let error = refused(name).await;
        assert!(error.is_invalid(), "{error}");
    }
    for (edits, reason) in [
        (r#""hooks": [{"hookName": "createContainer", "path": "/bin/sh"}]"#, "hooks"),
        (r#""intelRdt": {}"#, "intelRdt"),
        (r#""netDevices": []"#, "netDevices"),
    ] {
        machine.file(path, &file(&["0"]).replace(r#""env":["ALL=1"]"#, edits));
        let error = refused("0").await;
        assert!(error.is_unimplemented() && error.to_string().contains(reason), "{error}");
    }
    machine.file(path, &file(&["0"]).replace("0.8.0", "2.0.0"));
    assert!(refused("0").await.to_string().contains("cdiVersion \"2.0.0\""));
    let node = r#""deviceNodes": [{"path": "/dev/nonexistent"}]"#;
    machine.file(path, &file(&["0"]).replace(r#""env":["ALL=1"]"#, node));
    assert!(refused("0").await.to_string().contains("find device \"/dev/nonexistent\""));
    let many = vec!["example.com/gpu=0"; MAX_DEVICES + 1].join(",");
    let error = devices(&machine, 3600, false).inject(&mut spec(&[("cdi.k8s.io/a", &many)], &[])).await.unwrap_err();
    assert!(error.is_invalid(), "{error}");
}
