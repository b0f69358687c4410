"""magika with the example's data sets: prepare_magika.py EXAMPLE FOLDER. Labels are what files' names say."""

import json
import shutil
import sys
from pathlib import Path

import numpy
import pyarrow.parquet

import feeds

INPUT, COLUMN, LABEL = "bytes", "features", "file_type"

example, folder = map(Path, sys.argv[1:])
shutil.copy(example / "magika.onnx", folder / "model.onnx")
shutil.copy(example / "calibration.parquet", folder / "calibration.parquet")
(folder / "inputs.json").write_text(json.dumps([{"name": INPUT, "column": COLUMN}]))


def rows(name):
    table = pyarrow.parquet.read_table(example / name)
    values = table.column(COLUMN).combine_chunks().flatten().to_numpy().reshape(table.num_rows, 1, -1)
    return [{INPUT: row} for row in values], table.column(LABEL).to_numpy()


feeds.save(folder / "calibration.npz", rows("calibration.parquet")[0])
held_out, labels = rows("evaluation.parquet")
feeds.save(folder / "held-out.npz", held_out)
numpy.save(folder / "labels.npy", labels)
feeds.save(folder / "latency.npz", held_out[:1])
