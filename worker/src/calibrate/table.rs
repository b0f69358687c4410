//! Ranges that calibration found, in a file for whoever asks the same again.
//!
//! Decides whether a table answers a question: only where everything that ranges depend on is the same and the table is sound. What
//! does not fit is told and replaced, never used. A table that fits is believed, so its folder is for those who may say what ranges are.

use super::{Batches, Error, Method, Observed, Range};
use crate::onnx::{self, Graph, Model};
use assayer_crds::digest::Digest;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Changes whenever other ranges are found for the same key, or the file has another form.
const VERSION: u32 = 1;
/// Most bytes of a table; one tensor takes some hundred.
const MAX_BYTES: u64 = 32 << 20;

/// Where tables lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// Their folder.
    pub folder: PathBuf,
    /// Instruction set of this machine: floats are summed otherwise on another.
    pub instruction_set: String,
}

/// Everything that ranges depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Key {
    v: u32,
    worker: String,
    onnxruntime: String,
    instruction_set: String,
    /// Of the model as it is calibrated, weights included.
    model: Digest,
    /// Of the tensors that it is given, batch by batch.
    data: Digest,
    batches: u64,
    rows: u64,
    method: String,
    /// Of the names of tensors that get a range.
    tensors: Digest,
}

/// A file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Table {
    key: Key,
    ranges: BTreeMap<String, Kept>,
}

/// [`Observed`] with the smallest and the largest value of each range.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kept {
    range: [f64; 2],
    full: [f64; 2],
    reach: [f64; 2],
    rank: Option<u32>,
}

/// Why ranges don't come out of a table.
#[derive(Debug, thiserror::Error)]
pub enum Unused {
    /// There is none.
    #[error("there is none")]
    Absent,
    /// It can't be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is none, or not sound.
    #[error("{0}")]
    Unsound(String),
}

impl Key {
    /// The key of the question which ranges `names` have by `method` in `model`. Reads all of `batches`, and runs nothing.
    pub fn of(
        (runtime, machine): (&str, &str),
        model: &Model,
        names: &[String],
        method: Method,
        batches: Batches<'_>,
    ) -> Result<Self, Error> {
        let mut data = Sha256::new();
        let (mut count, mut rows) = (0_u64, 0_u64);
        for batch in batches {
            let initializers = batch.map_err(Error::Data)?;
            let first = initializers.first().and_then(|tensor| tensor.dims.first());
            rows += first.map_or(0, |rows| *rows as u64);
            count += 1;
            let graph = Graph {
                initializers,
                ..Graph::default()
            };
            data.update(onnx::sha256(&Model {
                graph,
                ..Model::default()
            }));
        }
        let names: BTreeSet<&String> = names.iter().collect();
        let mut tensors = Sha256::new();
        for name in names {
            tensors.update((name.len() as u64).to_le_bytes());
            tensors.update(name.as_bytes());
        }
        Ok(Self {
            v: VERSION,
            worker: env!("CARGO_PKG_VERSION").to_owned(),
            onnxruntime: runtime.to_owned(),
            instruction_set: machine.to_owned(),
            model: Digest::from_hash(onnx::sha256(model)),
            data: Digest::from_hash(data.finalize().into()),
            batches: count,
            rows,
            method: method.spelled(),
            tensors: Digest::from_hash(tensors.finalize().into()),
        })
    }

    /// Batches of the data.
    pub fn batches(&self) -> u64 {
        self.batches
    }

    /// What the question is known by.
    pub fn digest(&self) -> Digest {
        // Strings and integers only: this can't fail to be JSON. A table has its whole key inside, which is compared.
        Digest::of_canonical(self).unwrap_or_else(|_| Digest::of(b""))
    }

    fn file(&self) -> String {
        format!("{}.json", self.digest().hex())
    }
}

/// The ranges that a table in `folder` has for `key`.
pub fn load(folder: &Path, key: &Key, names: &[String]) -> Result<BTreeMap<String, Observed>, Unused> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::open(folder.join(key.file()), flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => return Err(Unused::Absent),
        Err(errno) => return Err(Unused::Io(errno.into())),
    };
    let unsound = |what: String| Err(Unused::Unsound(what));
    if !file.metadata()?.is_file() {
        return unsound("it is no regular file".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return unsound(format!("it has more than {MAX_BYTES} bytes"));
    }
    let table: Table = match serde_json::from_slice(&bytes) {
        Ok(table) => table,
        Err(error) => return unsound(error.to_string()),
    };
    if table.key != *key {
        return unsound("it has another key than its name".to_owned());
    }
    if !table.ranges.keys().eq(names.iter().collect::<BTreeSet<_>>()) {
        return unsound("it has ranges of other tensors".to_owned());
    }
    let mut ranges = BTreeMap::new();
    for (name, kept) in table.ranges {
        let Some(observed) = kept.observed() else {
            return unsound(format!("{} has a range that none can have", onnx::shown(&name)));
        };
        ranges.insert(name, observed);
    }
    Ok(ranges)
}

/// Keeps ranges for `key` in `folder`, whole or not at all.
pub fn save(folder: &Path, key: &Key, ranges: &BTreeMap<String, Observed>) -> Result<(), Unused> {
    let table = Table {
        key: key.clone(),
        ranges: ranges
            .iter()
            .map(|(name, observed)| (name.clone(), Kept::of(observed)))
            .collect(),
    };
    let bytes = serde_json::to_vec(&table).map_err(io::Error::from)?;
    let path = folder.join(key.file());
    let partial = path.with_added_extension(format!("{}.partial", std::process::id()));
    std::fs::write(&partial, bytes)?;
    Ok(std::fs::rename(&partial, &path)?)
}

impl Kept {
    fn of(observed: &Observed) -> Self {
        let ends = |range: Range| [range.min, range.max].map(f64::from);
        Self {
            range: ends(observed.range),
            full: ends(observed.full),
            reach: ends(observed.reach),
            rank: observed.rank.and_then(|rank| u32::try_from(rank).ok()),
        }
    }

    /// None where no calibration can have seen this: every range is finite and holds 0, and `range` lies within the other two.
    fn observed(self) -> Option<Observed> {
        #[allow(
            clippy::cast_possible_truncation,
            reason = "written from 32-bit floats; others are refused"
        )]
        let range = |[min, max]: [f64; 2]| {
            let (min, max) = (min as f32, max as f32);
            (min.is_finite() && max.is_finite() && min <= 0.0 && max >= 0.0).then_some(Range { min, max })
        };
        let within = |inner: Range, outer: Range| inner.min >= outer.min && inner.max <= outer.max;
        let observed = Observed {
            range: range(self.range)?,
            full: range(self.full)?,
            reach: range(self.reach)?,
            rank: self.rank.map(usize::try_from).transpose().ok()?,
        };
        (within(observed.range, observed.full) && within(observed.range, observed.reach)).then_some(observed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::Tensor;
    use crate::testing::{Build, noise};

    fn model(seed: u64) -> Model {
        let mut b = Build::opset(17);
        let x = b.input("x", &[-1, 4]);
        let offsets = b.floats(&[4], &noise(seed, 4));
        let y = b.node("Add", &[&x, &offsets]);
        b.finish(&[&y])
    }

    fn key(seed: u64, rows: &[usize], method: Method, names: &[String]) -> Key {
        let batch = |&rows: &usize| Ok(vec![Tensor::floats("x", &[rows, 4], &noise(5, rows * 4)).unwrap()]);
        Key::of(("1", "avx2"), &model(seed), names, method, &mut rows.iter().map(batch)).unwrap()
    }

    fn names() -> Vec<String> {
        vec!["x".to_owned(), "add2".to_owned()]
    }

    fn observed() -> BTreeMap<String, Observed> {
        let range = |min, max| Range { min, max };
        let seen = Observed {
            range: range(-0.1, 0.3),
            full: range(-1.0 / 3.0, f32::MAX),
            reach: range(-f32::MIN_POSITIVE - 0.2, 1e-7 + 0.3),
            rank: Some(2),
        };
        let other = Observed { rank: None, ..seen };
        BTreeMap::from([("x".to_owned(), seen), ("add2".to_owned(), other)])
    }

    #[test]
    fn ranges_come_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let key = key(1, &[1, 8], Method::MinMax, &names());
        assert!(matches!(load(folder.path(), &key, &names()), Err(Unused::Absent)));
        save(folder.path(), &key, &observed()).unwrap();
        assert_eq!(load(folder.path(), &key, &names()).unwrap(), observed());
        assert_eq!((key.rows, key.batches()), (9, 2));
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "nothing partial is left"
        );
    }

    #[test]
    fn whatever_ranges_depend_on_makes_another_table() {
        let all = [
            key(1, &[1, 8], Method::MinMax, &names()),
            key(2, &[1, 8], Method::MinMax, &names()),
            key(1, &[1, 7], Method::MinMax, &names()),
            key(1, &[8, 1], Method::MinMax, &names()),
            key(1, &[1, 8], Method::Entropy, &names()),
            key(1, &[1, 8], Method::Percentile(99.9), &names()),
            key(1, &[1, 8], Method::Percentile(99.99), &names()),
            key(1, &[1, 8], Method::MinMax, &names()[..1]),
            Key {
                onnxruntime: "2".to_owned(),
                ..key(1, &[1, 8], Method::MinMax, &names())
            },
            Key {
                instruction_set: "neon".to_owned(),
                ..key(1, &[1, 8], Method::MinMax, &names())
            },
        ];
        let files: BTreeSet<String> = all.iter().map(Key::file).collect();
        assert_eq!(files.len(), all.len());
    }

    #[test]
    fn a_table_that_is_not_sound_is_never_used() {
        let folder = tempfile::tempdir().unwrap();
        let key = key(1, &[1], Method::MinMax, &names());
        let path = folder.path().join(key.file());
        save(folder.path(), &key, &observed()).unwrap();
        let good: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let refused = |why: &str| match load(folder.path(), &key, &names()) {
            Err(Unused::Unsound(what)) => assert!(what.contains(why), "{why}: {what}"),
            other => panic!("{why}: {other:?}"),
        };
        for (pointer, value, why) in [
            ("/ranges/x/range/0", serde_json::json!(0.1), "none can have"),
            ("/ranges/x/range/1", serde_json::json!(-0.1), "none can have"),
            ("/ranges/x/full/1", serde_json::json!(1e39), "none can have"),
            ("/ranges/x/full/0", serde_json::json!(-0.01), "none can have"),
            ("/ranges/x/reach/1", serde_json::json!(0.2), "none can have"),
            ("/ranges/x/range/0", serde_json::Value::Null, "null"),
            ("/ranges/x/range", serde_json::json!([0.0]), "length"),
            ("/ranges/x/rank", serde_json::json!(-1), "-1"),
            ("/ranges/x", serde_json::json!({}), "missing field"),
            ("/key/rows", serde_json::json!(2), "another key"),
            ("/key/model", serde_json::json!(Digest::of(b"")), "another key"),
            ("/ranges", serde_json::json!({}), "other tensors"),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            std::fs::write(&path, bad.to_string()).unwrap();
            refused(why);
        }
        let text = good.to_string();
        for (bad, why) in [
            (text.replace("-0.10000000149011612", "NaN"), "expected value"),
            (text.replace("-0.10000000149011612", "-1e999"), "out of range"),
            (text[..text.len() / 2].to_owned(), "EOF"),
        ] {
            assert_ne!(bad, text);
            std::fs::write(&path, bad).unwrap();
            refused(why);
        }
        File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
        refused("more than");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(matches!(load(folder.path(), &key, &names()), Err(Unused::Io(_))));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        refused("no regular file");
    }
}
