//! Workloads that models are delivered to: how to look at one, what to write, and when its rollout is done.
//!
//! Everything here is pure: objects in, verdicts and patches out. Reads and writes happen in `promotion/observe.rs` and `apply.rs`.

pub mod deployment;
pub mod fields;
pub mod pods;

use assayer_crds::conditions::{ARTIFACT_NOT_MOUNTABLE, TARGET_INVALID};
use assayer_crds::promotion::Delivery;

/// Why a workload can't take a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// A reason of [`assayer_crds::conditions`].
    pub reason: &'static str,
    /// What is wrong and the way out.
    pub message: String,
}

impl Problem {
    /// The workload itself has to be changed.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self {
            reason: TARGET_INVALID,
            message: message.into(),
        }
    }
}

/// How far a workload's rollout is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rollout {
    /// Every replica runs the present template and is available; there is at least one.
    Complete {
        /// Replicas against wish.
        message: String,
    },
    /// It is complete, and nothing runs: the workload is scaled to 0.
    Idle {
        /// What is waited for.
        message: String,
    },
    /// It goes on.
    Progressing {
        /// What is waited for.
        message: String,
    },
    /// The workload's own deadline passed.
    Stuck {
        /// The workload's own words.
        message: String,
    },
}

/// What is written into the delivered field for the artifact at `uri`.
///
/// # Errors
/// When the artifact has no address that the kubelet could pull, or the delivery names no way.
pub fn value_of(delivery: &Delivery, uri: &str) -> Result<String, Problem> {
    let Some(reference) = uri.strip_prefix("oci://").filter(|rest| rest.contains("@sha256:")) else {
        return Err(Problem {
            reason: ARTIFACT_NOT_MOUNTABLE,
            message: format!(
                "the artifact is at `{uri}`, which no pod can pull: it must be oci://registry/repository@sha256:<64 hex>; run the optimization in the cluster"
            ),
        });
    };
    match (&delivery.image_volume, &delivery.env) {
        (Some(_), None) => Ok(reference.to_owned()),
        (None, Some(_)) => Ok(uri.to_owned()),
        _ => Err(Problem::invalid(
            "target.delivery must name exactly one of imageVolume and env",
        )),
    }
}

/// The delivered field, as messages name it.
pub fn field_of(delivery: &Delivery) -> String {
    match (&delivery.image_volume, &delivery.env) {
        (Some(volume), _) => format!("volume `{}`: image.reference", volume.volume),
        (None, Some(env)) => format!("container `{}`: env {}", env.container, env.name),
        (None, None) => "no field".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use assayer_crds::promotion::{EnvDelivery, ImageVolumeDelivery};

    use super::*;

    #[test]
    fn volumes_get_a_reference_and_variables_a_uri() {
        let volume = Delivery {
            image_volume: Some(ImageVolumeDelivery { volume: "model".into() }),
            env: None,
        };
        let env = Delivery {
            image_volume: None,
            env: Some(EnvDelivery {
                name: "MODEL_URI".into(),
                container: "server".into(),
            }),
        };
        let uri = format!("oci://10.0.0.5:5000/models/magika@sha256:{}", "a".repeat(64));
        assert_eq!(value_of(&volume, &uri).unwrap(), uri["oci://".len()..]);
        assert_eq!(value_of(&env, &uri).unwrap(), uri);
        for odd in ["/tmp/out", "oci://10.0.0.5:5000/models/magika:latest", ""] {
            let problem = value_of(&volume, odd).unwrap_err();
            assert_eq!(problem.reason, ARTIFACT_NOT_MOUNTABLE, "{odd}");
        }
        assert!(
            value_of(
                &Delivery {
                    image_volume: None,
                    env: None
                },
                &uri
            )
            .is_err()
        );
    }
}
