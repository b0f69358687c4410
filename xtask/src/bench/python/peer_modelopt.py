"""ModelOpt: peer_modelopt.py JOB. On the CPU, with its own choice of operators."""

import shutil

from modelopt.onnx.quantization import quantize
from onnxruntime.quantization.calibrate import CalibrationDataReader

import feeds
import peer

METHODS = {
    "max": ("int8", "max"),
    "entropy": ("int8", "entropy"),
    "int4": ("int4", "rtn_dq"),
    "int4-awq": ("int4", "awq_clip"),
}


class Samples(CalibrationDataReader):
    def __init__(self, samples):
        self.samples = samples
        self.rewind()

    def get_first(self):
        return self.samples[0]

    def get_next(self):
        return next(self.left, None)

    def rewind(self):
        self.left = iter(self.samples)


def make(job):
    mode, method = METHODS[job["method"]]
    quantize(
        # It writes beside the model.
        shutil.copy(job["model"], job["scratch"]),
        quantize_mode=mode,
        calibration_method=method,
        calibration_data_reader=Samples(feeds.load(job["feeds"], job["samples"])),
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=job["output"],
    )


peer.run(make)
