"""A language model with random weights, more than 2 GB of them beside its protobuf: prepare_large.py FOLDER.

Shapes are those of a model of 0.8 billion parameters. What matters is their amount: one stretch of noise is drawn and every weight begins at
another place in it, as drawing all of them takes a minute.
"""

import json
import sys
from math import prod
from pathlib import Path

import numpy
import onnx
from onnx import TensorProto

import feeds
import transformer

SIZE = transformer.Size(vocabulary=32_000, width=1536, layers=24, heads=24, context=128)
BESIDE = "weights.bin"
SHIFTS = 4096
PROBE_TOKENS = 32

folder = Path(sys.argv[1])
(folder / "model").mkdir()
chance = numpy.random.default_rng(0)
shapes = transformer.shapes(SIZE)
noise = chance.standard_normal(max(map(prod, shapes.values())) + SHIFTS, dtype=numpy.float32) * 0.02


def values(name, count):
    if name.endswith(".scale"):
        return numpy.ones(count, numpy.float32)
    at = int(chance.integers(0, SHIFTS))
    return noise[at : at + count]


weights = []
with open(folder / "model" / BESIDE, "wb") as file:
    for name, dims in shapes.items():
        offset = file.tell()
        file.write(values(name, prod(dims)).tobytes())
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", BESIDE), ("offset", offset), ("length", file.tell() - offset)):
            tensor.external_data.add(key=key, value=str(value))
        weights.append(tensor)
        print(f"{offset / 1e9:.1f} GB of weights", file=sys.stderr, flush=True)
    assert file.tell() > 2**31
(folder / "model" / "model.onnx").write_bytes(transformer.model(SIZE, weights).SerializeToString())
onnx.checker.check_model(folder / "model" / "model.onnx")
(folder / "inputs.json").write_text(json.dumps([{"name": "input_ids", "column": "ids"}]))
feeds.save(folder / "held-out.npz", [{"input_ids": chance.integers(0, SIZE.vocabulary, (1, PROBE_TOKENS))}])
