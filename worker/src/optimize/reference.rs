//! What the baseline gives for one sample, found out beside the work on the candidate; and whether a candidate gives the same kind of
//! thing. Decides nothing about how close is close enough.

use super::Error;
use crate::{
    onnx::{Index, Model, Tensor, shown},
    session::{self, Options, Runtime, Session},
    threads::joined,
};
use std::{
    collections::BTreeMap,
    thread::{Scope, ScopedJoinHandle},
};

/// The baseline, ready to be run.
pub(super) struct Baseline<'r> {
    pub(super) runtime: &'r Runtime,
    pub(super) model: Model,
    /// What to call it.
    pub(super) which: &'static str,
    /// Nobody knows whether the model takes these inputs.
    pub(super) made_up: bool,
}

impl Baseline<'_> {
    fn run(self, probe: &[Tensor]) -> Result<Vec<Tensor>, Error> {
        // As Assayer's own canonical bytes: ONNX Runtime never sees the file as it came.
        let session = self.runtime.open_model(&self.model, &once(&self.model));
        run(session, self.which, probe).map_err(|error| match error {
            Error::Run { source, .. } if self.made_up => Error::MadeUp(source.to_string()),
            error => error,
        })
    }
}

/// The baseline's outputs, or the run that will give them.
#[derive(Debug)]
pub(super) struct Reference<'s> {
    running: Option<ScopedJoinHandle<'s, Result<Vec<Tensor>, Error>>>,
    outputs: Vec<Tensor>,
}

impl<'s> Reference<'s> {
    /// Starts the run.
    pub(super) fn begin<'e>(scope: &'s Scope<'s, 'e>, baseline: Baseline<'e>, probe: &'e [Tensor]) -> Self {
        Self {
            running: Some(scope.spawn(move || baseline.run(probe))),
            outputs: Vec::new(),
        }
    }

    /// Waits for the end of the run, after which its memory is free again. Says once why it failed.
    pub(super) fn wait(&mut self) -> Result<(), Error> {
        if let Some(running) = self.running.take() {
            self.outputs = joined(running)?;
        }
        Ok(())
    }

    /// Same outputs, same types and shapes, finite where the baseline is finite; and how far apart.
    pub(super) fn compare(&self, candidate: &[Tensor]) -> Result<BTreeMap<String, f32>, Error> {
        compare(&self.outputs, candidate)
    }
}

/// How a session for a single run of `model` is built. Weights in blocks are unpacked for every product unless they were prepared for it,
/// which takes less time than a single run without.
pub(super) fn once(model: &Model) -> Options {
    let prepack = Index::all(&model.graph)
        .iter()
        .flat_map(|index| &index.graph.nodes)
        .any(|node| node.op_type == "MatMulNBits");
    Options {
        prepack,
        ..Options::default()
    }
}

/// Outputs for `inputs`.
pub(super) fn run(
    session: Result<Session, session::Error>,
    which: &'static str,
    inputs: &[Tensor],
) -> Result<Vec<Tensor>, Error> {
    let failed = |source| Error::Run { which, source };
    let mut session = session.map_err(failed)?;
    let mut outputs = Vec::new();
    session
        .run(inputs, |output| {
            outputs.push(output.to_tensor()?);
            Ok::<_, session::Error>(())
        })
        .map_err(failed)?;
    Ok(outputs)
}

fn compare(baseline: &[Tensor], candidate: &[Tensor]) -> Result<BTreeMap<String, f32>, Error> {
    let mut differences = BTreeMap::new();
    for before in baseline {
        let unfaithful = |what: String| Error::Unfaithful {
            name: shown(&before.name),
            what,
        };
        let after = candidate
            .iter()
            .find(|after| after.name == before.name)
            .ok_or_else(|| unfaithful("is missing".to_owned()))?;
        if (after.element, &after.dims) != (before.element, &before.dims) {
            let what = format!(
                "is {:?} {:?}, the baseline's {:?} {:?}",
                after.element, after.dims, before.element, before.dims
            );
            return Err(unfaithful(what));
        }
        let name = before.name.clone();
        let (Some(before), Some(after)) = (before.to_floats(), after.to_floats()) else {
            continue;
        };
        let mut largest = 0.0_f32;
        for (before, after) in before.iter().zip(&after).filter(|(before, _)| before.is_finite()) {
            if !after.is_finite() {
                return Err(unfaithful(format!("is {after} where the baseline's is {before}")));
            }
            largest = largest.max((before - after).abs());
        }
        differences.insert(name, largest);
    }
    Ok(differences)
}
