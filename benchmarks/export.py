"""Export and check of real pictures against the bare operations, and the diff of two large snapshots.

`python benchmarks/export.py FOLDER`: class folders of pictures. Export to folders and to a zip is measured
against `shutil.copyfile` of the same files, a check against reading and hashing them, in the same run; the
diff of two snapshots of a million rows against reading both with Python's CSV reader.
"""

import csv
import json
import os
import resource
import shutil
import sys
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import median
from subprocess import run
from tempfile import TemporaryDirectory
from time import perf_counter

from sqlalchemy import insert, select
from workspace import new_workspace, report

from classification_mlops.db.check import check_theme
from classification_mlops.db.export import Choice, export_theme
from classification_mlops.db.schema import TrainData
from classification_mlops.db.session import open_engine, reading, writing
from classification_mlops.db.snapshot import SnapshotRow, compare_snapshots, read_snapshot
from classification_mlops.db.themes import create_theme
from classification_mlops.images.decode import FORMATS
from classification_mlops.images.store import store_images
from classification_mlops.workspace import Workspace

ROWS, ROUNDS, EVERYTHING = 1_000_000, 3, Choice(unlabeled=True)


def register(engine, workspace: Workspace, folder: Path) -> list[Path]:
    "Store and register every picture below `folder`, as an import would; their stored files."
    with writing(engine) as session:
        theme_id = create_theme(session, "pictures").id
    endings = {*FORMATS.values(), ".jpeg"}
    paths, seen, chunk = sorted(path for path in folder.rglob("*") if path.suffix in endings), set(), []
    for number, path in enumerate(paths, 1):
        data = path.read_bytes()
        name = sha256(data).hexdigest()
        if name not in seen:
            seen.add(name)
            chunk.append((data, name, path.suffix if path.suffix != ".jpeg" else ".jpg"))
        if len(chunk) == 500 or number == len(paths):
            names = store_images(workspace, theme_id, chunk)
            rows = [
                dict(theme_id=theme_id, sha256=name, image_path=place, original_name=place)
                for (_, name, _), place in zip(chunk, names, strict=True)
            ]
            with writing(engine) as session:
                session.execute(insert(TrainData), rows)
            chunk = []
    with reading(engine) as session:
        stored = session.scalars(select(TrainData.image_path).order_by(TrainData.sha256))
        return [workspace.root / path for path in stored]


def timed(work) -> float:
    "Seconds that `work` takes."
    start = perf_counter()
    work()
    return perf_counter() - start


def copy_files(files: list[Path], target: Path):
    "The bare alternative: `shutil.copyfile`, into folders of their own."
    made = set()
    for path in files:
        folder = target / path.parent.name
        if folder not in made:
            folder.mkdir(parents=True, exist_ok=True)
            made.add(folder)
        shutil.copyfile(path, folder / path.name)
    os.sync()


def hash_files(files: list[Path]):
    "The bare alternative: read and hash."
    for path in files:
        sha256(path.read_bytes()).hexdigest()


def real_pictures(folder: Path) -> dict:
    "Median seconds of each, in turns, so that a busy machine is busy for all."
    with new_workspace() as place:
        workspace = Workspace(place)
        engine = open_engine(workspace.database_url)
        files = register(engine, workspace, folder)
        seconds = {name: [] for name in ("copyfile", "folders", "zip", "hash", "check")}
        for _ in range(ROUNDS):
            with TemporaryDirectory(dir=place) as out:
                out = Path(out)
                seconds["copyfile"].append(timed(partial(copy_files, files, out / "copy")))
                for name, target in (("folders", out / "folders"), ("zip", out / "a.zip")):
                    export = partial(export_theme, engine, workspace, "pictures", target, choice=EVERYTHING)
                    seconds[name].append(timed(export))
                seconds["hash"].append(timed(lambda: hash_files(files)))
                seconds["check"].append(timed(lambda: check_theme(engine, workspace, "pictures")))
        engine.dispose()
    middle = {name: median(values) for name, values in seconds.items()}
    return {"pictures": len(files), "seconds": {name: round(value, 2) for name, value in middle.items()}} | {
        "folders_ratio": round(middle["folders"] / middle["copyfile"], 2),
        "zip_ratio": round(middle["zip"] / middle["copyfile"], 2),
        "check_ratio": round(middle["check"] / middle["hash"], 2),
    }


def write_rows(path: Path, step: int):
    "A snapshot of a million pictures; one in a hundred differs between two steps."
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(SnapshotRow._fields)
        for number in range(ROWS):
            label = f"class {(number + (number % 100 == step)) % 20}"
            place = f"images/1/{number % 256:02x}/{number:064x}.png"
            split = ("train", "valid", "test")[number % 3]
            table.writerow((f"{number:064x}", label, split, place, number, number % 20))


def bare_read(path: Path) -> int:
    "The bare alternative: the same file through Python's CSV reader, hashed."
    digest = sha256()
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file):
            digest.update("\t".join(row[:3]).encode())
    return digest.digest_size


def difference() -> dict:
    "Seconds and peak memory of a diff; run in a process of its own."
    with TemporaryDirectory() as folder:
        first, second = Path(folder) / "first.csv", Path(folder) / "second.csv"
        write_rows(first, 1), write_rows(second, 2)
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        bare = timed(lambda: [bare_read(first), bare_read(second)])
        found = []
        seconds = timed(lambda: found.append(compare_snapshots(read_snapshot(first), read_snapshot(second))))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert found[0].counts["relabeled"] == ROWS // 50
    return {
        "rows": ROWS,
        "seconds": round(seconds, 2),
        "bare_seconds": round(bare, 2),
        "ratio": round(seconds / bare, 2),
        "memory_growth_mb": round((peak - start) / 1024, 1),
    }


def main() -> int:
    if sys.argv[1:] == ["--diff"]:
        print(json.dumps(difference()))
        return 0
    figures = real_pictures(Path(sys.argv[1]))
    alone = run([sys.executable, __file__, "--diff"], capture_output=True, text=True, check=True)
    figures["diff"] = json.loads(alone.stdout)
    limits = {
        "folders_ratio": 2.0,
        "zip_ratio": 1.5,
        "check_ratio": 2.0,
        "ratio": 3.0,
        "memory_growth_mb": 50,
    }
    measured = figures | figures["diff"]
    reached = all(measured[name] <= limit for name, limit in limits.items())
    figures["to_reach"] = limits
    report("export", figures)
    return int(not reached)


if __name__ == "__main__":
    sys.exit(main())
