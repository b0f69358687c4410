#!/usr/bin/env python3
"""Count the words of a text, the most frequent one first."""

import collections
import re
import sys


def words(text):
    for match in re.finditer(r"[a-z']+", text.lower()):
        yield match.group(0)


class Report:
    def __init__(self, limit=10):
        self.limit = limit
        self.counts = collections.Counter()

    def add(self, text):
        self.counts.update(words(text))

    def __str__(self):
        return "\n".join(f"{n:6d} {word}" for word, n in self.counts.most_common(self.limit))


if __name__ == "__main__":
    report = Report(limit=int(sys.argv[1]) if len(sys.argv) > 1 else 10)
    for line in sys.stdin:
        report.add(line)
    print(report)
