//! Models of integers throughout: bytes in, bytes out, and nothing between them computes with floats.

use super::{trial::made, *};
use crate::{
    onnx::{AttributeValue, ElementType, Ends},
    passes::{Choice, Format, Mode, Quantize},
    testing::{self, Build},
};

fn fixed() -> Quantize {
    Quantize {
        mode: Mode::Static,
        format: Format::Qdq,
        integer_ends: true,
        ..Quantize::default()
    }
}

/// A classifier: convolutions, a sum, pooling and a product. `between` is put behind the sum, `last` behind the product.
fn classifier(between: Option<&str>, last: Option<&str>) -> (Model, String) {
    let mut b = Build::opset(17);
    let ints = |values: &[i64]| AttributeValue::Ints(values.to_vec());
    let x = b.input("x", &[-1, 8, 16, 16]);
    let (first, second) = (b.weights(&[32, 8, 3, 3]), b.weights(&[32, 32, 3, 3]));
    let pads = ("pads", ints(&[1, 1, 1, 1]));
    let y = b.node_with("Conv", &[&x, &first], std::slice::from_ref(&pads));
    let y = b.node("Relu", &[&y]);
    let z = b.node_with("Conv", &[&y, &second], &[pads]);
    let sum = b.node("Add", &[&y, &z]);
    let mut sum = b.node("Relu", &[&sum]);
    if let Some(op_type) = between {
        sum = b.node(op_type, &[&sum]);
    }
    let pool = [("kernel_shape", ints(&[2, 2])), ("strides", ints(&[2, 2]))];
    let pooled = b.node_with("MaxPool", &[&sum], &pool);
    let pooled = b.node("GlobalAveragePool", &[&pooled]);
    let flat = b.node("Flatten", &[&pooled]);
    let (weights, bias) = (b.weights(&[32, 80]), b.weights(&[80]));
    let mut scores = b.node("Gemm", &[&flat, &weights, &bias]);
    if let Some(op_type) = last {
        scores = b.node(op_type, &[&scores]);
    }
    (b.finish(&[&scores]), scores)
}

fn rows() -> Vec<Vec<Tensor>> {
    let row = |seed| vec![Tensor::floats("x", &[1, 8, 16, 16], &testing::noise(seed, 8 * 256)).unwrap()];
    (1..9).map(row).collect()
}

fn make(model: &Model, stages: &[Stage]) -> Result<(Model, OptimizeReport), Error> {
    let rows = rows();
    let samples = || Box::new(rows.iter().cloned().map(Ok)) as Box<dyn Iterator<Item = _>>;
    let (bytes, report) = made(model, stages, Given::default(), &samples)?;
    Ok((onnx::from_bytes(&bytes.into(), &Limits::default()).unwrap(), report))
}

/// What unpacks weights runs before anything else, and is no float in between.
#[test]
fn weights_of_four_bits_are_integers_throughout() {
    let (model, _) = classifier(None, None);
    let [four, eight] = [Some(16), None].map(|four_bits| {
        let settings = Quantize { four_bits, ..fixed() };
        make(&model, &[Stage::Quantize(settings)]).unwrap().0
    });
    let bytes = vec![Tensor::new("x", ElementType::Uint8, &[1, 8, 16, 16], vec![7; 8 * 256]).unwrap()];
    let (_, operators) = testing::run_optimized(&four, &bytes);
    assert!(
        !operators
            .iter()
            .any(|operator| operator == "BitShift" || operator == "Conv"),
        "{operators:?}"
    );
    assert!(onnx::to_bytes(&four).len() < onnx::to_bytes(&eight).len());
}

#[test]
fn bytes_go_in_and_come_out_and_nothing_between_is_float() {
    let (model, scores) = classifier(None, None);
    let (candidate, report) = make(&model, &[Stage::Quantize(fixed())]).unwrap();
    let element_of = |info: &onnx::ValueInfo| info.tensor_type().unwrap().element;
    assert_eq!(element_of(&candidate.graph.inputs[0]), ElementType::Uint8);
    let pass = report.passes.last().unwrap();
    assert_eq!((pass.name, pass.changed), ("integer-inputs-outputs", 2));
    assert!(
        pass.note.contains("`x` ") && pass.note.contains(&scores),
        "{}",
        pass.note
    );

    let bytes = vec![Tensor::new("x", ElementType::Uint8, &[1, 8, 16, 16], vec![7; 8 * 256]).unwrap()];
    let (outputs, operators) = testing::run_optimized(&candidate, &bytes);
    assert_eq!(
        (outputs[0].element, &outputs[0].dims),
        (ElementType::Uint8, &vec![1, 80])
    );
    let floats = [
        "Conv",
        "Add",
        "Gemm",
        "Relu",
        "GlobalAveragePool",
        "QuantizeLinear",
        "DequantizeLinear",
    ];
    let left: Vec<&String> = operators
        .iter()
        .filter(|found| floats.contains(&found.as_str()))
        .collect();
    assert!(left.is_empty(), "{operators:?}");

    let mut around = candidate.clone();
    assert_eq!(onnx::floats_around(&mut around).unwrap(), 2);
    for row in rows() {
        let far = testing::relative_difference(&testing::run(&model, &row), &testing::run(&around, &row));
        assert!(far < 0.05, "{far}");
    }
}

#[test]
fn a_softmax_at_the_end_computes_with_bytes_too() {
    let (model, _) = classifier(None, Some("Softmax"));
    let (candidate, _) = make(&model, &[Stage::Quantize(fixed())]).unwrap();
    let bytes = vec![Tensor::new("x", ElementType::Uint8, &[1, 8, 16, 16], vec![7; 8 * 256]).unwrap()];
    let (outputs, operators) = testing::run_optimized(&candidate, &bytes);
    assert_eq!(outputs[0].element, ElementType::Uint8);
    let floats = ["Gemm", "QuantizeLinear", "DequantizeLinear"];
    let left: Vec<&String> = operators
        .iter()
        .filter(|found| floats.contains(&found.as_str()))
        .collect();
    assert!(left.is_empty(), "{operators:?}");
    let mut around = candidate;
    onnx::floats_around(&mut around).unwrap();
    for row in rows() {
        let far = testing::relative_difference(&testing::run(&model, &row), &testing::run(&around, &row));
        assert!(far < 0.1, "{far}");
    }
}

#[test]
fn a_decoder_that_makes_pictures_larger_computes_with_bytes_too() {
    let mut b = Build::opset(17);
    let ints = |values: &[i64]| AttributeValue::Ints(values.to_vec());
    let x = b.input("x", &[-1, 8, 16, 16]);
    let (down, up, bias) = (b.weights(&[16, 8, 2, 2]), b.weights(&[16, 8, 2, 2]), b.weights(&[8]));
    let strides = ("strides", ints(&[2, 2]));
    let small = b.node_with("Conv", &[&x, &down], std::slice::from_ref(&strides));
    let small = b.node("Relu", &[&small]);
    let large = b.node_with("ConvTranspose", &[&small, &up, &bias], &[strides]);
    let joined = b.node_with("Concat", &[&x, &large], &[("axis", AttributeValue::Int(1))]);
    let last = b.weights(&[4, 16, 1, 1]);
    let y = b.node("Conv", &[&joined, &last]);
    let model = b.finish(&[&y]);
    let (mut candidate, _) = make(&model, &[Stage::Quantize(fixed())]).unwrap();
    let bytes = vec![Tensor::new("x", ElementType::Uint8, &[1, 8, 16, 16], vec![7; 8 * 256]).unwrap()];
    let (outputs, operators) = testing::run_optimized(&candidate, &bytes);
    assert_eq!(
        (outputs[0].element, &outputs[0].dims),
        (ElementType::Uint8, &vec![1, 4, 16, 16])
    );
    let floats = ["Conv", "ConvTranspose", "QuantizeLinear", "DequantizeLinear"];
    let left = operators.iter().filter(|found| floats.contains(&found.as_str()));
    assert_eq!(left.count(), 0, "{operators:?}");
    assert_eq!(onnx::floats_around(&mut candidate).unwrap(), 2);
    for row in rows() {
        let far = testing::relative_difference(&testing::run(&model, &row), &testing::run(&candidate, &row));
        assert!(far < 0.05, "{far}");
    }
}

#[test]
fn what_computes_with_floats_is_named() {
    let refused = |model: &Model, stages: &[Stage]| match make(model, stages) {
        Err(Error::Pass(error @ passes::Error::Floats { .. })) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let stage = || Stage::Quantize(fixed());
    let message = refused(&classifier(Some("HardSwish"), None).0, &[stage()]);
    assert!(
        message.contains("(`HardSwish`): ONNX Runtime has no integer kernel"),
        "{message}"
    );
    let (model, scores) = classifier(None, None);
    let except = Stage::Choose(Choice {
        only: Vec::new(),
        except: vec!["Gemm".to_owned()],
    });
    let message = refused(&model, &[except, stage()]);
    assert!(
        message.contains("(`Gemm`): quantize.only or quantize.except leaves it out"),
        "{message}"
    );
    let operators = Stage::Quantize(Quantize {
        format: Format::QOperator,
        ..fixed()
    });
    let message = refused(&model, &[operators]);
    assert!(
        message.contains("(`MatMulIntegerToFloat`)") && message.contains("format: QDQ"),
        "{message}"
    );
    assert!(!message.contains("(`Conv`)"), "{message}");
    assert!(scores.starts_with("gemm"));
}

#[test]
fn outputs_that_are_read_inside_leave_as_bytes_too() {
    let mut b = Build::opset(17);
    let x = b.input("x", &[-1, 8, 16, 16]);
    let (first, second) = (b.weights(&[16, 8, 3, 3]), b.weights(&[16, 16, 3, 3]));
    let y = b.node("Conv", &[&x, &first]);
    let y = b.node("Relu", &[&y]);
    let z = b.node("Conv", &[&y, &second]);
    let z = b.node("LeakyRelu", &[&z]);
    let model = b.finish(&[&y, &z]);
    let (candidate, _) = make(&model, &[Stage::Quantize(fixed())]).unwrap();
    let mut around = candidate;
    assert_eq!(onnx::floats_around(&mut around).unwrap(), 3);
    let row = &rows()[3];
    let far = testing::relative_difference(&testing::run(&model, row), &testing::run(&around, row));
    assert!(far < 0.05, "{far}");
}

#[test]
fn what_a_baseline_says_of_its_ends_is_not_the_candidates() {
    let (mut model, scores) = classifier(None, None);
    let mut other = Ends::new();
    let (candidate, _) = make(&model, &[Stage::Quantize(fixed())]).unwrap();
    other.extend(onnx::ends(&candidate).unwrap());
    assert!(other.contains_key("x") && other.contains_key(&scores));
    onnx::set_ends(&mut model, &other).unwrap();
    let plain = Quantize {
        integer_ends: false,
        ..fixed()
    };
    let (candidate, _) = make(&model, &[Stage::Quantize(plain)]).unwrap();
    assert_eq!(onnx::ends(&candidate).unwrap(), Ends::new());
}
