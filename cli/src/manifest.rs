//! Manifests as files: reading them strictly, and finding and replacing the URIs in them without touching anything else.
//!
//! Decides which fields are URIs. Comments and layout of a manifest are its owner's and stay.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use assayer_crds::ModelOptimization;
use assayer_crds::digest::Digest;
use assayer_operator::optimization::plan::invalid;
use serde_json::Value;

use crate::schema;

/// Scheme of artifacts in registries; everything else is a file of this machine.
pub(crate) const OCI: &str = "oci://";
/// Stands for what is not named by digest yet, where the schema wants an artifact by digest.
const STAND_IN: &str = "oci://localhost/local";
/// Largest manifest that is read.
const MAX_BYTES: u64 = 1024 * 1024;

/// A manifest and the folder that its relative paths start from.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    /// The text as it is in the file.
    pub(crate) text: String,
    /// Folder of the file; the current one for stdin.
    pub(crate) folder: PathBuf,
    /// For messages.
    pub(crate) name: String,
}

/// Fields of a `ModelOptimization` that name artifacts; the last one is where results go.
pub(crate) const URIS: [&str; 4] = [
    "/spec/model/uri",
    "/spec/data/calibration/uri",
    "/spec/data/evaluation/uri",
    OUTPUT,
];
/// Where results go.
pub(crate) const OUTPUT: &str = "/spec/output/uri";

/// A field as people write it: `spec.model.uri`.
pub(crate) fn dotted(field: &str) -> String {
    field.trim_start_matches('/').replace('/', ".")
}

/// That the local file or folder that a field names is there.
pub(crate) fn there(field: &str, path: &Path) -> Result<()> {
    ensure!(
        path.exists(),
        "{}: {} does not exist (relative paths start from the manifest's folder)",
        dotted(field),
        path.display()
    );
    Ok(())
}

impl Manifest {
    /// Reads a file, or stdin for `-`.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let mut text = String::new();
        let folder = if name == "-" {
            std::io::stdin()
                .take(MAX_BYTES + 1)
                .read_to_string(&mut text)
                .context("read stdin")?;
            PathBuf::from(".")
        } else {
            let file = fs::File::open(path).with_context(|| format!("open {name}"))?;
            file.take(MAX_BYTES + 1)
                .read_to_string(&mut text)
                .with_context(|| format!("read {name}"))?;
            path.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
        };
        ensure!(
            text.len() as u64 <= MAX_BYTES,
            "{name} is larger than {MAX_BYTES} bytes"
        );
        Ok(Self { text, folder, name })
    }

    /// The `ModelOptimization` in it, if the API server would accept it once the URIs that are `open` name artifacts by digest.
    pub(crate) fn checked(&self, open: impl Fn(&str) -> bool) -> Result<ModelOptimization> {
        let object = self.object()?;
        let mut pinned = object.clone();
        let by_digest = format!("{STAND_IN}@{}", Digest::of(b""));
        for field in URIS {
            if let Some(Value::String(uri)) = pinned.pointer_mut(field)
                && open(uri)
            {
                ensure!(!uri.is_empty(), "{}: {} is empty", self.name, dotted(field));
                let stand_in = if field == OUTPUT { STAND_IN } else { &by_digest };
                stand_in.clone_into(uri);
            }
        }
        schema::check(&pinned).with_context(|| format!("{} is refused", self.name))?;
        let object: ModelOptimization =
            serde_json::from_value(object).with_context(|| format!("{} does not match the schema", self.name))?;
        // What the operator would say of it, before anything is pushed or measured.
        if let Some(problem) = invalid(&object.spec) {
            bail!("{} is refused: {problem}", self.name);
        }
        Ok(object)
    }

    /// The object in it, whatever it holds; it must say that it is a `ModelOptimization`.
    fn object(&self) -> Result<Value> {
        let value = self.value()?;
        for (field, expected) in [("apiVersion", "assayer.dev/v1alpha1"), ("kind", "ModelOptimization")] {
            let found = value[field].as_str().unwrap_or("missing");
            ensure!(
                found == expected,
                "{}: {field} is {found}, expected {expected}",
                self.name
            );
        }
        Ok(value)
    }

    fn value(&self) -> Result<Value> {
        let several = || serde_saphyr::from_multiple::<Value>(&self.text).is_ok_and(|documents| documents.len() > 1);
        serde_saphyr::from_str(&self.text).map_err(|error| {
            if several() {
                anyhow!(
                    "{} holds several YAML documents: put the ModelOptimization into a file of its own",
                    self.name
                )
            } else {
                anyhow!("{} can't be read as YAML: {error}", self.name)
            }
        })
    }

    /// The URIs in it, by field.
    pub(crate) fn uris(&self) -> Result<Vec<(&'static str, String)>> {
        let value = self.value()?;
        let found = URIS
            .into_iter()
            .filter_map(|field| Some((field, value.pointer(field)?.as_str()?.to_owned())));
        Ok(found.collect())
    }

    /// A local path in it, from the manifest's folder.
    pub(crate) fn local(&self, uri: &str) -> PathBuf {
        self.folder.join(uri.strip_prefix("file://").unwrap_or(uri))
    }

    /// The manifest with `from` replaced by `to` wherever it is the value of a `uri`, and checked to have changed just that.
    pub(crate) fn with_uris(&self, changes: &[(String, String)]) -> Result<Self> {
        let mut expected = self.value()?;
        let mut text = self.text.clone();
        for (from, to) in changes {
            for field in URIS {
                if let Some(value) = expected.pointer_mut(field).filter(|value| value.as_str() == Some(from)) {
                    *value = Value::String(to.clone());
                }
            }
            for quote in ["", "\"", "'"] {
                text = replace_scalar(&text, &format!("uri: {quote}{from}{quote}"), &format!("uri: \"{to}\""));
            }
        }
        let found: Value = serde_saphyr::from_str(&text).context("the pinned manifest is not YAML any more")?;
        if found != expected {
            bail!(
                "{}: could not replace the URIs in place: write each as `uri: <value>` on one line",
                self.name
            );
        }
        Ok(Self { text, ..self.clone() })
    }
}

/// Replaces `from` where the value ends there: at a line's end, or before `,`, `}`, or a blank.
fn replace_scalar(text: &str, from: &str, to: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(from) {
        let (before, after) = rest.split_at(at);
        let after = &after[from.len()..];
        let ends = after
            .chars()
            .next()
            .is_none_or(|c| c.is_whitespace() || matches!(c, ',' | '}'));
        out.push_str(before);
        out.push_str(if ends { to } else { from });
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(text: &str) -> Manifest {
        Manifest {
            text: text.to_owned(),
            folder: "examples".into(),
            name: "test".into(),
        }
    }

    #[test]
    fn uris_are_replaced_in_place_and_comments_stay() {
        let text =
            "spec: # mine\n  model: {name: m, uri: files/m.onnx}\n  data:\n    evaluation: {uri: \"files/m.onnx2\"}\n";
        let manifest = manifest(text);
        assert_eq!(manifest.uris().unwrap().len(), 2);
        let pinned = manifest
            .with_uris(&[("files/m.onnx".into(), "oci://h/m@sha256:0".into())])
            .unwrap();
        assert_eq!(
            pinned.text,
            text.replace("uri: files/m.onnx}", "uri: \"oci://h/m@sha256:0\"}")
        );
    }

    #[test]
    fn a_uri_that_is_written_otherwise_is_refused_and_not_lost() {
        let manifest = manifest("spec:\n  model:\n    uri: >-\n      files/m.onnx\n");
        assert!(
            manifest
                .with_uris(&[("files/m.onnx".into(), "oci://h/m@sha256:0".into())])
                .is_err()
        );
    }
}
