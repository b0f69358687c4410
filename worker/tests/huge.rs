//! A model that no protobuf can hold goes through in little more memory than its own. Alone in its process, whose peak is what is checked.

#![allow(clippy::unwrap_used, reason = "a test: what breaks shall break it")]

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
};

use assayer_worker::{
    onnx::{ElementType, Limits, Tensor},
    optimize::{Given, Request, Stage, optimize},
    passes::{Bits, Blocks, Recovery},
    session::Runtime,
};

/// Rows and columns of a weight.
const SIZE: usize = 8192;
/// Weights of 256 MiB; together more than the 2 GiB that a protobuf may have.
const WEIGHTS: usize = 9;
const WEIGHT_BYTES: usize = SIZE * SIZE * 4;

/// Protobuf fields, by hand: the model must never be in memory.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: usize) {
        while value >= 128 {
            self.0.push(u8::try_from(value % 128).unwrap() | 128);
            value /= 128;
        }
        self.0.push(u8::try_from(value).unwrap());
    }

    fn int(mut self, field: usize, value: usize) -> Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    fn bytes(mut self, field: usize, value: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(value.len());
        self.0.extend(value);
        self
    }

    fn message(self, field: usize, value: &Message) -> Self {
        self.bytes(field, &value.0)
    }
}

/// `y = x W1 W2 … W9` with unit matrices; the file of weights has holes where they are zero.
fn write(folder: &Path) {
    let weights = File::create(folder.join("weights")).unwrap();
    weights.set_len((WEIGHTS * WEIGHT_BYTES) as u64).unwrap();
    let value = |name: &str, size: usize| {
        let dims = [1, size].map(|dim| Message::default().int(1, dim));
        let shape = dims.iter().fold(Message::default(), |shape, dim| shape.message(1, dim));
        let kind = Message::default().message(1, &Message::default().int(1, 1).message(2, &shape));
        Message::default().bytes(1, name.as_bytes()).message(2, &kind)
    };
    let mut graph = Message::default().bytes(2, b"huge");
    for index in 0..WEIGHTS {
        let offset = index * WEIGHT_BYTES;
        for row in 0..SIZE {
            let at = offset + (row * SIZE + row) * 4;
            weights.write_all_at(&1.0_f32.to_le_bytes(), at as u64).unwrap();
        }
        let entries = [("location", "weights".to_owned()), ("offset", offset.to_string())];
        let entries =
            entries.map(|(key, value)| Message::default().bytes(1, key.as_bytes()).bytes(2, value.as_bytes()));
        let tensor = Message::default()
            .int(1, SIZE)
            .int(1, SIZE)
            .int(2, 1)
            .bytes(8, format!("w{index}").as_bytes());
        let tensor = entries
            .iter()
            .fold(tensor, |tensor, entry| tensor.message(13, entry))
            .int(14, 1);
        let node = Message::default()
            .bytes(1, format!("v{index}").as_bytes())
            .bytes(1, format!("w{index}").as_bytes())
            .bytes(2, format!("v{}", index + 1).as_bytes())
            .bytes(4, b"MatMul");
        graph = graph.message(1, &node).message(5, &tensor);
    }
    graph = graph
        .message(11, &value("v0", SIZE))
        .message(12, &value(&format!("v{WEIGHTS}"), SIZE));
    let opset = Message::default().int(2, 17);
    let model = Message::default().int(1, 8).message(7, &graph).message(8, &opset);
    fs::write(folder.join("model.onnx"), model.0).unwrap();
}

/// Largest resident memory of this process so far, files that it has mapped included.
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() * 1024
}

#[test]
fn a_model_over_two_gibibytes_takes_little_more_memory_than_its_own() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    let output = folder.path().join("candidate.onnx");
    let values: Vec<u8> = (0..SIZE)
        .flat_map(|at| (f32::from(u8::try_from(at % 100).unwrap()) / 100.0).to_le_bytes())
        .collect();
    let input = Tensor::new("v0", ElementType::Float, &[1, SIZE], values).unwrap();
    let request = Request {
        model: &folder.path().join("model.onnx"),
        output: &output,
        stages: &[Stage::QuantizeBlocks(Blocks {
            bits: Bits::Eight,
            size: 128,
            recovery: Recovery::default(),
        })],
        threads: 2,
        limits: Limits::default(),
        given: Given::default(),
    };
    let runtime = Runtime::load(None).unwrap();
    let samples = || Box::new(std::iter::once(Ok(vec![input.clone()]))) as Box<dyn Iterator<Item = _>>;
    let report = optimize(&runtime, &request, &samples, &mut |_| {}).unwrap();
    assert!(report.bytes_before > 1 << 31, "{}", report.bytes_before);
    assert!(report.bytes_after * 10 < report.bytes_before * 3);
    let different = report.first_sample_difference.values().copied().fold(0.0, f32::max);
    assert!(different < 0.05, "{different}");
    let most = usize::try_from(report.bytes_before).unwrap() / 5 * 6 + (64 << 20);
    assert!(peak() <= most, "{} of {most}", peak());
    let left = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 3, "model, weights and candidate");
}
