//! What users of other quantizers run into, a test for each, named after what they find here instead. Where other tests show more of it, the
//! comment names them. That a model over 2 GB goes through is shown by `tests/huge.rs`, which has a process of its own to measure.

use super::{
    opset_tests::{model, sample},
    padding_tests::encoder,
    trial::made,
    *,
};
use crate::{
    calibrate::Method,
    onnx::{AttributeValue as A, Dim, ElementType, Index, ValueInfo},
    passes::{Bits, Blocks, Choice, Format, Mode, Quantize, Recovery, Smoothing},
    testing::{self, Build, graphs, noise, relative_difference, run, run_optimized},
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

const METHODS: [Method; 5] = [
    Method::MinMax,
    Method::MovingAverage(0.1),
    Method::Entropy,
    Method::Percentile(99.9),
    Method::MeanSquaredError,
];
/// How far an 8-bit candidate may be from its baseline, relative to the largest output.
const NEAR: f32 = 0.1;

fn fixed(calibration: Method) -> Quantize {
    Quantize {
        calibration,
        ..Quantize::default()
    }
}

fn dynamic() -> Quantize {
    Quantize {
        mode: Mode::Dynamic,
        ..Quantize::default()
    }
}

fn blocks(bits: Bits) -> Stage {
    Stage::QuantizeBlocks(Blocks {
        bits,
        size: 32,
        recovery: Recovery::default(),
    })
}

/// A choice that leaves nothing to measuring.
fn everything() -> Stage {
    Stage::Choose(Choice {
        only: vec!["*".to_owned()],
        ..Choice::default()
    })
}

/// A candidate, and what the report says.
fn candidate(float: &Model, stages: &[Stage], samples: &[Vec<Tensor>]) -> (Model, OptimizeReport) {
    let batches = || Box::new(samples.iter().cloned().map(Ok)) as Box<dyn Iterator<Item = _>>;
    let (bytes, report) =
        made(float, stages, Given::default(), &batches).unwrap_or_else(|error| panic!("{stages:?}: {error}"));
    let candidate = onnx::from_bytes(&bytes.into(), &Limits::default()).unwrap();
    onnx::check(&candidate, &Limits::default()).unwrap();
    (candidate, report)
}

fn samples() -> Vec<Vec<Tensor>> {
    (0..8).map(sample).collect()
}

fn near(float: &Model, candidate: &Model, inputs: &[Tensor], bound: f32) {
    let difference = relative_difference(&run(float, inputs), &run_optimized(candidate, inputs).0);
    assert!(difference < bound, "{difference}");
}

fn counted(operators: &[String], op_type: &str) -> usize {
    operators.iter().filter(|operator| *operator == op_type).count()
}

/// Per-channel scales need operator set 13, and other tools write them into files of 9. More in `every_operator_set_goes_through_every_method`
/// and `onnx::tests::opset`.
#[test]
fn an_old_file_is_raised_before_channels_get_scales() {
    let float = model(9);
    let stage = Stage::Quantize(Quantize {
        format: Format::Qdq,
        ..Quantize::default()
    });
    let (made, report) = candidate(&float, &[stage], &samples());
    assert_eq!((report.opset_before, made.opset("")), (9, Some(17)));
    let scales = |node: &&onnx::Node| node.is("DequantizeLinear") && node.attribute("axis").is_some();
    assert!(made.graph.nodes.iter().filter(scales).count() > 0);
    near(&float, &made, &sample(90), NEAR);
}

/// Quantizing whatever has a kernel costs ten points of accuracy; leaving the embedding costs half of the size.
#[test]
fn norms_softmax_and_residuals_stay_floats_and_the_embedding_does_not() {
    let float = model(17);
    for settings in [Quantize::default(), dynamic()] {
        let (made, _) = candidate(&float, &[everything(), Stage::Quantize(settings)], &samples());
        let index = Index::new(&made.graph);
        let rounded = |name: &String| {
            let (_, scaled) = index.producer(name).filter(|(_, node)| node.is("DequantizeLinear"))?;
            index
                .producer(scaled.input(0)?)
                .filter(|(_, node)| node.is("QuantizeLinear"))
        };
        let is_float = ["LayerNormalization", "Softmax", "Gelu", "Add", "Div"];
        let mut floats = made
            .graph
            .nodes
            .iter()
            .filter(|node| is_float.contains(&node.op_type.as_str()));
        assert!(floats.clone().count() >= 6);
        assert!(floats.all(|node| node.inputs.iter().all(|name| rounded(name).is_none())));
        let large =
            |tensor: &&Tensor| tensor.element == ElementType::Float && tensor.dims.len() == 2 && tensor.len() > 1024;
        assert_eq!(made.graph.initializers.iter().find(large), None);
    }
}

/// Quantize nodes around operators that no integer kernel takes over make a file that is slower than its baseline. More in
/// `optimize::kernels`, `optimize::regions` and `passes::region_tests`.
#[test]
fn no_convolution_and_no_product_with_weights_computes_with_floats() {
    let float = model(17);
    let (made, _) = candidate(
        &float,
        &[everything(), Stage::Quantize(Quantize::default())],
        &samples(),
    );
    let (_, operators) = run_optimized(&made, &sample(90));
    assert_eq!(counted(&operators, "QLinearConv"), 3, "{operators:?}");
    for op_type in ["Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm"] {
        assert_eq!(counted(&operators, op_type), 0, "{operators:?}");
    }
    // Scores and what they mix have no weights.
    let products = counted(&operators, "MatMul") + counted(&operators, "FusedMatMul");
    assert_eq!(products, 2, "{operators:?}");
}

/// Bytes that say when they are let go.
struct Held(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Other tools keep every tensor of every sample, gigabytes for a small model. What is kept of a tensor: `calibrate::seen`.
#[test]
fn many_samples_take_no_more_memory_than_few() {
    let float = encoder();
    let most = |count: u64, stages: &[Stage]| {
        let (alive, most) = (Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
        let batch = |seed: u64| {
            let mut batch = sentence(seed, 6);
            for tensor in &mut batch {
                let held = Held(tensor.bytes().to_vec(), Arc::clone(&alive));
                most.fetch_max(alive.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                *tensor = Tensor::new(
                    &tensor.name,
                    tensor.element,
                    &tensor.dims,
                    bytes::Bytes::from_owner(held),
                )
                .unwrap();
            }
            Ok(batch)
        };
        let batches = || Box::new((0..count).map(batch)) as Box<dyn Iterator<Item = _>>;
        made(&float, stages, Given::default(), &batches).unwrap();
        most.into_inner()
    };
    let gptq = Recovery {
        gptq: true,
        bias_correction: true,
        ..Recovery::default()
    };
    let smoothing = Smoothing {
        mode: Mode::Static,
        gptq: true,
        four_bits: false,
    };
    let recovered = Quantize {
        recovery: gptq,
        ..fixed(Method::Entropy)
    };
    for stages in [
        vec![everything(), Stage::Quantize(fixed(Method::Percentile(99.9)))],
        vec![Stage::Smooth(smoothing), everything(), Stage::Quantize(recovered)],
    ] {
        assert_eq!(most(60, &stages), most(6, &stages), "{stages:?}");
    }
}

/// A sentence for [`encoder`].
fn sentence(seed: u64, length: i64) -> Vec<Tensor> {
    let ids: Vec<i64> = (1..=length)
        .map(|at| at * (7 + i64::try_from(seed).unwrap()) % 23)
        .collect();
    let size = ids.len();
    vec![
        Tensor::int64s("ids", &[1, size], &ids).unwrap(),
        Tensor::int64s("mask", &[1, size], &vec![1; size]).unwrap(),
    ]
}

/// Two layers over an embedding, for as many sentences as long as one likes; both axes have one name.
fn layers() -> Model {
    let mut b = Build::opset(17);
    let ids = b.typed_input("ids", ElementType::Int64, &[-1, -1]);
    let (table, wide, narrow) = (b.weights(&[300, 64]), b.weights(&[64, 96]), b.weights(&[96, 32]));
    let rows = b.node("Gather", &[&table, &ids]);
    let x = b.node("MatMul", &[&rows, &wide]);
    let x = b.node("Relu", &[&x]);
    let y = b.node("MatMul", &[&x, &narrow]);
    b.finish(&[&y])
}

/// For [`layers`].
fn sentences(count: usize, length: usize) -> Vec<Tensor> {
    let ids: Vec<i64> = (1..).map(|at| at * 37 % 300).take(count * length).collect();
    vec![Tensor::int64s("ids", &[count, length], &ids).unwrap()]
}

/// Histograms of other tools want samples of one length, and padding changes what they find: that a mask undoes this is shown by
/// `padded_rows_with_a_mask_give_the_bytes_of_natural_ones`.
#[test]
fn sentences_of_any_length_calibrate_every_method() {
    let float = layers();
    let samples = [4, 9, 1, 7, 3, 8, 5].map(|length| sentences(1, length));
    for method in METHODS {
        let (made, _) = candidate(&float, &[everything(), Stage::Quantize(fixed(method))], &samples);
        near(&float, &made, &sentences(1, 6), NEAR);
    }
}

/// Ranges without width end other tools with `Too many bins`, or give biases that no integer holds. More in `calibrate::seen`.
#[test]
fn what_is_constant_or_nearly_zero_calibrates_by_every_method() {
    let mut b = Build::opset(17);
    let x = b.input("x", &[-1, 64]);
    let values: Vec<String> = [0.0, 1e-30, 1.0]
        .iter()
        .map(|factor| {
            let factor = b.scalar(*factor);
            let scaled = b.node("Mul", &[&x, &factor]);
            let (w, bias) = (b.weights(&[64, 32]), b.weights(&[32]));
            let product = b.node("MatMul", &[&scaled, &w]);
            b.node("Add", &[&product, &bias])
        })
        .collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    let float = b.finish(&values);
    let constant = vec![Tensor::floats("x", &[1, 64], &[0.3; 64]).unwrap()];
    for method in METHODS {
        let samples = [constant.clone(), constant.clone()];
        let (made, _) = candidate(&float, &[everything(), Stage::Quantize(fixed(method))], &samples);
        near(&float, &made, &constant, 0.03);
    }
}

/// Tools that infer shapes first end where they can't.
#[test]
fn shapes_that_nobody_can_infer_are_no_obstacle() {
    let mut b = Build::opset(17);
    let x = b.input("x", &[-1, -1]);
    let shape = b.typed_input("shape", ElementType::Int64, &[-1]);
    let rows = b.node("Reshape", &[&x, &shape]);
    let (w, bias, again) = (b.weights(&[64, 48]), b.weights(&[48]), b.weights(&[48, 32]));
    let product = b.node("MatMul", &[&rows, &w]);
    let sum = b.node("Add", &[&product, &bias]);
    let relu = b.node("Relu", &[&sum]);
    let y = b.node("MatMul", &[&relu, &again]);
    let float = b.finish(&[&y]);
    let samples: Vec<Vec<Tensor>> = [vec![2, 3, 64], vec![6, 64], vec![1, 1, 6, 64]]
        .iter()
        .zip(0..)
        .map(|(shape, seed)| {
            vec![
                Tensor::floats("x", &[6, 64], &noise(seed, 384)).unwrap(),
                Tensor::int64s("shape", &[shape.len()], shape).unwrap(),
            ]
        })
        .collect();
    for stage in [
        Stage::Quantize(fixed(Method::Entropy)),
        Stage::Quantize(dynamic()),
        blocks(Bits::Eight),
    ] {
        let (made, _) = candidate(&float, &[everything(), stage], &samples);
        for inputs in &samples {
            near(&float, &made, inputs, NEAR);
        }
    }
}

/// Tools that go by the names of nodes drop those that have none. Of one name in several graphs: `passes::property_tests`.
#[test]
fn nodes_without_a_name_give_the_same_candidate() {
    let named = |name: &dyn Fn(usize) -> String| {
        let mut float = model(17);
        let nodes = float.graph.nodes.iter_mut().enumerate();
        nodes.for_each(|(at, node)| node.name = name(at));
        float
    };
    let (without, with) = (named(&|_| String::new()), named(&|at| format!("node {at}")));
    for stage in [Stage::Quantize(Quantize::default()), blocks(Bits::Four)] {
        let stages = [everything(), stage];
        let [(without, first), (with, second)] = [&without, &with].map(|float| candidate(float, &stages, &samples()));
        assert_eq!(first.nodes_after, second.nodes_after);
        assert_eq!(run(&without, &sample(90)), run(&with, &sample(90)));
    }
}

/// `Constant` nodes and graph inputs hide weights from other tools, and `If` bodies do: `passes::body_tests`.
#[test]
fn weights_are_found_wherever_exporters_put_them() {
    let float = model(17);
    let mut constants = float.clone();
    graphs::constants(&mut constants.graph);
    assert!(constants.graph.initializers.is_empty());
    let mut inputs = float.clone();
    inputs
        .graph
        .inputs
        .extend(float.graph.initializers.iter().map(|tensor| {
            let dims = tensor.dims.iter().map(|dim| Dim::Fixed(i64::try_from(*dim).unwrap()));
            ValueInfo::tensor(&tensor.name, tensor.element, &dims.collect::<Vec<_>>())
        }));
    for stage in [
        Stage::Quantize(Quantize::default()),
        Stage::Quantize(dynamic()),
        blocks(Bits::Eight),
    ] {
        let stages = [everything(), stage];
        let (wanted, report) = candidate(&float, &stages, &samples());
        for other in [&constants, &inputs] {
            let (made, other) = candidate(other, &stages, &samples());
            assert_eq!(other.nodes_after, report.nodes_after);
            assert_eq!(run(&made, &sample(90)), run(&wanted, &sample(90)));
        }
    }
}

/// Exporters fix the batch, which `a_model_of_a_fixed_batch_is_quantized_at_the_shape_of_the_data` undoes, and give two axes one name.
#[test]
fn axes_that_share_a_name_may_differ() {
    let float = layers();
    for stage in [Stage::Quantize(Quantize::default()), blocks(Bits::Eight)] {
        let (made, _) = candidate(&float, &[stage], &[sentences(1, 6), sentences(3, 4)]);
        let declared = made.graph.inputs[0].tensor_type().and_then(|declared| declared.shape);
        let shape = declared.unwrap();
        assert_eq!(shape[0], shape[1], "one name for both");
        near(&float, &made, &sentences(2, 5), NEAR);
    }
}

/// Tools leave embeddings or whole weights in floats, write a table twice that was exported twice, and put a second file beside the first.
#[test]
fn a_table_that_was_exported_twice_is_small_both_times_and_in_one_file() {
    let mut b = Build::opset(17);
    let ids = b.typed_input("ids", ElementType::Int64, &[-1, 6]);
    let values = noise(5, 512 * 64);
    let turned: Vec<f32> = (0..64 * 512).map(|at| values[at % 512 * 64 + at / 512]).collect();
    let (table, turned) = (b.floats(&[512, 64], &values), b.floats(&[64, 512], &turned));
    let rows = b.node("Gather", &[&table, &ids]);
    let y = b.node("MatMul", &[&rows, &turned]);
    let float = b.finish(&[&y]);
    let samples: Vec<Vec<Tensor>> = samples().into_iter().map(|inputs| inputs[..1].to_vec()).collect();
    for (stage, percent) in [
        (Stage::Quantize(Quantize::default()), 28),
        (Stage::Quantize(dynamic()), 28),
        (blocks(Bits::Eight), 31),
        (blocks(Bits::Four), 18),
    ] {
        let (_, report) = candidate(&float, std::slice::from_ref(&stage), &samples);
        assert!(report.bytes_after * 100 < report.bytes_before * percent, "{stage:?}");
        assert_eq!(report.files.len(), 1);
    }
}

/// Tools report success for files that do not load, or load and do not run.
#[test]
fn what_onnx_runtime_does_not_run_is_no_candidate() {
    let float = model(17);
    let (made, _) = candidate(&float, &[blocks(Bits::Four)], &samples());
    let tried = |model: &Model| {
        let session = testing::runtime().open_model(model, &reference::once(model));
        reference::run(session, "candidate", &sample(1))
    };
    assert!(tried(&made).is_ok());
    let mut points_moved = made.clone();
    let node = points_moved
        .graph
        .nodes
        .iter()
        .find(|node| node.op_type == "MatMulNBits")
        .unwrap();
    let points = node.inputs[3].clone();
    let tensor = points_moved
        .graph
        .initializers
        .iter_mut()
        .find(|tensor| tensor.name == points)
        .unwrap();
    tensor.dims.insert(0, 7);
    let count = tensor.dims.iter().product();
    *tensor = Tensor::new(&points, ElementType::Uint8, &tensor.dims, vec![0_u8; count]).unwrap();
    let mut wide = made;
    let gather = wide
        .graph
        .nodes
        .iter_mut()
        .find(|node| node.op_type == "GatherBlockQuantized")
        .unwrap();
    gather.take_attribute("block_size");
    gather.attributes.push(onnx::Attribute {
        name: "block_size".to_owned(),
        value: A::Int(64),
        rest: Vec::new(),
    });
    for broken in [points_moved, wide] {
        let error = tried(&broken).unwrap_err();
        assert!(matches!(error, Error::Run { which: "candidate", .. }), "{error}");
    }
}

/// Tools bring a training framework along, or report home; what runs here is one library, whose telemetry `session` turns off.
#[test]
fn no_training_framework_and_no_python_is_needed() {
    let locked = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock"));
    let names: Vec<&str> = locked.lines().filter_map(|line| line.strip_prefix("name = ")).collect();
    assert!(names.contains(&"\"ort\""));
    for absent in [
        "tch",
        "torch-sys",
        "candle-core",
        "burn",
        "tensorflow",
        "pyo3",
        "pyo3-ffi",
        "opentelemetry",
        "sentry",
    ] {
        assert!(!names.contains(&format!("\"{absent}\"").as_str()), "{absent}");
    }
}

/// On processors 16-bit floats are for size alone: ONNX Runtime computes in 32 bits between casts. More in `passes::float16`.
#[test]
fn sixteen_bits_halve_the_file_and_nothing_is_said_to_be_faster() {
    let float = model(17);
    let (made, report) = candidate(&float, &[Stage::Float16], &samples());
    assert!(report.bytes_after * 100 < report.bytes_before * 60);
    near(&float, &made, &sample(90), 0.01);
    let (_, operators) = run_optimized(&made, &sample(90));
    assert!(counted(&operators, "Cast") > 0, "{operators:?}");
    for input in &made.graph.inputs {
        let declared = input.tensor_type().unwrap().element;
        assert!(declared == ElementType::Float || declared == ElementType::Int64);
    }
}
