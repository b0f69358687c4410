"""ONNX Runtime's own quantization of examples/magika: dynamic, static with its default operators, and static restricted to Conv and MatMul by hand.

MinMax, per channel, UInt8 activations and Int8 weights. Prints one JSON object; a crash is a result, in its own words.
"""

import json
import resource
import sys
import time

import numpy
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static

way, model, data, width, samples, output = sys.argv[1:]


class Rows(CalibrationDataReader):
    def __init__(self):
        self.rows = iter(numpy.fromfile(data, "<i4").reshape(-1, 1, int(width))[: int(samples)])

    def get_next(self):
        row = next(self.rows, None)
        return None if row is None else {"bytes": row}


def make():
    if way == "dynamic":
        quantize_dynamic(model, output, per_channel=True, weight_type=QuantType.QInt8)
        return
    quantize_static(
        model,
        output,
        Rows(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MatMul"] if way == "by-hand" else None,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )


said = {"version": onnxruntime.__version__}
began = time.perf_counter()
try:
    make()
except Exception as error:
    said["error"] = f"{type(error).__name__}: {error}"[:200]
said["seconds"] = time.perf_counter() - began
said["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps(said))
