"""What is asked of each model in the bench: quality against FP32 on held-out data, and the inputs that are timed."""

import os

import numpy

import feeds


class Task:
    """FP32's answers to the held-out samples, and how another model's compare."""

    most = None

    def __init__(self, job):
        self.folder = job["data"]
        self.samples = feeds.load(self.file("held-out.npz"), self.most)
        self.timed = feeds.load(self.file("latency.npz"))

    def file(self, name):
        return os.path.join(self.folder, name)

    def prepare(self, baseline):
        self.wanted = self.answers(baseline)

    def answers(self, session):
        return [session.run(None, sample)[0] for sample in self.samples]

    def cases(self):
        first = next(iter(self.timed[0]))
        return [("x".join(map(str, feed[first].shape[1:])), feed) for feed in self.timed]


class Minilm(Task):
    """Cosine of the embedding, pooled by the mean over all tokens."""

    def answers(self, session):
        pooled = numpy.array([answer[0].mean(axis=0, dtype=numpy.float64) for answer in super().answers(session)])
        return pooled / numpy.linalg.norm(pooled, axis=1, keepdims=True)

    def quality(self, session):
        cosine = (self.answers(session) * self.wanted).sum(axis=1)
        return {"cosine": float(cosine.mean()), "cosine p1": float(numpy.percentile(cosine, 1))}


TASKS = {"minilm": Minilm}
