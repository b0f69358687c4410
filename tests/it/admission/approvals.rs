//! Approvals, rejections and their stamps: who, in which state, does what, and what comes of it. Once with the mutating policy and once without.

use anyhow::{Context, Result, ensure};
use assayer_crds::{ModelPromotion, names};
use kube::CustomResourceExt as _;
use kube::api::PostParams;
use serde_json::{Value, json};

use super::scene::{
    ALICE, BOB, CAROL, DIGEST, ERIN, OLGA, OTHER, Person, RITA, ROBOT, ROOT, Scene, Stamps, annotations,
    assert_refused, joined,
};
use crate::installed::refusal;

/// What was there before the request.
#[derive(Clone, Copy, Debug)]
enum Given {
    /// The operator has not looked at it yet.
    Requested,
    /// It waits for approval.
    Waiting,
    /// Its spec was changed since the operator looked.
    Respecced,
    /// Bob has approved as security.
    ApprovedByBob,
    /// Bob has rejected as security.
    RejectedByBob,
}

/// The annotations that the request sets, by scene and person.
type Request = fn(&Scene, Person) -> Value;

struct Row {
    who: Person,
    given: Given,
    does: &'static str,
    request: Request,
    /// Words of the refusal; none when it is accepted.
    refused: &'static [&'static str],
}

const fn row(who: Person, given: Given, does: &'static str, request: Request, refused: &'static [&'static str]) -> Row {
    Row {
        who,
        given,
        does,
        request,
        refused,
    }
}

const PREFIX: &str = "denied request: assayer: ";
const MEANINGLESS: &[&str] = &[PREFIX, "which means nothing", "roles are [a-z0-9-]{1,50}"];
const STAMPS: &[&str] = &[PREFIX, "can not set the stamps of security so"];
const NOT_YOURS: &[&str] = &[
    PREFIX,
    "may not take away or replace what bob said as security",
    "only bob or another person",
];

fn security(scene: &Scene, who: Person) -> Value {
    scene.approve(who, "security", DIGEST)
}

fn joined_with(mut one: Value, other: Value) -> Value {
    if let (Value::Object(one), Value::Object(other)) = (&mut one, other) {
        one.extend(other);
    }
    one
}

#[rustfmt::skip]
const ROWS: &[Row] = &[
    // Saying yes
    row(ALICE, Given::Waiting, "approves without the right", security, &[PREFIX, "user alice may not approve as security in namespace ml", "approvalroles.assayer.dev/security"]),
    row(CAROL, Given::Waiting, "approves in a role that is not hers", security, &[PREFIX, "user carol may not approve as security"]),
    row(CAROL, Given::Waiting, "approves in her own role", |s, who| s.approve(who, "legal", DIGEST), &[]),
    row(RITA, Given::Waiting, "approves what she requested", security, &[PREFIX, "user rita requested ml/", "another holder of that role has to"]),
    row(OLGA, Given::Waiting, "approves what her group owns", security, &[PREFIX, "user olga is in group file-security, which owns ml/", "somebody outside of that group"]),
    row(ROBOT, Given::Waiting, "approves as a machine", security, &[PREFIX, "system:serviceaccount:ci:deployer is a machine identity", "a person has to"]),
    row(BOB, Given::Waiting, "approves", security, &[]),
    row(ROOT, Given::Waiting, "approves, holding every right", security, &[]),
    row(BOB, Given::Waiting, "approves another digest", |s, who| s.approve(who, "security", OTHER), &[PREFIX, "user bob wants to approve sha256:3333", "asks for sha256:2222", "status.request.digest"]),
    row(BOB, Given::Waiting, "approves with a word", |s, who| s.approve(who, "security", "yes"), &[PREFIX, "user bob wants to approve yes, but"]),
    row(BOB, Given::Requested, "approves before there is a request", security, &[PREFIX, "can not approve ml/", "status.request.digest is empty", "AwaitingApproval"]),
    row(BOB, Given::Respecced, "approves a spec that has changed", security, &[PREFIX, "its spec has changed (generation 2) and status is about generation 1"]),
    row(BOB, Given::ApprovedByBob, "takes a second seat", |s, who| s.approve(who, "security.2", DIGEST), &[PREFIX, "user bob has approved", "seat security.2 is for another person"]),
    row(ERIN, Given::ApprovedByBob, "takes the second seat", |s, who| s.approve(who, "security.2", DIGEST), &[]),
    row(ERIN, Given::ApprovedByBob, "takes seat 99 of a role that is not hers", |s, who| s.approve(who, "legal.99", DIGEST), &[PREFIX, "user erin may not approve as legal in"]),
    row(BOB, Given::Waiting, "approves as two roles at once", |s, who| joined_with(security(s, who), s.approve(who, "legal", DIGEST)), &[PREFIX, "touches several roles in one request", "one request for each role"]),
    row(BOB, Given::Waiting, "approves and rejects at once", |s, who| joined_with(security(s, who), s.reject(who, "security", DIGEST)), &[PREFIX, "approves and rejects as security in one request"]),
    // Words that mean nothing
    row(BOB, Given::Waiting, "takes seat 1", |s, who| s.approve(who, "security.1", DIGEST), MEANINGLESS),
    row(BOB, Given::Waiting, "takes seat 100", |s, who| s.approve(who, "security.100", DIGEST), MEANINGLESS),
    row(BOB, Given::Waiting, "writes the role in capitals", |s, who| s.approve(who, "Security", DIGEST), MEANINGLESS),
    row(BOB, Given::Waiting, "mistypes the annotation", |_, _| json!({"aprove.assayer.dev/security": DIGEST}), MEANINGLESS),
    // Stamps
    row(ALICE, Given::ApprovedByBob, "puts herself in Bob's place", |_, _| json!({"approved-by.assayer.dev/security": "alice"}), STAMPS),
    row(ERIN, Given::ApprovedByBob, "puts herself in Bob's place, being an approver", |_, who| json!({"approve.assayer.dev/security": DIGEST, "approved-by.assayer.dev/security": who.user, "approver-groups.assayer.dev/security": joined(who)}), STAMPS),
    row(BOB, Given::ApprovedByBob, "removes a group from his stamp", |_, _| json!({"approver-groups.assayer.dev/security": "ml"}), STAMPS),
    row(ALICE, Given::ApprovedByBob, "removes the stamp alone", |_, _| json!({"approved-by.assayer.dev/security": null}), STAMPS),
    row(ALICE, Given::Waiting, "leaves a stamp for later", |_, _| json!({"approved-by.assayer.dev/security": "bob"}), STAMPS),
    row(ALICE, Given::Waiting, "stamps a rejection", |_, _| json!({"rejected-by.assayer.dev/security": "bob"}), &[PREFIX, "can not set the stamp of security so: rejected-by"]),
    row(ALICE, Given::ApprovedByBob, "puts words in Bob's mouth", |_, _| json!({"approve-reason.assayer.dev/security": "whatever"}), &[PREFIX, "can not change approve-reason.assayer.dev/security alone"]),
    row(ALICE, Given::Waiting, "says that she requested it", |_, _| json!({names::REQUESTED_BY: "alice"}), &[PREFIX, "can not change assayer.dev/requested-by", "(rita)"]),
    row(RITA, Given::Waiting, "says that alice requested it", |_, _| json!({names::REQUESTED_BY: "alice"}), &[PREFIX, "can not change assayer.dev/requested-by"]),
    // Taking it back
    row(ALICE, Given::ApprovedByBob, "withdraws Bob's approval", |s, _| s.withdraw("security"), NOT_YOURS),
    row(RITA, Given::Waiting, "removes nothing", |s, _| s.withdraw("security"), &[]),
    row(CAROL, Given::ApprovedByBob, "withdraws another role's approval", |s, _| s.withdraw("security"), NOT_YOURS),
    row(ROBOT, Given::ApprovedByBob, "withdraws as a machine", |s, _| s.withdraw("security"), NOT_YOURS),
    row(BOB, Given::ApprovedByBob, "withdraws", |s, _| s.withdraw("security"), &[]),
    row(ERIN, Given::ApprovedByBob, "withdraws as another approver of the role", |s, _| s.withdraw("security"), &[]),
    row(ALICE, Given::ApprovedByBob, "empties Bob's approval", |_, _| json!({"approve.assayer.dev/security": ""}), NOT_YOURS),
    // Saying no
    row(ALICE, Given::Waiting, "rejects without the right", |s, who| s.reject(who, "security", DIGEST), &[PREFIX, "user alice may not reject as security"]),
    row(ROBOT, Given::Waiting, "rejects as a machine", |s, who| s.reject(who, "security", DIGEST), &[PREFIX, "is a machine identity and can not reject"]),
    row(BOB, Given::Waiting, "rejects another digest", |s, who| s.reject(who, "security", OTHER), &[PREFIX, "user bob wants to reject sha256:3333"]),
    row(BOB, Given::Waiting, "rejects", |s, who| s.reject(who, "security", DIGEST), &[]),
    row(RITA, Given::Waiting, "rejects what she requested", |s, who| s.reject(who, "security", DIGEST), &[]),
    row(ERIN, Given::ApprovedByBob, "rejects what Bob approved", |s, who| s.reject(who, "security", DIGEST), &[]),
    row(ALICE, Given::RejectedByBob, "withdraws Bob's rejection", |_, _| json!({"reject.assayer.dev/security": null, "rejected-by.assayer.dev/security": null}), NOT_YOURS),
    row(BOB, Given::RejectedByBob, "withdraws his rejection", |_, _| json!({"reject.assayer.dev/security": null, "rejected-by.assayer.dev/security": null}), &[]),
];

async fn prepare(scene: &Scene, name: &str, given: Given) -> Result<()> {
    if matches!(given, Given::Requested) {
        return scene.requested(name).await;
    }
    scene.waiting(name).await?;
    match given {
        Given::Respecced => scene
            .patch(RITA, name, &json!({"spec": {"change": {"reason": "other"}}}))
            .await
            .map(drop)?,
        Given::ApprovedByBob => scene
            .annotate(BOB, name, &scene.approve(BOB, "security", DIGEST))
            .await
            .map(drop)?,
        Given::RejectedByBob => scene
            .annotate(BOB, name, &scene.reject(BOB, "security", DIGEST))
            .await
            .map(drop)?,
        Given::Requested | Given::Waiting => {}
    }
    Ok(())
}

async fn try_row(scene: &Scene, name: &str, row: &Row) -> Result<()> {
    prepare(scene, name, row.given).await.context("prepare")?;
    let request = (row.request)(scene, row.who);
    let result = scene.annotate(row.who, name, &request).await;
    if !row.refused.is_empty() {
        return assert_refused("should be refused", result, row.refused);
    }
    let kept = annotations(&result.context("should be accepted")?);
    for (key, value) in request.as_object().into_iter().flatten() {
        ensure!(
            kept.get(key) == Some(value).filter(|value| !value.is_null()),
            "{key} in {kept}"
        );
    }
    check_stamps(row.who, &request, &kept)
}

/// Every approval has its stamps, every approval that is gone has none.
fn check_stamps(who: Person, request: &Value, kept: &Value) -> Result<()> {
    for key in request.as_object().into_iter().flatten().map(|(key, _)| key) {
        if let Some(seat) = key.strip_prefix(names::APPROVE) {
            let approved = kept.get(key).is_some();
            let by = kept.get(format!("{}{seat}", names::APPROVED_BY));
            let groups = kept.get(format!("{}{seat}", names::APPROVER_GROUPS));
            ensure!(by == approved.then(|| json!(who.user)).as_ref(), "approved by {by:?}");
            ensure!(
                groups == approved.then(|| json!(joined(who))).as_ref(),
                "groups {groups:?}"
            );
        }
        if let Some(seat) = key.strip_prefix(names::REJECT) {
            let by = kept.get(format!("{}{seat}", names::REJECTED_BY));
            ensure!(
                by == kept.get(key).map(|_| json!(who.user)).as_ref(),
                "rejected by {by:?}"
            );
        }
    }
    Ok(())
}

async fn try_all(stamps: Stamps) -> Result<()> {
    let scene = Scene::open(stamps).await?;
    let mut wrong = Vec::new();
    for (number, row) in ROWS.iter().enumerate() {
        if let Err(error) = try_row(&scene, &format!("row-{number}"), row).await {
            wrong.push(format!("{} {} ({:?}): {error:#}", row.who.user, row.does, row.given));
        }
    }
    assert!(
        wrong.is_empty(),
        "{stamps:?}: {} of {}:\n{}",
        wrong.len(),
        ROWS.len(),
        wrong.join("\n")
    );
    requests_and_replacements(&scene).await?;
    if stamps == Stamps::ByClient {
        lies_of_clients(&scene).await?;
    } else {
        lies_that_the_cluster_puts_right(&scene).await?;
    }
    Ok(())
}

#[tokio::test]
async fn with_stamps_by_the_cluster() -> Result<()> {
    try_all(Stamps::ByCluster).await
}

#[tokio::test]
async fn with_stamps_by_the_clients() -> Result<()> {
    try_all(Stamps::ByClient).await
}

/// What is not an annotation alone: creation, changes of the spec, full replaces.
async fn requests_and_replacements(scene: &Scene) -> Result<()> {
    let mut manifest = scene.manifest("born-approved", ALICE);
    manifest["metadata"]["annotations"][format!("{}security", names::APPROVE)] = DIGEST.into();
    let promotion: ModelPromotion = serde_json::from_value(manifest)?;
    let result = scene.promotions(ALICE).create(&PostParams::default(), &promotion).await;
    assert_refused(
        "creation with an approval",
        result,
        &[
            PREFIX,
            "creates a ModelPromotion that already carries",
            "approve.assayer.dev/security",
        ],
    )?;

    // Whoever changes the spec is the requester from then on; the approval stays, and is stale by its digest.
    prepare(scene, "changed", Given::ApprovedByBob).await?;
    let mut change = json!({"spec": {"change": {"reason": "another reason"}}});
    if scene.stamps == Stamps::ByClient {
        let result = scene.patch(ALICE, "changed", &change).await;
        assert_refused(
            "a change without its stamp",
            result,
            &[
                PREFIX,
                "is thereby its requester: set assayer.dev/requested-by to alice",
            ],
        )?;
        change["metadata"]["annotations"] = json!({names::REQUESTED_BY: "alice"});
    }
    let changed = annotations(&scene.patch(ALICE, "changed", &change).await?);
    ensure!(
        changed[names::REQUESTED_BY] == "alice" && changed["approved-by.assayer.dev/security"] == "bob",
        "{changed}"
    );

    let mut both = json!({"spec": {"change": {"reason": "yet another"}}, "metadata": {"annotations": scene.approve(ERIN, "security.2", DIGEST)}});
    both["metadata"]["annotations"][names::REQUESTED_BY] = ERIN.user.into();
    let result = scene.patch(ERIN, "changed", &both).await;
    assert_refused(
        "approval and change at once",
        result,
        &[
            PREFIX,
            "changes the spec of ml/changed and wants to approve in the same request",
        ],
    )?;

    // Two people's words in one seat: neither goes along with the other's.
    prepare(scene, "disputed", Given::ApprovedByBob).await?;
    scene
        .annotate(ERIN, "disputed", &scene.reject(ERIN, "security", DIGEST))
        .await?;
    let mut both = scene.withdraw("security");
    both["reject.assayer.dev/security"] = Value::Null;
    both["rejected-by.assayer.dev/security"] = Value::Null;
    let result = scene.annotate(ALICE, "disputed", &both).await;
    assert_refused(
        "taking both away",
        result,
        &[
            PREFIX,
            "may not take away or replace what bob and erin said as security",
        ],
    )?;

    // A full replace drops what it does not know; an approval does not go that way.
    prepare(scene, "replaced", Given::ApprovedByBob).await?;
    let mut replacement = scene.promotions(ALICE).get("replaced").await?;
    replacement.metadata.annotations = None;
    let result = scene
        .promotions(ALICE)
        .replace("replaced", &PostParams::default(), &replacement)
        .await;
    assert_refused("a replace that drops an approval", result, NOT_YOURS)?;

    prepare(scene, "kept", Given::Waiting).await?;
    let mut replacement = scene.promotions(ALICE).get("kept").await?;
    replacement.metadata.annotations = None;
    let result = scene
        .promotions(ALICE)
        .replace("kept", &PostParams::default(), &replacement)
        .await;
    if scene.stamps == Stamps::ByClient {
        return assert_refused(
            "a replace that drops the requester",
            result,
            &[PREFIX, "can not change assayer.dev/requested-by"],
        );
    }
    ensure!(annotations(&result?)[names::REQUESTED_BY] == "rita");
    Ok(())
}

/// Without the mutating policy clients write stamps, and none but the true ones pass.
async fn lies_of_clients(scene: &Scene) -> Result<()> {
    let truth = scene.approve(BOB, "security", DIGEST);
    let lies = [
        ("approved-by.assayer.dev/security", json!("erin")),
        ("approved-by.assayer.dev/security", Value::Null),
        ("approver-groups.assayer.dev/security", json!("security")),
        ("approver-groups.assayer.dev/security", Value::Null),
    ];
    prepare(scene, "lies", Given::Waiting).await?;
    for (key, value) in lies {
        let mut lie = truth.clone();
        lie[key] = value;
        assert_refused("a false stamp", scene.annotate(BOB, "lies", &lie).await, STAMPS)?;
    }
    let mut rejection = scene.reject(BOB, "security", DIGEST);
    rejection["rejected-by.assayer.dev/security"] = "erin".into();
    let result = scene.annotate(BOB, "lies", &rejection).await;
    assert_refused(
        "a false stamp",
        result,
        &[PREFIX, "can not set the stamp of security so: rejected-by"],
    )?;

    scene.annotate(BOB, "lies", &truth).await?;
    let result = scene
        .annotate(BOB, "lies", &json!({"approve.assayer.dev/security": null}))
        .await;
    assert_refused("a stamp that outlives its approval", result, STAMPS)?;

    let said = refusal(
        scene
            .promotions(RITA)
            .create(
                &PostParams::default(),
                &serde_json::from_value(scene.manifest("foisted", BOB))?,
            )
            .await,
    )?;
    ensure!(
        said.contains("is thereby its requester: set assayer.dev/requested-by to rita"),
        "{said}"
    );
    Ok(())
}

/// With the mutating policy a false stamp in a true approval is overwritten.
async fn lies_that_the_cluster_puts_right(scene: &Scene) -> Result<()> {
    prepare(scene, "lies", Given::Waiting).await?;
    let mut lie = scene.approve(BOB, "security", DIGEST);
    lie["approved-by.assayer.dev/security"] = "erin".into();
    lie["approve-reason.assayer.dev/security"] = "the evidence holds".into();
    let kept = annotations(&scene.annotate(BOB, "lies", &lie).await?);
    ensure!(kept["approved-by.assayer.dev/security"] == "bob", "{kept}");

    let kept = annotations(&scene.annotate(BOB, "lies", &scene.withdraw("security")).await?);
    ensure!(
        kept == json!({names::REQUESTED_BY: "rita"}),
        "the reason goes with the approval: {kept}"
    );

    let mut manifest = scene.manifest("foisted", RITA);
    manifest["metadata"]["annotations"] = json!({names::REQUESTED_BY: "bob"});
    let made = scene
        .promotions(RITA)
        .create(&PostParams::default(), &serde_json::from_value(manifest)?)
        .await?;
    ensure!(annotations(&made)[names::REQUESTED_BY] == "rita");
    Ok(())
}

/// A field that the spec gains later must make its author the requester, too. Only `suspend` says when and not what.
#[test]
fn every_field_of_a_request_makes_a_requester() -> Result<()> {
    let definition = ModelPromotion::crd();
    let schema = definition.spec.versions[0].schema.as_ref().context("no schema")?;
    let root = schema.open_api_v3_schema.as_ref().context("no schema")?;
    let fields = root.properties.as_ref().and_then(|all| all["spec"].properties.as_ref());
    for policy in ["approvals", "stamps"] {
        let text =
            std::fs::read_to_string(crate::installed::chart().join(format!("templates/policies/{policy}.yaml")))?;
        for field in fields.context("no fields")?.keys().filter(|field| *field != "suspend") {
            let compared = format!("object.spec.{field} != oldObject.spec.{field}");
            ensure!(text.contains(&compared), "policies/{policy}.yaml lacks `{compared}`");
        }
    }
    Ok(())
}
