"""Runs a command and writes its wall seconds and peak resident memory: timed.py REPORT COMMAND...

A small process of its own: Linux counts the memory of whoever starts a program towards that program's peak.
"""

import json
import os
import sys
import time

report, *command = sys.argv[1:]
began = time.perf_counter()
child = os.posix_spawnp(command[0], command, os.environ)
_, status, used = os.wait4(child, 0)
seconds = time.perf_counter() - began
with open(report, "w") as file:
    json.dump({"seconds": seconds, "peakBytes": used.ru_maxrss * 1024}, file)
sys.exit(os.waitstatus_to_exitcode(status) % 256)
