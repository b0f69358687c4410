//! The manifests of `examples/magika/` against the types and the files that they speak of.

use std::{fs, path::Path};

use assayer_crds::{
    optimization::ModelOptimization, policy::PromotionPolicy, promotion::ModelPromotion, stages::QuantizeMode,
};
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Service, rbac::v1::Role},
    serde::de::DeserializeOwned,
};
use scanner::model::{INPUT, OUTPUT};

use super::*;

fn examples() -> PathBuf {
    cache::workspace().join("examples/magika")
}

/// One of our kinds: an unknown field is an error.
fn read<T: DeserializeOwned>(file: &str) -> T {
    let text = fs::read_to_string(examples().join(file)).unwrap();
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
}

#[test]
fn optimizations_name_the_files_columns_and_ends_that_there_are() {
    for (file, model, output) in [
        ("modeloptimization.yaml", "files/magika.onnx", OUTPUT),
        (
            "modeloptimization-reexport.yaml",
            "files/magika-reexport.onnx",
            OTHER_OUTPUT,
        ),
    ] {
        let spec = read::<ModelOptimization>(file).spec;
        let data = ExampleData::at(Path::new("files"));
        let known = [&data.model, &data.reexport].map(|path| path.to_str().unwrap().to_owned());
        assert!(spec.model.uri == model && known.contains(&spec.model.uri), "{file}");
        assert_eq!(spec.data.calibration.unwrap().uri, data.calibration.to_str().unwrap());
        assert_eq!(spec.data.evaluation.uri, data.evaluation.to_str().unwrap());
        assert_eq!(
            (spec.data.inputs[0].name.as_str(), spec.data.inputs[0].column.as_str()),
            (INPUT, FEATURES)
        );
        assert_eq!((spec.data.label.as_str(), spec.task.output.as_str()), (LABEL, output));
        assert!(
            spec.gates
                .iter()
                .all(|gate| gate.min_samples.is_none_or(|rows| rows as usize <= ROWS))
        );
    }
    let candidates = read::<ModelOptimization>("modeloptimization.yaml").spec.candidates;
    let mode = |at: usize| candidates[at].stages[0].quantize.as_ref().unwrap().mode;
    assert_eq!((mode(0), mode(1)), (QuantizeMode::Dynamic, QuantizeMode::Static));
}

#[test]
fn promotions_fit_their_optimization_their_target_and_their_policy() {
    let deployment: Deployment = read("deployment.yaml");
    let pod = deployment.spec.unwrap().template.spec.unwrap();
    for (file, optimization) in [
        ("modelpromotion.yaml", "modeloptimization.yaml"),
        ("modelpromotion-reexport.yaml", "modeloptimization-reexport.yaml"),
    ] {
        let promotion: ModelPromotion = read(file);
        let optimization: ModelOptimization = read(optimization);
        assert_eq!(promotion.metadata.name.as_deref(), Some("magika-prod"));
        let source = promotion.spec.source.model_optimization;
        assert_eq!(
            (Some(source.name), source.candidate),
            (optimization.metadata.name, None)
        );
        assert_eq!(promotion.metadata.namespace, optimization.metadata.namespace);
        let target = promotion.spec.target;
        assert_eq!(Some(&target.workload.name), deployment.metadata.name.as_ref());
        let volume = target.delivery.image_volume.unwrap().volume;
        let declared = pod
            .volumes
            .as_ref()
            .unwrap()
            .iter()
            .find(|declared| declared.name == volume)
            .unwrap();
        assert_eq!(declared.image.as_ref().unwrap().reference, None);
        let mounts = pod.containers[0].volume_mounts.as_ref().unwrap();
        assert!(
            mounts
                .iter()
                .any(|mount| mount.name == volume && mount.mount_path == "/models")
        );

        let tiers = read::<PromotionPolicy>("promotionpolicy.yaml").spec.tiers;
        let matches = |tier: &&assayer_crds::policy::Tier| {
            tier.influences.is_empty()
                || tier
                    .influences
                    .iter()
                    .any(|one| optimization.spec.influences.contains(one))
        };
        let tier = tiers.iter().rfind(matches).unwrap();
        assert_eq!(
            (tier.name.as_str(), tier.approvals[0].role.as_str()),
            ("security", "security")
        );
    }
}

#[test]
fn the_service_finds_the_pods_and_the_approver_has_the_verb() {
    let deployment: Deployment = read("deployment.yaml");
    let labels = deployment.spec.unwrap().template.metadata.unwrap().labels.unwrap();
    assert_eq!(labels[assayer_crds::names::GOVERNED], "true");
    let selector = read::<Service>("service.yaml").spec.unwrap().selector.unwrap();
    assert!(selector.iter().all(|(key, value)| labels.get(key) == Some(value)));

    let text = fs::read_to_string(examples().join("rbac.yaml")).unwrap();
    let roles: Vec<Role> = serde_saphyr::from_multiple::<serde_json::Value>(&text)
        .unwrap()
        .into_iter()
        .filter(|object| object["kind"] == "Role")
        .map(|object| serde_json::from_value(object).unwrap())
        .collect();
    let may_approve = |role: &&Role| {
        role.rules.iter().flatten().any(|rule| {
            rule.resources.as_deref() == Some(&[assayer_crds::names::APPROVAL_ROLES.to_owned()])
                && rule.resource_names.as_deref() == Some(&["security".to_owned()])
                && rule.verbs == [assayer_crds::names::APPROVE_VERB]
        })
    };
    let approvers: Vec<_> = roles
        .iter()
        .filter(may_approve)
        .map(|role| role.metadata.name.as_deref())
        .collect();
    assert_eq!(approvers, [Some("security-approver")]);
}
