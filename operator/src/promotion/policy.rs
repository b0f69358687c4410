//! Which sign-off a change needs: the policies that select the namespace, the tier of the change, and what all of them ask together.
//!
//! Pure. Closed by default: a selector that can't be read, a tier that can't be found or no policy at all is a refusal.

use std::collections::BTreeMap;

use assayer_crds::PromotionPolicy;
use assayer_crds::common::Influence;
use assayer_crds::digest::Digest;
use assayer_crds::policy::{PromotionPolicySpec, RequiredApproval, Tier};
use assayer_crds::units;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt as _;
use kube::core::{Selector, SelectorExt as _};
use serde::Serialize;

/// Most policies that may select one namespace, and most approvals that they may ask for together: status has to keep them all.
pub const MAX_POLICIES: usize = 16;
/// Most approvals that one request may need.
pub const MAX_APPROVALS: u32 = 32;

/// What all policies of the namespace ask together for one change.
#[derive(Clone, Debug, PartialEq)]
pub struct Demand {
    /// Tier of the change; several policies with different tiers are joined with `+`.
    pub tier: String,
    /// Approvals by role, each with the largest count that any policy asks for.
    pub required: Vec<RequiredApproval>,
    /// Oldest evidence, in seconds.
    pub max_age: f64,
    /// The same as the policy spells it.
    pub max_age_text: String,
    /// Digest over name and spec of every policy that applies.
    pub digest: Digest,
    /// Names of the policies.
    pub policies: Vec<String>,
}

/// Reads a label selector.
///
/// # Errors
/// When an operator is unknown or has no values: such a selector selects nobody knows what.
pub fn selector(raw: &LabelSelector) -> Result<Selector, String> {
    for requirement in raw.match_expressions.iter().flatten() {
        let empty = requirement.values.as_ref().is_none_or(Vec::is_empty);
        match (requirement.operator.as_str(), empty) {
            ("In" | "NotIn", false) | ("Exists" | "DoesNotExist", true) => {}
            ("In" | "NotIn", true) => {
                return Err(format!(
                    "namespaceSelector: operator {} of key `{}` needs values",
                    requirement.operator, requirement.key
                ));
            }
            ("Exists" | "DoesNotExist", false) => {
                return Err(format!(
                    "namespaceSelector: operator {} of key `{}` takes no values",
                    requirement.operator, requirement.key
                ));
            }
            (other, _) => {
                return Err(format!(
                    "namespaceSelector: operator `{other}` is not one of In, NotIn, Exists, DoesNotExist"
                ));
            }
        }
    }
    Selector::try_from(raw.clone()).map_err(|error| format!("namespaceSelector: {error}"))
}

/// The tier that the policy puts a change with `influences` into: the last one that matches. An influence that this version does not
/// know counts as the gravest.
fn tier_of<'a>(spec: &'a PromotionPolicySpec, influences: &[String]) -> Option<&'a Tier> {
    let known = |word: &String| {
        [
            Influence::Access,
            Influence::Security,
            Influence::CustomerDecision,
            Influence::Internal,
        ]
        .iter()
        .any(|influence| influence.as_str() == word)
    };
    if !influences.iter().all(known) {
        return spec.tiers.last();
    }
    spec.tiers.iter().rev().find(|tier| {
        tier.influences.is_empty()
            || tier
                .influences
                .iter()
                .any(|influence| influences.iter().any(|word| word == influence.as_str()))
    })
}

/// One policy as it counts in the digest.
#[derive(Serialize)]
struct Counted<'a> {
    name: String,
    spec: &'a PromotionPolicySpec,
}

/// What the policies that select a namespace with `labels` ask for a change with `influences`.
///
/// # Errors
/// A sentence when no policy selects the namespace, one can't be read, or one has no tier for the change.
pub fn demand(
    policies: &[PromotionPolicy],
    labels: &BTreeMap<String, String>,
    influences: &[String],
) -> Result<Demand, String> {
    let mut applying = Vec::new();
    for policy in policies {
        let selector = selector(&policy.spec.namespace_selector)
            .map_err(|problem| format!("PromotionPolicy {}: {problem}: correct it first", policy.name_any()))?;
        if selector.matches(labels) {
            applying.push(policy);
        }
    }
    applying.sort_by_key(|policy| policy.name_any());
    if applying.len() > MAX_POLICIES {
        return Err(format!(
            "{} PromotionPolicies select this namespace, at most {MAX_POLICIES} may: join them, or narrow their namespaceSelector",
            applying.len()
        ));
    }
    if applying.is_empty() {
        return Err(
            "no PromotionPolicy selects this namespace: create one whose namespaceSelector matches its labels"
                .to_owned(),
        );
    }
    let mut tiers = Vec::new();
    for policy in &applying {
        let tier = tier_of(&policy.spec, influences).ok_or_else(|| {
            format!(
                "PromotionPolicy {} has no tier for influences {}: add a tier without influences",
                policy.name_any(),
                influences.join(", ")
            )
        })?;
        let age = units::seconds(&tier.max_evidence_age).map_err(|problem| {
            format!(
                "PromotionPolicy {}, tier {}: maxEvidenceAge: {problem}",
                policy.name_any(),
                tier.name
            )
        })?;
        tiers.push((tier, age));
    }
    together(&applying, &tiers)
}

fn together(applying: &[&PromotionPolicy], tiers: &[(&Tier, f64)]) -> Result<Demand, String> {
    let mut roles: BTreeMap<&str, u32> = BTreeMap::new();
    for approval in tiers.iter().flat_map(|(tier, _)| &tier.approvals) {
        let count = roles.entry(&approval.role).or_default();
        *count = approval.count.max(*count);
    }
    let people: u32 = roles.values().sum();
    if people > MAX_APPROVALS {
        let names: Vec<_> = applying.iter().map(|policy| policy.name_any()).collect();
        return Err(format!(
            "PromotionPolicy {} together ask for {people} approvals, at most {MAX_APPROVALS} may be asked for: lower a count",
            names.join(", ")
        ));
    }
    let mut names: Vec<&str> = tiers.iter().map(|(tier, _)| tier.name.as_str()).collect();
    names.dedup();
    let (strictest, max_age) = tiers
        .iter()
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .ok_or_else(|| "no policy applies".to_owned())?;
    let counted: Vec<_> = applying
        .iter()
        .map(|policy| Counted {
            name: policy.name_any(),
            spec: &policy.spec,
        })
        .collect();
    Ok(Demand {
        tier: names.join("+"),
        required: roles
            .into_iter()
            .map(|(role, count)| RequiredApproval {
                role: role.to_owned(),
                count,
            })
            .collect(),
        max_age: *max_age,
        max_age_text: strictest.max_evidence_age.clone(),
        digest: Digest::of_canonical(&counted).map_err(|error| format!("the policies can't be digested: {error}"))?,
        policies: applying.iter().map(|policy| policy.name_any()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "takes json! as it comes")]
    fn policy(name: &str, selector: serde_json::Value, tiers: serde_json::Value) -> PromotionPolicy {
        let spec = serde_json::from_value(json!({"namespaceSelector": selector, "tiers": tiers})).unwrap();
        PromotionPolicy::new(name, spec)
    }

    fn tiers() -> serde_json::Value {
        json!([
            {"name": "low"},
            {"name": "high", "influences": ["Security", "Access"], "approvals": [{"role": "security", "count": 2}], "maxEvidenceAge": "7d"}
        ])
    }

    fn labels() -> BTreeMap<String, String> {
        BTreeMap::from([("env".to_owned(), "prod".to_owned())])
    }

    #[test]
    fn selectors_have_their_full_meaning() {
        for (raw, expected) in [
            (json!({}), true),
            (json!({"matchLabels": {"env": "prod"}}), true),
            (json!({"matchLabels": {"env": "test"}}), false),
            (
                json!({"matchExpressions": [{"key": "env", "operator": "In", "values": ["prod", "pre"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "env", "operator": "NotIn", "values": ["prod"]}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["a"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "team", "operator": "Exists"}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}),
                true,
            ),
            (
                json!({"matchLabels": {"env": "prod"}, "matchExpressions": [{"key": "team", "operator": "Exists"}]}),
                false,
            ),
        ] {
            let demand = demand(
                &[policy("p", raw.clone(), tiers())],
                &labels(),
                &["Internal".to_owned()],
            );
            assert_eq!(demand.is_ok(), expected, "{raw}");
        }
    }

    #[test]
    fn an_unreadable_selector_refuses_even_beside_a_good_one() {
        for odd in [
            json!({"matchExpressions": [{"key": "env", "operator": "Like", "values": ["p"]}]}),
            json!({"matchExpressions": [{"key": "env", "operator": "In", "values": []}]}),
            json!({"matchExpressions": [{"key": "env", "operator": "In"}]}),
            json!({"matchExpressions": [{"key": "env", "operator": "Exists", "values": ["x"]}]}),
        ] {
            let policies = [policy("good", json!({}), tiers()), policy("odd", odd, tiers())];
            let problem = demand(&policies, &labels(), &[]).unwrap_err();
            assert!(problem.contains("PromotionPolicy odd"), "{problem}");
        }
    }

    #[test]
    fn the_last_matching_tier_counts_and_the_unknown_is_the_gravest() {
        let policies = [policy("p", json!({}), tiers())];
        for (influences, tier) in [
            (vec!["Internal"], "low"),
            (vec!["Internal", "Security"], "high"),
            (vec!["Weather"], "high"),
            (vec![], "low"),
        ] {
            let influences: Vec<String> = influences.into_iter().map(str::to_owned).collect();
            assert_eq!(
                demand(&policies, &labels(), &influences).unwrap().tier,
                tier,
                "{influences:?}"
            );
        }
        let strict = [policy(
            "p",
            json!({}),
            json!([{"name": "high", "influences": ["Security"]}]),
        )];
        let problem = demand(&strict, &labels(), &["Internal".to_owned()]).unwrap_err();
        assert!(problem.contains("no tier for influences Internal"), "{problem}");
    }

    #[test]
    fn several_policies_are_all_satisfied() {
        let other =
            json!([{"name": "all", "approvals": [{"role": "ml"}, {"role": "security"}], "maxEvidenceAge": "12h"}]);
        let policies = [policy("b", json!({}), other), policy("a", json!({}), tiers())];
        let demand = demand(&policies, &labels(), &["Security".to_owned()]).unwrap();
        assert_eq!(demand.tier, "high+all");
        let required: Vec<_> = demand.required.iter().map(|r| (r.role.as_str(), r.count)).collect();
        assert_eq!(required, [("ml", 1), ("security", 2)]);
        assert_eq!((demand.max_age, demand.max_age_text.as_str()), (43_200.0, "12h"));
        assert_eq!(demand.policies, ["a", "b"]);
    }

    #[test]
    fn more_than_status_can_keep_is_refused() {
        let wide = |name: &str, roles: [&str; 4]| {
            let approvals: Vec<_> = roles.iter().map(|role| json!({"role": role, "count": 9})).collect();
            policy(name, json!({}), json!([{"name": "all", "approvals": approvals}]))
        };
        let problem = demand(&[wide("a", ["a", "b", "c", "d"])], &labels(), &[]).unwrap_err();
        assert!(problem.contains("ask for 36 approvals, at most 32"), "{problem}");
        let many: Vec<_> = (0..17).map(|n| policy(&format!("p{n}"), json!({}), tiers())).collect();
        let problem = demand(&many, &labels(), &[]).unwrap_err();
        assert!(problem.contains("17 PromotionPolicies"), "{problem}");
        assert!(demand(&many[..16], &labels(), &[]).is_ok());
    }

    #[test]
    fn the_digest_covers_names_and_specs_and_not_the_order() {
        let (a, b) = (policy("a", json!({}), tiers()), policy("b", json!({}), tiers()));
        let digest = |policies: &[PromotionPolicy]| demand(policies, &labels(), &[]).unwrap().digest;
        assert_eq!(digest(&[a.clone(), b.clone()]), digest(&[b.clone(), a.clone()]));
        assert_ne!(digest(std::slice::from_ref(&a)), digest(&[b]));
        let mut other = a.clone();
        other.spec.tiers[1].approvals[0].count = 1;
        assert_ne!(digest(&[a]), digest(&[other]));
    }
}
