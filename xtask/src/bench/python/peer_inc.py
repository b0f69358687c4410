"""onnx-neural-compressor: peer_inc.py JOB. Large models make it write a second file beside the first."""

import onnx
from onnx_neural_compressor import data_reader
from onnx_neural_compressor.quantization import QuantFormat, QuantType, config, matmul_nbits_quantizer, quantize

import feeds
import peer


class Samples(data_reader.CalibrationDataReader):
    def __init__(self, job, pad=False):
        samples = feeds.load(job["feeds"], job["samples"])
        self.samples = feeds.padded(samples) if pad else samples
        self.rewind()

    def get_next(self):
        return next(self.left, None)

    def rewind(self):
        self.left = iter(self.samples)


def static(job, pad=False, **options):
    return config.StaticQuantConfig(
        Samples(job, pad),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options=options,
    )


def smooth(job, pad):
    options = {"SmoothQuant": True, "SmoothQuantAlpha": 0.5, "SmoothQuantCalibIter": job["samples"]}
    quantize(job["model"], job["output"], static(job, pad, **options))


def int4(job, algorithm):
    made = matmul_nbits_quantizer.MatMulNBitsQuantizer(
        job["model"], block_size=32, is_symmetric=False, accuracy_level=4, algo_config=algorithm
    )
    made.process()
    onnx.save(made.model, job["output"])


def make(job):
    match job["method"]:
        case "dynamic":
            quantize(job["model"], job["output"], config.DynamicQuantConfig(weight_type=QuantType.QInt8, per_channel=True))
        case "minmax":
            quantize(job["model"], job["output"], static(job))
        case "smoothquant":
            smooth(job, pad=False)
        case "smoothquant-padded":
            smooth(job, pad=True)
        case "int4":
            int4(job, matmul_nbits_quantizer.RTNWeightOnlyQuantConfig())
        case "int4-gptq":
            int4(job, matmul_nbits_quantizer.GPTQWeightOnlyQuantConfig(Samples(job)))


peer.run(make)
