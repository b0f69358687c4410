"""What is asked of each model in the bench: quality against FP32 on held-out data, and the inputs that are timed."""

import os

import numpy

import feeds


class Task:
    """FP32's answers to the held-out samples, and how another model's compare."""

    def __init__(self, job):
        self.folder = job["data"]
        self.samples = feeds.load(self.file("held-out.npz"))
        timed = self.file("latency.npz")
        self.timed = feeds.load(timed) if os.path.exists(timed) else []

    def file(self, name):
        return os.path.join(self.folder, name)

    def prepare(self, baseline):
        self.wanted = self.answers(baseline)

    def answers(self, session):
        return [session.run(None, sample)[0] for sample in self.samples]

    def cases(self):
        return [("x".join(map(str, next(iter(feed.values())).shape[1:])), feed) for feed in self.timed]


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


class Tinylm(Task):
    """How well the next token is foretold, and how far its distribution is from FP32's: Kullback-Leibler divergence in nats a token."""

    def prepare(self, baseline):
        # Its answers take 400 MB, and half a second to give again.
        self.baseline = baseline

    def answers(self, session):
        for (answer,) in (session.run(None, sample) for sample in self.samples):
            scores = answer[0].astype(numpy.float64)
            scores -= scores.max(axis=1, keepdims=True)
            yield scores - numpy.log(numpy.exp(scores).sum(axis=1, keepdims=True))

    def quality(self, session):
        divergence, surprise = [], []
        following = numpy.load(self.file("next.npy"))
        for found, wanted, tokens in zip(self.answers(session), self.answers(self.baseline), following):
            divergence.append((numpy.exp(wanted) * (wanted - found)).sum(axis=1).mean())
            surprise.append(-found[numpy.arange(len(tokens)), tokens].mean())
        return {"KL": float(numpy.mean(divergence)), "perplexity": float(numpy.exp(numpy.mean(surprise)))}


class Large(Task):
    """Cosine of the scores of each token."""

    def answers(self, session):
        scores = numpy.concatenate([answer[0] for answer in super().answers(session)]).astype(numpy.float64)
        return scores / numpy.linalg.norm(scores, axis=1, keepdims=True)

    def quality(self, session):
        return {"cosine": float((self.answers(session) * self.wanted).sum(axis=1).mean())}


TASKS = {"minilm": Minilm, "magika": Magika, "centerface": Centerface, "tinylm": Tinylm, "large": Large}
