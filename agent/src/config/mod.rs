//! The agent's settings, from the kernel command line and from the environment.
//!
//! Parsing cannot fail: as PID 1 the agent must come up whatever the command line says, so a malformed value is
//! reported and its default kept. The settings are made once, in `main`, and passed down.

pub mod image_store;
pub mod prefetch;
pub mod sealed;
mod words;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use nacre_protocol::AGENT_PORT;
use nacre_protocol::address::Address;
use tracing::Level;

use crate::log;

/// The longest value that a complaint repeats.
const QUOTED: usize = 80;

/// The largest pipe that can be asked for; the kernel's own limit for a process without CAP_SYS_RESOURCE.
const MAX_PIPE: usize = 1 << 20;

/// What stands before and behind an extension's name.
const EXTENSION: (&str, &str) = ("kata.extension.", ".verity_params");

/// What the agent was told to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The least severe event that is logged.
    pub log: Level,
    /// The vsock port on which the log can be had; `None` logs to the console.
    pub log_vport: Option<u32>,
    /// Whether shells are offered, if the guest's image and the policy allow it.
    pub debug_console: bool,
    /// The vsock port where they are; `None` is the guest's own console.
    pub debug_console_vport: Option<u32>,
    /// Where the agent listens.
    pub server_addr: Address,
    /// The vsock port to which the host connects streams that are passed through.
    pub passfd_listener_port: Option<u32>,
    /// The size of the containers' output pipes; `None` is the kernel's default.
    pub container_pipe_size: Option<usize>,
    /// How long one image may take to be pulled.
    pub image_pull_timeout: Duration,
    /// The file of the guest's image that says which container images may be used; `None` is the usual one.
    pub image_policy_file: Option<String>,
    /// The file of the guest's image with credentials for registries; `None` is the usual one.
    pub image_registry_auth: Option<String>,
    /// Whether container images must be named by digest.
    pub require_image_digest: bool,
    /// Where image layers are kept; `None` is on a scratch disk where the host has given one, in memory elsewhere.
    pub image_store: Option<image_store::ImageStore>,
    /// How many bytes they may take there.
    pub image_store_size: Option<u64>,
    /// Images to pull before a container asks for them.
    pub prefetch: Vec<String>,
    /// The proxy through which registries are reached, and the hosts that are reached without it.
    pub https_proxy: Option<String>,
    /// See `https_proxy`.
    pub no_proxy: Option<String>,
    /// The host's vsock port where its cache of blobs is.
    pub blob_cache_port: Option<u32>,
    /// How long to wait for a device that was plugged in.
    pub hotplug_timeout: Duration,
    /// How long to wait for the files that say what a CDI device is.
    pub cdi_timeout: Duration,
    /// Whether a container may name CDI devices in a variable.
    pub visible_cdi_devices: bool,
    /// How long a helper process may take to be ready.
    pub launch_process_timeout: Duration,
    /// The host's vsock port to call once initialisation is done.
    pub ready_port: Option<u32>,
    /// Whether the command line asks for the legacy cgroup hierarchies.
    pub cgroup_v1: bool,
    /// The guest's extensions: each one's name and what it must hold, as the command line has them.
    pub extensions: Vec<(String, String)>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            log: Level::INFO,
            log_vport: None,
            debug_console: false,
            debug_console_vport: None,
            server_addr: Address::Vsock { cid: u32::MAX, port: AGENT_PORT },
            passfd_listener_port: None,
            container_pipe_size: None,
            image_pull_timeout: Duration::from_secs(1200),
            image_policy_file: None,
            image_registry_auth: None,
            require_image_digest: false,
            image_store: None,
            image_store_size: None,
            prefetch: Vec::new(),
            https_proxy: None,
            no_proxy: None,
            blob_cache_port: None,
            hotplug_timeout: Duration::from_secs(3),
            cdi_timeout: Duration::from_secs(100),
            visible_cdi_devices: false,
            launch_process_timeout: Duration::from_secs(6),
            ready_port: None,
            cgroup_v1: false,
            extensions: Vec::new(),
        }
    }
}

/// Something on the command line that the agent did not follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// How loudly to say it: a value that was ignored is a warning, a key of another program or version is not.
    pub level: Level,
    text: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Complaint {}

type Setter = fn(&mut Config, &str) -> Result<(), &'static str>;

/// What each key does. Bare keys come with an empty value.
const KEYS: &[(&str, Setter)] = &[
    ("agent.log", |c, v| set(&mut c.log, level(v))),
    ("agent.log_vport", |c, v| set(&mut c.log_vport, number(v).map(port))),
    ("agent.debug_console", |c, v| set(&mut c.debug_console, flag(v))),
    ("agent.debug_console_vport", |c, v| set(&mut c.debug_console_vport, number(v).map(port))),
    ("agent.server_addr", |c, v| set(&mut c.server_addr, v.parse().map_err(|_| "not an address"))),
    ("agent.passfd_listener_port", |c, v| set(&mut c.passfd_listener_port, number(v).map(port))),
    ("agent.container_pipe_size", |c, v| set(&mut c.container_pipe_size, pipe_size(v))),
    ("agent.image_pull_timeout", |c, v| set(&mut c.image_pull_timeout, seconds(v))),
    ("agent.image_policy_file", |c, v| set(&mut c.image_policy_file, file(v))),
    ("agent.image_registry_auth", |c, v| set(&mut c.image_registry_auth, file(v))),
    ("nacre.require_image_digest", |c, v| set(&mut c.require_image_digest, flag(v))),
    ("nacre.image_store", |c, v| set(&mut c.image_store, image_store::parse(v))),
    ("nacre.image_store_size", |c, v| set(&mut c.image_store_size, image_store::size(v))),
    ("nacre.prefetch", |c, v| set(&mut c.prefetch, prefetch::of_value(v))),
    ("agent.https_proxy", |c, v| set(&mut c.https_proxy, text(v))),
    ("agent.no_proxy", |c, v| set(&mut c.no_proxy, text(v))),
    ("nacre.blob_cache_port", |c, v| set(&mut c.blob_cache_port, number(v).map(port))),
    ("agent.hotplug_timeout", |c, v| set(&mut c.hotplug_timeout, seconds(v))),
    ("agent.cdi_timeout", |c, v| set(&mut c.cdi_timeout, seconds(v))),
    ("agent.visible_cdi_devices", |c, v| set(&mut c.visible_cdi_devices, flag(v))),
    ("agent.launch_process_timeout", |c, v| set(&mut c.launch_process_timeout, seconds(v))),
    ("nacre.ready_port", |c, v| set(&mut c.ready_port, number(v).map(port))),
    // The unified hierarchy is the default here, so what Kata's hosts send to ask for it changes nothing.
    ("cgroup_no_v1", |_, _| Ok(())),
    ("systemd.unified_cgroup_hierarchy", |c, v| set(&mut c.cgroup_v1, flag(v).map(|unified| !unified))),
];

/// The settings that the kernel command line `line` asks for, and what in it was not followed.
pub fn parse(line: &str) -> (Config, Vec<Complaint>) {
    let (mut config, mut complaints) = (Config::default(), Vec::new());
    words::split(line).for_each(|word| follow(word, &mut config, &mut complaints));
    (config, complaints)
}

/// The settings of a sealed image: its `own` words, then those of the host's command line `line` that open nothing.
pub fn parse_sealed(own: &str, line: &str) -> (Config, Vec<Complaint>) {
    let (mut config, mut complaints) = parse(own);
    for word in words::split(line) {
        let is_known = extension(word.key).is_some() || KEYS.iter().any(|(key, _)| *key == word.key);
        if is_known && !sealed::is_open(word.key) {
            complaints.push(ignored(word.key, word.value.unwrap_or_default(), "the image is sealed"));
        } else {
            follow(word, &mut config, &mut complaints);
        }
    }
    (config, complaints)
}

/// The name of the extension that a key is about.
fn extension(key: &str) -> Option<&str> {
    key.strip_prefix(EXTENSION.0)?.strip_suffix(EXTENSION.1)
}

fn follow(word: words::Word<'_>, config: &mut Config, complaints: &mut Vec<Complaint>) {
    let value = word.value.unwrap_or_default();
    if let Some(name) = extension(word.key) {
        config.extensions.push((name.into(), value.into()));
    }
    match KEYS.iter().find(|(key, _)| *key == word.key) {
        Some((key, setter)) => {
            if let Err(why) = setter(config, value) {
                complaints.push(ignored(key, value, why));
            }
        }
        None if word.key.starts_with("agent.") || word.key.starts_with("nacre.") => complaints.push(Complaint {
            level: Level::DEBUG,
            text: format!("kernel command line: {} is not known to this agent", quote(word.key)),
        }),
        None => {}
    }
}

impl Config {
    /// Listen where a person says: the environment's `KATA_AGENT_SERVER_ADDR`, `NACRE_SERVER_ADDR`, then `--listen`, the
    /// later before the earlier. What is malformed is an error, as there is somebody to read it.
    pub fn override_server(
        &mut self,
        kata: Option<&str>,
        nacre: Option<&str>,
        listen: Option<&str>,
    ) -> Result<(), Complaint> {
        let named = [("KATA_AGENT_SERVER_ADDR", kata), ("NACRE_SERVER_ADDR", nacre), ("--listen", listen)];
        let given = named.iter().rev().find_map(|(name, value)| value.map(|v| (name, v)));
        if let Some((name, value)) = given {
            self.server_addr = Address::from_str(value)
                .map_err(|e| Complaint { level: Level::ERROR, text: format!("{name}={}: {e}", quote(value)) })?;
        }
        Ok(())
    }

    /// Log what the environment's `KATA_AGENT_LOG_LEVEL` says, which counts before the command line.
    pub fn override_log(&mut self, kata: Option<&str>) -> Option<Complaint> {
        let value = kata?;
        let why = set(&mut self.log, level(value)).err()?;
        Some(Complaint { level: Level::WARN, text: format!("KATA_AGENT_LOG_LEVEL={} ignored: {why}", quote(value)) })
    }
}

fn ignored(key: &str, value: &str, why: &str) -> Complaint {
    Complaint { level: Level::WARN, text: format!("kernel command line: {key}={} ignored: {why}", quote(value)) }
}

fn quote(value: &str) -> String {
    value.chars().take(QUOTED).collect::<String>().escape_debug().to_string()
}

fn set<T>(place: &mut T, value: Result<T, &'static str>) -> Result<(), &'static str> {
    *place = value?;
    Ok(())
}

fn level(value: &str) -> Result<Level, &'static str> {
    log::level(value).ok_or("not a log level (error, warn, info, debug, trace)")
}

/// A file of the guest's image, as a path or as Kata writes it.
fn file(value: &str) -> Result<Option<String>, &'static str> {
    let path = value.strip_prefix("file://").unwrap_or(value);
    if path.starts_with('/') { Ok(Some(path.into())) } else { Err("not a file of the guest's image (file:///PATH)") }
}

fn text(value: &str) -> Result<Option<String>, &'static str> {
    Ok((!value.is_empty()).then(|| value.into()))
}

fn number(value: &str) -> Result<u32, &'static str> {
    value.parse().map_err(|_| "not a number")
}

/// Port 0 is how hosts say "none".
fn port(number: u32) -> Option<u32> {
    (number > 0).then_some(number)
}

fn pipe_size(value: &str) -> Result<Option<usize>, &'static str> {
    match number(value)? as usize {
        0 => Ok(None),
        size if size <= MAX_PIPE => Ok(Some(size)),
        _ => Err("more than 1 MiB"),
    }
}

fn seconds(value: &str) -> Result<Duration, &'static str> {
    match number(value)? {
        0 => Err("must be more than 0 seconds"),
        n => Ok(Duration::from_secs(n.into())),
    }
}

fn flag(value: &str) -> Result<bool, &'static str> {
    match value {
        "" | "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("not a yes or no"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_keys_are_followed() {
        let (config, complaints) = parse(
            "console=hvc0 agent.log=debug agent.log_vport=1025 agent.container_pipe_size=65536 agent.image_pull_timeout=7 \
             agent.passfd_listener_port=1027 agent.hotplug_timeout=9 agent.server_addr=vsock://-1:2048 cgroup_no_v1=all nacre.ready_port=1030 \
             agent.cdi_timeout=11 agent.visible_cdi_devices=true \
             agent.image_policy_file=file:///etc/p.json agent.image_registry_auth=/etc/a.json nacre.require_image_digest \
             agent.https_proxy=http://proxy:3128 agent.no_proxy=10.0.0.0/8 nacre.prefetch=a:1,r.example/b \
             nacre.image_store=zram nacre.image_store_size=1G nacre.blob_cache_port=1031 \
             agent.debug_console agent.debug_console_vport=1026 agent.launch_process_timeout=8 kata.extension.tools.verity_params=root_hash=x",
        );
        assert_eq!(complaints, []);
        let expected = Config {
            log: Level::DEBUG,
            log_vport: Some(1025),
            debug_console: true,
            debug_console_vport: Some(1026),
            server_addr: Address::Vsock { cid: u32::MAX, port: 2048 },
            passfd_listener_port: Some(1027),
            container_pipe_size: Some(65536),
            image_pull_timeout: Duration::from_secs(7),
            image_policy_file: Some("/etc/p.json".into()),
            image_registry_auth: Some("/etc/a.json".into()),
            require_image_digest: true,
            image_store: Some(image_store::ImageStore::Zram),
            image_store_size: Some(1 << 30),
            prefetch: vec!["a:1".into(), "r.example/b".into()],
            https_proxy: Some("http://proxy:3128".into()),
            no_proxy: Some("10.0.0.0/8".into()),
            blob_cache_port: Some(1031),
            hotplug_timeout: Duration::from_secs(9),
            cdi_timeout: Duration::from_secs(11),
            visible_cdi_devices: true,
            launch_process_timeout: Duration::from_secs(8),
            ready_port: Some(1030),
            cgroup_v1: false,
            extensions: vec![("tools".into(), "root_hash=x".into())],
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn a_malformed_value_is_reported_and_its_default_kept() {
        for bad in [
            "agent.log=loud",
            "agent.log",
            "agent.log_vport=-1",
            "agent.debug_console=maybe",
            "agent.debug_console_vport=hvc0",
            "agent.server_addr=http://x",
            "agent.passfd_listener_port=x",
            "agent.image_policy_file=https://x",
            "agent.container_pipe_size=9999999999",
            "agent.image_pull_timeout=0",
            "nacre.blob_cache_port=unix",
            "agent.hotplug_timeout=3s",
            "agent.launch_process_timeout=0",
            "nacre.image_store=floppy",
            "nacre.image_store_size=big",
            "nacre.prefetch=a,,b",
            "systemd.unified_cgroup_hierarchy=maybe",
        ] {
            let (config, complaints) = parse(bad);
            assert_eq!(config, Config::default(), "{bad}");
            assert_eq!(complaints.len(), 1, "{bad}");
            assert_eq!(complaints[0].level, Level::WARN, "{bad}");
        }
    }

    #[test]
    fn a_sealed_image_is_not_opened_by_the_hosts_words() {
        let host = "agent.log=trace agent.image_policy_file=/run/kata-containers/x agent.image_registry_auth=/x \
                    nacre.require_image_digest=0 nacre.prefetch=a agent.visible_cdi_devices kata.extension.x.verity_params=y systemd.unified_cgroup_hierarchy=0";
        let (config, complaints) = parse_sealed("nacre.require_image_digest agent.log=warn", host);
        let expected = Config { require_image_digest: true, log: Level::WARN, ..Config::default() };
        assert_eq!(config, expected);
        assert_eq!(complaints.len(), 8);
        let said = complaints[0].to_string();
        assert_eq!(
            (said.as_str(), complaints[0].level),
            ("kernel command line: agent.log=trace ignored: the image is sealed", Level::WARN)
        );
        let (config, complaints) = parse_sealed("", "quiet nacre.ready_port=7 agent.hotplug_timeout=9");
        assert_eq!((config.ready_port, config.hotplug_timeout, complaints), (Some(7), Duration::from_secs(9), vec![]));
    }

    #[test]
    fn unknown_agent_keys_are_only_worth_a_debug_line() {
        let (config, complaints) = parse("agent.frob=1 root=/dev/vda");
        assert_eq!(config, Config::default());
        assert_eq!(complaints.len(), 1);
        assert_eq!(complaints[0].level, Level::DEBUG);
        assert!(complaints[0].to_string().contains("agent.frob"));
    }

    #[test]
    fn the_later_of_two_equal_keys_wins() {
        assert_eq!(parse("agent.log=debug agent.log=warn").0.log, Level::WARN);
    }

    #[test]
    fn the_environment_wins_over_the_command_line_unless_it_is_malformed() {
        let mut config = parse("agent.log=debug").0;
        assert_eq!((config.override_log(None), config.log), (None, Level::DEBUG));
        let complaint = config.override_log(Some("loud")).unwrap();
        assert!(complaint.to_string().starts_with("KATA_AGENT_LOG_LEVEL=loud ignored"), "{complaint}");
        assert_eq!((config.override_log(Some("warning")), config.log), (None, Level::WARN));
    }

    #[test]
    fn arguments_win_over_the_environment_and_it_over_the_command_line() {
        let mut config = parse("agent.server_addr=vsock://-1:1").0;
        config.override_server(Some("unix:///a"), Some("unix:///b"), Some("unix:///c")).unwrap();
        assert_eq!(config.server_addr, "unix:///c".parse().unwrap());
        config.override_server(Some("unix:///a"), Some("unix:///b"), None).unwrap();
        assert_eq!(config.server_addr, "unix:///b".parse().unwrap());
        config.override_server(None, None, None).unwrap();
        assert_eq!(config.server_addr, "unix:///b".parse().unwrap());
        let complaint = config.override_server(None, None, Some("nonsense")).unwrap_err();
        assert!(complaint.to_string().starts_with("--listen=nonsense: "), "{complaint}");
    }

    proptest::proptest! {
        #[test]
        fn no_command_line_makes_it_fail(line in "\\PC*") {
            parse(&line);
        }

        #[test]
        fn no_value_makes_it_fail(key in 0..KEYS.len(), value in "\\PC{0,20}") {
            parse(&format!("{}={value}", KEYS[key].0));
        }
    }
}
