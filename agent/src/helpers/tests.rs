use serde_json::json;

use super::*;

const SOON: Duration = Duration::from_secs(20);

/// Helpers that are shell scripts: name, script, and what else the table says.
fn helpers(patience: Duration, scripts: &[(&str, &str, serde_json::Value)]) -> Helpers {
    let one = |(name, script, more): &(&str, &str, serde_json::Value)| {
        let mut helper = json!({ "name": name, "program": "/bin/sh", "args": ["-c", script] });
        helper.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        helper
    };
    let table = serde_json::Value::from(scripts.iter().map(one).collect::<Vec<_>>());
    Helpers::of(table::parse(&table.to_string()).unwrap(), patience)
}

async fn until_ready(helpers: &Helpers, index: usize) {
    let mut readiness = helpers.helpers[index].readiness.subscribe();
    timeout(SOON, readiness.wait_for(|readiness| *readiness == Readiness::Ready)).await.unwrap().unwrap();
}

async fn finished(helpers: &Helpers) {
    let tasks = std::mem::take(&mut *helpers.tasks.lock().unwrap());
    for task in tasks {
        timeout(SOON, task).await.unwrap().unwrap();
    }
}

/// What binds a UNIX socket at the path in `$SOCKET`, and stays.
const BIND: &str = "exec python3 -c 'import os, socket, time; s = socket.socket(socket.AF_UNIX); s.bind(os.environ[\"SOCKET\"]); time.sleep(1000)'";

fn has_python() -> bool {
    let found = fs::exists("/usr/bin/python3").unwrap();
    if !found {
        println!("skipped: needs python3");
    }
    found
}

#[tokio::test]
async fn one_starts_when_the_socket_of_the_other_is_there() {
    if !has_python() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("made/a.sock");
    let first = json!({ "ready": socket, "env": { "SOCKET": socket } });
    let check = format!("test -S {}", socket.display());
    let helpers = helpers(SOON, &[("first", BIND, first), ("second", &check, json!({ "after": ["first"] }))]);
    helpers.start();
    let second = helpers.tasks.lock().unwrap().remove(1);
    timeout(SOON, second).await.unwrap().unwrap(); // it has not failed, or it would be started anew
    assert_eq!(helpers.starts(), [("first".into(), 1), ("second".into(), 1)]);
    helpers.end().await;
}

#[tokio::test]
async fn one_that_fails_is_started_anew_and_one_that_finishes_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("mark").display().to_string();
    let script = format!("test -e {mark} || {{ touch {mark}; exit 1; }}");
    let never = json!({ "restart": "never" });
    let helpers = helpers(SOON, &[("again", &script, json!({})), ("never", "exit 1", never)]);
    helpers.start();
    finished(&helpers).await;
    assert_eq!(helpers.starts(), [("again".into(), 2), ("never".into(), 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_program_that_is_not_there_is_tried_ever_more_rarely() {
    let table = r#"[{"name": "a", "program": "/nonexistent", "restart": "always"}]"#;
    let helpers = Helpers::of(table::parse(table).unwrap(), SOON);
    helpers.start();
    sleep(Duration::from_secs(3600)).await;
    let [(_, starts)] = helpers.starts().try_into().unwrap();
    assert!((60..80).contains(&starts), "{starts}");
    helpers.end().await;
}

#[tokio::test]
async fn they_are_asked_to_end_in_reverse_order_and_killed_if_they_do_not() {
    if !has_python() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log").display().to_string();
    let socket = |name: &str| dir.path().join(name);
    let script = |name: &str| {
        format!(
            "exec python3 -c 'import os, signal, socket\ndef end(*_):\n  open(\"{log}\", \"a\").write(\"{name} \"); os._exit(0)\n\
             signal.signal(signal.SIGTERM, end)\ns = socket.socket(socket.AF_UNIX); s.bind(os.environ[\"SOCKET\"])\nwhile True: signal.pause()'"
        )
    };
    let stubborn = BIND.replace("import os", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); import os");
    let more = |name: &str, after: &[&str]| json!({ "ready": socket(name), "env": { "SOCKET": socket(name) }, "after": after });
    let helpers = helpers(
        SOON,
        &[
            ("stubborn", &stubborn, more("s", &[])),
            ("one", &script("one"), more("o", &[])),
            ("two", &script("two"), more("t", &["one"])),
        ],
    );
    helpers.start();
    for index in 0..3 {
        until_ready(&helpers, index).await;
    }
    let begun = Instant::now();
    helpers.end().await;
    assert_eq!(fs::read_to_string(log).unwrap(), "two one ");
    assert!(begun.elapsed() >= END_WITHIN && begun.elapsed() < 2 * END_WITHIN);
}

#[tokio::test]
async fn one_starts_without_the_other_when_that_is_not_ready_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let more = json!({ "ready": dir.path().join("never.sock") });
    let helpers =
        helpers(Duration::from_millis(50), &[("a", "exec sleep 1000", more), ("b", "true", json!({ "after": ["a"] }))]);
    helpers.start();
    let second = helpers.tasks.lock().unwrap().remove(1);
    timeout(SOON, second).await.unwrap().unwrap();
    assert_eq!(helpers.starts()[1].1, 1);
    assert_eq!(*helpers.helpers[0].readiness.borrow(), Readiness::GivenUp);
}

#[tokio::test]
async fn it_runs_as_its_user_and_may_be_killed_for_want_of_memory() {
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(dir.path(), Some(1234), Some(4321)).unwrap();
    let out = dir.path().join("out");
    // The score is set right after the start.
    let script = "until grep -q 500 /proc/self/oom_score_adj; do :; done; echo $(id -u) $(id -g) $PATH $A >$OUT";
    let more = json!({ "uid": 1234, "gid": 4321, "oom_score_adj": 500, "env": { "A": "b", "OUT": out } });
    let helpers = helpers(SOON, &[("a", script, more)]);
    helpers.start();
    finished(&helpers).await;
    assert_eq!(fs::read_to_string(out).unwrap(), "1234 4321 /usr/sbin:/usr/bin:/sbin:/bin b\n");
}

#[tokio::test]
async fn output_is_told_line_by_line_and_an_endless_line_in_pieces() {
    let told = Mutex::new(Vec::new());
    let text = [b"one\n\xff\n", "x".repeat(2000).as_bytes(), b"\nend"].concat();
    each_line(text.as_slice(), |line| told.lock().unwrap().push(line.to_owned())).await;
    let told = told.into_inner().unwrap();
    assert_eq!(told.iter().map(String::len).collect::<Vec<_>>(), [3, 3, 1024, 976, 3]);
}

#[tokio::test]
async fn what_has_finished_is_ready_for_those_that_need_it() {
    let never = json!({ "restart": "never" });
    let slow = json!({ "restart": "never", "after": ["once"] });
    let last = json!({ "restart": "never", "after": ["slow", "once"] });
    let helpers = helpers(SOON, &[("once", "true", never), ("slow", "sleep 0.3", slow), ("last", "true", last)]);
    let begun = Instant::now();
    helpers.start();
    finished(&helpers).await;
    assert!(begun.elapsed() < SOON / 2);
    assert!(helpers.helpers.iter().all(|one| *one.readiness.borrow() == Readiness::Ready));
}

#[tokio::test]
async fn what_a_helper_leaves_behind_goes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let script = format!("sleep 1000 & echo $! >{}", pid.display());
    let helpers = helpers(SOON, &[("a", &script, json!({}))]);
    helpers.start();
    finished(&helpers).await;
    let left = fs::read_to_string(pid).unwrap();
    let state = || fs::read_to_string(format!("/proc/{}/stat", left.trim())).unwrap_or_else(|_| "(sleep) Z".into());
    let begun = Instant::now();
    while !state().contains("(sleep) Z") {
        assert!(begun.elapsed() < SOON, "{}", state());
        tokio::task::yield_now().await;
    }
}
