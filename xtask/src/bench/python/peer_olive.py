"""Olive: peer_olive.py JOB. One pass each, as its own configuration files name them; 4 bits in blocks of 32, the embedding included.

`int4` computes as Olive does where nobody says how, `int4-level4` with 8-bit activations.
"""

import shutil
from pathlib import Path

from olive.data.registry import Registry
from olive.workflows import run
from torch.utils.data import Dataset

import feeds
import peer

SAMPLES = "BenchSamples"


class Samples(Dataset):
    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        # With the batch of one that its loader puts before.
        return {name: value[0] for name, value in self.samples[index].items()}, 0


def static(job):
    Registry.register_dataset(SAMPLES)(lambda **_: Samples(feeds.load(job["feeds"], job["samples"])))
    return {
        "type": "OnnxStaticQuantization",
        "data_config": "samples",
        "quant_format": "QDQ",
        "per_channel": True,
        "activation_type": "uint8",
        "precision": "int8",
        "quant_preprocess": False,
    }


def make(job):
    match job["method"]:
        case "dynamic":
            step = {"type": "OnnxDynamicQuantization", "per_channel": True, "precision": "int8", "quant_preprocess": False}
        case "minmax":
            step = static(job)
        case "int4" | "int4-level4":
            step = {
                "type": "OnnxBlockWiseRtnQuantization",
                "bits": 4,
                "block_size": 32,
                "is_symmetric": False,
                "axis": 1,
            }
            if job["method"] == "int4-level4":
                step["accuracy_level"] = 4
    made = Path(job["scratch"]) / "made"
    run(
        {
            "input_model": {"type": "OnnxModel", "model_path": job["model"]},
            "data_configs": [{"name": "samples", "type": "DummyDataContainer", "load_dataset_config": {"type": SAMPLES}}]
            if job["method"] == "minmax"
            else [],
            "passes": {"only": step},
            "output_dir": str(made),
            "cache_dir": str(Path(job["scratch"]) / "cache"),
            "no_artifacts": True,
        }
    )
    (model,) = made.rglob("*.onnx")
    for file in model.parent.iterdir():
        if file.suffix in (".onnx", ".data"):
            shutil.move(file, Path(job["output"]).parent / file.name)


peer.run(make)
