//! Which seat of a role somebody takes: the first one that nobody else holds for this request. Pure; rights are the cluster's matter.

use anyhow::{Context as _, Result, bail};
use assayer_crds::{ModelPromotion, names};
use kube::ResourceExt as _;

/// The role itself, or a further seat of it (`security.2`) where others have spoken in those before. A seat that was named is kept, and
/// whoever has approved rejects in the seat that he has.
pub(super) fn free(
    promotion: &ModelPromotion,
    role: &str,
    digest: &str,
    user: &str,
    rejecting: bool,
) -> Result<String> {
    let named = [
        (names::APPROVE, names::APPROVED_BY),
        (names::REJECT, names::REJECTED_BY),
    ];
    let of = |prefix: &str, seat: &str| {
        promotion
            .annotations()
            .get(&format!("{prefix}{seat}"))
            .map(String::as_str)
    };
    // Who has said something about this very request; what was said about an older one may be replaced.
    let holder = |seat: &str| {
        let mut said = named.iter().filter(|(what, _)| of(what, seat) == Some(digest));
        said.next().map(|(_, by)| of(by, seat).unwrap_or("somebody"))
    };
    if role.contains('.') {
        return Ok(role.to_owned());
    }
    let seats = std::iter::once(role.to_owned()).chain((2..=99).map(|seat| format!("{role}.{seat}")));
    for seat in seats {
        match holder(&seat) {
            None => return Ok(seat),
            Some(by) if by == user && rejecting => return Ok(seat),
            Some(by) if by == user => {
                bail!("{user} has spoken on this request already, as {seat}: nothing was written")
            }
            Some(_) => {}
        }
    }
    None.with_context(|| format!("all 99 seats of role {role} are taken"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::free;

    fn promotion(annotations: &serde_json::Value) -> assayer_crds::ModelPromotion {
        let text = include_str!("../../../crds/tests/rules/modelpromotion.yaml");
        let mut manifest: serde_json::Value = serde_saphyr::from_str(text).unwrap();
        manifest["metadata"]["annotations"] = annotations.clone();
        serde_json::from_value(manifest).unwrap()
    }

    #[test]
    fn a_seat_is_taken_only_by_what_was_said_about_this_request() {
        let bob =
            |digest: &str| json!({"approve.assayer.dev/security": digest, "approved-by.assayer.dev/security": "bob"});
        let seat = |annotations: serde_json::Value, user: &str| {
            free(&promotion(&annotations), "security", "sha256:now", user, false).map_err(|error| error.to_string())
        };
        assert_eq!(seat(json!({}), "alice"), Ok("security".to_owned()));
        assert_eq!(seat(bob("sha256:old"), "alice"), Ok("security".to_owned()));
        assert_eq!(seat(bob("sha256:now"), "alice"), Ok("security.2".to_owned()));
        assert!(seat(bob("sha256:now"), "bob").unwrap_err().contains("already"));
        let given = promotion(&bob("sha256:now"));
        let named = free(&given, "security.3", "sha256:now", "alice", false);
        assert_eq!(named.unwrap(), "security.3");
        let changed_his_mind = free(&given, "security", "sha256:now", "bob", true);
        assert_eq!(changed_his_mind.unwrap(), "security");
    }
}
