use std::collections::HashMap;

use nacre_protocol::agent::*;
use nacre_protocol::oci;
use protobuf::{Message as _, MessageField};

use super::*;

async fn policy(text: &str) -> Policy {
    let policy = Policy::allow_all();
    policy.set(text.into()).await.unwrap();
    policy
}

fn container(id: &str, args: &[&str]) -> CreateContainerRequest {
    let process = oci::Process { Args: args.iter().map(|arg| arg.to_string()).collect(), ..Default::default() };
    let annotations = HashMap::from([("kind".to_string(), "sandbox".to_string())]);
    let mounts = vec![oci::Mount { type_: "bind".into(), ..Default::default() }];
    let spec = oci::Spec {
        Process: MessageField::some(process),
        Annotations: annotations,
        Mounts: mounts,
        ..Default::default()
    };
    CreateContainerRequest { container_id: id.into(), OCI: MessageField::some(spec), ..Default::default() }
}

async fn reason<R: MessageFull>(policy: &Policy, request: R) -> Option<Reason> {
    policy.admit(request).await.err().map(|denied| denied.reason)
}

#[tokio::test]
async fn a_rule_sees_the_request_by_the_names_of_katas_bindings() {
    let rules = r#"
        package agent_policy
        import rego.v1
        default CreateContainerRequest := false
        CreateContainerRequest if {
            input.OCI.Process.Args == ["sleep", "1"]
            input.OCI.Process.Terminal == false
            input.OCI.Annotations.kind == "sandbox"
            input.OCI.Mounts[0].type_ == "bind"
            input.OCI.Linux == null
            count(input.storages) == 0
        }
    "#;
    let policy = policy(rules).await;
    assert_eq!(reason(&policy, container("a", &["sleep", "1"])).await, None);
    assert_eq!(reason(&policy, container("a", &["sleep", "2"])).await, Some(Reason::No));
    assert_eq!(reason(&policy, ExecProcessRequest::new()).await, Some(Reason::NoRule));
    assert_eq!(reason(&policy, CreateContainerRequest::new()).await, Some(Reason::No));
}

#[tokio::test]
async fn a_denial_names_the_rule_and_nothing_of_the_request() {
    let policy = policy("package agent_policy\ndefault CreateContainerRequest := false").await;
    let denied = policy.admit(container("a", &["--password=x"])).await.unwrap_err().to_string();
    assert_eq!(denied, "CreateContainerRequest is blocked by policy: the rule of that name does not hold");
}

#[tokio::test]
async fn documents_of_rego_0_are_understood_and_remember_what_they_ask_for() {
    let rules = r#"
        package agent_policy
        import future.keywords.in
        default CreateContainerRequest := false
        CreateContainerRequest := {"allowed": true, "ops": ops} {
            not data.pstate.first
            ops := [{"op": "add", "path": "/pstate/first", "value": input.container_id}]
        }
        StartContainerRequest { input.container_id == data.pstate.first }
    "#;
    let policy = policy(rules).await;
    let start = |id: &str| StartContainerRequest { container_id: id.into(), ..Default::default() };
    assert_eq!(reason(&policy, start("a")).await, Some(Reason::No));
    assert_eq!(reason(&policy, container("a", &[])).await, None);
    assert_eq!(reason(&policy, container("b", &[])).await, Some(Reason::No));
    assert_eq!(reason(&policy, start("a")).await, None);
}

#[tokio::test]
async fn what_would_be_remembered_is_bounded() {
    let rules = r#"
        package agent_policy
        import rego.v1
        WriteStreamRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/x", "value": input.exec_id}]}
        CloseStdinRequest := {"allowed": true, "ops": "no patch"}
    "#;
    let policy = policy(rules).await;
    let write = |length| WriteStreamRequest { exec_id: "x".repeat(length), ..Default::default() };
    assert_eq!(reason(&policy, write(2 << 20)).await, Some(Reason::State));
    assert_eq!(reason(&policy, write(10)).await, None);
    assert_eq!(reason(&policy, CloseStdinRequest::new()).await, Some(Reason::State));
}

#[tokio::test]
async fn bytes_are_not_shown_and_files_that_are_copied_are_described() {
    let rules = r#"
        package agent_policy
        import rego.v1
        CopyFileRequest if { input.file_type == "Symlink"; input.symlink_target == "../x"; input.data == null }
        WriteStreamRequest if input.data == null
    "#;
    let policy = policy(rules).await;
    let copy = |mode| CopyFileRequest { file_mode: mode, data: b"../x".to_vec(), ..Default::default() };
    assert_eq!(reason(&policy, copy(0o120_777)).await, None);
    assert_eq!(reason(&policy, copy(0o100_644)).await, Some(Reason::No));
    assert_eq!(reason(&policy, WriteStreamRequest { data: vec![1], ..Default::default() }).await, None);
}

#[tokio::test]
async fn only_what_can_not_change_is_not_evaluated() {
    let rules = "package agent_policy\nimport rego.v1\ndefault ReadStreamRequest := true\ndefault \
                 WaitProcessRequest := false\nWaitProcessRequest if input.exec_id == \"\"\n";
    let document = Document::compile(rules.into()).unwrap();
    assert_eq!(document.fixed("ReadStreamRequest"), Some(true));
    assert_eq!(document.fixed("WaitProcessRequest"), None);
    let policy = policy(rules).await;
    assert_eq!(reason(&policy, ReadStreamRequest::new()).await, None);
    assert_eq!(reason(&policy, WaitProcessRequest::new()).await, None);
}

#[tokio::test]
async fn a_rule_without_end_is_ended() {
    let rules = "package agent_policy\nimport rego.v1\nCheckRequest if { some a in numbers.range(1, 5000); some b in \
                 numbers.range(1, 5000); a * b < 0 }\nStartContainerRequest if { some a in numbers.range(1, 9999); some b \
                 in numbers.range(1, 9999); some c in numbers.range(1, 9999); a + b + c < 0 }";
    let policy = policy(rules).await;
    assert_eq!(reason(&policy, StartContainerRequest::new()).await, Some(Reason::Failed));
}

#[tokio::test]
async fn an_authors_policy_lets_pass_what_fails() {
    let rules = "package agent_policy\ndefault AllowRequestsFailingPolicy := true\ndefault ExecProcessRequest := false";
    let policy = policy(rules).await;
    assert_eq!(reason(&policy, ExecProcessRequest::new()).await, None);
    assert_eq!(reason(&policy, StartContainerRequest::new()).await, None);
}

#[test]
fn an_author_is_told_what_the_rules_print() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let rules =
        "package agent_policy\nimport rego.v1\nExecProcessRequest if { print(\"args\", input.args); input.args == [] }";
    std::fs::write(file.path(), rules).unwrap();
    let explained = explain(file.path(), "ExecProcessRequest", r#"{"args": ["sh"]}"#).unwrap();
    assert_eq!(explained.denied, Some(Reason::No));
    assert!(explained.prints.join("").contains(r#"args ["sh"]"#), "{explained:?}");
    assert_eq!(explain(file.path(), "ExecProcessRequest", r#"{"args": []}"#).unwrap().denied, None);
    assert!(explain(file.path(), "ExecProcessRequest", "{").is_err());
}

#[test]
fn an_image_with_a_policy_that_makes_no_sense_denies_everything() {
    for text in ["", "package agent_policy\nx := {", "package other\nx := true"] {
        let root = tempfile::tempdir().unwrap();
        assert!(Policy::of_image(root.path()).0.allows_all());
        std::fs::create_dir_all(root.path().join("etc/kata-opa")).unwrap();
        std::fs::write(root.path().join("etc/kata-opa/default-policy.rego"), text).unwrap();
        let (policy, fault) = Policy::of_image(root.path());
        assert!(fault.is_some() && !policy.allows_all(), "{text}");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(runtime.block_on(reason(&policy, ListRoutesRequest::new())), Some(Reason::Unusable));
    }
}

proptest::proptest! {
    #[test]
    fn no_request_makes_the_input_fail(place in 0..200usize, byte in proptest::num::u8::ANY) {
        let mut bytes = container("a", &["sleep", "1"]).write_to_bytes().unwrap();
        let place = place % bytes.len();
        bytes[place] = byte;
        if let Ok(request) = CreateContainerRequest::parse_from_bytes(&bytes) {
            input::of(&request);
        }
    }
}
