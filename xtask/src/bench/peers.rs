//! The tools that we are compared with: versions, methods, and which method of ours each is comparable to. Decides who competes.

use anyhow::Result;

use super::{
    Options,
    contestant::{Contestant, Method, Way},
    environment,
    task::Task,
};
use crate::progress::Progress;

/// A tool, in an environment of its own.
struct Peer {
    name: &'static str,
    packages: &'static [&'static str],
    script: &'static str,
    /// Its methods by name; [`HUNGRY`] and [`DATA_FREE`] say more about some.
    methods: &'static [(&'static str, Method)],
}

const PEERS: &[Peer] = &[
    Peer {
        name: "ort",
        packages: &["onnxruntime==1.32.0", "onnx==1.23.2", "onnx_ir"],
        script: "peer_ort.py",
        methods: &[
            ("dynamic", Method::Dynamic),
            ("minmax", Method::MinMax),
            ("minmax-by-hand", Method::MinMax),
            ("entropy", Method::Entropy),
            ("entropy-padded", Method::Entropy),
            ("percentile", Method::Percentile),
            ("percentile-padded", Method::Percentile),
            ("int4", Method::Int4Blocks),
            ("int4-symmetric", Method::Int4Blocks),
        ],
    },
    Peer {
        name: "nncf",
        packages: &["nncf==3.4.0", "onnxruntime==1.32.0", "onnx==1.23.2"],
        script: "peer_nncf.py",
        methods: &[
            ("int8", Method::MinMax),
            ("int8-accurate", Method::MinMax),
            ("int4", Method::Int4Blocks),
            ("int4-symmetric", Method::Int4Blocks),
        ],
    },
    Peer {
        name: "inc",
        // The last two are what it imports and does not declare.
        packages: &[
            "onnx-neural-compressor==1.0",
            "onnxruntime==1.32.0",
            "onnx==1.23.2",
            "prettytable",
            "scipy",
        ],
        script: "peer_inc.py",
        methods: &[
            ("dynamic", Method::Dynamic),
            ("minmax", Method::MinMax),
            ("smoothquant", Method::SmoothQuant),
            ("smoothquant-padded", Method::SmoothQuant),
            ("int4", Method::Int4Blocks),
            ("int4-gptq", Method::Int4Gptq),
        ],
    },
];

/// Methods that read no calibration samples.
const DATA_FREE: [Method; 3] = [Method::Dynamic, Method::Int8Blocks, Method::Int4Blocks];

/// Methods that keep every tensor of every sample, so that 256 samples take more memory than most machines have; and how many they get.
const HUNGRY: (&[&str], u32) = (&["entropy", "entropy-padded", "percentile", "percentile-padded"], 64);

/// The tools' ways to quantize the task's model, their environments made where the cache lacks them.
pub(super) fn of(task: Task, options: &Options, progress: &Progress) -> Result<Vec<Contestant>> {
    let mut made = Vec::new();
    for peer in PEERS {
        let methods: Vec<_> = peer.methods.iter().filter(|(name, _)| applies(task, name)).collect();
        let needed = |name: &str| !options.no_peers || task.reference() == format!("{} {name}", peer.name);
        if !methods.iter().any(|(name, _)| needed(name)) {
            continue;
        }
        let python = environment::python(peer.name, peer.packages, progress)?;
        for (name, method) in methods.into_iter().filter(|(name, _)| needed(name)) {
            let way = Way::Script {
                python: python.clone(),
                script: peer.script,
                method: name,
            };
            let calibrated = !DATA_FREE.contains(method);
            let mut one = Contestant::new(format!("{} {name}", peer.name), *method, calibrated, way);
            one.most_samples = HUNGRY.0.contains(name).then_some(HUNGRY.1);
            made.push(one);
        }
    }
    Ok(made)
}

/// Whether a method makes sense for a model: padding is for inputs of several lengths, blocks of weights are for matrix products.
fn applies(task: Task, method: &str) -> bool {
    let has_products = task != Task::Centerface;
    (task.lengths_differ() || !method.ends_with("-padded")) && (has_products || !method.starts_with("int4"))
}
