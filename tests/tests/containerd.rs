//! Pods under a real containerd, by `ctr` and by its CRI: real guests, a network of CNI's, a registry that wants a password.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use k8s_cri::v1::{
    ContainerConfig, ContainerState, ContainerStatsRequest, DnsConfig, Int64Value, KeyValue, LinuxContainerResources,
    Mount, NamespaceMode, NamespaceOption, UpdateContainerResourcesRequest,
};
use nacre_tests::cri::Cri;
use nacre_tests::node::Node;

/// How long something may take that is only waited for.
const PATIENCE: Duration = Duration::from_secs(60);

fn run(test: impl AsyncFnOnce()) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
}

/// Waits until `what` holds.
fn eventually(what: impl Fn() -> bool, why: impl Fn() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !what() {
        assert!(Instant::now() < deadline, "{}", why());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Nothing of any pod is left on the node.
fn assert_nothing_left(node: &Node) {
    let nothing = || {
        node.pods().is_empty()
            && node.processes("containerd-shim-nacre-v2").is_empty()
            && node.processes("qemu-system-x86_64").is_empty()
    };
    eventually(nothing, || {
        format!(
            "left: pods {:?}, shims {:?}, VMs {:?}",
            node.pods(),
            node.processes("containerd-shim-nacre-v2"),
            node.processes("qemu-system-x86_64")
        )
    });
}

const RUNTIME: [&str; 2] = ["--runtime", "io.containerd.nacre.v2"];

#[test]
fn vm_a_pod_has_containers_by_the_cri() {
    let Some(node) = Node::start().unwrap() else { return };
    run(async || {
        let mut cri = Cri::connect(node.socket()).await.unwrap();
        let logs = node.dir.path().join("logs");
        let pod = cri.run_pod("web", &logs, |_| {}).await.unwrap();
        let first = "echo first says $FROM; echo to stderr >&2; trap 'exit 3' TERM; while :; do sleep 0.1; done";
        let one = cri.create(&pod, "one", &node.image(), first, |_| {}).await.unwrap();
        let two = cri.create(&pod, "two", &node.image(), "sleep 1000", |_| {}).await.unwrap();
        cri.start(&one).await.unwrap();
        cri.start(&two).await.unwrap();
        assert_eq!(cri.status(&one).await.unwrap().state(), ContainerState::ContainerRunning);
        // Both are in one guest, on the pod's network, under the pod's name.
        assert_eq!(cri.says(&one, "hostname").await.unwrap(), "web\n");
        let boot = "cat /proc/sys/kernel/random/boot_id";
        assert_eq!(cri.says(&one, boot).await.unwrap(), cri.says(&two, boot).await.unwrap());
        assert_ne!(cri.says(&one, boot).await.unwrap(), fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap());
        assert!(cri.says(&two, "ip -4 addr show eth0").await.unwrap().contains("inet 10.88.7."));
        let ended = cri.exec(&one, "echo out; echo err >&2; exit 5").await.unwrap();
        assert_eq!((ended.exit_code, &ended.stdout[..], &ended.stderr[..]), (5, &b"out\n"[..], &b"err\n"[..]));
        // The log is as the kubelet expects it.
        let log = fs::read_to_string(logs.join("one.log")).unwrap();
        assert!(log.contains("stdout F first says image") && log.contains("stderr F to stderr"), "{log}");
        cri.stop(&one, 10).await.unwrap();
        let status = cri.status(&one).await.unwrap();
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 3));
        assert_eq!(cri.status(&two).await.unwrap().state(), ContainerState::ContainerRunning);
        cri.remove(&one).await.unwrap();
        cri.remove_pod(&pod).await.unwrap();
    });
    assert_nothing_left(&node);
}

#[test]
fn vm_volumes_reach_the_guest_and_changes_of_them_too() {
    let Some(node) = Node::start().unwrap() else { return };
    run(async || {
        let mut cri = Cri::connect(node.socket()).await.unwrap();
        let pod = cri.run_pod("vol", &node.dir.path().join("logs"), |_| {}).await.unwrap();
        // As the kubelet writes a ConfigMap: the files behind a link that is replaced.
        let volumes = node.dir.path().join("volumes");
        let map = volumes.join("kubernetes.io~configmap/map");
        let write = |version: &str, text: &str| {
            fs::create_dir_all(map.join(version)).unwrap();
            fs::write(map.join(version).join("key"), text).unwrap();
            let new = map.join("..data_tmp");
            std::os::unix::fs::symlink(version, &new).unwrap();
            fs::rename(&new, map.join("..data")).unwrap();
        };
        write("..1", "before\n");
        std::os::unix::fs::symlink("..data/key", map.join("key")).unwrap();
        let empty = volumes.join("kubernetes.io~empty-dir/scratch");
        fs::create_dir_all(&empty).unwrap();
        let last = node.dir.path().join("termination-log");
        fs::write(&last, "").unwrap();
        let mount = |container: &str, host: &std::path::Path, readonly: bool| Mount {
            container_path: container.into(),
            host_path: host.display().to_string(),
            readonly,
            ..Mount::default()
        };
        let mounts =
            [mount("/map", &map, true), mount("/scratch", &empty, false), mount("/dev/termination-log", &last, false)];
        let script =
            "echo it was $(cat /map/key) > /dev/termination-log; while [ ! -e /scratch/end ]; do sleep 0.1; done";
        let one =
            cri.create(&pod, "one", &node.image(), script, |config| config.mounts = mounts[..3].into()).await.unwrap();
        let two = cri
            .create(&pod, "two", &node.image(), "sleep 1000", |config| config.mounts = mounts[1..2].into())
            .await
            .unwrap();
        cri.start(&one).await.unwrap();
        cri.start(&two).await.unwrap();
        assert_eq!(cri.says(&one, "cat /map/key; touch /map/x").await.unwrap().lines().next(), Some("before"));
        write("..2", "after\n");
        let deadline = Instant::now() + PATIENCE;
        while cri.says(&one, "cat /map/key").await.unwrap() != "after\n" {
            assert!(Instant::now() < deadline, "the change of the volume did not come");
        }
        // What is empty on the host is the pod's own, and shared.
        cri.exec(&two, "touch /scratch/end").await.unwrap();
        while cri.status(&one).await.unwrap().state() != ContainerState::ContainerExited {
            assert!(Instant::now() < deadline, "the container does not end");
        }
        assert_eq!(fs::read_dir(&empty).unwrap().count(), 0, "the host sees nothing of it");
        assert_eq!(fs::read_to_string(&last).unwrap(), "it was before\n");
        // A directory of the host's is not shared, and the pod goes on.
        let host = [mount("/host", node.dir.path(), false)];
        let three =
            cri.create(&pod, "three", &node.image(), "true", |config| config.mounts = host.into()).await.unwrap();
        let refused = format!("{:#}", cri.start(&three).await.unwrap_err());
        assert!(refused.contains("/host") && refused.contains("writable directory of the host's"), "{refused}");
        assert_eq!(cri.says(&two, "echo on").await.unwrap(), "on\n");
        cri.remove_pod(&pod).await.unwrap();
    });
    assert_nothing_left(&node);
}

#[test]
fn vm_ctr_runs_containers_in_guests_of_their_own() {
    let Some(node) = Node::start().unwrap() else { return };
    // Without a network of CNI's the VMM's own leads to the node's loopback.
    let image = node.registry.from_guest(nacre_tests::node::IMAGE);
    let args = |rest: &[&str]| -> Vec<String> {
        ["run"].iter().chain(&RUNTIME).chain(rest).map(|arg| (*arg).to_string()).collect()
    };
    let mut copy = node
        .ctr_command("default")
        .args(args(&["--rm", &image, "copy", "sh", "-c", "wc -c; echo err >&2; exit 7"]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = copy.stdin.take().unwrap().write_all(&vec![b'x'; 3_000_000]); // one that failed reads nothing, and says why
    let copied = copy.wait_with_output().unwrap();
    assert_eq!(
        (copied.status.code(), String::from_utf8_lossy(&copied.stdout).trim()),
        (Some(7), "3000000"),
        "{copied:?}"
    );
    assert!(String::from_utf8_lossy(&copied.stderr).contains("err"), "{copied:?}");
    let started = node
        .ctr("default", args(&["-d", &image, "long", "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done"]));
    let started = started.unwrap();
    assert!(started.status.success(), "{started:?}");
    let task = |rest: &[&str]| node.ctr("default", ["task"].iter().chain(rest)).unwrap();
    let ended = task(&[
        "exec",
        "--exec-id",
        "one",
        "long",
        "sh",
        "-c",
        "dd if=/dev/zero bs=1024 count=5000 2>/dev/null; exit 5",
    ]);
    assert_eq!((ended.status.code(), ended.stdout.len()), (Some(5), 5_120_000));
    let says = |output: std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(task(&["pause", "long"]).status.success());
    assert!(says(task(&["ls"])).contains("PAUSED"));
    assert!(task(&["resume", "long"]).status.success());
    let metrics = says(task(&["metrics", "--format", "json", "long"]));
    assert!(metrics.contains("\"usage\"") && metrics.contains("memory"), "{metrics}");
    assert!(task(&["kill", "-s", "TERM", "long"]).status.success());
    eventually(|| says(task(&["ls"])).contains("STOPPED"), || "the container does not end".into());
    let removed = task(&["rm", "long"]);
    assert!(String::from_utf8_lossy(&removed.stderr).contains("exit code 3"), "{removed:?}");
    assert_nothing_left(&node);
    // What a guest can't have is said, and nothing is left of it.
    let hooks = node.ctr("default", args(&["--rm", "--net-host", &image, "host", "true"])).unwrap();
    assert!(String::from_utf8_lossy(&hooks.stderr).contains("can't have the host's network"), "{hooks:?}");
    assert_nothing_left(&node);
}

/// A pod with a container that runs.
async fn pod_with_container(node: &Node, name: &str) -> (Cri, nacre_tests::cri::Pod, String) {
    let mut cri = Cri::connect(node.socket()).await.unwrap();
    let pod = cri.run_pod(name, &node.dir.path().join("logs"), |_| {}).await.unwrap();
    let script = "n=0; while :; do n=$((n+1)); echo line $n; sleep 0.2; done";
    let container = cri.create(&pod, "one", &node.image(), script, |_| {}).await.unwrap();
    cri.start(&container).await.unwrap();
    (cri, pod, container)
}

async fn until_exited(cri: &mut Cri, container: &str) -> i32 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = cri.status(container).await.unwrap();
        if status.state() == ContainerState::ContainerExited {
            return status.exit_code;
        }
        assert!(Instant::now() < deadline, "the container does not end: {status:?}");
    }
}

fn kill(pids: &[u32]) {
    let [pid] = pids else { panic!("one process is to be killed: {pids:?}") };
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn vm_a_shim_that_is_killed_leaves_nothing_once_containerd_has_noticed() {
    let Some(node) = Node::start().unwrap() else { return };
    run(async || {
        let (mut cri, pod, container) = pod_with_container(&node, "shim").await;
        kill(&node.processes("containerd-shim-nacre-v2"));
        assert_ne!(until_exited(&mut cri, &container).await, 0, "nobody saw how it ended");
        eventually(|| node.pods().is_empty(), || format!("left: {:?}", node.pods()));
        assert!(node.processes("qemu-system-x86_64").is_empty(), "the VM goes with its shim");
        cri.remove_pod(&pod).await.unwrap();
        // The node is as good as before.
        let (mut cri, pod, container) = pod_with_container(&node, "next").await;
        assert_eq!(cri.says(&container, "echo on").await.unwrap(), "on\n");
        cri.remove_pod(&pod).await.unwrap();
    });
    assert_nothing_left(&node);
}

#[test]
fn vm_a_vm_that_is_killed_ends_its_containers() {
    let Some(node) = Node::start().unwrap() else { return };
    run(async || {
        let (mut cri, pod, container) = pod_with_container(&node, "vmm").await;
        kill(&node.processes("qemu-system-x86_64"));
        assert_eq!(until_exited(&mut cri, &container).await, 137);
        let gone = format!("{:#}", cri.exec(&container, "true").await.unwrap_err());
        assert!(gone.contains("EXITED"), "{gone}");
        cri.remove(&container).await.unwrap();
        cri.remove_pod(&pod).await.unwrap();
    });
    assert_nothing_left(&node);
}

#[test]
fn vm_containers_outlive_containerd() {
    let Some(mut node) = Node::start().unwrap() else { return };
    run(async || {
        let (mut cri, pod, container) = pod_with_container(&node, "outlive").await;
        let boot = cri.says(&container, "cat /proc/sys/kernel/random/boot_id").await.unwrap();
        drop(cri);
        node.restart_containerd().unwrap();
        let mut cri = Cri::connect(node.socket()).await.unwrap();
        assert_eq!(cri.status(&container).await.unwrap().state(), ContainerState::ContainerRunning);
        assert_eq!(cri.says(&container, "cat /proc/sys/kernel/random/boot_id").await.unwrap(), boot);
        cri.stop(&container, 0).await.unwrap();
        assert_eq!(cri.status(&container).await.unwrap().exit_code, 137);
        cri.remove_pod(&pod).await.unwrap();
    });
    assert_nothing_left(&node);
}

#[test]
fn vm_containers_may_share_processes_and_outlive_each_other() {
    let Some(node) = Node::start().unwrap() else { return };
    run(async || {
        let mut cri = Cri::connect(node.socket()).await.unwrap();
        let pod = cri.run_pod("share", &node.dir.path().join("logs"), |_| {}).await.unwrap();
        let shared = |config: &mut ContainerConfig| {
            let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
            context.namespace_options =
                Some(NamespaceOption { pid: NamespaceMode::Pod.into(), ..NamespaceOption::default() });
        };
        let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
        let one = cri.create(&pod, "one", &node.image(), script, shared).await.unwrap();
        let two = cri.create(&pod, "two", &node.image(), "sleep 12345", shared).await.unwrap();
        let alone = cri.create(&pod, "alone", &node.image(), "sleep 1000", |_| {}).await.unwrap();
        for id in [&one, &two, &alone] {
            cri.start(id).await.unwrap();
        }
        assert!(cri.says(&one, "ps").await.unwrap().contains("sleep 12345"), "one sees the other's processes");
        assert!(!cri.says(&alone, "ps").await.unwrap().contains("sleep 12345"), "who does not share sees only its own");
        cri.stop(&one, 10).await.unwrap();
        assert!(cri.says(&two, "ps").await.unwrap().contains("sleep 12345"), "the other goes on");
        cri.remove_pod(&pod).await.unwrap();
    });
    assert_nothing_left(&node);
}

#[test]
fn vm_streams_are_a_persons_terminal() {
    let Some(node) = Node::start().unwrap() else { return };
    run(async || {
        let (mut cri, pod, container) = pod_with_container(&node, "streams").await;
        let mut shell = cri.exec_stream(&container, &["sh"], true).await.unwrap();
        shell.resize(91, 27).unwrap();
        shell.write(b"stty size; tty\n").unwrap();
        let seen = shell.read_until("/dev/pts/").unwrap();
        assert!(seen.contains("27 91"), "{seen}");
        shell.write(b"exit 4\n").unwrap();
        let end = shell.read_until("ended: ").unwrap();
        let end = if end.contains("exit") { end } else { end + &shell.read_until("}").unwrap_or_default() };
        assert!(end.contains('4'), "{end}");
        let mut plain =
            cri.exec_stream(&container, &["sh", "-c", "read line; echo got $line; echo err >&2"], false).await.unwrap();
        plain.write(b"this\n").unwrap();
        plain.read_until("got this").unwrap();
        let mut attached = cri.attach(&container).await.unwrap();
        attached.read_until("line ").unwrap();
        drop(attached);
        assert_eq!(cri.says(&container, "echo on").await.unwrap(), "on\n", "who lets go ends nothing");
        cri.remove_pod(&pod).await.unwrap();
    });
    assert_nothing_left(&node);
}

#[test]
fn vm_limits_sysctls_names_and_terminals_are_the_containers() {
    let Some(node) = Node::start().unwrap() else { return };
    run(async || {
        let mut cri = Cri::connect(node.socket()).await.unwrap();
        let pod = cri
            .run_pod("conf", &node.dir.path().join("logs"), |config| {
                let servers = ["10.88.7.53".to_string()];
                config.dns_config =
                    Some(DnsConfig { servers: servers.into(), searches: vec!["pods.example".into()], options: vec![] });
                let linux = config.linux.as_mut().unwrap();
                linux.sysctls = [("kernel.shm_rmid_forced".to_string(), "1".to_string())].into();
            })
            .await
            .unwrap();
        let id = cri
            .create(&pod, "one", &node.image(), "sleep 1000", |config| {
                config.envs = vec![KeyValue { key: "OWN".into(), value: "yes".into() }];
                config.working_dir = "/tmp".into();
                let linux = config.linux.as_mut().unwrap();
                linux.resources = Some(LinuxContainerResources {
                    memory_limit_in_bytes: 64 << 20,
                    cpu_quota: 50_000,
                    cpu_period: 100_000,
                    ..LinuxContainerResources::default()
                });
                let context = linux.security_context.as_mut().unwrap();
                context.run_as_user = Some(Int64Value { value: 1234 });
                context.readonly_rootfs = true;
                context.no_new_privs = true;
            })
            .await
            .unwrap();
        cri.start(&id).await.unwrap();
        let says = cri.says(&id, "id -u; pwd; echo $OWN $FROM; touch /x 2>&1; cat /etc/resolv.conf; cat /proc/sys/kernel/shm_rmid_forced").await.unwrap();
        let expected =
            "1234\n/tmp\nyes image\ntouch: /x: Read-only file system\nsearch pods.example\nnameserver 10.88.7.53\n1\n";
        assert_eq!(says, expected);
        let limit = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max";
        assert_eq!(cri.says(&id, limit).await.unwrap(), format!("{}\n50000 100000\n", 64 << 20));
        let resources = LinuxContainerResources {
            memory_limit_in_bytes: 96 << 20,
            cpu_quota: 20_000,
            cpu_period: 100_000,
            ..LinuxContainerResources::default()
        };
        let request =
            UpdateContainerResourcesRequest { container_id: id.clone(), linux: Some(resources), ..Default::default() };
        cri.runtime.update_container_resources(request).await.unwrap();
        assert_eq!(cri.says(&id, limit).await.unwrap(), format!("{}\n20000 100000\n", 96 << 20));
        let request = ContainerStatsRequest { container_id: id.clone() };
        let stats = cri.runtime.container_stats(request).await.unwrap().into_inner().stats.unwrap();
        assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0);
        assert!(stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 0);
        cri.remove_pod(&pod).await.unwrap();
    });
    assert_nothing_left(&node);
}

#[test]
fn vm_a_guest_that_does_not_come_up_is_said_and_undone() {
    let Some(node) = Node::start().unwrap() else { return };
    run(async || {
        let mut cri = Cri::connect(node.socket()).await.unwrap();
        let logs = node.dir.path().join("logs");
        let config = node.dir.path().join("shim.toml");
        let good = fs::read_to_string(&config).unwrap();
        fs::write(&config, good.replace("minimal.initrd", "nothing.initrd")).unwrap();
        let refused = format!("{:#}", cri.run_pod("none", &logs, |_| {}).await.unwrap_err());
        assert!(refused.contains("the guest image is missing") && refused.contains("nothing.initrd"), "{refused}");
        assert_nothing_left(&node);
        // The sandbox is made before the guest is there: one that never comes ends it.
        let kernel = node.dir.path().join("kernel");
        fs::write(&kernel, "no kernel").unwrap();
        let dist = nacre_tests::dist::dist().unwrap().join("share/nacre/vmlinux");
        fs::write(&config, good.replace(dist.to_str().unwrap(), kernel.to_str().unwrap())).unwrap();
        let pod = cri.run_pod("dead", &logs, |_| {}).await.unwrap();
        eventually(|| node.log().contains("boot the VM: QEMU says"), || node.log());
        cri.remove_pod(&pod).await.unwrap();
        assert_nothing_left(&node);
        // A configuration that is none is refused at once.
        fs::write(&config, "[vm]\nmemoy = 1\n").unwrap();
        let refused = format!("{:#}", cri.run_pod("bad", &logs, |_| {}).await.unwrap_err());
        assert!(refused.contains("memoy"), "{refused}");
        fs::write(&config, good).unwrap();
        let refused = cri
            .run_pod("more", &logs, |config| {
                config.annotations.insert("dev.nacre.vm.cpus".into(), "4".into());
            })
            .await;
        assert!(format!("{:#}", refused.unwrap_err()).contains("the host does not allow it"));
    });
    assert_nothing_left(&node);
}

/// What a server on this node says to a GET.
fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_string())
}

#[test]
fn the_alert_rules_are_rules() {
    if !nacre_tests::dist::have(&["promtool"]) {
        return;
    }
    let rules = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/alerts.yml");
    let checked = std::process::Command::new("promtool").args(["check", "rules"]).arg(rules).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn vm_prometheus_has_the_metrics_of_all_pods() {
    let Some(node) = Node::start().unwrap() else { return };
    if !nacre_tests::dist::have(&["prometheus"]) {
        return;
    }
    run(async || {
        let (mut cri, pod, container) = pod_with_container(&node, "measured").await;
        let [ours, theirs] = [(); 2].map(|()| format!("127.0.0.1:{}", nacre_tests::registry::free_port().unwrap()));
        let nacre = nacre_tests::dist::dist().unwrap().join("bin/nacre");
        let mut monitor = std::process::Command::new(nacre);
        let mut monitor =
            monitor.args(["monitor", "--listen", &ours, "--pods"]).arg(node.dir.path().join("shim")).spawn().unwrap();
        let config = node.dir.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: nacre\n  static_configs: [{{targets: ['{ours}']}}]\n"
        );
        fs::write(&config, text).unwrap();
        let mut prometheus = std::process::Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", node.dir.path().join("prometheus").display()))
            .arg(format!("--web.listen-address={theirs}"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let has = |name: &str| {
            let query = format!("/api/v1/query?query={name}%7Bsandbox_id%3D%22{}%22%7D", pod.id);
            get(&theirs, &query).is_some_and(|answer| answer.contains("\"value\":["))
        };
        let names = [
            "kata_shim_threads",
            "kata_hypervisor_fds",
            "kata_guest_load",
            "kata_agent_threads",
            "kata_shim_pod_overhead_memory_in_bytes",
        ];
        for name in names {
            eventually(|| has(name), || format!("Prometheus has no {name}: {:?}", get(&ours, "/metrics")));
        }
        assert_eq!(get(&ours, "/sandboxes").unwrap(), format!("{}\n", pod.id));
        assert!(get(&ours, &format!("/agent-url?sandbox={}", pod.id)).unwrap().starts_with("hvsock://"));
        assert!(get(&ours, "/metrics?sandbox=../x").unwrap().contains("is no name"));
        for child in [&mut monitor, &mut prometheus] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(cri.says(&container, "echo on").await.unwrap(), "on\n");
        cri.remove_pod(&pod).await.unwrap();
    });
    assert_nothing_left(&node);
}
