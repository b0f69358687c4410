"""What all peers' scripts share: the job comes as JSON in a file, and a crash is a result, in its own words."""

import json
import os
import sys
import traceback


def run(make):
    with open(sys.argv[1]) as file:
        job = json.load(file)
    os.chdir(job["scratch"])
    try:
        make(job)
        said = {"error": None if os.path.exists(job["output"]) else "it wrote no model, and no error"}
    except BaseException as error:
        traceback.print_exc()
        words = " ".join(str(error).split()) or "no message"
        said = {"error": f"{type(error).__name__}: {words}"[:300]}
    with open(job["said"], "w") as file:
        json.dump(said, file)
