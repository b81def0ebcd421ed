//! Specifications as they are written: JSON that the specification allows and oci-spec's types do not take, and what is left out of it.

use oci_spec::runtime::{Capability, Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// What was read, and what had to be left out of it.
#[derive(Debug)]
pub struct Read<T> {
    /// The specification.
    pub value: T,
    /// A line for each thing that was left out (config.md: capabilities that are not known "MUST be logged as a warning").
    pub warnings: Vec<String>,
}

/// Reads a `config.json`.
///
/// # Errors
/// Text that is no specification, with what is wrong where.
pub fn read_spec(bytes: &[u8]) -> Result<Read<Spec>, serde_json::Error> {
    read(bytes, |document, warnings| match document.get_mut("process") {
        Some(Value::Object(process)) => amend(process, warnings),
        _ => false,
    })
}

/// Reads a process (`process` of config.json).
///
/// # Errors
/// As [`read_spec`].
pub fn read_process(bytes: &[u8]) -> Result<Read<Process>, serde_json::Error> {
    read(bytes, amend)
}

/// Most documents are what the types expect; only others are looked at more closely.
fn read<T: DeserializeOwned>(
    bytes: &[u8],
    amend: impl FnOnce(&mut Map<String, Value>, &mut Vec<String>) -> bool,
) -> Result<Read<T>, serde_json::Error> {
    let mut warnings = Vec::new();
    let error = match serde_json::from_slice(bytes) {
        Ok(value) => return Ok(Read { value, warnings }),
        Err(error) => error,
    };
    // An object, or one error has been found already.
    let Ok(mut document) = serde_json::from_slice(bytes) else { return Err(error) };
    if !amend(&mut document, &mut warnings) {
        return Err(error);
    }
    Ok(Read { value: serde_json::from_value(Value::Object(document))?, warnings })
}

/// True if something was amended.
fn amend(process: &mut Map<String, Value>, warnings: &mut Vec<String>) -> bool {
    let user = add_user(process);
    let capabilities = leave_out_capabilities(process, warnings);
    let flags = rename_flags(process);
    user | capabilities | flags
}

/// `process.user` is not required, nor are its numbers on systems that have none.
fn add_user(process: &mut Map<String, Value>) -> bool {
    let Value::Object(user) = process.entry("user").or_insert_with(|| json!({})) else { return false };
    let before = user.len();
    for key in ["uid", "gid"] {
        user.entry(key).or_insert(json!(0));
    }
    user.len() != before
}

fn leave_out_capabilities(process: &mut Map<String, Value>, warnings: &mut Vec<String>) -> bool {
    let before = warnings.len();
    let Some(Value::Object(sets)) = process.get_mut("capabilities") else { return false };
    for (set, names) in sets {
        let Value::Array(names) = names else { continue };
        names.retain(|name| {
            let known = !name.is_string() || serde_json::from_value::<Capability>(name.clone()).is_ok();
            if !known {
                warnings.push(format!("process.capabilities.{set}: {name} is not known and left out"));
            }
            known
        });
    }
    warnings.len() > before
}

/// The scheduler's flags that oci-spec calls by other names than the specification.
fn rename_flags(process: &mut Map<String, Value>) -> bool {
    const NAMES: [(&str, &str); 2] =
        [("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"), ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN")];
    let flags = process.get_mut("scheduler").and_then(|scheduler| scheduler.get_mut("flags"));
    let Some(Value::Array(flags)) = flags else { return false };
    let mut renamed = false;
    for flag in flags {
        if let Some((_, name)) = NAMES.iter().find(|(name, _)| flag == name) {
            *flag = json!(name);
            renamed = true;
        }
    }
    renamed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(process: &Value) -> Result<Read<Spec>, serde_json::Error> {
        read_spec(json!({ "ociVersion": "1.2.0", "process": process }).to_string().as_bytes())
    }

    #[test]
    fn a_process_without_a_user_is_roots() {
        for user in [json!({ "args": ["a"], "cwd": "/" }), json!({ "args": ["a"], "cwd": "/", "user": {} })] {
            let read = spec(&user).unwrap();
            let process = read.value.process().clone().unwrap();
            assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
            assert!(read.warnings.is_empty());
        }
        assert!(spec(&json!({ "args": ["a"], "cwd": "/", "user": 7 })).is_err());
    }

    #[test]
    fn unknown_capabilities_are_left_out_and_told() {
        let read = spec(&json!({
            "cwd": "/", "user": { "uid": 0, "gid": 0 }, "capabilities": { "bounding": ["CAP_KILL", "CAP_FLY"], "ambient": ["CAP_RUN"] },
        }));
        let read = read.unwrap();
        assert_eq!(
            read.warnings,
            [
                "process.capabilities.ambient: \"CAP_RUN\" is not known and left out",
                "process.capabilities.bounding: \"CAP_FLY\" is not known and left out",
            ]
        );
        let process = read.value.process().clone().unwrap();
        assert_eq!(process.capabilities().as_ref().unwrap().bounding().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn the_schedulers_flags_have_the_specifications_names() {
        let scheduler =
            json!({ "policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN"] });
        let read = spec(&json!({ "cwd": "/", "user": { "uid": 0, "gid": 0 }, "scheduler": scheduler })).unwrap();
        let process = read.value.process().clone().unwrap();
        assert_eq!(process.scheduler().as_ref().unwrap().flags().as_ref().unwrap().len(), 2);
    }

    #[test]
    fn what_is_wrong_is_still_said_where() {
        let error = read_spec(b"{\"ociVersion\": \"1.2.0\",\n \"process\": {\"cwd\": 7}}").unwrap_err().to_string();
        assert!(error.contains("line 2") || error.contains("invalid type"), "{error}");
        assert!(read_spec(b"[]").is_err() || read_spec(b"[]").unwrap().value.version().is_empty());
    }
}
