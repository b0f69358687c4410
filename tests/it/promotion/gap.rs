//! Approvals that were forged while the admission policies were away, on a real API server: they don't count once the policies are back.

use anyhow::{Context as _, Result, ensure};
use assayer_crds::names::{APPROVE, APPROVED_BY, APPROVER_GROUPS};
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use serde_json::json;

use super::scene::{Scene, wait};
use crate::installed::{kubectl, render};

const POLICY: &str = "assayer-approvals";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_forged_in_a_gap_does_not_count_after_it() -> Result<()> {
    let scene = Scene::open().await?;
    scene.policy().await?;
    scene.apply_from_git().await?;
    let artifact = scene.optimization("magika-a", "int8-a").await?;
    scene.promote("prod", "magika-a").await?;
    let before = scene.reach("prod", "AwaitingApproval", "ApprovalMissing").await?;
    let asked = before.request.context("no request")?;
    ensure!(asked.guard_epoch.len() == 64, "{asked:?}");

    take_away(&scene.admin).await?;
    forge(&scene, &asked.digest).await?;
    scene.reach("prod", "Verifying", "GuardDown").await?;
    // While it is away the same question is asked, so that nothing is known of the next one.
    let meanwhile = scene.status("prod").await?.request.context("no request")?;
    ensure!(meanwhile == asked, "{meanwhile:?}");

    let answer = kubectl(
        &scene.installed.control_plane,
        &["apply", "--server-side", "-f", "-"],
        &render(&["rbac.approverRoles={security}"])?,
    )?;
    ensure!(answer.refused.is_empty(), "{}", answer.refused);
    let after = scene.reach("prod", "AwaitingApproval", "ApprovalMissing").await?;
    ensure!(
        scene
            .promotions()
            .get("prod")
            .await?
            .annotations()
            .get(&format!("{APPROVED_BY}security"))
            .map(String::as_str)
            == Some("bob"),
        "the forgery is still there"
    );
    let anew = after.request.context("no request")?;
    ensure!(anew.digest != asked.digest && anew.guard_epoch != asked.guard_epoch);
    ensure!(after.summary.approvals == "0/1" && after.attempt.is_none());
    let approved = after.conditions.iter().find(|condition| condition.type_ == "Approved");
    let words = &approved.context("no Approved")?.message;
    ensure!(
        words.contains(&format!("names {}", asked.digest)) && words.contains("approve again"),
        "{words}"
    );
    ensure!(
        scene.reference().await?.is_none(),
        "it was written on a forged approval"
    );

    // The real one, given anew, counts.
    scene.approve("prod").await?;
    ensure!(
        scene
            .reference()
            .await?
            .is_some_and(|reference| reference.ends_with(artifact.as_str()))
    );
    scene.close().await
}

/// Somebody takes the policies' bindings away, and waits until that is felt.
async fn take_away(admin: &Client) -> Result<()> {
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(admin.clone());
    bindings.delete(POLICY, &DeleteParams::default()).await?;
    let stamps = kube::api::ApiResource::from_gvk(&kube::api::GroupVersionKind::gvk(
        "admissionregistration.k8s.io",
        "v1",
        "MutatingAdmissionPolicyBinding",
    ));
    let stamps: Api<kube::api::DynamicObject> = Api::all_with(admin.clone(), &stamps);
    stamps.delete("assayer-stamps", &DeleteParams::default()).await?;
    Ok(())
}

/// Rita approves her own promotion in Bob's name, as soon as nobody stops her.
async fn forge(scene: &Scene, digest: &str) -> Result<()> {
    let patch = json!({"metadata": {"annotations": {
        format!("{APPROVE}security"): digest,
        format!("{APPROVED_BY}security"): "bob",
        format!("{APPROVER_GROUPS}security"): "security",
    }}});
    wait("the forgery passes", || async {
        let forged = scene
            .promotions()
            .patch("prod", &PatchParams::default(), &Patch::Merge(&patch))
            .await?;
        let by = forged.annotations().get(&format!("{APPROVED_BY}security"));
        ensure!(by.map(String::as_str) == Some("bob"), "stamped as {by:?}");
        Ok(())
    })
    .await
}
