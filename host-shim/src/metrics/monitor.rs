//! `nacre monitor`: the metrics of all pods of this host, in one place, each with its pod's name.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use anyhow::{Context as _, Result};
use futures::future::join_all;
use tokio::net::TcpListener;

use super::SOCKET;
use super::http::{Answer, Answers, Server, get};

/// The most pods that are asked.
const MAX_PODS: usize = 1024;

/// Serves on `listen` until it is ended.
///
/// # Errors
/// An address that can't be had.
pub async fn serve(listen: SocketAddr, pods: PathBuf) -> Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listen on {listen}"))?;
    eprintln!("nacre: metrics on http://{}/metrics", listener.local_addr().context("find our address")?);
    let server = Server::new(Monitor { pods, scrapes: AtomicU64::new(0), failed: AtomicU64::new(0) });
    loop {
        // One that has hung up before it was heard is no reason to end.
        if let Ok((stream, _)) = listener.accept().await {
            server.take(stream).await;
        }
    }
}

#[derive(Debug)]
struct Monitor {
    pods: PathBuf,
    scrapes: AtomicU64,
    failed: AtomicU64,
}

impl Answers for Monitor {
    async fn answer(&self, path: &str, query: &[(String, String)]) -> Answer {
        let value = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        match (path, value("sandbox")) {
            ("/metrics", Some(pod)) => {
                self.ask(pod, "/metrics").await.map_or_else(|why| Answer::failed(404, &why), Answer::metrics)
            }
            ("/metrics", None) => Answer::metrics(self.all(value("filter_family")).await),
            ("/agent-url", Some(pod)) => {
                self.ask(pod, "/agent-url").await.map_or_else(|why| Answer::failed(404, &why), Answer::text)
            }
            ("/agent-url", None) => Answer::failed(400, "say which: ?sandbox=NAME"),
            ("/sandboxes", _) => Answer::text(self.running().iter().map(|pod| format!("{pod}\n")).collect()),
            ("/", _) => Answer::text(
                "/metrics[?sandbox=NAME][&filter_family=PREFIX]\n/sandboxes\n/agent-url?sandbox=NAME\n".into(),
            ),
            _ => Answer::failed(404, "there is nothing here"),
        }
    }
}

impl Monitor {
    fn running(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.pods).into_iter().flatten().flatten();
        let mut pods: Vec<_> = entries
            .filter(|entry| entry.path().join(SOCKET).exists())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .take(MAX_PODS)
            .collect();
        pods.sort();
        pods
    }

    async fn ask(&self, pod: &str, path: &str) -> Result<String, String> {
        if Path::new(pod).file_name() != Some(pod.as_ref()) {
            return Err(format!("{pod:?} is no name"));
        }
        get(&self.pods.join(pod).join(SOCKET), path).await.map_err(|error| format!("pod {pod}: {error:#}"))
    }

    async fn all(&self, family: Option<&str>) -> String {
        self.scrapes.fetch_add(1, Relaxed);
        let pods = self.running();
        let answers = join_all(pods.iter().map(async |pod| (pod, self.ask(pod, "/metrics").await))).await;
        let mut families = Families::default();
        for (pod, answer) in answers {
            match answer {
                Ok(text) => families.add(&text, pod),
                Err(_) => drop(self.failed.fetch_add(1, Relaxed)),
            }
        }
        let own = format!(
            "# HELP kata_monitor_running_shim_count Pods that run\n# TYPE kata_monitor_running_shim_count gauge\n\
             kata_monitor_running_shim_count {}\n\
             # HELP kata_monitor_scrape_count Scrapes\n# TYPE kata_monitor_scrape_count counter\nkata_monitor_scrape_count {}\n\
             # HELP kata_monitor_scrape_failed_count Pods that did not answer\n\
             # TYPE kata_monitor_scrape_failed_count counter\nkata_monitor_scrape_failed_count {}\n",
            pods.len(),
            self.scrapes.load(Relaxed),
            self.failed.load(Relaxed)
        );
        own + &families.text(family.unwrap_or_default())
    }
}

/// Metrics of many pods: all of a name must stand together.
#[derive(Debug, Default)]
struct Families(BTreeMap<String, Family>);

#[derive(Debug, Default)]
struct Family {
    about: Vec<String>,
    samples: String,
}

impl Families {
    /// Adds the metrics of `pod`.
    fn add(&mut self, text: &str, pod: &str) {
        let mut current = String::new();
        for line in text.lines() {
            if let Some(about) = line.strip_prefix("# ") {
                let mut words = about.splitn(3, ' ');
                let (kind, name) = (words.next(), words.next());
                if let (Some("HELP" | "TYPE"), Some(name)) = (kind, name) {
                    current = name.into();
                    let about = &mut self.0.entry(current.clone()).or_default().about;
                    let start = format!("# {} ", kind.unwrap_or_default());
                    if !about.iter().any(|have| have.starts_with(&start)) {
                        about.push(line.into());
                    }
                }
            } else if let Some(sample) = labelled(line, pod) {
                self.0.entry(current.clone()).or_default().samples.push_str(&sample);
            }
        }
    }

    fn text(&self, prefix: &str) -> String {
        let wanted = self.0.iter().filter(|(name, _)| name.starts_with(prefix));
        wanted.map(|(_, family)| family.about.join("\n") + "\n" + &family.samples).collect()
    }
}

/// A sample with its pod's name.
fn labelled(line: &str, pod: &str) -> Option<String> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    Some(match rest.strip_prefix('{') {
        Some(labels) => format!("{name}{{sandbox_id=\"{pod}\",{labels}\n"),
        None => format!("{name}{{sandbox_id=\"{pod}\"}}{rest}\n"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_name_stand_together_with_their_pods() {
        let mut families = Families::default();
        let text = "# HELP a Some\n# TYPE a gauge\na{item=\"x\"} 1\na 2\n# TYPE b counter\nb 3\n";
        families.add(text, "one");
        families.add(text, "two");
        let all = families.text("");
        let expected = "# HELP a Some\n# TYPE a gauge\na{sandbox_id=\"one\",item=\"x\"} 1\na{sandbox_id=\"one\"} 2\n\
                        a{sandbox_id=\"two\",item=\"x\"} 1\na{sandbox_id=\"two\"} 2\n\
                        # TYPE b counter\nb{sandbox_id=\"one\"} 3\nb{sandbox_id=\"two\"} 3\n";
        assert_eq!(all, expected);
        assert!(families.text("b").starts_with("# TYPE b"));
    }
}
