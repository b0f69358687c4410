//! Attention in the spellings of exporters: a division of what it mixes goes into its values, and what it can't go into stays.

use super::*;
use crate::{
    calibrate,
    onnx::{AttributeValue as A, Limits, Model, Tensor, normalize},
    passes::{Mode, Smoothing, product_inputs, smooth},
    testing::{self, Build, noise, relative_difference, run},
};
use Size::{Known, Same};

/// How query, key and value come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Projections {
    Apart,
    /// One product, cut into three.
    Split,
    /// One product, its columns counted as three times all heads, of which one each is picked.
    Picked,
}

/// What is different from the plain spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Twist {
    Nothing,
    NoHeads,
    NoBias,
    /// The target of the last `Reshape` is computed.
    Computed,
    /// Something else reads the values.
    Shared,
    /// All heads have the same values.
    OneValue,
    /// A row for each position is added to the input.
    Positions,
    /// What was mixed goes through a function.
    Bent,
}

const WIDTH: usize = 64;

/// `x` and a row for each position, out of a table that is cut to the length.
fn positioned(b: &mut Build, x: &str) -> String {
    let (table, start, axis, which) = (b.weights(&[1, 9, 64]), b.ints(&[0]), b.ints(&[1]), b.ints(&[1]));
    let shape = b.node("Shape", &[x]);
    let length = b.node("Gather", &[&shape, &which]);
    let positions = b.node("Slice", &[&table, &start, &length, &axis]);
    b.node("Add", &[x, &positions])
}

/// `softmax(q k) v`, of which channel 5 is far larger than the others, and a product behind it.
fn attention(projections: Projections, twist: Twist) -> Model {
    let mut b = Build::opset(17);
    let mut x = b.input("x", &[-1, -1, 64]);
    if twist == Twist::Positions {
        x = positioned(&mut b, &x);
    }
    let parts: Vec<(Vec<f32>, Vec<f32>)> = (0..3)
        .map(|part| {
            let uneven = |(at, value): (usize, f32)| {
                let large = part == 2 && at % WIDTH == 5;
                value * if large { 4.0 } else { 0.1 }
            };
            let values = |seed, count| noise(seed, count).into_iter().enumerate().map(uneven).collect();
            (values(part, WIDTH * WIDTH), values(part + 3, WIDTH))
        })
        .collect();
    let add = |b: &mut Build, product: String, bias: &[f32]| {
        if twist == Twist::NoBias {
            return product;
        }
        let bias = b.floats(&[bias.len()], bias);
        b.node("Add", &[&bias, &product])
    };
    let heads = |b: &mut Build, x: &str| {
        if twist == Twist::NoHeads {
            return x.to_owned();
        }
        let shape = b.ints(&[0, 0, 4, 16]);
        let cut = b.node("Reshape", &[x, &shape]);
        b.node_with("Transpose", &[&cut], &[("perm", A::Ints(vec![0, 2, 1, 3]))])
    };
    let [query, key, value] = if projections == Projections::Apart {
        [0, 1, 2].map(|part| {
            let (weights, bias): &(Vec<f32>, Vec<f32>) = &parts[part];
            let weights = b.floats(&[WIDTH, WIDTH], weights);
            let product = b.node("MatMul", &[&x, &weights]);
            let sum = add(&mut b, product, bias);
            heads(&mut b, &sum)
        })
    } else {
        let rows = (0..WIDTH).flat_map(|row| parts.iter().map(move |(weights, _)| &weights[row * WIDTH..][..WIDTH]));
        let weights = b.floats(&[WIDTH, 3 * WIDTH], &rows.flatten().copied().collect::<Vec<f32>>());
        let bias: Vec<f32> = parts.iter().flat_map(|(_, bias)| bias.clone()).collect();
        let product = b.node("MatMul", &[&x, &weights]);
        let sum = add(&mut b, product, &bias);
        if projections == Projections::Split {
            let sizes = b.ints(&[64, 64, 64]);
            let split = Node::new("Split", &[&sum, &sizes], &["q", "k", "v"]);
            b.push(split.with("axis", A::Int(-1)));
            ["q", "k", "v"].map(|part| heads(&mut b, part))
        } else {
            let shape = b.ints(&[0, 0, 3, 4, 16]);
            let cut = b.node("Reshape", &[&sum, &shape]);
            let turned = b.node_with("Transpose", &[&cut], &[("perm", A::Ints(vec![2, 0, 3, 1, 4]))]);
            [0, 1, 2].map(|part| {
                let at = Tensor::int64s("", &[], &[part]).unwrap();
                let at = b.node_with("Constant", &[], &[("value", A::Tensor(at))]);
                b.node_with("Gather", &[&turned, &at], &[("axis", A::Int(0))])
            })
        }
    };
    let mut values = value.clone();
    if twist == Twist::OneValue {
        let (start, end, axis) = (b.ints(&[1]), b.ints(&[2]), b.ints(&[1]));
        values = b.node("Slice", &[&value, &start, &end, &axis]);
    }
    let perm = if twist == Twist::NoHeads {
        vec![0, 2, 1]
    } else {
        vec![0, 1, 3, 2]
    };
    let key = b.node_with("Transpose", &[&key], &[("perm", A::Ints(perm))]);
    let scores = b.node("MatMul", &[&query, &key]);
    let shares = b.node("Softmax", &[&scores]);
    let mut mixed = b.node("MatMul", &[&shares, &values]);
    if twist != Twist::NoHeads {
        mixed = b.node_with("Transpose", &[&mixed], &[("perm", A::Ints(vec![0, 2, 1, 3]))]);
        let target = if twist == Twist::Computed {
            let (shape, first, width) = (b.node("Shape", &[&x]), b.ints(&[0, 1]), b.ints(&[64]));
            let rows = b.node("Gather", &[&shape, &first]);
            b.node_with("Concat", &[&rows, &width], &[("axis", A::Int(0))])
        } else {
            b.ints(&[0, 0, 64])
        };
        mixed = b.node("Reshape", &[&mixed, &target]);
    }
    if twist == Twist::Bent {
        mixed = b.node("Elu", &[&mixed]);
    }
    let out = b.weights(&[WIDTH, 48]);
    let y = b.node("MatMul", &[&mixed, &out]);
    let outputs: Vec<&str> = [y.as_str(), &value]
        .into_iter()
        .take(1 + usize::from(twist == Twist::Shared))
        .collect();
    let mut model = b.finish(&outputs);
    normalize(&mut model).unwrap();
    model
}

/// Rows of which channel 9 is large as well, so that rows and columns of the weights of values change.
fn rows(seed: u64) -> Vec<Tensor> {
    let mut values = noise(seed, 2 * 5 * WIDTH);
    values
        .iter_mut()
        .skip(9)
        .step_by(WIDTH)
        .for_each(|value| *value *= 40.0);
    vec![Tensor::floats("x", &[2, 5, WIDTH], &values).unwrap()]
}

/// The model with its inputs evened out, and the number of divisions that are nodes.
fn evened(float: &Model) -> (Model, usize) {
    let taps = product_inputs(float);
    let mut batches = (0..4).map(|seed| Ok(rows(seed)));
    let channels = calibrate::rows(&testing::runtime(), 1, float, &taps, &mut batches, &mut |_| {}).unwrap();
    let mut model = float.clone();
    let smoothing = Smoothing {
        mode: Mode::Dynamic,
        gptq: false,
        four_bits: false,
    };
    smooth::apply(&mut model, smoothing, &channels).unwrap();
    crate::onnx::check(&model, &Limits::default()).unwrap();
    let difference = relative_difference(&run(float, &rows(9)), &run(&model, &rows(9)));
    assert!(difference < 1e-5, "{difference}");
    let divisions = model.graph.nodes.iter().filter(|node| node.is("Mul")).count();
    (model, divisions)
}

#[test]
fn what_attention_mixes_is_divided_in_its_values() {
    use Projections::{Apart, Picked, Split};
    for projections in [Apart, Split, Picked] {
        for twist in [
            Twist::Nothing,
            Twist::NoHeads,
            Twist::NoBias,
            Twist::Computed,
            Twist::Positions,
        ] {
            if (projections, twist) == (Picked, Twist::NoHeads) {
                continue;
            }
            let float = attention(projections, twist);
            let (model, divisions) = evened(&float);
            assert_eq!(divisions, 1, "that of the input alone: {projections:?} {twist:?}");
            assert_eq!(model.graph.nodes.len(), float.graph.nodes.len() + 1);
        }
    }
}

#[test]
fn what_others_see_or_a_function_bends_is_divided_where_it_is() {
    for projections in [Projections::Apart, Projections::Split, Projections::Picked] {
        for twist in [Twist::Bent, Twist::OneValue, Twist::Shared] {
            let (_, divisions) = evened(&attention(projections, twist));
            assert_eq!(divisions, 2, "{projections:?} {twist:?}");
        }
    }
}

#[test]
fn the_product_and_the_sum_are_named() {
    let float = attention(Projections::Apart, Twist::Nothing);
    let index = Index::new(&float.graph);
    let shapes = Shapes::new(&index);
    let mixed = float.graph.nodes.last().and_then(|node| node.input(0)).unwrap();
    let factors: Vec<f64> = (1..=64).map(f64::from).collect();
    let of = |columns: &dyn Fn(usize) -> Option<usize>| origin(&index, &shapes, mixed, 1, &factors, columns);
    let weighted = |position: usize| {
        let node: &Node = &float.graph.nodes[position];
        let constant = index.constant(node.input(1)?).filter(|_| node.is("MatMul"));
        constant.map(|_| WIDTH)
    };
    let found = of(&weighted).unwrap();
    assert_eq!(found.columns, factors);
    assert_eq!(found.added.len(), 1);
    assert_eq!(found.added[0].factors, factors);
    assert!(
        float.graph.nodes[found.added[0].sum]
            .inputs
            .contains(&float.graph.nodes[found.product].output().to_owned())
    );
    assert_eq!(of(&|_| None), None, "whose weights must not change");
}

#[test]
fn shapes_of_the_same_elements_are_aligned() {
    let (b, s) = (Same(1), Same(2));
    assert_eq!(
        aligned(&[b, s, Known(12), Known(32)], &[b, s, Known(384)]),
        [(0..1, 0..1), (1..2, 1..2), (2..4, 2..3)]
    );
    let unknown = aligned(&[Same(7), Known(12), Known(32)], &[b, s, Known(384)]);
    assert_eq!(unknown, [(0..1, 0..2), (1..3, 2..3)]);
    assert_eq!(aligned(&[Known(6)], &[Known(2), Known(3)]), [(0..1, 0..2)]);
}

#[test]
fn factors_go_with_their_channels() {
    let of = |axes: &[usize], dims: &[usize], values: &[f64]| Factors {
        axes: axes.to_vec(),
        dims: dims.to_vec(),
        values: values.to_vec(),
    };
    let channels = of(&[2], &[4], &[1.0, 2.0, 3.0, 4.0]);
    let (b, s) = (Same(1), Same(2));
    let heads = channels
        .reshaped(&[b, s, Known(2), Known(2)], &[b, s, Known(4)])
        .unwrap();
    assert_eq!(heads, of(&[2, 3], &[2, 2], &[1.0, 2.0, 3.0, 4.0]));
    let turned = heads.moved(&[0, 2, 1, 3]).unwrap();
    assert_eq!(turned, of(&[1, 3], &[2, 2], &[1.0, 2.0, 3.0, 4.0]));
    let other = heads.moved(&[0, 1, 3, 2]).unwrap();
    assert_eq!(other, of(&[2, 3], &[2, 2], &[1.0, 3.0, 2.0, 4.0]));
    assert_eq!(turned.mixed(4, &[b, Known(2), s, Known(2)]).unwrap(), turned);
    assert_eq!(
        turned.mixed(4, &[b, Known(1), s, Known(2)]),
        None,
        "one value for both heads"
    );
    assert_eq!(
        channels.mixed(3, &[s, Known(4)]).unwrap(),
        of(&[1], &[4], &channels.values)
    );
    let within = channels.within(2, 1, 4, 6).unwrap();
    assert_eq!(within, of(&[2], &[6], &[1.0, 1.0, 2.0, 3.0, 4.0, 1.0]));
    let third = of(&[1], &[2], &[5.0, 7.0]).picked(0, 1, 2).unwrap();
    assert_eq!(third, of(&[0, 2], &[2, 2], &[1.0, 1.0, 5.0, 7.0]));
}
