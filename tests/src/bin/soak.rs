//! `make soak`: containers that live random lives, by clients that vanish now and then. When they are all gone nothing of them may be left: the agent
//! has as many descriptors, threads, mounts and cgroups as before, and as much memory.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use futures::future::try_join_all;
use nacre_protocol::agent::{
    GetMetricsRequest, PauseContainerRequest, RemoveContainerRequest, ResumeContainerRequest, SignalProcessRequest,
    StatsContainerRequest,
};
use nacre_tests::agent::{Client, Process, limit};
use nacre_tests::chance::Chance;
use nacre_tests::holdings::Holdings;
use nacre_tests::suite;

/// The lives after which the agent is near its working size: its heap grows with whatever crowd it has seen.
const WARM_UP: u64 = 5000;

/// How long threads that have nothing to do stay.
const REST: Duration = Duration::from_secs(15);

/// How long what was abandoned may take to go.
const GONE_WITHIN: Duration = Duration::from_secs(90);

/// How many of what one client has abandoned are looked after, for they may still have been in the making the time before.
const RECENT: usize = 8;

/// How much more memory it may have, in KiB.
const MORE: u64 = 1024;

/// Makes and ends containers at random.
#[derive(Debug, Parser)]
struct Args {
    /// The directory with what was built
    #[arg(long)]
    dist: PathBuf,
    /// For how long
    #[arg(long, default_value_t = 20.0)]
    minutes: f64,
    /// How many clients there are at once
    #[arg(long, default_value_t = 8)]
    clients: u64,
    /// Where chance begins: the same number makes the same choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What an agent has.
#[derive(Debug, PartialEq)]
struct AtRest {
    holdings: Holdings,
    threads: usize,
    memory_kib: u64,
}

impl AtRest {
    fn of(agent: &Process) -> Result<AtRest> {
        let of = |name: &str| Ok::<_, anyhow::Error>(PathBuf::from(format!("/proc/{}/{name}", agent.pid()?)));
        let rollup = fs::read_to_string(of("smaps_rollup")?).context("look at the agent's memory")?;
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse().ok());
        Ok(AtRest {
            holdings: Holdings::of(agent, "soak")?,
            threads: fs::read_dir(of("task")?).context("look at the agent")?.count(),
            memory_kib: pss.context("the kernel tells no memory")?,
        })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let agent = Process::start(&args.dist.join("bin/nacre-agent"))?;
    let client = agent.connect().await?;
    let root = suite::root_file_system(&client, "soak").await?;
    let soak = Soak { agent: &agent, root: &root, abandoned: RefCell::default() };
    soak.crowd(&args, |lives| lives < WARM_UP / args.clients).await?;
    let before = soak.at_rest(&client).await?;
    eprintln!("at rest: {before:?}");
    let end = Instant::now() + Duration::from_secs_f64(args.minutes * 60.0);
    let lives = soak.crowd(&args, |_| Instant::now() < end).await?;
    let after = soak.at_rest(&client).await?;
    eprintln!("after {lives} lives: {after:?}");
    let more = after.memory_kib.saturating_sub(before.memory_kib);
    ensure!(more <= MORE, "the agent has {more} KiB more than before");
    let expected = AtRest { memory_kib: after.memory_kib, ..before };
    ensure!(after == expected, "the agent has other things than before: {before:?}");
    Ok(())
}

struct Soak<'a> {
    agent: &'a Process,
    root: &'a str,
    /// What clients have begun that hung up last: some of it may still be in the making.
    abandoned: RefCell<Vec<String>>,
}

impl Soak<'_> {
    /// Lives, one after another for each client, while `goes_on` says so of their number. Returns how many there were.
    async fn crowd(&self, args: &Args, goes_on: impl Fn(u64) -> bool) -> Result<u64> {
        let lives = async |number: u64| -> Result<u64> {
            let mut chance = Chance(args.seed.wrapping_mul(1000).wrapping_add(number));
            let mut client = self.agent.connect().await?;
            let (mut count, mut abandoned) = (0, VecDeque::new());
            while goes_on(count) {
                let id = format!("soak-{number}-{count}");
                count += 1;
                if chance.below(4) == 0 {
                    // It hangs up wherever it is.
                    let patience = Duration::from_millis(chance.below(30));
                    let _ = tokio::time::timeout(patience, self.life(&client, &id, &mut chance)).await;
                    client = self.agent.connect().await?;
                    abandoned.push_back(id);
                    for id in &abandoned {
                        self.end(&client, id).await?;
                    }
                    if abandoned.len() > RECENT {
                        abandoned.pop_front();
                    }
                } else {
                    self.life(&client, &id, &mut chance).await.with_context(|| id.clone())?;
                }
            }
            self.abandoned.borrow_mut().extend(abandoned);
            Ok(count)
        };
        Ok(try_join_all((0..args.clients).map(lives)).await?.into_iter().sum())
    }

    async fn life(&self, client: &Client, id: &str, chance: &mut Chance) -> Result<()> {
        suite::create_in(client, self.root, id, &["busybox", "sleep", "1000"], false).await?;
        let container_id = || id.to_string();
        if chance.below(8) > 0 {
            suite::start(client, id).await?;
            for number in 0..chance.below(4) {
                match chance.below(4) {
                    0 => {
                        let name = format!("exec{number}");
                        suite::exec(client, id, &name, &["busybox", "echo", "out"]).await?;
                        ensure!(suite::wait(client, id, &name).await? == 0, "echo has failed");
                        ensure!(suite::read_out(client, id, &name).await? == b"out\n", "echo has said something else");
                    }
                    1 => {
                        let request = PauseContainerRequest { container_id: container_id(), ..Default::default() };
                        client.agent.pause_container(limit(), &request).await?;
                        let request = ResumeContainerRequest { container_id: container_id(), ..Default::default() };
                        client.agent.resume_container(limit(), &request).await?;
                    }
                    2 => {
                        let request = StatsContainerRequest { container_id: container_id(), ..Default::default() };
                        client.agent.stats_container(limit(), &request).await?;
                    }
                    _ => {
                        let name = format!("killed{number}");
                        suite::exec(client, id, &name, &["busybox", "sleep", "1000"]).await?;
                        let (container_id, exec_id) = (container_id(), name.clone());
                        let request = SignalProcessRequest { container_id, exec_id, signal: 9, ..Default::default() };
                        client.agent.signal_process(limit(), &request).await?;
                        ensure!(suite::wait(client, id, &name).await? == 128 + 9, "it was not killed");
                    }
                }
            }
        }
        suite::remove(client, id).await
    }

    /// Ends what another client has begun, if it has.
    async fn end(&self, client: &Client, id: &str) -> Result<()> {
        let request = RemoveContainerRequest { container_id: id.into(), ..Default::default() };
        match client.agent.remove_container(limit(), &request).await {
            Ok(_) => Ok(()),
            Err(error) if error.to_string().contains("not found") => Ok(()),
            Err(error) => bail!("end {id}: {error}"),
        }
    }

    /// What the agent has when all containers are gone and nothing is asked of it.
    async fn at_rest(&self, client: &Client) -> Result<AtRest> {
        let begun = Instant::now();
        let abandoned = self.abandoned.take();
        loop {
            for id in &abandoned {
                self.end(client, id).await?;
            }
            let metrics = client.agent.get_metrics(limit(), &GetMetricsRequest::new()).await?.metrics;
            if metrics.lines().any(|line| line == "nacre_containers 0") {
                break;
            }
            ensure!(begun.elapsed() < GONE_WITHIN, "containers that were abandoned are still there");
            tokio::time::sleep(Duration::from_secs(1)).await; // nothing tells when they go
        }
        tokio::time::sleep(REST).await;
        AtRest::of(self.agent)
    }
}
