//! `cargo xtask example-data`: the model of `examples/magika/` and data sets to optimize it with, made from this machine's files.
//!
//! Decides which samples are for calibration and which for evaluation: no row is in both, none twice, kinds are balanced. The
//! same machine gives the same bytes. Nothing of it is committed.

mod files;
#[cfg(test)]
mod manifests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use arrow_array::{ArrayRef, FixedSizeListArray, Int32Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use parquet::{arrow::ArrowWriter, basic::Compression, file::properties::WriterProperties};
use scanner::{features::Config, model::OUTPUT};

use self::files::Sample;
use crate::{cache, progress::Progress, tools::pypi};

/// Column with one row of the model's input: the list has [`Config::width`] int32.
pub const FEATURES: &str = "features";
/// Column with the expected class: its index in the model's output, int32.
pub const LABEL: &str = "file_type";
/// Output of the re-exported model. As long as [`OUTPUT`], so that the file's lengths still hold.
pub const OTHER_OUTPUT: &str = "model_scores";
/// Rows of each data set unless another number is asked for.
pub const ROWS: usize = 512;

/// The folder in [`pypi::MAGIKA`] with `model.onnx` and `config.min.json`.
const MODEL: &str = "magika/models/standard_v3_3";

/// What was written.
#[derive(Clone, Debug)]
pub struct ExampleData {
    /// The folder with all of it.
    pub folder: PathBuf,
    /// `magika.onnx`: the FP32 model as delivered.
    pub model: PathBuf,
    /// `magika-reexport.onnx`: the same weights with the output renamed, as another exporter would; the scanner refuses it.
    pub reexport: PathBuf,
    /// `config.min.json`: what the scanner needs beside the model.
    pub config: PathBuf,
    /// `calibration.parquet`.
    pub calibration: PathBuf,
    /// `evaluation.parquet`.
    pub evaluation: PathBuf,
}

impl ExampleData {
    fn at(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            model: folder.join("magika.onnx"),
            reexport: folder.join("magika-reexport.onnx"),
            config: folder.join("config.min.json"),
            calibration: folder.join("calibration.parquet"),
            evaluation: folder.join("evaluation.parquet"),
        }
    }
}

/// The folder that the manifests of `examples/magika/` name.
pub fn default_folder() -> PathBuf {
    cache::workspace().join("examples/magika/files")
}

/// The files in `folder`, made with [`ROWS`] rows if one of them is not there.
pub fn ensure(folder: &Path, progress: &Progress) -> Result<ExampleData> {
    let data = ExampleData::at(folder);
    // `config.min.json` is written last.
    let files = [
        &data.model,
        &data.reexport,
        &data.calibration,
        &data.evaluation,
        &data.config,
    ];
    if files.iter().all(|file| file.is_file()) {
        return Ok(data);
    }
    make(folder, ROWS, progress)
}

/// Makes the files in `folder`. Takes seconds: the machine's packages and toolchains are walked through.
pub fn make(folder: &Path, rows: usize, progress: &Progress) -> Result<ExampleData> {
    anyhow::ensure!((1..=65_536).contains(&rows), "--rows {rows}: must be from 1 to 65536");
    let source = pypi::ensure(&pypi::MAGIKA, progress)?.join(MODEL);
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let model = fs::read(source.join("model.onnx")).context("read the model")?;
    let json = fs::read(source.join("config.min.json")).context("read the model's configuration")?;
    let config = Config::parse(&json)?;

    let step = progress.step("make data sets from this machine's files");
    let samples = samples(&config, &files::folders())?;
    let kinds = samples.len();
    let [calibration, evaluation] = split(samples, rows)?;
    let data = ExampleData::at(folder);
    write(&data.calibration, &config, &calibration)?;
    write(&data.evaluation, &config, &evaluation)?;
    fs::write(&data.reexport, rename_output(&model)?)?;
    fs::write(&data.model, model)?;
    fs::write(&data.config, json)?;
    step.done(format!("2 x {rows} files of {kinds} kinds in {}", folder.display()));
    Ok(data)
}

/// Samples by class index; no row is there twice, in whatever class.
fn samples(config: &Config, folders: &[PathBuf]) -> Result<BTreeMap<i32, Vec<Sample>>> {
    let mut seen = BTreeSet::new();
    let mut samples: BTreeMap<i32, Vec<Sample>> = BTreeMap::new();
    for (kind, paths) in files::find(folders) {
        let class = config.labels().iter().position(|label| label == kind);
        let class = class.with_context(|| format!("the model knows no class `{kind}`"))?;
        let kept = samples.entry(i32::try_from(class)?).or_default();
        for path in paths.values() {
            // A file that is gone or closed to us by now is no sample.
            if let Ok(Some(sample)) = files::read(config, kind, path)
                && seen.insert(sample.digest)
            {
                kept.push(sample);
            }
        }
        kept.sort();
    }
    // A kind must be in both data sets.
    samples.retain(|_, kept| kept.len() > 1);
    Ok(samples)
}

type Row = (i32, Sample);

/// Deals the samples out, round by round one of each class to each set, until both have `rows`.
fn split(samples: BTreeMap<i32, Vec<Sample>>, rows: usize) -> Result<[Vec<Row>; 2]> {
    let available: usize = samples.values().map(|kept| kept.len() / 2).sum();
    if available < rows {
        bail!(
            "this machine's files give {available} rows for each data set, {rows} were asked for: use --rows {available}"
        );
    }
    let mut left: Vec<_> = samples
        .into_iter()
        .map(|(class, kept)| (class, kept.into_iter()))
        .collect();
    let mut sets = [Vec::with_capacity(rows), Vec::with_capacity(rows)];
    while sets[0].len() < rows {
        for (class, kept) in &mut left {
            if let (true, Some(one), Some(other)) = (sets[0].len() < rows, kept.next(), kept.next()) {
                sets[0].push((*class, one));
                sets[1].push((*class, other));
            }
        }
    }
    for set in &mut sets {
        set.sort_by(|a, b| a.1.cmp(&b.1));
    }
    Ok(sets)
}

fn write(path: &Path, config: &Config, rows: &[Row]) -> Result<()> {
    let width = i32::try_from(config.width())?;
    let item = Arc::new(Field::new("item", DataType::Int32, false));
    let schema = Arc::new(Schema::new(vec![
        Field::new(FEATURES, DataType::FixedSizeList(Arc::clone(&item), width), false),
        Field::new(LABEL, DataType::Int32, false),
    ]));
    let tokens: Int32Array = rows
        .iter()
        .flat_map(|(_, sample)| sample.row.iter().copied())
        .collect::<Vec<_>>()
        .into();
    let features = FixedSizeListArray::try_new(item, width, Arc::new(tokens), None)?;
    let labels: Int32Array = rows.iter().map(|(class, _)| *class).collect::<Vec<_>>().into();
    let columns: Vec<ArrayRef> = vec![Arc::new(features), Arc::new(labels)];
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns)?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut writer = ArrowWriter::try_new(file, schema, Some(properties))?;
    writer.write(&batch)?;
    writer.close()?;
    Ok(())
}

/// The model with its output under another name of the same length.
fn rename_output(model: &[u8]) -> Result<Vec<u8>> {
    let (from, to) = (OUTPUT.as_bytes(), OTHER_OUTPUT.as_bytes());
    anyhow::ensure!(from.len() == to.len(), "{OUTPUT} and {OTHER_OUTPUT} differ in length");
    let mut renamed = model.to_vec();
    let places: Vec<usize> = (0..model.len()).filter(|at| model[*at..].starts_with(from)).collect();
    // The node that computes it and the graph's list of outputs.
    anyhow::ensure!(
        places.len() == 2,
        "the model names {OUTPUT} {} times, not twice",
        places.len()
    );
    for at in places {
        renamed[at..at + to.len()].copy_from_slice(to);
    }
    Ok(renamed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(number: u8) -> Sample {
        Sample {
            digest: [number; 32],
            row: vec![i32::from(number)],
        }
    }

    fn classes(sizes: &[usize]) -> BTreeMap<i32, Vec<Sample>> {
        let mut number = 0;
        let mut next = || {
            number += 1;
            sample(number)
        };
        (0..)
            .zip(sizes)
            .map(|(class, size)| (class, (0..*size).map(|_| next()).collect()))
            .collect()
    }

    #[test]
    fn sets_share_no_row_and_classes_are_balanced() {
        let [calibration, evaluation] = split(classes(&[40, 4, 40]), 8).unwrap();
        let digests = |set: &[Row]| set.iter().map(|(_, sample)| sample.digest).collect::<BTreeSet<_>>();
        assert_eq!((digests(&calibration).len(), digests(&evaluation).len()), (8, 8));
        assert!(digests(&calibration).is_disjoint(&digests(&evaluation)));
        for set in [&calibration, &evaluation] {
            let of = |class| set.iter().filter(|row| row.0 == class).count();
            assert_eq!((of(0), of(1), of(2)), (3, 2, 3));
        }
    }

    #[test]
    fn too_few_files_say_how_many_there_are() {
        let error = split(classes(&[5, 3]), 4).unwrap_err().to_string();
        assert!(error.contains("use --rows 3"), "{error}");
    }

    #[test]
    fn an_output_is_renamed_where_it_is_named_twice() {
        let model = [b"..target_label..", &b"target_label"[..]].concat();
        assert_eq!(
            rename_output(&model).unwrap(),
            [b"..model_scores..", &b"model_scores"[..]].concat()
        );
        assert!(rename_output(b"target_label").is_err());
    }
}
