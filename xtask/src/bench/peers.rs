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
    /// Only with `--all-peers`: it brings torch along.
    on_request: bool,
    /// Its methods by name; [`HUNGRY`] and [`DATA_FREE`] say more about some.
    methods: &'static [(&'static str, Method)],
}

const PEERS: &[Peer] = &[
    Peer {
        name: "ort",
        packages: &["onnxruntime==1.32.0", "onnx==1.23.2", "onnx_ir"],
        script: "peer_ort.py",
        on_request: false,
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
        on_request: false,
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
        on_request: false,
        methods: &[
            ("dynamic", Method::Dynamic),
            ("minmax", Method::MinMax),
            ("smoothquant", Method::SmoothQuant),
            ("smoothquant-padded", Method::SmoothQuant),
            ("int4", Method::Int4Blocks),
            ("int4-gptq", Method::Int4Gptq),
        ],
    },
    Peer {
        name: "olive",
        packages: &["olive-ai==0.13.0", "onnxruntime==1.32.0", "onnx==1.23.2", "requests"],
        script: "peer_olive.py",
        on_request: true,
        methods: &[
            ("dynamic", Method::Dynamic),
            ("minmax", Method::MinMax),
            ("int4", Method::Int4Blocks),
            ("int4-level4", Method::Int4Blocks),
        ],
    },
    Peer {
        name: "modelopt",
        packages: &["nvidia-modelopt[onnx]==0.47.0"],
        script: "peer_modelopt.py",
        on_request: true,
        methods: &[
            ("max", Method::MinMax),
            ("entropy", Method::Entropy),
            ("int4", Method::Int4Blocks),
            ("int4-awq", Method::Int4Gptq),
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
        let asked = |name: &str| task.reference() == name || options.wants(name) && options.wants_peer(peer.on_request);
        let methods = peer.methods.iter().filter(|(name, _)| applies(task, name));
        let methods: Vec<_> = methods
            .map(|(name, method)| (format!("{} {name}", peer.name), *name, *method))
            .filter(|(id, ..)| asked(id))
            .collect();
        if methods.is_empty() {
            continue;
        }
        let python = environment::python(peer.name, peer.packages, progress)?;
        for (id, name, method) in methods {
            let way = Way::Script {
                python: python.clone(),
                script: peer.script,
                method: name,
            };
            let mut one = Contestant::new(id, method, !DATA_FREE.contains(&method), way);
            one.most_samples = HUNGRY.0.contains(&name).then_some(HUNGRY.1);
            made.push(one);
        }
    }
    Ok(made)
}

/// Whether a method makes sense for a model: padding is for inputs of several lengths, blocks of weights are for matrix products.
fn applies(task: Task, method: &str) -> bool {
    let has_products = task != Task::Centerface;
    task.has_peers()
        && (task.lengths_differ() || !method.ends_with("-padded"))
        && (has_products || !method.starts_with("int4"))
}
