//! Random lives of a few containers, against a model of them: each call is answered as the model says, and in the end the agent holds what the
//! model says that there is.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::time::Duration;

use nacre_protocol::agent::{
    DestroySandboxRequest, GetMetricsRequest, PauseContainerRequest, RemoveContainerRequest, ResumeContainerRequest,
    SignalProcessRequest, StartContainerRequest, StatsContainerRequest, UpdateContainerRequest, WaitProcessRequest,
};
use nacre_protocol::oci::{LinuxPids, LinuxResources};
use nacre_tests::agent::{Client, Process, limit};
use nacre_tests::holdings::Holdings;
use nacre_tests::{dist, request, suite};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use ttrpc::Code;
use ttrpc::context::with_timeout;

/// How many lives there are, and of how many steps, so that it takes some seconds.
const CASES: u32 = 16;
const STEPS: usize = 40;

/// How many containers there are at most, and names for processes in each.
const CONTAINERS: usize = 3;
const EXECS: u8 = 3;

/// 128 and SIGKILL: every program here ends so.
const KILLED: i32 = 137;

/// What is asked.
#[derive(Debug, Clone, Copy)]
enum Ask {
    Create,
    Start,
    Exec(u8),
    KillAll,
    KillInit,
    KillExec(u8),
    Pause,
    Resume,
    Update,
    Stats,
    WaitInit,
    WaitExec(u8),
    Remove,
}

#[derive(Debug, Clone, Copy)]
struct Step {
    container: usize,
    ask: Ask,
    /// The caller hangs up after so many milliseconds.
    hangs_up: Option<u64>,
}

fn asks() -> impl Strategy<Value = Ask> {
    let exec = || 0..EXECS;
    prop_oneof![
        4 => Just(Ask::Create),
        4 => Just(Ask::Start),
        4 => exec().prop_map(Ask::Exec),
        1 => Just(Ask::KillAll),
        1 => Just(Ask::KillInit),
        2 => exec().prop_map(Ask::KillExec),
        2 => Just(Ask::Pause),
        2 => Just(Ask::Resume),
        1 => Just(Ask::Update),
        1 => Just(Ask::Stats),
        1 => Just(Ask::WaitInit),
        1 => exec().prop_map(Ask::WaitExec),
        1 => Just(Ask::Remove),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let hangs_up = prop_oneof![15 => Just(None), 1 => (0..8_u64).prop_map(Some)];
    let step =
        (0..CONTAINERS, asks(), hangs_up).prop_map(|(container, ask, hangs_up)| Step { container, ask, hangs_up });
    proptest::collection::vec(step, 1..STEPS)
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Moment {
    Created,
    Running,
    Ended,
}

/// A container, as it should be.
#[derive(Debug)]
struct Made {
    moment: Moment,
    paused: bool,
    /// Whether each runs.
    execs: BTreeMap<u8, bool>,
}

impl Made {
    fn processes(&self) -> usize {
        usize::from(self.moment != Moment::Ended) + self.execs.values().filter(|runs| **runs).count()
    }

    fn end(&mut self) {
        (self.moment, self.paused) = (Moment::Ended, false);
        self.execs.values_mut().for_each(|runs| *runs = false);
    }
}

/// An answer, as it should be: none is one that says that it is done.
type Answer = Option<Code>;

/// What becomes of a container that is there. A caller who waits for what still runs runs out of time.
fn answer(made: &mut Made, ask: Ask) -> Answer {
    const STATE: Answer = Some(Code::FAILED_PRECONDITION);
    let ended = made.moment == Moment::Ended;
    match ask {
        Ask::Create => return Some(Code::ALREADY_EXISTS),
        Ask::Start if made.paused || made.moment != Moment::Created => return STATE,
        Ask::Start => made.moment = Moment::Running,
        Ask::Exec(name) if made.execs.contains_key(&name) => return Some(Code::ALREADY_EXISTS),
        Ask::Exec(_) if made.paused || ended => return STATE,
        Ask::Exec(name) => drop(made.execs.insert(name, true)),
        Ask::KillAll | Ask::KillInit => made.end(),
        Ask::KillExec(name) => match made.execs.get_mut(&name) {
            Some(runs) => *runs = false,
            None => return Some(Code::NOT_FOUND),
        },
        Ask::Pause if made.paused || ended => return STATE,
        Ask::Pause => made.paused = true,
        Ask::Resume if !made.paused => return STATE,
        Ask::Resume => made.paused = false,
        Ask::WaitInit if !ended => return Some(Code::DEADLINE_EXCEEDED),
        Ask::WaitExec(name) => match made.execs.get(&name) {
            Some(true) => return Some(Code::DEADLINE_EXCEEDED),
            Some(false) => {}
            None => return Some(Code::NOT_FOUND),
        },
        Ask::Update | Ask::Stats | Ask::WaitInit | Ask::Remove => {}
    }
    None
}

/// What becomes of a container, there or not.
fn expected(slot: &mut Option<Made>, ask: Ask) -> Answer {
    let Some(made) = slot else {
        if !matches!(ask, Ask::Create) {
            return Some(Code::INVALID_ARGUMENT);
        }
        *slot = Some(Made { moment: Moment::Created, paused: false, execs: BTreeMap::new() });
        return None;
    };
    let answer = answer(made, ask);
    if matches!(ask, Ask::Remove) {
        *slot = None;
    }
    answer
}

/// A process that is frozen by cgroup v1 hears of its end when it is thawed, and nobody waits for that here.
fn can_be_told(slot: &Option<Made>, ask: Ask) -> bool {
    !matches!((slot, ask), (Some(Made { paused: true, .. }), Ask::KillExec(_)))
}

/// One life of a pod.
struct Life<'a> {
    agent: &'a Process,
    client: Client,
    root: String,
    prefix: String,
}

impl Life<'_> {
    fn id(&self, container: usize) -> String {
        format!("{}-{container}", self.prefix)
    }

    async fn ask(&self, client: &Client, step: Step) -> Answer {
        let id = self.id(step.container);
        let container_id = || id.clone();
        let exec_id = |name: u8| format!("exec{name}");
        let agent = &client.agent;
        let kill = |exec_id: String| {
            request!(SignalProcessRequest { container_id: container_id(), exec_id: exec_id, signal: 9u32 })
        };
        let wait = |exec_id: String| request!(WaitProcessRequest { container_id: container_id(), exec_id: exec_id });
        let soon = || with_timeout(20_000_000);
        let result = match step.ask {
            Ask::Create => {
                let spec = suite::spec(&id, &self.root, &["busybox", "sleep", "1000"], false).unwrap();
                suite::try_create(client, &id, spec).await
            }
            Ask::Start => {
                agent.start_container(limit(), &request!(StartContainerRequest { container_id: id })).await.map(drop)
            }
            Ask::Exec(name) => suite::exec(client, &id, &exec_id(name), &["busybox", "sleep", "1000"]).await,
            Ask::KillAll => agent.signal_process(limit(), &kill(String::new())).await.map(drop),
            Ask::KillInit => agent.signal_process(limit(), &kill(container_id())).await.map(drop),
            Ask::KillExec(name) => agent.signal_process(limit(), &kill(exec_id(name))).await.map(drop),
            Ask::Pause => {
                agent.pause_container(limit(), &request!(PauseContainerRequest { container_id: id })).await.map(drop)
            }
            Ask::Resume => {
                agent.resume_container(limit(), &request!(ResumeContainerRequest { container_id: id })).await.map(drop)
            }
            Ask::Update => {
                let resources = request!(LinuxResources { Pids: Some(request!(LinuxPids { Limit: 99 })).into() });
                let update = request!(UpdateContainerRequest { container_id: id, resources: Some(resources).into() });
                agent.update_container(limit(), &update).await.map(drop)
            }
            Ask::Stats => {
                agent.stats_container(limit(), &request!(StatsContainerRequest { container_id: id })).await.map(drop)
            }
            Ask::WaitInit => {
                agent.wait_process(soon(), &wait(container_id())).await.map(|end| assert_eq!(end.status, KILLED))
            }
            Ask::WaitExec(name) => {
                agent.wait_process(soon(), &wait(exec_id(name))).await.map(|end| assert_eq!(end.status, KILLED))
            }
            Ask::Remove => {
                agent.remove_container(limit(), &request!(RemoveContainerRequest { container_id: id })).await.map(drop)
            }
        };
        match result {
            Ok(()) => None,
            Err(ttrpc::Error::RpcStatus(status)) => Some(status.code()),
            Err(error) => {
                Some(if format!("{error}").contains("deadline") { Code::DEADLINE_EXCEEDED } else { panic!("{error}") })
            }
        }
    }

    /// Awaits the ends that the model knows of.
    async fn await_ends(&self, container: usize, made: &Made) {
        let id = self.id(container);
        if made.moment == Moment::Ended {
            assert_eq!(suite::wait(&self.client, &id, "").await.unwrap(), KILLED);
        }
        for (name, _) in made.execs.iter().filter(|(_, runs)| !**runs) {
            assert_eq!(suite::wait(&self.client, &id, &format!("exec{name}")).await.unwrap(), KILLED);
        }
    }

    /// The caller of `step` hangs up on the way. Whatever has come of it goes with its container, and then the name is free.
    async fn abandon(&self, step: Step, patience: u64) {
        let other = self.agent.connect().await.unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(patience), self.ask(&other, step)).await;
        drop(other);
        let ask = |ask| self.ask(&self.client, Step { ask, ..step });
        let gone = |answer| matches!(answer, None | Some(Code::INVALID_ARGUMENT));
        loop {
            while !gone(ask(Ask::Remove).await) {}
            // The abandoned request may be read only now.
            if ask(Ask::Create).await != Some(Code::ALREADY_EXISTS) {
                break;
            }
        }
        while !gone(ask(Ask::Remove).await) {}
    }

    async fn run(&self, steps: &[Step]) {
        let before = Holdings::of(self.agent, &self.prefix).unwrap();
        let mut model: [Option<Made>; CONTAINERS] = Default::default();
        for (number, step) in steps.iter().enumerate() {
            let slot = &mut model[step.container];
            match step.hangs_up {
                Some(patience) => {
                    self.abandon(*step, patience).await;
                    *slot = None;
                }
                None if can_be_told(slot, step.ask) => {
                    let expected = expected(slot, step.ask);
                    assert_eq!(self.ask(&self.client, *step).await, expected, "step {number}: {step:?}, {slot:?}");
                    if let Some(made) = slot {
                        self.await_ends(step.container, made).await;
                    }
                }
                None => {}
            }
        }
        self.compare(&model, before).await;
    }

    /// What there is with what there should be, and then nothing with what there was before.
    async fn compare(&self, model: &[Option<Made>], before: Holdings) {
        let containers = model.iter().flatten().count();
        let processes = model.iter().flatten().map(Made::processes).sum::<usize>();
        let metrics = self.client.agent.get_metrics(limit(), &GetMetricsRequest::new()).await.unwrap().metrics;
        assert!(metrics.lines().any(|line| line == format!("nacre_containers {containers}")), "not {containers}");
        let now = Holdings::of(self.agent, &self.prefix).unwrap();
        let with = Holdings { processes: before.processes + processes, ..now };
        assert_eq!(with.again(self.agent, &self.prefix).await.unwrap(), with, "{model:?}");
        assert_eq!((now.cgroups == 0, now.mounts), (containers == 0, before.mounts), "{model:?}");
        for (container, _) in model.iter().enumerate().filter(|(_, made)| made.is_some()) {
            suite::remove(&self.client, &self.id(container)).await.unwrap();
        }
        assert_eq!(before.again(self.agent, &self.prefix).await.unwrap(), before, "{model:?}");
    }
}

async fn live(number: u32, steps: &[Step]) {
    let agent = Process::start(&dist::program("nacre-agent")).unwrap();
    let client = agent.connect().await.unwrap();
    let prefix = format!("model-{}-{number}", std::process::id());
    let root = suite::root_file_system(&client, &prefix).await.unwrap();
    let life = Life { agent: &agent, client, root, prefix };
    // The first one starts threads and opens what stays.
    suite::life_of_true(&life.client, &life.id(0), &life.root).await.unwrap();
    life.run(steps).await;
    // And an end with whatever there is.
    let create = Step { container: 0, ask: Ask::Create, hangs_up: None };
    assert_eq!(life.ask(&life.client, create).await, None);
    assert_eq!(life.ask(&life.client, Step { ask: Ask::Start, ..create }).await, None);
    life.client.agent.destroy_sandbox(limit(), &DestroySandboxRequest::new()).await.unwrap();
    assert_eq!(Holdings::of_cgroups(&life.prefix), 0);
}

#[test]
fn random_lives_go_as_the_model_says() {
    if !dist::root() || !dist::have(&["unshare", "ip", "busybox"]) {
        return;
    }
    let config = Config { cases: CASES, failure_persistence: None, max_shrink_iters: 64, ..Config::default() };
    let chance = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let number = std::cell::Cell::new(0);
    let lives = TestRunner::new_with_rng(config, chance).run(&steps(), |steps| {
        number.set(number.get() + 1);
        runtime.block_on(live(number.get(), &steps));
        Ok(())
    });
    lives.unwrap();
}
