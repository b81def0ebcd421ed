//! The agent as a process in namespaces of its own: the fast loop.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use nacre_tests::agent::Process;
use nacre_tests::suite::CASES;
use nacre_tests::{dist, suite};

/// Each case has an agent of its own, so that one that fails says only its own name.
async fn case(name: &str) {
    if !dist::root() || !dist::have(&["unshare", "ip", "busybox"]) {
        return;
    }
    let (_, case): &(&str, suite::Case) = CASES.iter().find(|(known, _)| *known == name).unwrap();
    let agent = Process::start(&dist::program("nacre-agent")).unwrap();
    let client = agent.connect().await.unwrap();
    case(&client).await.unwrap();
}

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        $(#[tokio::test] async fn $name() { case(stringify!($name)).await; })*

        #[test]
        fn every_case_is_run() {
            let named = [$(stringify!($name)),*];
            let known: Vec<_> = CASES.iter().map(|(name, _)| *name).collect();
            assert_eq!(named.as_slice(), known);
        }
    };
}

cases!(
    health_and_version_answer,
    details_name_what_the_agent_can_do,
    boot_times_are_in_order,
    what_is_not_offered_is_unimplemented,
    a_container_lives_from_create_to_remove,
    output_before_the_end_is_read_after_it,
    input_reaches_the_program_and_ends,
    more_programs_run_in_a_container,
    signals_end_programs,
    a_paused_container_stands_still_until_it_is_resumed,
    a_paused_container_can_be_killed_and_removed,
    every_kill_for_want_of_memory_is_told,
    limits_are_changed_and_lifted,
    an_ephemeral_storage_is_given_another_size,
    a_container_has_what_another_has_mounted,
    a_terminal_has_the_size_it_is_given,
    usage_is_counted,
    bad_requests_name_what_is_wrong,
    a_missing_program_is_said_and_leaves_nothing,
    copies_stay_in_their_directory,
    addresses_and_routes_are_set_and_listed,
    metrics_are_prometheus_text,
    entropy_is_taken,
    a_policy_rules_what_may_be_run,
    a_pod_ends_with_its_containers,
);
