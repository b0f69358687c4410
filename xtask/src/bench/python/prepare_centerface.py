"""CenterFace as shipped and repaired by hand, with images: prepare_centerface.py MODEL FOLDER.

Calibration: crops of photographs, and canvases of small portraits and of what is none. Held out: other portraits, and photographs in whole.
"""

import json
import random
import shutil
import sys
from pathlib import Path

import numpy
import onnx
import pyarrow
import pyarrow.parquet
import skimage
import skimage.io
import skimage.transform
import skimage.util
from onnx import version_converter

import feeds

INPUT = "input.1"
CALIBRATION = 256
# Sides are multiples of 32, as feature maps that are added to each other ask.
CROP = (256, 320)
WHOLE = (480, 640)
TILE = 64
PORTRAIT = 64
PHOTOGRAPHS = ["camera.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg", "retina.jpg"]
HELD_OUT = ["astronaut.png", "motorcycle_right.png"]

model, folder = map(Path, sys.argv[1:])
shutil.copy(model, folder / "model.onnx")

# By hand: weights off the inputs, sizes freed, opset raised.
repaired = onnx.load(folder / "model.onnx")
weights = {tensor.name for tensor in repaired.graph.initializer}
inputs = [value for value in repaired.graph.input if value.name not in weights]
del repaired.graph.input[:]
repaired.graph.input.extend(inputs)
del repaired.graph.value_info[:]
for value in [*repaired.graph.input, *repaired.graph.output]:
    for place, name in ((0, "n"), (2, "h"), (3, "w")):
        value.type.tensor_type.shape.dim[place].dim_param = name if value.name == INPUT else f"{name}_{value.name}"
repaired.ir_version = 8
onnx.save(version_converter.convert_version(repaired, 17), folder / "repaired.onnx")

images = Path(skimage.__file__).parent / "data"
portraits = numpy.load(images / "lfw_subset.npy")
# The first half are faces; every other one is held out.
calibration_portraits = [*portraits[0:100:2], *portraits[100:200:2]]
held_out_portraits = [*portraits[1:100:2], *portraits[101:200:2]]


def scaled(image, size):
    return skimage.transform.resize(image, size, order=1, anti_aliasing=True)


def photograph(name):
    image = skimage.util.img_as_float(skimage.io.imread(images / name))
    return numpy.repeat(image[..., None], 3, 2) if image.ndim == 2 else image[..., :3]


def sample(image):
    """Height, width[, 3] in 0 to 1 as the model takes it: 1, 3, height, width in 0 to 255."""
    image = numpy.repeat(image[..., None], 3, 2) if image.ndim == 2 else image
    return {INPUT: numpy.rint(image * 255).astype(numpy.float32).transpose(2, 0, 1)[None]}


chance = random.Random(0)
photographs = [photograph(name) for name in PHOTOGRAPHS]


def crop():
    image = chance.choice(photographs)
    factor = max(CROP[0] / image.shape[0], CROP[1] / image.shape[1]) * chance.uniform(1, 1.8)
    image = scaled(image, (round(image.shape[0] * factor) + 1, round(image.shape[1] * factor) + 1))
    top, left = (chance.randint(0, image.shape[axis] - CROP[axis]) for axis in (0, 1))
    return image[top : top + CROP[0], left : left + CROP[1]]


def canvas():
    image = numpy.zeros(CROP)
    for top in range(0, CROP[0], TILE):
        for left in range(0, CROP[1], TILE):
            image[top : top + TILE, left : left + TILE] = scaled(chance.choice(calibration_portraits), (TILE, TILE))
    return image


calibration = [sample(canvas() if number % 4 == 0 else crop()) for number in range(CALIBRATION)]
feeds.save(folder / "calibration.npz", calibration)
column = pyarrow.array([one[INPUT].astype(numpy.uint8).reshape(-1) for one in calibration])
pyarrow.parquet.write_table(pyarrow.table({"image": column}), folder / "calibration.parquet")
(folder / "inputs.json").write_text(json.dumps([{"name": INPUT, "column": "image", "shape": [3, *CROP]}]))
framed = [numpy.pad(scaled(one, (PORTRAIT, PORTRAIT)), PORTRAIT // 2, mode="edge") for one in held_out_portraits]
whole = [sample(scaled(photograph(name), WHOLE)) for name in HELD_OUT]
feeds.save(folder / "held-out.npz", [*map(sample, framed), *whole])
numpy.save(folder / "labels.npy", numpy.repeat([1, 0], [50, 50]))
feeds.save(folder / "latency.npz", whole[:1])
