//! Candidates of a model in memory, for tests: made in a folder of their own, by one thread. Decides nothing about samples or stages.

use super::{Error, Given, OptimizeReport, ROWS_AT_ONCE, Request, Stage, optimize};
use crate::{
    calibrate::{DataError, Samples},
    data::Feed,
    onnx::{self, Limits, Model},
    testing,
};

/// The candidate's bytes, and the report.
pub(super) fn made(
    model: &Model,
    stages: &[Stage],
    given: Given,
    samples: Samples<'_>,
) -> Result<(Vec<u8>, OptimizeReport), Error> {
    let folder = tempfile::tempdir().unwrap();
    let (source, output) = (folder.path().join("model.onnx"), folder.path().join("candidate.onnx"));
    onnx::write(model, &source).unwrap();
    let request = Request {
        model: &source,
        output: &output,
        stages,
        threads: 1,
        limits: Limits::default(),
        given,
    };
    let report = optimize(&testing::runtime(), &request, samples, &mut |_| {})?;
    Ok((std::fs::read(&output).unwrap(), report))
}

/// The same of staged rows, which must be possible.
pub(super) fn made_of_rows(model: &Model, stages: &[Stage], given: Given, feed: &Feed) -> (Vec<u8>, OptimizeReport) {
    let batches = || {
        let batches = feed
            .batches(ROWS_AT_ONCE)
            .map(|batch| batch.map_err(|error| Box::new(error) as DataError));
        Box::new(batches) as Box<dyn Iterator<Item = _>>
    };
    made(model, stages, given, &batches).unwrap()
}
