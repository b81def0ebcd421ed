//! The `nacre` command, from the outside: real guests, a real registry, and what a person would see.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nacre_tests::dist;
use nacre_tests::image::{Compression, Image, Layer, busybox};
use nacre_tests::registry::Registry;
use serde_json::json;

/// What each test needs: the command, a registry, and a directory for its pods.
struct World {
    nacre: PathBuf,
    registry: Registry,
    dir: tempfile::TempDir,
}

impl World {
    fn new(credentials: Option<(&str, &str)>) -> Option<World> {
        let dist = dist::dist()?;
        let programs = ["qemu-system-x86_64", "busybox", "docker-registry", "skopeo", "openssl", "htpasswd"];
        if !dist::have(&programs) {
            return None;
        }
        let registry = Registry::start(credentials).unwrap();
        Some(World { nacre: dist.join("bin/nacre"), registry, dir: tempfile::tempdir().unwrap() })
    }

    /// Makes and pushes an image of three layers, one for each compression.
    fn push(
        &self,
        name: &str,
        config: serde_json::Value,
        credentials: Option<(&str, &str)>,
    ) -> nacre_tests::image::Written {
        let people = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/srv:/bin/sh\n";
        let image = Image::new(config)
            .layer(busybox().unwrap().finish().unwrap(), Compression::Gzip)
            .layer(
                Layer::default().file("etc/passwd", 0o644, people.as_bytes()).unwrap().finish().unwrap(),
                Compression::Zstd,
            )
            .layer(
                Layer::default().file("srv/hello", 0o644, b"from the third layer\n").unwrap().finish().unwrap(),
                Compression::None,
            );
        let layout = self.dir.path().join(name.replace([':', '/'], "-"));
        let written = image.write(&layout).unwrap();
        self.registry.push(&layout, name, credentials).unwrap();
        written
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.nacre);
        command.arg("--state-dir").arg(self.state()).args(args).stdin(Stdio::null());
        command
    }

    fn run_args<'a>(&'a self, options: &[&'a str], ca: &'a str) -> Vec<&'a str> {
        [&["run", "--accel", "tcg", "--tls-ca", ca], options].concat()
    }

    fn run(&self, args: &[&str]) -> Output {
        let ca = self.registry.ca();
        self.command(&self.run_args(args, ca.to_str().unwrap())).output().unwrap()
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn image(&self, name: &str) -> String {
        self.registry.from_guest(name)
    }

    /// Nothing of any pod is left.
    fn assert_clean(&self) {
        let left: Vec<_> = fs::read_dir(self.state()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(self.processes(), 0);
    }

    /// VMs of this test that live: those whose command line names its directory.
    fn processes(&self) -> usize {
        let dir = self.state().display().to_string();
        let alive = |pid: &PathBuf| {
            let state = fs::read_to_string(pid.join("stat")).unwrap_or_default();
            let zombie = state.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'));
            let line = fs::read(pid.join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            !zombie && line.contains(&dir) && line.contains("qemu-system")
        };
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok().map(|e| e.path())).filter(alive).count()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until `done`, for at most half a minute.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within 30 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn vm_run_gives_output_codes_and_the_images_own_settings() {
    let Some(world) = World::new(None) else { return };
    let config = json!({ "Entrypoint": ["sh", "-c"], "Cmd": ["cat hello; id -un; pwd; echo $COLOUR"], "User": "web",
                         "WorkingDir": "/srv", "Env": ["PATH=/bin", "COLOUR=blue"] });
    world.push("app:1", config, None);
    let image = world.image("app:1");
    let output = world.run(&["-q", &image]);
    assert_eq!(text(&output.stdout), "from the third layer\nweb\n/srv\nblue\n", "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(0));

    let shared = world.dir.path().join("shared");
    fs::write(&shared, "shared\n").unwrap();
    let volume = format!("{}:/in/file:ro", shared.display());
    let script = "echo $COLOUR; id -u; cat /in/file; echo > /in/file || exit 42";
    let output = world.run(&["-e", "COLOUR=red", "-u", "0", "-v", &volume, &image, script]);
    assert_eq!(text(&output.stdout), "red\n0\nshared\n");
    assert_eq!(output.status.code(), Some(42));
    let said = text(&output.stderr);
    assert!(
        said.contains("nacre: boot: ") && said.contains("nacre: pull: ") && said.contains("3 layers, sha256:"),
        "{said}"
    );
    world.assert_clean();
}

#[test]
fn vm_what_fails_says_so_in_one_line_and_leaves_nothing() {
    let Some(world) = World::new(Some(("user", "secret"))) else { return };
    let credentials = Some(("user", "secret"));
    let written = world.push("app:1", json!({ "Cmd": ["true"], "Env": ["PATH=/bin"] }), credentials);
    let file = |name: &str, content: &str| {
        let path = world.dir.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let (right, wrong) = (file("right", "user:secret\n"), file("wrong", "user:guess\n"));
    let image = world.image("app:1");
    let missing = world.image("app:2");
    let junk = file("junk", "no kernel");
    let expect = |what: &str, output: &Output, code: i32, words: &[&str]| {
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{what}: {said}");
        assert!(words.iter().all(|word| said.contains(word)), "{what}: {said}");
        assert_eq!(said.lines().filter(|line| line.starts_with("nacre: ")).count(), 1, "{what}: {said}");
        world.assert_clean();
    };
    let good = ["-q", "--creds-file", &right];
    let run = |options: &[&str]| world.run(&[&good, options].concat());

    expect("no such image", &run(&[&missing]), 125, &["are its name and tag right?"]);
    expect(
        "wrong password",
        &world.run(&["-q", "--creds-file", &wrong, &image]),
        125,
        &["are the user name and password right"],
    );
    let output = world.command(&["run", "-q", "--accel", "tcg", "--creds-file", &right, &image]).output().unwrap();
    expect("unknown authority", &output, 125, &["give its CA"]);
    expect("no such program", &run(&[&image, "nothing-here"]), 127, &["nothing-here", "No such file"]);
    expect("not a program", &run(&[&image, "/etc/passwd"]), 126, &["/etc/passwd", "Permission denied"]);
    expect("no kernel", &run(&["--kernel", &junk, "--boot-timeout", "5", &image]), 125, &["boot the VM"]);
    expect("too much memory", &run(&["--memory", "300T", &image]), 125, &["--memory"]);
    expect("no guest image", &run(&["--image", "/nowhere", &image]), 125, &["/nowhere", "make image"]);

    // A registry that serves other bytes than it says, of the same length.
    let blob = world.registry.blob(&written.layers[0]);
    let mut bytes = fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&blob, bytes).unwrap();
    expect("spoiled layer", &run(&[&image]), 125, &[&written.layers[0]]);
}

#[test]
fn vm_pods_have_from_the_host_what_it_has_and_check_it() {
    let Some(world) = World::new(None) else { return };
    world.push("app:1", json!({ "Cmd": ["cat", "/srv/hello"], "Env": ["PATH=/bin"] }), None);
    let (image, layout) = (world.image("app:1"), world.dir.path().join("app-1"));
    let run = || {
        let output = world.run(&["--blob-source", layout.to_str().unwrap(), &image]);
        assert_eq!(text(&output.stdout), "from the third layer\n", "{}", text(&output.stderr));
        text(&output.stderr)
    };
    let said = run();
    println!("{said}");
    assert_eq!(world.registry.fetched().unwrap().len(), 0, "{said}");

    // A host whose blobs have changed gets nobody to run them.
    for blob in fs::read_dir(layout.join("blobs/sha256")).unwrap() {
        let path = blob.unwrap().path();
        fs::write(&path, vec![b'{'; fs::metadata(&path).unwrap().len() as usize]).unwrap();
    }
    assert!(run().contains("has other bytes than its name says"));
    // Three layers and the configuration.
    assert_eq!(world.registry.fetched().unwrap().len(), 4);
    world.assert_clean();
}

#[test]
fn vm_a_pod_in_the_background_is_listed_joined_and_stopped() {
    let Some(world) = World::new(None) else { return };
    world.push("app:1", json!({ "Cmd": ["sh", "-c", "echo up; sleep 1000"], "Env": ["PATH=/bin"] }), None);
    let image = world.image("app:1");
    let output = world.run(&["-d", "--name", "web", "-q", &image]);
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("web\n", Some(0)), "{}", text(&output.stderr));

    let nacre = |args: &[&str]| world.command(args).output().unwrap();
    let list: serde_json::Value = serde_json::from_slice(&nacre(&["ps", "--json"]).stdout).unwrap();
    assert_eq!((&list[0]["name"], &list[0]["phase"]), (&json!("web"), &json!("running")));
    let output = nacre(&["exec", "web", "sh", "-c", "echo inside; echo beside >&2; exit 9"]);
    assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("inside\n", "beside\n"));
    assert_eq!(output.status.code(), Some(9));
    until("the log", || text(&nacre(&["logs", "web"]).stdout) == "up\n");
    assert!(text(&nacre(&["rm", "web"]).stderr).contains("stop it first"));
    assert_eq!(nacre(&["stop", "-t", "1", "web"]).status.code(), Some(0));
    let list: serde_json::Value = serde_json::from_slice(&nacre(&["ps", "--json"]).stdout).unwrap();
    assert_eq!(list[0]["exit_code"], json!(137));
    assert_eq!(nacre(&["rm", "web"]).status.code(), Some(0));
    until("the end of the VM", || world.processes() == 0);
    world.assert_clean();
}

/// Starts a run whose container says `up` and then waits; returns once it has.
fn waiting(world: &World) -> Child {
    world.push(
        "app:1",
        json!({ "Cmd": ["sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done"],
                                 "Env": ["PATH=/bin"] }),
        None,
    );
    let (ca, image) = (world.registry.ca(), world.image("app:1"));
    let mut command = world.command(&world.run_args(&["-q", &image], ca.to_str().unwrap()));
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut up = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    assert_eq!(&up, b"up\n");
    child
}

#[test]
fn vm_signals_reach_the_container() {
    let Some(world) = World::new(None) else { return };
    let mut child = waiting(&world);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    world.assert_clean();
}

#[test]
fn vm_a_killed_nacre_leaves_no_vm() {
    let Some(world) = World::new(None) else { return };
    let mut child = waiting(&world);
    assert_eq!(world.processes(), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    until("the end of the VM", || world.processes() == 0);
    // What it could not remove, the next command does.
    assert_eq!(text(&world.command(&["ps", "--json"]).output().unwrap().stdout), "[]\n");
    world.assert_clean();
}

#[test]
fn vm_a_terminal_is_a_usable_shell() {
    let Some(world) = World::new(None) else { return };
    world.push("app:1", json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"] }), None);
    let (ca, image) = (world.registry.ca(), world.image("app:1"));
    let (mut master, slave) = terminal();
    let mut command = world.command(&world.run_args(&["-it", &image], ca.to_str().unwrap()));
    command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave).process_group(0);
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut seen = String::new();
    let mut expect = |master: &mut File, words: &str| {
        let mut buffer = [0; 4096];
        while !seen.contains(words) {
            let n = master.read(&mut buffer).unwrap_or_else(|error| panic!("{error}, after {seen:?}"));
            seen.push_str(&text(&buffer[..n]));
        }
        seen.clear();
    };
    expect(&mut master, "# ");
    master.write_all(b"echo $((6 * 7)); stty size\n").unwrap();
    expect(&mut master, "42\r\n24 80\r\n");
    // A Ctrl-C is the program's only once the shell has made it the foreground: then it says so itself.
    master.write_all(b"sh -c 'echo r\"\"uns; exec sleep 100'\n").unwrap();
    expect(&mut master, "runs\r\n");
    master.write_all(b"\x03").unwrap(); // Ctrl-C ends the program, not the shell
    expect(&mut master, "# ");
    master.write_all(b"exit 5\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5));
    world.assert_clean();
}

/// A pseudo-terminal of 80 columns and 24 rows.
fn terminal() -> (File, OwnedFd) {
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).unwrap();
    unlockpt(&master).unwrap();
    let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
    let size = rustix::termios::Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&slave, size).unwrap();
    (File::from(master), slave)
}
