"""Quality and latency of models in ONNX Runtime, the same for all: evaluate.py JOB. Prints one JSON object.

Latency: short blocks of runs, one of the candidate and one of the reference in turn; the median of the ratios of neighbours,
so that what else the machine does falls on both.
"""

import json
import os
import statistics
import sys
import time

import onnxruntime

import tasks

PAIRS = 12
BLOCK_SECONDS = 0.008
LEAST_RUNS = 3


def session(path, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # As the worker measures: a waiting thread that spins takes time from whatever else runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def block(one, feed):
    runs, began = [], time.perf_counter()
    while len(runs) < LEAST_RUNS or time.perf_counter() - began < BLOCK_SECONDS:
        start = time.perf_counter()
        one.run(None, feed)
        runs.append(time.perf_counter() - start)
    return statistics.median(runs)


def pairs(one, other, feed, count):
    """Block medians of both, in seconds, in alternating order."""
    for warm in (one, other):
        warm.run(None, feed)
        block(warm, feed)
    taken = []
    for turn in range(count):
        if turn % 2:
            mine = block(one, feed)
            taken.append((mine, block(other, feed)))
        else:
            its = block(other, feed)
            taken.append((block(one, feed), its))
    return taken


def say(text):
    print(text, file=sys.stderr, flush=True)


def main():
    with open(sys.argv[1]) as file:
        job = json.load(file)
    task = tasks.TASKS[job["task"]](job)
    threads = [count for count in (1, 2) if count <= len(os.sched_getaffinity(0))]
    baseline = session(job["baseline"], max(threads))
    task.prepare(baseline)
    del baseline
    found = {"onnxruntime": onnxruntime.__version__, "threads": threads, "models": {}}
    for number, model in enumerate(job["models"], 1):
        say(f"quality of {model['name']} ({number} of {len(job['models'])})")
        result = found["models"][model["name"]] = {"latency": {}}
        try:
            result["quality"] = task.quality(session(model["path"], max(threads)))
        except Exception as error:
            result["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    good = [model for model in job["models"] if "error" not in found["models"][model["name"]]]
    reference = next((model for model in good if model["name"] == job["reference"]), None)
    for turn in range(job["rounds"] if reference and task.cases() else 0):
        for count in threads:
            its = session(reference["path"], count)
            for model in good:
                say(f"latency at {count} threads, round {turn + 1} of {job['rounds']}: {model['name']}")
                mine = session(model["path"], count)
                cases = found["models"][model["name"]]["latency"]
                for case, feed in task.cases():
                    cases.setdefault(f"{case}@{count}", []).extend(pairs(mine, its, feed, PAIRS))
    for result in found["models"].values():
        for case, taken in result["latency"].items():
            ratios = sorted(mine / its for mine, its in taken)
            quarter = len(ratios) // 4
            result["latency"][case] = {
                "p50": statistics.median(mine for mine, _ in taken),
                "ratio": statistics.median(ratios),
                "quartiles": [ratios[quarter], ratios[-1 - quarter]],
            }
    print(json.dumps(found))


main()
