//! Rows from objects in every state that matters: live, drifted, unapproved, without a promotion.

use assayer_crds::policy::RequiredApproval;
use assayer_crds::promotion::{ModelPromotionStatus, RequestStatus};

use super::super::facts::{OptimizationFact, PodFact, WorkloadFact};
use super::super::fixtures::{approval, attempt, carried, digest, evidence, key, live, pod, promotion};
use super::*;

fn status(facts: &mut Facts) -> &mut ModelPromotionStatus {
    &mut facts.promotions.get_mut(&key("magika-prod")).unwrap().status
}

/// Digests of models with replicas and approval, of unapproved ones, and what drifted workloads carry.
type Seen = (Vec<(String, u64, bool)>, Vec<String>, Vec<String>);

fn seen(facts: &Facts) -> Seen {
    let inventory = project(facts);
    (
        inventory
            .models
            .into_iter()
            .map(|row| (row.artifact_digest, row.replicas, row.approved))
            .collect(),
        inventory
            .unapproved
            .into_iter()
            .map(|row| row.artifact_digest)
            .collect(),
        inventory.drifted.into_iter().map(|row| row.found).collect(),
    )
}

fn d(name: &str) -> String {
    digest(name).to_string()
}

#[test]
fn a_live_model_shows_who_approved_it_and_counts_the_pods_that_serve() {
    let inventory = project(&live());
    let row = &inventory.models[0];
    assert_eq!(inventory.models.len(), 1);
    assert_eq!(
        (
            row.workload.kind.as_str(),
            row.workload.name.as_str(),
            row.replicas,
            row.approved
        ),
        ("Deployment", "scanner", 1, true)
    );
    assert_eq!(
        (
            row.approvers.clone(),
            row.ticket.as_str(),
            row.promotion.as_str(),
            row.tier.as_str()
        ),
        (vec!["alice@example.com".to_owned()], "CHG-4711", "magika-prod", "high")
    );
    assert!(inventory.unapproved.is_empty() && inventory.drifted.is_empty());
    let blast = &inventory.blast_radius[0];
    assert_eq!(
        (blast.model.as_str(), blast.workloads, blast.pods, blast.namespaces),
        ("magika", 1, 2, 1)
    );
}

#[test]
fn a_governed_pod_with_a_digest_that_nobody_decided_is_unapproved() {
    let mut facts = live();
    facts.pods.insert(
        key("rogue"),
        PodFact {
            owner: ("Pod".into(), "rogue".into()),
            ..pod("b")
        },
    );
    let (models, unapproved, _) = seen(&facts);
    assert_eq!(models, [(d("a"), 1, true)]);
    assert_eq!(unapproved, [d("b")]);
}

#[test]
fn the_same_digest_in_another_workload_or_namespace_is_another_decision() {
    let mut facts = live();
    facts.pods.insert(
        key("copy"),
        PodFact {
            owner: ("StatefulSet".into(), "copy".into()),
            ..pod("a")
        },
    );
    facts.pods.insert(("other".into(), "p".into()), pod("a"));
    let (models, unapproved, _) = seen(&facts);
    assert_eq!(unapproved, [d("a"), d("a")]);
    assert_eq!(models.iter().filter(|(_, _, approved)| *approved).count(), 1);
    let blast = &project(&facts).blast_radius[0];
    assert_eq!((blast.workloads, blast.pods, blast.namespaces), (3, 4, 2));
}

#[test]
fn evidence_alone_names_the_model_and_approves_nothing() {
    let mut facts = live();
    facts.promotions.clear();
    let inventory = project(&facts);
    let row = &inventory.models[0];
    assert_eq!(
        (
            row.model.as_str(),
            row.version.as_str(),
            row.promotion.as_str(),
            row.approved
        ),
        ("magika", "3.3.0", "", false)
    );
    assert_eq!((row.approvers.len(), row.since.clone()), (0, None));
    assert_eq!(inventory.unapproved[0].artifact_digest, d("a"));
    facts.evidence.clear();
    let inventory = project(&facts);
    assert!(inventory.models.is_empty());
    assert_eq!(inventory.unapproved[0].pods, 2);
}

#[test]
fn states_of_an_attempt_that_allow_its_artifact_to_run() {
    let cases = [
        ("Deciding", true),
        ("Progressing", true),
        ("Complete", true),
        ("RollingBack", true),
        ("RolledBack", false),
        ("Failed", false),
        ("a word of a later version", false),
    ];
    for (state, allowed) in cases {
        let mut facts = live();
        status(&mut facts).attempt = Some(attempt("b", state));
        facts.pods.insert(key("new"), pod("b"));
        let (_, unapproved, _) = seen(&facts);
        assert_eq!(unapproved.is_empty(), allowed, "{state}");
    }
}

#[test]
fn a_former_model_that_history_has_is_approved_by_those_who_approved_it_then() {
    let mut facts = live();
    status(&mut facts).history = vec![attempt("old", "Complete")];
    facts.evidence.insert(key("e2"), evidence("old"));
    facts.pods.insert(key("late"), pod("old"));
    let inventory = project(&facts);
    let row = inventory
        .models
        .iter()
        .find(|row| row.artifact_digest == d("old"))
        .unwrap();
    assert_eq!(
        (row.approved, row.approvers.clone()),
        (true, vec!["bob@example.com".to_owned()])
    );
    assert_eq!(row.model, "magika");
}

#[test]
fn a_workload_that_carries_something_else_has_drifted_unless_a_roll_out_put_it_there() {
    let mut facts = live();
    facts.workloads.get_mut(&key("scanner")).unwrap().carried = carried("b");
    assert_eq!(seen(&facts).2, [d("b")]);
    for state in UNDER_WAY {
        status(&mut facts).attempt = Some(attempt("b", state));
        assert_eq!(seen(&facts).2, Vec::<String>::new(), "{state}");
    }
    status(&mut facts).attempt = Some(attempt("b", "RolledBack"));
    assert_eq!(seen(&facts).2, [d("b")]);
    facts.workloads.get_mut(&key("scanner")).unwrap().carried.clear();
    assert_eq!(seen(&facts).2, [""]);
    facts.workloads.clear();
    assert_eq!(seen(&facts).2, [""]);
    status(&mut facts).phase = "Superseded".into();
    assert_eq!(seen(&facts).2, Vec::<String>::new());
}

#[test]
fn a_newer_promotion_of_the_same_workload_is_no_drift_of_the_older() {
    let mut facts = live();
    let mut newer = facts.promotions[&key("magika-prod")].clone();
    newer.status.live.as_mut().unwrap().artifact = super::super::fixtures::artifact("b");
    facts.promotions.insert(key("newer"), newer);
    facts.workloads.get_mut(&key("scanner")).unwrap().carried = carried("b");
    assert_eq!(seen(&facts).2, Vec::<String>::new());
}

#[test]
fn a_target_without_the_label_is_known_by_the_workloads_own_word() {
    let mut facts = live();
    facts.pods.clear();
    facts.workloads.insert(
        key("scanner"),
        WorkloadFact {
            governed: false,
            carried: carried("a"),
            available: 3,
        },
    );
    assert_eq!(seen(&facts).0, [(d("a"), 3, true)]);
    facts.workloads.get_mut(&key("scanner")).unwrap().carried = carried("x");
    let (models, unapproved, drift) = seen(&facts);
    assert_eq!((models.len(), unapproved, drift), (0, vec![d("x")], vec![d("x")]));
}

#[test]
fn an_unpinned_reference_is_unapproved_even_beside_an_empty_status() {
    let mut facts = live();
    status(&mut facts).live.as_mut().unwrap().artifact.artifact_digest = String::new();
    let mut tagged = pod("a");
    tagged.carried[0].artifact = Artifact::Unpinned;
    facts.pods = BTreeMap::from([(key("p"), tagged)]);
    facts.workloads.clear();
    let (models, unapproved, _) = seen(&facts);
    assert_eq!((models.len(), unapproved), (0, vec!["unpinned".to_owned()]));
}

#[test]
fn waiting_counts_what_each_role_still_lacks() {
    let mut facts = live();
    let status = status(&mut facts);
    let required = |role: &str, count| RequiredApproval {
        role: role.into(),
        count,
    };
    status.request = Some(RequestStatus {
        tier: "high".into(),
        required: vec![required("security", 2), required("owner", 1)],
        since: "2026-01-01T00:00:00Z".into(),
        ..RequestStatus::default()
    });
    status.approvals = vec![approval("alice"), approval("bob"), approval("carol")];
    assert!(project(&facts).waiting.is_empty(), "only while it waits");
    super::tests::status(&mut facts).phase = "AwaitingApproval".into();
    assert_eq!(
        project(&facts).waiting[0].missing,
        1,
        "a third approval of one role is none of another"
    );
}

#[test]
fn phases_and_gates_are_counted() {
    let mut facts = live();
    facts
        .promotions
        .insert(key("new"), promotion(ModelPromotionStatus::default()));
    facts.optimizations.insert(
        key("o"),
        OptimizationFact {
            phase: "Succeeded".into(),
            verdicts: BTreeMap::from([(("Block".into(), "Passed".into()), 3)]),
        },
    );
    let inventory = project(&facts);
    let phases: Vec<_> = inventory
        .phases
        .iter()
        .map(|row| (row.kind, row.phase.as_str(), row.count))
        .collect();
    assert_eq!(
        phases,
        [
            ("ModelOptimization", "Succeeded", 1),
            ("ModelPromotion", "Pending", 1),
            ("ModelPromotion", "Live", 1)
        ]
    );
    assert_eq!(inventory.gates[0].count, 3);
}
