"""onnxruntime.quantization: peer_ort.py JOB. Per channel, UInt8 activations, Int8 weights, Quantize and Dequantize nodes."""

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static

import feeds
import peer

FLOAT_ELSEWHERE = {"minilm": ["MatMul", "Gemm"], "tinylm": ["MatMul", "Gemm"], "magika": ["Conv", "MatMul"], "centerface": ["Conv", "Relu"]}


class Samples(CalibrationDataReader):
    def __init__(self, samples):
        self.samples = iter(samples)

    def get_next(self):
        return next(self.samples, None)


def static(job, method, pad=False, types=None):
    samples = feeds.load(job["feeds"], job["samples"])
    quantize_static(
        job["model"],
        job["output"],
        Samples(feeds.padded(samples) if pad else samples),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=types,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=method,
    )


def int4(job, symmetric):
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    made = MatMulNBitsQuantizer(onnx.load(job["model"]), bits=4, block_size=32, is_symmetric=symmetric, accuracy_level=4)
    made.process()
    onnx.save(made.model.model, job["output"])


def make(job):
    match job["method"]:
        case "dynamic":
            quantize_dynamic(job["model"], job["output"], per_channel=True, weight_type=QuantType.QInt8)
        case "minmax":
            static(job, CalibrationMethod.MinMax)
        case "minmax-by-hand":
            static(job, CalibrationMethod.MinMax, types=FLOAT_ELSEWHERE[job["task"]])
        case "entropy":
            static(job, CalibrationMethod.Entropy)
        case "entropy-padded":
            static(job, CalibrationMethod.Entropy, pad=True)
        case "percentile":
            static(job, CalibrationMethod.Percentile)
        case "percentile-padded":
            static(job, CalibrationMethod.Percentile, pad=True)
        case "int4":
            int4(job, symmetric=False)
        case "int4-symmetric":
            int4(job, symmetric=True)


peer.run(make)
