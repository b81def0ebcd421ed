//! A policy in Rego, as Kata's are: the package `agent_policy`, a rule for each request, which is `true` or `false` or an object with `allowed`
//! and `ops`. The latter is a JSON patch (RFC 6902) of what the policy remembers, `data.pstate`.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use regorus::utils::limits::{ExecutionTimerConfig, PolicyLengthConfig};
use regorus::{Engine, Value};
use serde::Deserialize;
use serde_json::json;

/// The package of every policy.
const PACKAGE: &str = "data.agent_policy";

/// A rule that lets pass what fails: for authors, who then read in the log what was let pass.
const ALLOW_FAILING: &str = "AllowRequestsFailingPolicy";

/// The largest document, its lines, and their length.
const MAX_BYTES: NonZeroUsize = NonZeroUsize::new(16 << 20).expect("it is not 0");
const MAX_LINES: NonZeroUsize = NonZeroUsize::new(200_000).expect("it is not 0");
const MAX_COLUMNS: NonZeroU32 = NonZeroU32::new(64 << 10).expect("it is not 0");

/// How long one evaluation may take, and after how many steps the clock is looked at.
const TIME: Duration = Duration::from_secs(5);
const STEPS: NonZeroU32 = NonZeroU32::new(1000).expect("it is not 0");

/// The most that a policy may remember, as JSON: hosts could have it remember ever more.
const MAX_STATE: usize = 1 << 20;

/// A document makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// It can't be read.
    #[error("read it")]
    Read(#[from] std::io::Error),
    /// It is not Rego.
    #[error("it is not Rego, neither of version 1 ({v1}) nor of version 0 ({v0})")]
    Rego {
        /// What version 1 says.
        v1: String,
        /// And version 0, in which Kata's are written.
        v0: String,
    },
    /// It has another package.
    #[error("its package is {0}, but {PACKAGE} is expected")]
    Package(String),
    /// A task of ours was ended.
    #[error("a task was ended before it was done")]
    Ended,
}

/// Why a request is refused. The rule is that of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// There is no policy to ask.
    #[error("the image's policy can't be used")]
    Unusable,
    /// The policy says nothing of such requests.
    #[error("the policy has no such rule")]
    NoRule,
    /// The rule does not hold.
    #[error("the rule of that name does not hold")]
    No,
    /// It could not be evaluated, or took too long.
    #[error("the rule of that name can't be evaluated")]
    Failed,
    /// It wants to remember too much, or what makes no sense.
    #[error("what the rule of that name would remember is too much, or no JSON patch")]
    State,
}

/// A compiled policy.
#[derive(Debug)]
pub(super) struct Document {
    /// Rules that are the same whatever is asked, and so are not evaluated.
    fixed: BTreeMap<String, bool>,
    allow_failing: bool,
    engine: Mutex<Engine>,
}

/// What a rule may be besides a boolean.
#[derive(Deserialize)]
struct Verdict {
    allowed: bool,
    #[serde(default)]
    ops: Option<json_patch::Patch>,
}

impl Document {
    pub(super) fn read(path: &Path) -> Result<Document, Invalid> {
        Document::compile(std::fs::read_to_string(path)?)
    }

    pub(super) fn compile(text: String) -> Result<Document, Invalid> {
        let engine = match engine(&text, false) {
            Ok(engine) => Ok(engine),
            Err(v1) => engine(&text, true).map_err(|v0| Invalid::Rego { v1: on_one_line(&v1), v0: on_one_line(&v0) }),
        };
        let mut engine = engine?;
        let packages = engine.get_packages().unwrap_or_default();
        if packages != [PACKAGE] {
            return Err(Invalid::Package(packages.join(", ")));
        }
        let allow_failing = engine.eval_bool_query(format!("{PACKAGE}.{ALLOW_FAILING}"), false).unwrap_or(false);
        Ok(Document { fixed: fixed(&text), allow_failing, engine: Mutex::new(engine) })
    }

    /// What the rule says whatever is asked.
    pub(super) fn fixed(&self, rule: &str) -> Option<bool> {
        self.fixed.get(rule).copied().filter(|allowed| *allowed || !self.allow_failing)
    }

    /// Evaluate a rule. Blocks.
    pub(super) fn judge(&self, rule: &'static str, input: Value) -> Result<(), Reason> {
        let (judged, _) = self.explain(rule, input);
        if let Err(reason) = judged
            && self.allow_failing
        {
            tracing::warn!(rule, "POLICY: {reason}, but {ALLOW_FAILING} lets it pass");
            return Ok(());
        }
        judged
    }

    /// What a rule says, and what it prints, which holds of the request whatever its author wanted to see.
    pub(super) fn explain(&self, rule: &str, input: Value) -> (Result<(), Reason>, Vec<String>) {
        // Whatever a holder that panicked has left is set anew.
        let mut engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        engine.set_input(input);
        let value = engine.eval_rule(format!("{PACKAGE}.{rule}"));
        engine.set_input(Value::new_object()); // secrets are not kept
        let prints = engine.take_prints().unwrap_or_default();
        (verdict(&mut engine, rule, value), prints)
    }
}

fn verdict(engine: &mut Engine, rule: &str, value: anyhow::Result<Value>) -> Result<(), Reason> {
    match value {
        Ok(Value::Bool(true)) => Ok(()),
        Ok(Value::Bool(false) | Value::Undefined) => Err(Reason::No),
        Ok(verdict @ Value::Object(_)) => follow(engine, &verdict),
        Ok(_) => Err(Reason::Failed),
        Err(_) => {
            let sources = engine.get_policies().unwrap_or_default();
            let is_named = sources.iter().any(|source| names(source.get_contents(), rule) > 0);
            Err(if is_named { Reason::Failed } else { Reason::NoRule })
        }
    }
}

/// Remember what the rule wants remembered.
fn follow(engine: &mut Engine, verdict: &Value) -> Result<(), Reason> {
    let verdict = serde_json::to_value(verdict).and_then(serde_json::from_value::<Verdict>);
    let Verdict { allowed, ops } = verdict.map_err(|_| Reason::State)?;
    if !allowed {
        return Err(Reason::No);
    }
    let Some(ops) = ops else { return Ok(()) };
    let mut state = serde_json::to_value(engine.get_data()).map_err(|_| Reason::State)?;
    json_patch::patch(&mut state, &ops).map_err(|_| Reason::State)?;
    if state.to_string().len() > MAX_STATE {
        return Err(Reason::State);
    }
    engine.clear_data();
    engine.add_data(state.into()).map_err(|_| Reason::State)
}

fn engine(text: &str, v0: bool) -> anyhow::Result<Engine> {
    let mut engine = Engine::new();
    engine.set_rego_v0(v0);
    engine.set_strict_builtin_errors(false);
    engine.set_policy_length_config(PolicyLengthConfig {
        max_col: MAX_COLUMNS,
        max_file_bytes: MAX_BYTES,
        max_lines: MAX_LINES,
    });
    engine.set_execution_timer_config(ExecutionTimerConfig { limit: TIME, check_interval: STEPS });
    // What rules print holds requests. It would go to standard error.
    engine.set_gather_prints(true);
    engine.add_data(json!({ "pstate": {} }).into())?;
    engine.add_policy("policy.rego".into(), text.into())?;
    engine.set_input(Value::new_object());
    // The first evaluation analyses all rules; it is not to fail at a request.
    engine.eval_query("true".into(), false)?;
    Ok(engine)
}

/// A parser's message shows the source.
fn on_one_line(error: &anyhow::Error) -> String {
    error.to_string().lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Rules of which there is one line and no other word: `default NAME := true`, or false.
fn fixed(text: &str) -> BTreeMap<String, bool> {
    let one = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [default, name, assign, value] = words.as_slice() else { return None };
        let value = value.parse().ok().filter(|_| *default == "default" && matches!(*assign, ":=" | "="))?;
        (names(text, name) == 1).then(|| ((*name).to_string(), value))
    };
    text.lines().filter_map(one).collect()
}

/// How often a word stands in the text, also in comments: no rule of a name is made without that word.
fn names(text: &str, name: &str) -> usize {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| *word == name).count()
}
