//! What is read is written again, with fields that nobody knows.

use crate::{
    onnx::{self, AttributeValue, Data, ElementType, Limits, Model, Patch, Tensor, wire::Rope},
    testing::{self, Build},
};
use proptest::prelude::*;

fn small() -> Model {
    let mut b = Build::opset(17);
    let x = b.input("x", &[1, 3, 8, 8]);
    let w = b.weights(&[4, 3, 3, 3]);
    let conv = b.node_with("Conv", &[&x, &w], &[("kernel_shape", AttributeValue::Ints(vec![3, 3]))]);
    let relu = b.node("Relu", &[&conv]);
    b.finish(&[&relu])
}

fn read(bytes: &[u8]) -> Result<Model, onnx::Error> {
    onnx::from_bytes(&bytes.to_vec().into(), &Limits::default())
}

#[test]
fn a_model_comes_back_equal_and_its_bytes_are_stable() {
    let model = small();
    let bytes = onnx::to_bytes(&model);
    let again = read(&bytes).unwrap();
    assert_eq!(again, model);
    assert_eq!(onnx::to_bytes(&again), bytes);
}

#[test]
fn unknown_fields_are_kept_at_every_level() {
    let mut model = small();
    let mut unknown = Rope::default();
    unknown.text(1000, "from a newer ONNX");
    unknown.int(1001, -5);
    let unknown = unknown.to_vec();
    model.rest.clone_from(&unknown);
    model.opsets[0].rest.clone_from(&unknown);
    model.graph.rest.clone_from(&unknown);
    model.graph.nodes[0].rest.clone_from(&unknown);
    model.graph.nodes[0].attributes[0].rest.clone_from(&unknown);
    model.graph.initializers[0].rest.clone_from(&unknown);
    model.graph.inputs[0].rest.clone_from(&unknown);
    assert_eq!(read(&onnx::to_bytes(&model)).unwrap(), model);
}

#[test]
fn the_real_model_comes_back_and_computes_the_same() {
    let bytes = std::fs::read(testing::magika()).unwrap();
    let model = read(&bytes).unwrap();
    onnx::check(&model, &Limits::default()).unwrap();
    let again = onnx::to_bytes(&model);
    assert_eq!(read(&again).unwrap(), model);
    let ids: Vec<i32> = (0..2048).map(|i| i * 37 % 256).collect();
    let input = [Tensor::int32s("bytes", &[1, 2048], &ids).unwrap()];
    let ours = testing::run(&model, &input);
    let options = crate::session::Options {
        optimize: crate::session::Optimize::Nothing,
        ..Default::default()
    };
    let mut session = testing::runtime().open_bytes(&bytes, &options).unwrap();
    session
        .run::<crate::session::Error>(&input, |output| {
            assert_eq!(output.to_tensor()?, ours[0]);
            Ok(())
        })
        .unwrap();
}

#[test]
fn typed_fields_become_plain_bytes() {
    let tensor = |element: ElementType, dims: &[i64], fill: &dyn Fn(&mut Rope)| {
        let mut rope = Rope::default();
        rope.packed_ints(1, dims.iter().copied());
        rope.int(2, element.number());
        rope.text(8, "t");
        fill(&mut rope);
        let (mut graph, mut model) = (Rope::default(), Rope::default());
        graph.message(5, rope);
        model.message(7, graph);
        read(&model.to_vec()).map(|model| model.graph.initializers[0].clone())
    };
    let floats = tensor(ElementType::Float, &[2], &|rope| {
        rope.float(4, 1.5);
        rope.float(4, -2.0);
    });
    assert_eq!(floats.unwrap(), Tensor::floats("t", &[2], &[1.5, -2.0]).unwrap());
    let bytes = tensor(ElementType::Int8, &[3], &|rope| rope.packed_ints(5, [-1, 0, 127])).unwrap();
    assert_eq!(bytes.bytes(), [0xff, 0, 127]);
    let halves = tensor(ElementType::Float16, &[1], &|rope| rope.packed_ints(5, [0x3c00])).unwrap();
    assert_eq!(halves.bytes(), [0, 0x3c]);
    let longs = tensor(ElementType::Int64, &[2], &|rope| rope.packed_ints(7, [-1, 5])).unwrap();
    assert_eq!(longs.to_ints().unwrap(), [-1, 5]);
    let words = tensor(ElementType::Uint32, &[1], &|rope| rope.packed_ints(11, [0xffff_ffff])).unwrap();
    assert_eq!(words.bytes(), [0xff; 4]);
    let strings = tensor(ElementType::String, &[2], &|rope| {
        rope.slice(6, b"a");
        rope.slice(6, b"");
    });
    assert_eq!(strings.unwrap().data, Data::Strings(vec!["a".into(), "".into()]));
    for (element, dims) in [
        (ElementType::Float, [3]),
        (ElementType::Double, [1]),
        (ElementType::String, [1]),
    ] {
        assert!(
            tensor(element, &dims, &|rope| rope.float(4, 1.0)).is_err(),
            "{element:?}"
        );
    }
}

#[test]
fn a_patch_that_does_not_fit_changes_nothing() {
    let model = small();
    let name = model.graph.initializers[0].name.clone();
    let mut patches = vec![
        Patch::new("test"),
        Patch::new("test"),
        Patch::new("test"),
        Patch::new("test"),
    ];
    patches[0].remove(2);
    patches[1].rewire(0, 7, "x");
    patches[2].add_tensor(Tensor::floats(&name, &[], &[0.0]).unwrap());
    patches[3].insert_before(3, []);
    for patch in patches {
        let mut graph = model.graph.clone();
        assert!(onnx::apply(&mut graph, patch).is_err());
        assert_eq!(graph, model.graph);
    }
}

#[test]
fn normalization_lifts_constants_closes_inputs_and_names_nodes() {
    let mut b = Build::opset(13);
    let x = b.input("x", &[2]);
    b.input("w2", &[2]);
    b.floats(&[1], &[0.0]);
    let w2 = b.floats(&[2], &[1.0, 2.0]);
    assert_eq!(w2, "w2");
    let value = Tensor::floats("", &[2], &[3.0, 4.0]).unwrap();
    let constant = b.node_with("Constant", &[], &[("value", AttributeValue::Tensor(value))]);
    let sum = b.node("Add", &[&x, &w2]);
    let dead = b.node("Neg", &[&sum]);
    let product = b.node("Mul", &[&sum, &constant]);
    let mut model = b.finish(&[&product]);
    let before = model.clone();
    let done = onnx::normalize(&mut model).unwrap();
    assert_eq!(
        (done.inputs_made_constant, done.constants_lifted, done.dead_nodes),
        (1, 1, 1),
        "{dead}"
    );
    assert_eq!(model.graph.inputs.len(), 1);
    assert!(model.graph.nodes.iter().all(|node| !node.name.is_empty()));
    onnx::check(&model, &Limits::default()).unwrap();
    let input = [Tensor::floats("x", &[2], &[0.5, -1.0]).unwrap()];
    assert_eq!(testing::run(&model, &input), testing::run(&before, &input));
    let mut again = model.clone();
    onnx::normalize(&mut again).unwrap();
    assert_eq!(again, model, "normalization is idempotent");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_give_a_model_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&bytes).and_then(|model| onnx::check(&model, &Limits::default()));
    }

    #[test]
    fn a_changed_byte_gives_a_model_or_an_error(at in 0_usize..700, value: u8) {
        let mut bytes = onnx::to_bytes(&small());
        let at = at % bytes.len();
        bytes[at] = value;
        let _ = read(&bytes).and_then(|model| onnx::check(&model, &Limits::default()));
    }
}

#[test]
fn truncated_anywhere_is_an_error_or_a_smaller_model_never_a_panic() {
    let bytes = onnx::to_bytes(&small());
    for end in 0..bytes.len() {
        let read = read(&bytes[..end]).and_then(|model| onnx::check(&model, &Limits::default()));
        assert!(read.is_err(), "{end} of {} bytes were accepted", bytes.len());
    }
}
