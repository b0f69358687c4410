//! The chart: accepted by the API server as strictly as it can be asked, without wildcards, installed and removed by helm itself.

use std::{
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::{
    api::admissionregistration::v1::ValidatingAdmissionPolicy,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, api::ListParams};
use serde_json::Value;
use xtask::{
    cluster::{ControlPlane, ControlPlaneOptions},
    tools::go,
};

use crate::installed::{IMAGE, Installed, SYSTEM, chart, eventually, kubectl, render};

pub(crate) fn objects(text: &str) -> Result<Vec<Value>> {
    let all = text.split("\n---").filter(|document| {
        document
            .lines()
            .any(|line| !line.starts_with('#') && !line.trim().is_empty())
    });
    all.map(|document| Ok(serde_saphyr::from_str(document)?)).collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

fn helm(arguments: &[&str]) -> Result<Output> {
    let home = tempfile::tempdir()?;
    let output = Command::new(go::path("helm")?)
        .args(arguments)
        .env("HELM_CACHE_HOME", home.path())
        .env("HELM_CONFIG_HOME", home.path())
        .env("HELM_DATA_HOME", home.path())
        .output()?;
    Ok(output)
}

fn succeeded(what: &str, output: &Output) -> Result<String> {
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(output.status.success(), "{what}: {said}");
    Ok(said)
}

#[tokio::test]
async fn every_variant_is_accepted_by_a_strict_dry_run() -> Result<()> {
    let control_plane = ControlPlane::start(&ControlPlaneOptions::default()).await?;
    kubectl(&control_plane, &["create", "namespace", SYSTEM], "")?;
    let restricted = [
        "label",
        "namespace",
        SYSTEM,
        "pod-security.kubernetes.io/warn=restricted",
    ];
    kubectl(&control_plane, &restricted, "")?;
    let variants: [&[&str]; 5] = [
        &[],
        &[
            "policies.mutating=false",
            "replicas=3",
            "rbac.approverRoles={security,legal}",
        ],
        &[
            "signing.existingSecret=mine",
            "plainHttp={10.0.0.5:5000}",
            "imagePullSecrets[0].name=pull",
            "crds.install=false",
        ],
        &[
            "networkPolicy.metricsFrom={monitoring}",
            "priorityClassName=high",
            "nodeSelector.disk=ssd",
            "podAnnotations.a=b",
        ],
        &[
            "policies.approvals=false",
            "policies.status=false",
            "policies.authors=false",
            "policies.workers=false",
            "policies.evidence=false",
            "networkPolicy.enabled=false",
            "dashboard.enabled=false",
            "rbac.aggregate=false",
        ],
    ];
    for variant in variants {
        let arguments = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
        let answer = kubectl(&control_plane, &arguments, &render(variant)?)?;
        ensure!(answer.refused.is_empty(), "{variant:?}: {}", answer.refused);
        ensure!(!answer.said.contains("Warning"), "{variant:?}: {}", answer.said);
    }
    Ok(())
}

/// The controller manager type-checks the policies of kinds that it knows and tells what is odd in their status.
#[tokio::test]
async fn policies_have_no_type_warnings() -> Result<()> {
    let options = ControlPlaneOptions {
        controller_manager: true,
        ..ControlPlaneOptions::default()
    };
    let installed = Installed::start_with(&options, &[]).await?;
    let policies = Api::<ValidatingAdmissionPolicy>::all(installed.admin.clone());
    let checked = eventually("type checks of the policies", || async {
        let all = policies.list(&ListParams::default()).await?.items;
        let done = all.iter().all(|policy| {
            let seen = policy.status.as_ref().and_then(|status| status.observed_generation);
            seen.is_some() && seen == policy.metadata.generation
        });
        ensure!(done && all.len() == 8, "{} policies", all.len());
        Ok(all)
    })
    .await?;
    for policy in checked {
        let warnings = policy
            .status
            .and_then(|status| status.type_checking)
            .and_then(|checking| checking.expression_warnings);
        assert!(
            warnings.is_none_or(|warnings| warnings.is_empty()),
            "{:?}",
            policy.metadata.name
        );
    }
    Ok(())
}

#[test]
fn rights_have_no_wildcards_and_the_operator_reads_one_secret_only() -> Result<()> {
    let objects = objects(&render(&["rbac.approverRoles={security}"])?)?;
    let roles: Vec<&Value> = [of_kind(&objects, "Role"), of_kind(&objects, "ClusterRole")].concat();
    ensure!(roles.len() >= 6, "{} roles", roles.len());
    for role in roles {
        let name = &role["metadata"]["name"];
        for rule in role["rules"].as_array().context("a role without rules")? {
            ensure!(!rule.to_string().contains('*'), "{name}: {rule}");
            let secrets = rule["resources"].to_string().contains("secrets");
            let creates = rule["verbs"] == serde_json::json!(["create"]);
            ensure!(
                !secrets || creates || rule["resourceNames"].is_array(),
                "{name}: {rule}"
            );
            ensure!(!secrets || role["kind"] == "Role", "{name} is cluster-wide: {rule}");
        }
    }
    Ok(())
}

#[test]
fn definitions_are_kept_and_can_be_left_out() -> Result<()> {
    let with = objects(&render(&[])?)?;
    let definitions = of_kind(&with, "CustomResourceDefinition");
    assert_eq!(definitions.len(), assayer_crds::all().len());
    for definition in definitions {
        assert_eq!(definition["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    }
    let without = objects(&render(&["crds.install=false"])?)?;
    assert!(of_kind(&without, "CustomResourceDefinition").is_empty());
    Ok(())
}

#[test]
fn the_signing_key_is_made_by_a_job_and_never_by_a_template() -> Result<()> {
    let made = objects(&render(&[])?)?;
    assert!(
        of_kind(&made, "Secret").is_empty(),
        "a template would make another key at every render"
    );
    let job = of_kind(&made, "Job")[0];
    assert!(
        job["metadata"]["annotations"]["helm.sh/hook"]
            .as_str()
            .is_some_and(|hook| hook.contains("pre-install"))
    );
    let given = objects(&render(&["signing.existingSecret=mine"])?)?;
    assert!(of_kind(&given, "Job").is_empty());
    let arguments = of_kind(&given, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
    assert!(arguments.contains("--signing-secret=mine"), "{arguments}");
    Ok(())
}

#[test]
fn values_that_can_not_work_are_refused_by_name() -> Result<()> {
    let rows = [
        ("image=registry.test/assayer:latest", "/image"),
        ("workerImage=registry.test/worker", "/workerImage"),
        ("replicas=0", "/replicas"),
        ("policies.mutating=maybe", "/policies/mutating"),
        ("rbac.approverRoles={Security}", "/rbac/approverRoles/0"),
        ("plainHttp={http://10.0.0.5}", "/plainHttp/0"),
        ("imagee=x", "imagee"),
    ];
    for (value, word) in rows {
        let chart = chart().display().to_string();
        let output = helm(&["template", "assayer", &chart, "--set", value])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{value} was accepted");
        assert!(said.contains(word), "{value}: {said}");
    }
    let chart = chart().display().to_string();
    let output = helm(&["template", "assayer", &chart])?;
    assert!(!output.status.success(), "an install without images was accepted");
    assert!(String::from_utf8_lossy(&output.stderr).contains("is required"));
    Ok(())
}

#[test]
fn lint_finds_nothing() -> Result<()> {
    let chart = chart().display().to_string();
    let images = format!("image={IMAGE},workerImage={IMAGE}");
    let said = succeeded("helm lint", &helm(&["lint", "--strict", &chart, "--set", &images])?)?;
    assert!(!said.contains("[WARNING]") && !said.contains("[ERROR]"), "{said}");
    Ok(())
}

#[tokio::test]
async fn helm_installs_upgrades_and_removes_it_and_keeps_the_definitions() -> Result<()> {
    let control_plane = ControlPlane::start(&ControlPlaneOptions::default()).await?;
    let kubeconfig = format!("--kubeconfig={}", control_plane.kubeconfig().display());
    let chart = chart().display().to_string();
    let images = format!("image={IMAGE},workerImage={IMAGE}");
    // Without a node no hook can run: the key's Job is tried by the end-to-end test.
    let common = [&kubeconfig, "--namespace", SYSTEM, "--set", &images, "--no-hooks"];
    let run = |first: &[&str]| helm(&[first, &common].concat());
    succeeded("install", &run(&["install", "assayer", &chart, "--create-namespace"])?)?;
    let upgrade = [
        "upgrade",
        "assayer",
        &chart,
        "--set",
        "policies.mutating=true,replicas=2",
    ];
    succeeded("upgrade", &run(&upgrade)?)?;
    let uninstall = ["uninstall", "assayer", "--namespace", SYSTEM, &kubeconfig, "--no-hooks"];
    succeeded("uninstall", &helm(&uninstall)?)?;

    let definitions = Api::<CustomResourceDefinition>::all(control_plane.client().await?);
    let left = definitions.list(&ListParams::default()).await?.items;
    assert_eq!(
        left.len(),
        assayer_crds::all().len(),
        "uninstalling took definitions, and all objects, along"
    );
    let policies = Api::<ValidatingAdmissionPolicy>::all(control_plane.client().await?);
    assert!(policies.list(&ListParams::default()).await?.items.is_empty());
    succeeded("install again", &run(&["install", "assayer", &chart])?)?;
    Ok(())
}

#[test]
fn monitoring_objects_keep_the_models_labels() -> Result<()> {
    let objects = objects(&render(&[
        "serviceMonitor.enabled=true",
        "prometheusRule.enabled=true",
        "prometheusRule.labels.release=x",
    ])?)?;
    assert_eq!(
        of_kind(&objects, "ServiceMonitor")[0]["spec"]["endpoints"][0]["honorLabels"],
        true
    );
    let rule = of_kind(&objects, "PrometheusRule")[0];
    assert_eq!(rule["metadata"]["labels"]["release"], "x");
    let file: Value = serde_saphyr::from_str(&std::fs::read_to_string(chart().join("files/alerts.yaml"))?)?;
    assert_eq!(rule["spec"], file);
    Ok(())
}

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
