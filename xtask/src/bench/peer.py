"""ONNX Runtime's own static quantization of examples/magika, restricted to Conv and MatMul by hand: MinMax, per channel, UInt8/Int8 QDQ."""

import resource
import sys
import time

import numpy
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

model, data, width, output = sys.argv[1:]


class Rows(CalibrationDataReader):
    def __init__(self):
        self.rows = iter(numpy.fromfile(data, "<i4").reshape(-1, 1, int(width)))

    def get_next(self):
        row = next(self.rows, None)
        return None if row is None else {"bytes": row}


began = time.perf_counter()
quantize_static(
    model,
    output,
    Rows(),
    quant_format=QuantFormat.QDQ,
    op_types_to_quantize=["Conv", "MatMul"],
    per_channel=True,
    activation_type=QuantType.QUInt8,
    weight_type=QuantType.QInt8,
    calibrate_method=CalibrationMethod.MinMax,
)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(onnxruntime.__version__, time.perf_counter() - began, peak)
