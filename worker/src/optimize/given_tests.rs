//! What a user says of the data, on models that were exported for other data.

use super::*;
use crate::{
    onnx::{Dim, ElementType, RowShapes, ValueInfo},
    passes::Quantize,
    testing::{self, Build},
};

/// Two convolutions as old exporters write them: ten small images, weights among the inputs, and sizes everywhere.
fn fixed_batch(path: &Path, flattened: bool) {
    let mut b = Build::opset(9);
    let x = b.input("x", &[10, 3, 8, 8]);
    let (first, second) = (b.weights(&[16, 3, 3, 3]), b.weights(&[16, 16, 3, 3]));
    let y = b.node("Conv", &[&x, &first]);
    let y = b.node("Relu", &[&y]);
    let mut z = b.node("Conv", &[&y, &second]);
    if flattened {
        let shape = b.ints(&[10, 16 * 4 * 4]);
        z = b.node("Reshape", &[&z, &shape]);
    }
    let mut model = b.finish(&[&z]);
    model.ir_version = 3;
    let graph = &mut model.graph;
    for tensor in &graph.initializers {
        let dims: Vec<Dim> = tensor
            .dims
            .iter()
            .map(|dim| Dim::Fixed(i64::try_from(*dim).unwrap()))
            .collect();
        graph
            .inputs
            .push(ValueInfo::tensor(&tensor.name, tensor.element, &dims));
    }
    graph.value_info = vec![ValueInfo::tensor(
        &y,
        ElementType::Float,
        &[10, 16, 6, 6].map(Dim::Fixed),
    )];
    if !flattened {
        graph.outputs = vec![ValueInfo::tensor(
            &z,
            ElementType::Float,
            &[10, 16, 4, 4].map(Dim::Fixed),
        )];
    }
    onnx::write(&model, path).unwrap();
}

#[test]
fn a_model_of_a_fixed_batch_is_quantized_at_the_shape_of_the_data() {
    let folder = tempfile::tempdir().unwrap();
    let (model, output) = (folder.path().join("fixed.onnx"), folder.path().join("candidate.onnx"));
    let given = Given {
        shapes: RowShapes::from([("x".to_owned(), vec![3, 24, 32])]),
        ..Given::default()
    };
    let images: Vec<Vec<Tensor>> = (1..4)
        .map(|seed| vec![Tensor::floats("x", &[1, 3, 24, 32], &testing::noise(seed, 3 * 24 * 32)).unwrap()])
        .collect();
    let make = |flattened, stage: Quantize| {
        fixed_batch(&model, flattened);
        let request = Request {
            model: &model,
            output: &output,
            stages: &[Stage::Quantize(stage)],
            threads: 1,
            limits: Limits::default(),
            given: given.clone(),
        };
        let samples = || Box::new(images.iter().cloned().map(Ok)) as Box<dyn Iterator<Item = _>>;
        optimize(&testing::runtime(), &request, &samples, &mut |_| {})
    };
    let report = make(false, Quantize::default()).unwrap();
    let pass = |name: &str| report.passes.iter().find(|pass| pass.name == name).unwrap().changed;
    assert_eq!(pass(FREE), 3);
    assert!(pass("quantize-static") > 0);
    let mut session = testing::runtime()
        .open(&output, &crate::session::Options::default())
        .unwrap();
    let two = Tensor::floats("x", &[2, 3, 16, 16], &testing::noise(9, 2 * 3 * 256)).unwrap();
    session
        .run(&[two], |out| {
            assert_eq!(out.shape, [2, 16, 12, 12]);
            Ok::<_, session::Error>(())
        })
        .unwrap();
    let error = make(true, Quantize::default()).unwrap_err().to_string();
    assert!(
        error.contains("baseline, with rows of data.inputs[].shape, does not run") && error.contains("Reshape"),
        "{error}"
    );
}
