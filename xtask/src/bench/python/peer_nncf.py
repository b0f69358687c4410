"""NNCF on ONNX models: peer_nncf.py JOB. Its presets as documented: the transformer one for encoders, mixed otherwise."""

import nncf
import onnx

import feeds
import peer


def int8(job, fast):
    samples = feeds.load(job["feeds"], job["samples"])
    transformer = job["task"] in ("minilm", "tinylm")
    return nncf.quantize(
        onnx.load(job["model"]),
        nncf.Dataset(samples),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        subset_size=len(samples),
        fast_bias_correction=fast,
    )


def int4(job, mode):
    return nncf.compress_weights(onnx.load(job["model"]), mode=mode, ratio=1.0, group_size=32, all_layers=True)


def make(job):
    match job["method"]:
        case "int8":
            model = int8(job, fast=True)
        case "int8-accurate":
            model = int8(job, fast=False)
        case "int4-symmetric":
            model = int4(job, nncf.CompressWeightsMode.INT4_SYM)
        case "int4":
            model = int4(job, nncf.CompressWeightsMode.INT4_ASYM)
    onnx.save(model, job["output"])


peer.run(make)
