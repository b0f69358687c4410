//! Hostile files: each is refused with a reason, and none makes the reader panic or take memory.

use crate::{
    onnx::{self, AttributeValue, Error, Function, Graph, Limits, Model, Node, Opset, Tensor, ValueInfo, wire::Rope},
    testing::Build,
};
use std::{os::unix::fs::symlink, path::Path};

fn message(outcome: Result<Model, Error>) -> String {
    match outcome.and_then(|model| onnx::check(&model, &Limits::default())) {
        Ok(()) => panic!("a hostile model was accepted"),
        Err(error) => error.to_string(),
    }
}

fn refused(bytes: Vec<u8>, expected: &str) {
    let text = message(onnx::from_bytes(&bytes.into(), &Limits::default()));
    assert!(text.contains(expected), "{text}");
}

/// A model file around encoded fields of a graph.
fn around(graph: Rope) -> Vec<u8> {
    let mut opset = Rope::default();
    opset.int(2, 17);
    let mut model = Rope::default();
    model.int(1, 8);
    model.message(7, graph);
    model.message(8, opset);
    model.to_vec()
}

fn tensor(fill: impl FnOnce(&mut Rope)) -> Vec<u8> {
    let (mut graph, mut tensor) = (Rope::default(), Rope::default());
    tensor.int(2, 1);
    tensor.text(8, "w");
    fill(&mut tensor);
    graph.message(5, tensor);
    around(graph)
}

fn identity() -> Model {
    let mut b = Build::opset(17);
    let x = b.input("x", &[1]);
    let y = b.node("Identity", &[&x]);
    b.finish(&[&y])
}

fn changed(change: impl FnOnce(&mut Model)) -> Vec<u8> {
    let mut model = identity();
    change(&mut model);
    onnx::to_bytes(&model)
}

/// Runtimes import every domain that they know when they save a model, used or not.
#[test]
fn only_domains_that_a_node_is_of_must_be_known() {
    let training = || Opset {
        domain: "ai.onnx.training".into(),
        version: 1,
        ..Opset::default()
    };
    let mut model = identity();
    model.opsets.push(training());
    onnx::check(&model, &Limits::default()).unwrap();
    assert_eq!(onnx::normalize(&mut model).unwrap().domains_dropped, 1);
    assert_eq!(model.opsets.len(), 1);
    let used = changed(|model| {
        model.opsets.push(training());
        model.graph.nodes[0].domain = "ai.onnx.training".into();
    });
    refused(used, "operator domain `ai.onnx.training` is not supported");
}

#[test]
fn dimensions_are_never_believed() {
    refused(tensor(|t| t.packed_ints(1, [1 << 31, 1 << 31])), "overflow");
    refused(tensor(|t| t.packed_ints(1, [1 << 40])), "0 bytes where");
    refused(tensor(|t| t.packed_ints(1, [-1])), "dimension -1");
    refused(tensor(|t| t.packed_ints(1, [i64::MIN, 2])), "dimension");
    refused(tensor(|t| t.packed_ints(1, [1; 17])), "rank");
    refused(
        tensor(|t| {
            t.packed_ints(1, [2]);
            t.slice(9, &[0; 7]);
        }),
        "7 bytes where",
    );
    refused(
        tensor(|t| {
            t.packed_ints(1, [1]);
            t.slice(9, &[0; 4]);
            t.float(4, 1.0);
        }),
        "more than one place",
    );
    refused(
        tensor(|t| {
            t.packed_ints(1, [0, 1 << 62]);
            t.int(14, 7);
        }),
        "location 7",
    );
}

#[test]
fn bombs_end_at_a_limit() {
    let many = |number: u32, field: &[u8], count: usize| {
        let mut graph = Rope::default();
        (0..count).for_each(|_| graph.slice(number, field));
        around(graph)
    };
    refused(many(1, &[], 1_000_000), "number of nodes");
    refused(many(5, &[0x10, 1, 0x4a, 4, 0, 0, 0, 0], 300_000), "number of tensors");
    refused(many(11, &[0x0a, 0], 3_000_000), "number of names");
    let mut node = Rope::default();
    (0..3_000_000).for_each(|_| node.slice(1, &[]));
    let mut graph = Rope::default();
    graph.message(1, node);
    refused(around(graph), "number of names");
    let mut name = Rope::default();
    name.slice(2, &vec![b'a'; 1 << 20]);
    refused(around(name), "length of a string");
    let mut attribute = Rope::default();
    attribute.packed_ints(8, std::iter::repeat_n(0, 40_000_000));
    let (mut node, mut graph) = (Rope::default(), Rope::default());
    node.message(5, attribute);
    graph.message(1, node);
    refused(around(graph), "decoded size");
}

#[test]
fn nesting_ends_at_its_limit() {
    let mut bytes = Vec::new();
    for _ in 0..10_000 {
        let (mut attribute, mut node, mut graph) = (Rope::default(), Rope::default(), Rope::default());
        attribute.slice(6, &bytes);
        node.message(5, attribute);
        graph.message(1, node);
        bytes = graph.to_vec();
        if bytes.len() > 1 << 20 {
            break;
        }
    }
    let mut model = Rope::default();
    model.slice(7, &bytes);
    refused(model.to_vec(), "nesting depth");

    let mut bytes = Vec::new();
    for _ in 0..2_000 {
        let (mut sequence, mut type_proto) = (Rope::default(), Rope::default());
        sequence.slice(1, &bytes);
        type_proto.message(4, sequence);
        bytes = type_proto.to_vec();
    }
    let (mut info, mut graph) = (Rope::default(), Rope::default());
    info.slice(2, &bytes);
    graph.message(11, info);
    refused(around(graph), "nesting depth");
}

#[test]
fn malformed_wire_is_named() {
    refused(vec![], "no graph");
    refused(vec![0x3b], "wire type 3");
    refused(vec![0x00, 0x00], "field number 0");
    refused(vec![0xff; 30], "more than 10 bytes");
    refused(vec![0x3a, 0xff, 0xff, 0xff, 0xff, 0x7f], "length");
    refused(vec![0x3a, 0x00, 0x3a, 0x00], "appears twice");
    refused(vec![0x38, 0x01], "wrong wire type");
    refused(changed(|m| m.rest = vec![0xa2, 0x01, 0x00]), "training");
}

#[test]
fn an_attribute_holds_one_value() {
    let attribute = |fill: &dyn Fn(&mut Rope)| {
        let (mut attribute, mut node, mut graph) = (Rope::default(), Rope::default(), Rope::default());
        attribute.text(1, "a");
        fill(&mut attribute);
        node.message(5, attribute);
        graph.message(1, node);
        around(graph)
    };
    refused(
        attribute(&|a| {
            a.int(20, 2);
            a.int(3, 1);
            a.float(2, 1.0);
        }),
        "holds values of types",
    );
    refused(
        attribute(&|a| {
            a.int(3, 1);
            a.float(2, 1.0);
        }),
        "holds values of types",
    );
    refused(attribute(&|a| a.int(20, 4)), "has no value");
    refused(attribute(&|a| a.int(20, 99)), "has no value");
    refused(attribute(&|a| a.slice(22, &[])), "sparse");
}

#[test]
fn graphs_that_make_no_sense_are_named() {
    refused(changed(|m| m.opsets[0].version = 99), "operator set 99");
    refused(changed(|m| m.opsets.clear()), "no operator set");
    refused(changed(|m| m.graph.nodes[0].domain = "evil.ops".into()), "not imported");
    refused(changed(|m| m.graph.nodes[0].op_type = "Backdoor".into()), "`Backdoor`");
    refused(
        changed(|m| m.graph.nodes[0].inputs[0] = "nowhere".into()),
        "which nothing computes",
    );
    refused(
        changed(|m| m.graph.nodes[0].inputs[0] = m.graph.nodes[0].outputs[0].clone()),
        "cyclic or not in order",
    );
    refused(
        changed(|m| m.graph.nodes.push(m.graph.nodes[0].clone())),
        "defined twice",
    );
    refused(
        changed(|m| m.graph.outputs.push(m.graph.outputs[0].clone())),
        "appears twice",
    );
    refused(
        changed(|m| m.graph.outputs.push(ValueInfo::untyped("ghost"))),
        "never computed",
    );
    refused(changed(|m| m.graph.outputs.clear()), "no outputs");
    refused(
        changed(|m| m.graph.inputs.push(ValueInfo::untyped(""))),
        "without a name",
    );
    refused(changed(|m| m.ir_version = 99), "IR version 99");
    refused(
        changed(|m| m.graph.initializers = vec![Tensor::floats("w", &[], &[0.0]).unwrap(); 2]),
        "appears twice",
    );
    let body = Graph {
        nodes: vec![Node::new("Neg", &["x"], &["x"])],
        ..Graph::default()
    };
    let body = AttributeValue::Graph(Box::new(body));
    refused(
        changed(|m| m.graph.nodes[0] = Node::new("If", &["x"], &["y"]).with("then_branch", body)),
        "defined twice",
    );
}

#[test]
fn names_cannot_forge_a_log() {
    let text = message(onnx::from_bytes(
        &changed(|m| m.graph.nodes[0].op_type = "\x1b[2J\nverdict: Passed".repeat(50)).into(),
        &Limits::default(),
    ));
    assert!(!text.contains(['\n', '\x1b']) && text.len() < 1000, "{text}");
}

#[test]
fn functions_may_neither_recurse_nor_explode() {
    let function = |name: &str, calls: &[&str]| Function {
        name: name.to_owned(),
        domain: "local".to_owned(),
        inputs: vec!["x".to_owned()],
        outputs: vec!["y0".to_owned()],
        nodes: calls
            .iter()
            .enumerate()
            .map(|(i, call)| Node::new(call, &["x"], &[&format!("y{i}")]).in_domain("local"))
            .collect(),
        opsets: vec![
            Opset {
                version: 17,
                ..Opset::default()
            },
            Opset {
                domain: "local".to_owned(),
                version: 1,
                ..Opset::default()
            },
        ],
        ..Function::default()
    };
    let with = |functions: Vec<Function>| {
        changed(|m| {
            m.opsets.push(Opset {
                domain: "local".to_owned(),
                version: 1,
                ..Opset::default()
            });
            m.graph.nodes[0] = Node::new("f0", &["x"], &[&m.graph.outputs[0].name]).in_domain("local");
            m.functions = functions;
        })
    };
    refused(
        with(vec![function("f0", &["f1"]), function("f1", &["f0"])]),
        "calls itself",
    );
    let chain = |width: usize, depth: usize| {
        (0..depth)
            .map(|i| {
                let next = format!("f{}", i + 1);
                function(&format!("f{i}"), &vec![next.as_str(); width])
            })
            .chain([Function {
                nodes: vec![Node::new("Neg", &["x"], &["y0"])],
                ..function(&format!("f{depth}"), &[])
            }])
            .collect::<Vec<_>>()
    };
    refused(with(chain(8, 20)), "after inlining");
    refused(with(chain(1, 200)), "depth of function calls");
    let fine = onnx::from_bytes(&with(chain(2, 3)).into(), &Limits::default()).unwrap();
    onnx::check(&fine, &Limits::default()).unwrap();
}

/// A tensor of one float in an external file.
fn external(entries: &[(&str, &str)]) -> Vec<u8> {
    tensor(|t| {
        t.packed_ints(1, [1]);
        for (key, value) in entries {
            let mut entry = Rope::default();
            entry.text(1, key);
            entry.text(2, value);
            t.message(13, entry);
        }
        t.int(14, 1);
    })
}

fn refused_in(folder: &Path, entries: &[(&str, &str)], expected: &str) {
    let path = folder.join("model.onnx");
    std::fs::write(&path, external(entries)).unwrap();
    let text = message(onnx::read(&path, &Limits::default()));
    assert!(text.contains(expected), "{entries:?}: {text}");
}

#[test]
fn external_data_stays_in_its_folder() {
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    std::fs::write(&secret, [1; 64]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("data"), [0; 16]).unwrap();
    symlink(&secret, at("link")).unwrap();
    std::fs::hard_link(at("data"), at("hard")).unwrap();
    std::fs::write(at("single"), [0; 16]).unwrap();
    std::fs::create_dir(at("sub")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();

    let secret = secret.to_str().unwrap();
    let plain = "not a plain file name";
    for location in [
        "../secret",
        "sub/../../secret",
        "a/b",
        "/etc/passwd",
        secret,
        "..",
        ".",
        "c:\\x",
        "a\\b",
        "x\ny",
    ] {
        refused_in(folder.path(), &[("location", location)], plain);
    }
    for marker in ["*/_ORT_MEM_ADDR_/*", "x_ORT_MEM_ADDR_", "*/_ORT_MEM_ADDR_/*/../data"] {
        refused_in(
            folder.path(),
            &[("location", marker), ("offset", "140737488355328")],
            "memory address",
        );
    }
    refused_in(folder.path(), &[("location", "link")], "cannot open");
    refused_in(folder.path(), &[("location", "hard")], "links: 2");
    refused_in(folder.path(), &[("location", "sub")], "not a regular file");
    refused_in(folder.path(), &[("location", "fifo")], "not a regular file");
    refused_in(folder.path(), &[("location", "missing")], "cannot open");
    refused_in(folder.path(), &[], "no location");
    for (key, value, expected) in [
        ("offset", "13", "pass the end"),
        ("offset", "-1", "not a number"),
        ("offset", "18446744073709551615", "pass the end"),
        ("offset", "99999999999999999999999", "not a number"),
        ("offset", "0x4", "not a number"),
        ("offset", " 4", "not a number"),
        ("length", "8", "take 4"),
        ("length", "-4", "not a number"),
        ("__class__", "x", "not known"),
        ("location", "single", "appears twice"),
    ] {
        refused_in(folder.path(), &[("location", "single"), (key, value)], expected);
    }
    std::fs::write(
        at("model.onnx"),
        external(&[("location", "single"), ("offset", "12"), ("length", "4")]),
    )
    .unwrap();
    assert_eq!(
        onnx::read(&at("model.onnx"), &Limits::default())
            .unwrap()
            .graph
            .initializers[0]
            .bytes(),
        [0; 4]
    );
    let bytes = std::fs::read(at("model.onnx")).unwrap();
    assert!(message(onnx::from_bytes(&bytes.into(), &Limits::default())).contains("without a folder"));
}

#[test]
fn a_model_file_that_is_a_link_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("real.onnx"), onnx::to_bytes(&identity())).unwrap();
    symlink("real.onnx", folder.path().join("model.onnx")).unwrap();
    assert!(onnx::read(&folder.path().join("model.onnx"), &Limits::default()).is_err());
    assert!(onnx::read(folder.path(), &Limits::default()).is_err());
}
