"""What our checks add to decoding: CPU time of one file against `Image.open(…).load()` of the same bytes.

`python benchmarks/decode_cost.py FOLDER…`: folders of real pictures, such as MNIST and photographs.
"""

import random
import sys
import time
from io import BytesIO
from pathlib import Path

from PIL import Image
from workspace import report

from classification_mlops.images.decode import picture_of, read_picture

FILES, ROUNDS, TO_REACH = 400, 7, 1.25


def bare(data: bytes):
    "The whole decoding, and nothing else."
    Image.open(BytesIO(data)).load()


def cost_us(function, files: list[bytes]) -> float:
    "CPU microseconds of one file."
    start = time.process_time()
    for data in files:
        function(data)
    return (time.process_time() - start) / len(files) * 1e6


def figures(folder: Path) -> dict:
    "The best of several rounds, taken in turns, because machines are shared."
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [path.read_bytes() for path in random.Random(0).sample(paths, min(FILES, len(paths)))]
    functions = {"bare": bare, "picture": picture_of, "array": read_picture}
    rounds = [{name: cost_us(function, files) for name, function in functions.items()} for _ in range(ROUNDS)]
    best = {name: round(min(costs[name] for costs in rounds), 1) for name in functions}
    return best | {"ratio": round(best["picture"] / best["bare"], 2)}


if __name__ == "__main__":
    found = {path.name: figures(path) for path in map(Path, sys.argv[1:])}
    worst = max(item["ratio"] for item in found.values())
    report("decode_cost", {"us_per_file": found, "ratio": worst, "to_reach": TO_REACH})
    sys.exit(worst > TO_REACH)
