"How long `cmlops --help` takes, and that it loads nothing heavy."

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

PROGRAM = """import sys
from classification_mlops.cli import main
main(["--help"])
print(*sys.modules, file=sys.stderr)
"""
HEAVY = {"torch", "torchvision", "mlflow", "pytorch_lightning", "sqlalchemy"}
RESULTS = Path(__file__).parent / "results"


def help_run() -> tuple[float, set[str]]:
    "Seconds of one run, and the heavy packages it loaded."
    start = perf_counter()
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    return perf_counter() - start, HEAVY & set(result.stderr.split())


if __name__ == "__main__":
    runs = [help_run() for _ in range(8)][1:]
    figures = {"seconds": round(median(s for s, _ in runs), 3), "to_reach": 0.5, "heavy": sorted(runs[-1][1])}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "help_time.json").write_text(json.dumps(figures))
    print(json.dumps(figures))
    sys.exit(figures["seconds"] > 0.5 or bool(figures["heavy"]))
