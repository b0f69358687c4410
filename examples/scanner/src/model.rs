//! The model of the server: loading, checking that it keeps the server's contract, and asking it.
//!
//! Decides whether a model may answer at all. A model that was measured and approved can still be the wrong one for this server
//! (another input, another output, other classes): then it is refused with the reason, and the server never becomes ready.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use assayer_crds::digest::{Digest, ModelFile, model_digest};
use ort::environment::Environment;
use ort::session::{Session, builder::GraphOptimizationLevel};
use ort::value::{Outlet, Tensor, TensorElementType, ValueType};

use crate::features::{Config, Content};

/// Name of the model's input: int32, one row a file.
pub const INPUT: &str = "bytes";
/// Name of the model's output: float, one score for each class.
pub const OUTPUT: &str = "target_label";
/// Most bytes of all files of a model; the classifiers served here have 3 MB.
pub const MAX_MODEL_BYTES: u64 = 256 << 20;
/// Most files of a model.
const MAX_FILES: usize = 64;

/// A file that every model must recognise before the server says it is ready.
const SELF_TEST: &[u8] = include_bytes!("../selftest/sample.py");
/// Its label.
const SELF_TEST_LABEL: &str = "python";

/// Why a model may not answer.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The folder could not be read.
    #[error("can't read {path}: {source}")]
    Read {
        /// File or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not exactly one model, too many or too large files.
    #[error("{path} holds {found}: {expected}")]
    Files {
        /// File or folder.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What would have been right.
        expected: &'static str,
    },
    /// ONNX Runtime refused it.
    #[error("ONNX Runtime refuses the model: {0}")]
    Runtime(#[from] ort::Error),
    /// An input or output that this server does not know.
    #[error("the model's {what} is {found}; this server needs {expected}")]
    Contract {
        /// `input`, `output`, …
        what: &'static str,
        /// What the model has.
        found: String,
        /// What the server feeds or reads.
        expected: String,
    },
}

/// What the model says of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Label of the class with the highest score.
    pub label: String,
    /// That score; none where the file was too small for a model.
    pub score: Option<f32>,
    /// Whether the score reaches the label's threshold.
    pub confident: bool,
}

/// A model that kept the contract once.
#[derive(Debug)]
pub struct Model {
    session: Mutex<Session>,
    config: Config,
    digest: Digest,
    file_digest: Digest,
}

impl Model {
    /// Loads the one `*.onnx` in `path` (a folder, or the file itself), checks input, output and classes, and asks it about a
    /// file whose kind is known.
    ///
    /// # Errors
    /// When there is not exactly one model, ONNX Runtime refuses it, or it breaks the contract.
    pub fn load(runtime: &Environment, path: &Path, config: Config, threads: usize) -> Result<Self, ModelError> {
        let files = files(path)?;
        let models: Vec<_> = files
            .iter()
            .filter(|(_, at)| at.extension().is_some_and(|extension| extension == "onnx"))
            .collect();
        let [(file, onnx)] = models[..] else {
            let found = format!("{} files named *.onnx", models.len());
            return Err(ModelError::Files {
                path: path.to_owned(),
                found,
                expected: "exactly one model is served",
            });
        };
        let session = Session::builder(runtime)?
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(ort::Error::from)?
            .with_intra_threads(threads)
            .map_err(ort::Error::from)?
            .with_config_entry("session.intra_op.allow_spinning", "0")
            .map_err(ort::Error::from)?
            .commit_from_file(onnx)?;
        check_contract(&session, &config)?;
        let manifest: Vec<ModelFile> = files.iter().map(|(file, _)| file.clone()).collect();
        let model = Self {
            session: Mutex::new(session),
            config,
            digest: model_digest(&manifest),
            file_digest: file.sha256.clone(),
        };
        model.self_test()?;
        Ok(model)
    }

    /// Digest over all files of the model: the `modelDigest` of Assayer's status and evidence.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// sha256 of the ONNX file alone.
    pub fn file_digest(&self) -> &Digest {
        &self.file_digest
    }

    /// Says what kind of file has this content.
    ///
    /// # Errors
    /// When ONNX Runtime fails, or the scores are not one finite number for each class.
    pub fn classify(&self, content: &[u8]) -> Result<Answer, ModelError> {
        let row = match self.config.read(content) {
            Content::TooSmall(label) => {
                return Ok(Answer {
                    label: label.to_owned(),
                    score: None,
                    confident: true,
                });
            }
            Content::Features(row) => row,
        };
        let input = Tensor::from_array(([1, row.len()], row))?;
        // A thread that panicked inside ONNX Runtime leaves no half-written Rust state behind.
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let outputs = session.run(ort::inputs![INPUT => input])?;
        let labels = self.config.labels();
        let expected = || format!("{} finite scores in {OUTPUT}", labels.len());
        let wrong = |found: String| ModelError::Contract {
            what: "answer",
            found,
            expected: expected(),
        };
        let value = outputs.get(OUTPUT).ok_or_else(|| wrong("without it".to_owned()))?;
        let (_, scores) = value.try_extract_tensor::<f32>()?;
        if scores.len() != labels.len() {
            return Err(wrong(format!("{} scores", scores.len())));
        }
        if let Some(score) = scores.iter().find(|score| !score.is_finite()) {
            return Err(wrong(format!("a score of {score}")));
        }
        let best = labels.iter().zip(scores).max_by(|a, b| a.1.total_cmp(b.1));
        let (label, score) = best.ok_or_else(|| wrong("empty".to_owned()))?;
        Ok(Answer {
            label: label.clone(),
            score: Some(*score),
            confident: self.config.believes(label, *score),
        })
    }

    fn self_test(&self) -> Result<(), ModelError> {
        let answer = self.classify(SELF_TEST)?;
        if answer.label == SELF_TEST_LABEL {
            return Ok(());
        }
        let found = format!("{} (score {:?}) for the self-test's file", answer.label, answer.score);
        Err(ModelError::Contract {
            what: "answer",
            found,
            expected: SELF_TEST_LABEL.to_owned(),
        })
    }
}

/// One input and one output, by name, type and shape.
fn check_contract(session: &Session, config: &Config) -> Result<(), ModelError> {
    let width = i64::try_from(config.width()).unwrap_or(i64::MAX);
    let classes = i64::try_from(config.labels().len()).unwrap_or(i64::MAX);
    check_end("input", session.inputs(), (INPUT, TensorElementType::Int32, width))?;
    check_end(
        "output",
        session.outputs(),
        (OUTPUT, TensorElementType::Float32, classes),
    )
}

fn check_end(what: &'static str, ends: &[Outlet], needs: (&str, TensorElementType, i64)) -> Result<(), ModelError> {
    let (name, element, columns) = needs;
    if let [end] = ends
        && end.name() == name
        && let ValueType::Tensor { ty, shape, .. } = end.dtype()
        && *ty == element
        && let [-1 | 1, found] = shape[..]
        && (found == columns || found == -1)
    {
        return Ok(());
    }
    let found = ends
        .iter()
        .map(|end| format!("`{}` {}", end.name(), end.dtype()))
        .collect::<Vec<_>>()
        .join(", ");
    Err(ModelError::Contract {
        what,
        found,
        expected: format!("`{name}` of {element} with {columns} columns"),
    })
}

/// Every regular file below `path` with its digest, and where it is. Names with a dot in front are no part of a model.
fn files(path: &Path) -> Result<Vec<(ModelFile, PathBuf)>, ModelError> {
    let read = |at: &Path, source| ModelError::Read {
        path: at.to_owned(),
        source,
    };
    let root = if path.is_file() {
        path.parent().unwrap_or(path)
    } else {
        path
    };
    let (mut found, mut left, mut total) = (Vec::new(), vec![path.to_owned()], 0_u64);
    while let Some(at) = left.pop() {
        let meta = fs::metadata(&at).map_err(|source| read(&at, source))?;
        if meta.is_dir() {
            for entry in fs::read_dir(&at).map_err(|source| read(&at, source))? {
                let entry = entry.map_err(|source| read(&at, source))?;
                if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                    left.push(entry.path());
                }
            }
            continue;
        }
        total += meta.len();
        if total > MAX_MODEL_BYTES || found.len() == MAX_FILES || left.len() > 4 * MAX_FILES {
            let found = format!("more than {MAX_MODEL_BYTES} bytes or {MAX_FILES} files");
            return Err(ModelError::Files {
                path: path.to_owned(),
                found,
                expected: "serve a smaller model",
            });
        }
        let bytes = fs::read(&at).map_err(|source| read(&at, source))?;
        let name = at.strip_prefix(root).unwrap_or(&at).to_string_lossy().into_owned();
        found.push((
            ModelFile {
                path: name,
                size: meta.len(),
                sha256: Digest::of(&bytes),
            },
            at,
        ));
    }
    Ok(found)
}
