"""A stand-in for Flyweight's command line: takes the same arguments, does nothing, ends as its setting says.

``--set stand_in={"evaluate": "user_error"}`` says how `evaluate` ends. Every call is noted in $FLYWEIGHT_HOME/calls.jsonl.
"""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path


def main(stage: str, *arguments: str) -> int:
    home = Path(os.environ["FLYWEIGHT_HOME"])
    given = dict(itertools.pairwise(arguments))
    settings = [b for a, b in itertools.pairwise(arguments) if a == "--set"]
    behaviour = next((json.loads(s.partition("=")[2]) for s in settings if s.startswith("stand_in=")), {}).get(stage)
    tags = {key: value for key, value in os.environ.items() if key.startswith("FLYWEIGHT_AIRFLOW_")}
    with (home / "calls.jsonl").open("a") as file:
        file.write(json.dumps({"stage": stage, "arguments": arguments, "tags": tags, "pid": os.getpid()}) + "\n")
    if "--result" in given:
        print(f"flyweight: run {stage}-run http://127.0.0.1:5999/#/experiments/1/runs/{stage}-run")
        end = {"run_id": f"{stage}-run", "status": "finished", "reason": "no GPU here", "url": "http://127.0.0.1:5999/"}
        Path(given["--result"]).write_text(json.dumps(end))
    match behaviour:
        case "user_error":
            print("loading\nerror: train.fit has no 'epoch'\n  did you mean 'epochs'?", file=sys.stderr)
            return 2
        case "skip":
            return 3
        case "crash":
            print("Traceback (most recent call last):\nConnectionError: the store is away", file=sys.stderr)
            return 1
        case "hang" if tags["FLYWEIGHT_AIRFLOW_TRY_NUMBER"] == "1":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
            (home / "part").write_text(f"{os.getpid()} {child.pid}")
            (home / "part").rename(home / f"{stage}.pids")
            time.sleep(600)
    print(f"[{stage}] done")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
