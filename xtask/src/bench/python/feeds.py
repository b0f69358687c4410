"""Samples in a file that every environment of the bench reads: a list of {input: array}, arrays of any shape.

Plain numpy files without pickled objects, because the environments hold different versions of numpy.
"""

import numpy


def save(path, samples):
    arrays = {}
    for name in samples[0]:
        values = [numpy.ascontiguousarray(sample[name]) for sample in samples]
        arrays["values:" + name] = numpy.concatenate([value.reshape(-1) for value in values])
        arrays["shapes:" + name] = numpy.array([value.shape for value in values], numpy.int64)
    numpy.savez(path, **arrays)


def load(path, most=None):
    with numpy.load(path) as file:
        names = [key.removeprefix("values:") for key in file.files if key.startswith("values:")]
        samples = None
        for name in names:
            values, shapes = file["values:" + name], file["shapes:" + name]
            ends = shapes.prod(axis=1).cumsum()
            parts = [part.reshape(shape) for part, shape in zip(numpy.split(values, ends[:-1]), shapes)][:most]
            samples = samples or [{} for _ in parts]
            for sample, part in zip(samples, parts):
                sample[name] = part
    return samples


def padded(samples):
    """All samples as long as the longest one, with zeros behind: for tools that take one shape only."""
    made = []
    longest = {name: numpy.max([sample[name].shape for sample in samples], axis=0) for name in samples[0]}
    for sample in samples:
        pads = {name: [(0, most - size) for most, size in zip(longest[name], value.shape)] for name, value in sample.items()}
        made.append({name: numpy.pad(value, pads[name]) for name, value in sample.items()})
    return made
