//! One way to get a small model, and what was found out about it. Decides nothing.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use assayer_crds::{contract::PassReport, stages::Stage};
use serde::{Deserialize, Serialize};

/// What is compared with what: wall time and memory are compared within a method only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Method {
    Dynamic,
    MinMax,
    Entropy,
    Percentile,
    SmoothQuant,
    Int8Blocks,
    Int4Blocks,
    Int4Gptq,
    /// Nobody else has it.
    Own,
}

impl Method {
    /// Those that several tools have.
    pub(super) const COMMON: [Self; 8] = [
        Self::Dynamic,
        Self::MinMax,
        Self::Entropy,
        Self::Percentile,
        Self::SmoothQuant,
        Self::Int8Blocks,
        Self::Int4Blocks,
        Self::Int4Gptq,
    ];
}

/// How it is made.
#[derive(Clone, Debug, Serialize)]
pub(super) enum Way {
    /// It is there: FP32.
    Given,
    /// By the worker.
    Stages(Vec<Stage>),
    /// By another tool's script.
    Script {
        #[serde(skip)]
        python: PathBuf,
        script: &'static str,
        method: &'static str,
    },
}

/// What it took to make a model once.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Taken {
    /// Calibration samples.
    pub(super) samples: u32,
    /// Wall seconds.
    pub(super) seconds: f64,
    /// Peak resident memory.
    pub(super) peak_bytes: u64,
}

/// Latency of one input at one number of threads, as `evaluate.py` says.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Latency {
    /// Median, in seconds.
    pub(super) p50: f64,
    /// To the reference's, block by block: the median.
    pub(super) ratio: f64,
    /// The middle half of those ratios.
    pub(super) quartiles: [f64; 2],
}

/// What `evaluate.py` says of one model.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Evaluation {
    /// Figures by name.
    #[serde(default)]
    pub(super) quality: BTreeMap<String, f64>,
    /// By input and threads: `24@1`.
    #[serde(default)]
    pub(super) latency: BTreeMap<String, Latency>,
    /// Why it does not load or run.
    #[serde(default)]
    pub(super) error: Option<String>,
}

/// One way to get a small model.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Contestant {
    /// As tables and bars name it: `ours dynamic`, `ort minmax`.
    pub(super) id: String,
    pub(super) method: Method,
    pub(super) way: Way,
    /// Whether it reads calibration samples.
    pub(super) calibrated: bool,
    /// Most samples that it can take without exhausting the machine.
    pub(super) most_samples: Option<u32>,
    /// What making took, time after time.
    pub(super) taken: Vec<Taken>,
    /// The same with the samples that quality is judged with.
    pub(super) for_quality: Option<Taken>,
    /// The model's file.
    pub(super) model: Option<PathBuf>,
    /// Size of all its files.
    pub(super) bytes: u64,
    /// What the worker's passes did.
    pub(super) passes: Vec<PassReport>,
    /// Why there is no model.
    pub(super) failure: Option<String>,
    pub(super) evaluation: Evaluation,
}

/// The name of the model as delivered.
pub(super) const BASELINE: &str = "FP32";
/// How names of our own begin.
const OURS: &str = "ours ";

impl Contestant {
    pub(super) fn new(id: String, method: Method, calibrated: bool, way: Way) -> Self {
        Self {
            id,
            method,
            way,
            calibrated,
            most_samples: None,
            taken: Vec::new(),
            for_quality: None,
            model: None,
            bytes: 0,
            passes: Vec::new(),
            failure: None,
            evaluation: Evaluation::default(),
        }
    }

    /// FP32, in a file that ONNX Runtime runs.
    pub(super) fn baseline(model: &Path, bytes: u64) -> Self {
        Self {
            model: Some(model.to_owned()),
            bytes,
            ..Self::new(BASELINE.to_owned(), Method::Own, false, Way::Given)
        }
    }

    /// One of the worker's.
    pub(super) fn ours(name: &str, method: Method, calibrated: bool, stages: Vec<Stage>) -> Self {
        Self::new(format!("{OURS}{name}"), method, calibrated, Way::Stages(stages))
    }

    pub(super) fn is_ours(&self) -> bool {
        matches!(self.way, Way::Stages(_))
    }

    /// Why there is nothing to judge: it could not be made, or does not run.
    pub(super) fn broken(&self) -> Option<&str> {
        self.failure.as_deref().or(self.evaluation.error.as_deref())
    }

    pub(super) fn quality(&self, name: &str) -> Option<f64> {
        self.evaluation.quality.get(name).copied()
    }

    pub(super) fn ratio(&self, case: &str) -> Option<f64> {
        self.evaluation.latency.get(case).map(|latency| latency.ratio)
    }

    /// Geometric mean of the ratios of all cases.
    pub(super) fn mean_ratio(&self) -> Option<f64> {
        let logs: Vec<f64> = self
            .evaluation
            .latency
            .values()
            .map(|latency| latency.ratio.ln())
            .collect();
        #[expect(clippy::cast_precision_loss, reason = "a handful of cases")]
        let count = logs.len() as f64;
        (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / count).exp())
    }

    /// The largest ratio of all cases.
    pub(super) fn worst_ratio(&self) -> Option<f64> {
        self.evaluation
            .latency
            .values()
            .map(|latency| latency.ratio)
            .max_by(f64::total_cmp)
    }

    pub(super) fn seconds(&self) -> Option<f64> {
        median(self.taken.iter().map(|taken| taken.seconds))
    }

    pub(super) fn peak_mebibytes(&self) -> Option<f64> {
        median(self.taken.iter().map(|taken| mebibytes(taken.peak_bytes)))
    }

    /// In 10^6 bytes.
    pub(super) fn megabytes(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "for showing and comparing to two digits")]
        (self.bytes > 0).then_some(self.bytes as f64 / 1e6)
    }
}

/// In 2^20 bytes.
#[expect(clippy::cast_precision_loss, reason = "for showing and comparing to two digits")]
pub(super) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

/// The upper of the two in the middle where there are two.
pub(super) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_averaged_geometrically() {
        let mut one = Contestant::ours("a", Method::Dynamic, false, Vec::new());
        assert_eq!(one.mean_ratio(), None);
        for (case, ratio) in [("24@1", 0.5), ("24@2", 2.0)] {
            let latency = Latency {
                p50: 1.0,
                ratio,
                quartiles: [ratio; 2],
            };
            one.evaluation.latency.insert(case.to_owned(), latency);
        }
        assert!((one.mean_ratio().unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(one.worst_ratio(), Some(2.0));
    }

    #[test]
    fn a_median_is_of_what_is_there() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median(std::iter::empty()), None);
    }
}
