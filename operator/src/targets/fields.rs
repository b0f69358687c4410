//! Who owns a field of an object, read from `metadata.managedFields`.
//!
//! Pure. Decides who put a field there and whether he will put it there again; never changes ownership.
//! Source: structured-merge-diff's `FieldsV1` (`f:<name>` for fields, `k:{…}` for list-map keys).

use assayer_crds::names::FIELD_MANAGER;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
use serde_json::Value;

/// Managers whose writes are one person's single change: nothing repeats them, so that taking the field over is safe.
const BY_HAND: [&str; 4] = ["kubectl-edit", "kubectl-patch", "kubectl-set", "kubectl-rollout"];

/// Step of a path into `FieldsV1`: a field of an object.
pub fn field(name: &str) -> String {
    format!("f:{name}")
}

/// Step of a path into `FieldsV1`: the element of a list-map whose key is `name`.
pub fn named(name: &str) -> String {
    format!("k:{}", serde_json::json!({ "name": name }))
}

/// The name in a `k:{"name":…}` step.
pub fn name_in(step: &str) -> Option<String> {
    let key: Value = serde_json::from_str(step.strip_prefix("k:")?).ok()?;
    key.get("name")?.as_str().map(str::to_owned)
}

/// The `FieldsV1` tree below `path` in one entry.
pub fn below<'a>(entry: &'a ManagedFieldsEntry, path: &[String]) -> Option<&'a Value> {
    path.iter()
        .try_fold(&entry.fields_v1.as_ref()?.0, |tree, step| tree.get(step))
}

/// Entries of `meta` about the object itself, not about a subresource.
fn entries(meta: &ObjectMeta) -> impl Iterator<Item = &ManagedFieldsEntry> {
    meta.managed_fields
        .iter()
        .flatten()
        .filter(|entry| entry.subresource.as_deref().unwrap_or_default().is_empty())
}

fn is_ours(entry: &ManagedFieldsEntry) -> bool {
    entry.manager.as_deref() == Some(FIELD_MANAGER)
}

/// The entry of the operator's own server-side apply.
pub fn ours(meta: &ObjectMeta) -> Option<&ManagedFieldsEntry> {
    entries(meta).find(|entry| is_ours(entry) && entry.operation.as_deref() == Some("Apply"))
}

/// Whether the operator owns the field at `path`.
pub fn owned_by_us(meta: &ObjectMeta, path: &[String]) -> bool {
    ours(meta).is_some_and(|entry| below(entry, path).is_some())
}

/// The manager that keeps the field at `path` and would write it again, with the way in which it writes: `Apply` or `Update`.
pub fn keeper<'a>(meta: &'a ObjectMeta, path: &[String]) -> Option<(&'a str, &'a str)> {
    entries(meta)
        .filter(|entry| !is_ours(entry) && below(entry, path).is_some())
        .map(|entry| {
            (
                entry.manager.as_deref().unwrap_or("unknown"),
                entry.operation.as_deref().unwrap_or("Update"),
            )
        })
        .find(|(manager, operation)| *operation == "Apply" || !BY_HAND.contains(manager))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::FieldsV1;

    fn entry(manager: &str, operation: &str, subresource: Option<&str>) -> ManagedFieldsEntry {
        ManagedFieldsEntry {
            manager: Some(manager.into()),
            operation: Some(operation.into()),
            subresource: subresource.map(Into::into),
            fields_v1: Some(FieldsV1(serde_json::json!({
                "f:spec": {"f:volumes": {"k:{\"name\":\"model\"}": {".": {}, "f:image": {"f:reference": {}}}}}
            }))),
            ..Default::default()
        }
    }

    fn meta(entries: Vec<ManagedFieldsEntry>) -> ObjectMeta {
        ObjectMeta {
            managed_fields: Some(entries),
            ..Default::default()
        }
    }

    fn path() -> Vec<String> {
        vec![
            field("spec"),
            field("volumes"),
            named("model"),
            field("image"),
            field("reference"),
        ]
    }

    #[test]
    fn a_keeper_is_whoever_would_write_again() {
        for (manager, operation, subresource, expected) in [
            ("argocd-controller", "Apply", None, Some(("argocd-controller", "Apply"))),
            (
                "kubectl-client-side-apply",
                "Update",
                None,
                Some(("kubectl-client-side-apply", "Update")),
            ),
            ("kubectl-patch", "Update", None, None),
            ("kubectl-patch", "Apply", None, Some(("kubectl-patch", "Apply"))),
            (FIELD_MANAGER, "Apply", None, None),
            ("helm", "Update", Some("scale"), None),
        ] {
            let meta = meta(vec![entry(manager, operation, subresource)]);
            assert_eq!(keeper(&meta, &path()), expected, "{manager} {operation}");
        }
        let other = meta(vec![entry("helm", "Apply", None)]);
        assert_eq!(keeper(&other, &[field("spec"), field("replicas")]), None);
    }

    #[test]
    fn only_an_apply_of_ours_counts_as_ours() {
        assert!(owned_by_us(&meta(vec![entry(FIELD_MANAGER, "Apply", None)]), &path()));
        assert!(!owned_by_us(&meta(vec![entry(FIELD_MANAGER, "Update", None)]), &path()));
        assert!(!owned_by_us(&meta(vec![]), &path()));
        assert_eq!(name_in(&named("a \"b\"")).as_deref(), Some("a \"b\""));
        assert_eq!(name_in("f:name"), None);
    }
}
