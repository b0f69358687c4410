"""What is asked of each model in the bench: quality against FP32 on held-out data, and the inputs that are timed."""

import os

import numpy

import feeds


class Task:
    """FP32's answers to the held-out samples, and how another model's compare."""

    def __init__(self, job):
        self.folder = job["data"]
        self.samples = feeds.load(self.file("held-out.npz"))
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


class Magika(Task):
    """Same class as FP32, and as the file's name says."""

    def answers(self, session):
        return numpy.array([answer[0].argmax() for answer in super().answers(session)])

    def quality(self, session):
        found, labels = self.answers(session), numpy.load(self.file("labels.npy"))
        return {"agreement": float((found == self.wanted).mean()), "accuracy": float((found == labels).mean())}


class Centerface(Task):
    """Heat map: its root mean square difference from FP32's over all pixels, and how well its highest value tells portraits from others."""

    def quality(self, session):
        found = self.answers(session)
        squares = sum(float(numpy.square(one - other, dtype=numpy.float64).sum()) for one, other in zip(found, self.wanted))
        labels = numpy.load(self.file("labels.npy"))
        highest = numpy.array([one.max() for one in found[: len(labels)]])
        of, other = highest[labels == 1][:, None], highest[labels == 0][None]
        area = float(((of > other) + 0.5 * (of == other)).mean())
        return {"AUC": area, "heat error": (squares / sum(one.size for one in found)) ** 0.5}


TASKS = {"minilm": Minilm, "magika": Magika, "centerface": Centerface}
