"""Seconds of an import, against reading, hashing and decoding the same files in two processes.

python benchmarks/import_pictures.py MNIST_FOLDER CLOTHING_FOLDER

The bare way lists the files and lets two processes read, hash and fully decode them, and throws the
pixels away. Ours does the same, judges every file, computes its perceptual hash and registers it with
its label and history, in a database that survives a power cut; `--in-place` leaves the files where they
are, the default copies them, synced, into the workspace. For copying, the bare way with copying is shown
as well. The search for copies that ends an import is timed apart: `duplicates.py` has its figures. All
take turns, because a shared machine drifts; ratios are medians over the turns.
"""

import argparse
import os
import sys
from functools import partial
from hashlib import sha256
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from unittest.mock import patch

from PIL import Image
from workspace import report

from classification_mlops.db import ingest
from classification_mlops.db.ingest import ImportOptions, import_source
from classification_mlops.db.session import open_engine, upgrade_database, writing
from classification_mlops.db.themes import create_theme
from classification_mlops.images.sources import SourceOptions
from classification_mlops.workspace import init_folders

TO_REACH = {"mnist": 2.0, "clothing": 1.3}
ENDINGS = (".png", ".jpg", ".jpeg")


def cpu_seconds() -> float:
    "Of this process and of its children that have ended."
    return sum(used.ru_utime + used.ru_stime for used in (getrusage(RUSAGE_SELF), getrusage(RUSAGE_CHILDREN)))


def timed(act) -> tuple[float, float]:
    "Wall and CPU seconds of an act."
    start = perf_counter(), cpu_seconds()
    act()
    return perf_counter() - start[0], cpu_seconds() - start[1]


def decode_bare(paths: list[str], target: str | None) -> int:
    "Read, hash and decode; with a target, copy as well."
    for path in paths:
        with open(path, "rb") as file:
            data = file.read()
        identity = sha256(data).hexdigest()
        Image.open(BytesIO(data)).load()
        if target:
            with open(os.path.join(target, identity), "wb") as file:
                file.write(data)
    return len(paths)


def bare(folder: Path, count: list, target: str | None = None):
    "What cannot be done without."
    found = [
        os.path.join(root, name)
        for root, _, names in os.walk(folder)
        for name in sorted(names)
        if name.endswith(ENDINGS)
    ]
    chunks = [found[start : start + 100] for start in range(0, len(found), 100)]
    with get_context("fork").Pool(2) as pool:
        count.append(sum(pool.imap_unordered(partial(decode_bare, target=target), chunks)))
        pool.close()
        pool.join()


def ours(folder: Path, place: str, in_place: bool, count: list) -> list[tuple[float, float]]:
    "Seconds of an import into a new workspace, which is prepared before; and of the search for copies."
    workspace, search, found, took = init_folders(place), ingest.compare_new, [], []
    engine = open_engine(workspace.database_url)
    options = ImportOptions(SourceOptions("=picture"), True, in_place, workers=2)

    def searched(*more) -> int:
        copies = []
        took.append(timed(lambda: copies.append(search(*more))))
        return copies[0]

    def bring():
        found.append(import_source(engine, workspace, "benchmark", folder, options, actor="benchmark"))

    with patch.object(ingest, "compare_new", searched):
        both = timed(bring)
    count.append(found[0].added + found[0].already_there)
    engine.dispose()
    return [tuple(whole - part for whole, part in zip(both, took[0], strict=True)), took[0]]


def prepared(place: str) -> str:
    "An empty theme in a new workspace."
    engine = open_engine(init_folders(place).database_url)
    upgrade_database(engine)
    with writing(engine) as session:
        create_theme(session, "benchmark")
    engine.dispose()
    return place


def one_turn(folder: Path) -> tuple[dict, set]:
    "Wall and CPU seconds of each way, and how many pictures they saw."
    seconds, counts = {}, []
    with TemporaryDirectory() as place:
        os.makedirs(copies := os.path.join(place, "copies"))
        kept, copied = prepared(os.path.join(place, "kept")), prepared(os.path.join(place, "copied"))
        seconds["bare"] = timed(lambda: bare(folder, counts))
        seconds["in_place"], seconds["search"] = ours(folder, kept, True, counts)
        seconds["bare_copying"] = timed(lambda: bare(folder, counts, copies))
        seconds["copying"], _ = ours(folder, copied, False, counts)
    return seconds, set(counts)


def figures_of(folder: Path, turns: int, to_reach: float) -> dict:
    "Medians over the turns."
    os.environ["CMLOPS_IMAGE_ROOTS"] = str(folder)
    done = [one_turn(folder) for _ in range(turns)]
    counts = set.union(*(count for _, count in done))
    assert len(counts) == 1, f"pictures seen: {counts}"
    pairs = {"ratio": ("in_place", "bare"), "ratio_copying": ("copying", "bare")}
    pairs["ratio_copying_to_copying"] = ("copying", "bare_copying")
    pairs["search_to_bare"] = ("search", "bare")
    figures = {"pictures": counts.pop(), "to_reach": to_reach}
    for name, (one, other) in pairs.items():
        for suffix, kind in (("", 0), ("_of_cpu_seconds", 1)):
            figures[name + suffix] = round(median(s[one][kind] / s[other][kind] for s, _ in done), 2)
    figures["turns"] = [
        {name: [round(value, 2) for value in pair] for name, pair in s.items()} for s, _ in done
    ]
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mnist", type=Path, help="70,000 handwritten digits as PNG files")
    parser.add_argument("clothing", type=Path, help="3,781 photographs of clothes as JPEG files")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    figures = {
        name: figures_of(getattr(arguments, name), arguments.turns, to_reach)
        for name, to_reach in TO_REACH.items()
    }
    report("import_pictures", figures)
    return int(any(figures[name]["ratio"] > to_reach for name, to_reach in TO_REACH.items()))


if __name__ == "__main__":
    sys.exit(main())
