"""Seconds and memory of registering a table of pictures, against the driver's own executemany.

python benchmarks/register.py [--rows 1000000]

The bare way hands rows, ready in memory, to `sqlite3.executemany` in one transaction: the same columns,
indexes and durability, and nothing else. Ours reads a CSV file, judges every path, hash and label, meets
what is there already, writes the history of every label, and commits fifty thousand rows at a time. Each
size runs in a process of its own, so that its peak of memory is its own.
"""

import argparse
import csv
import os
import resource
import sqlite3
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from workspace import report

from classification_mlops.db.arrivals import COLUMNS
from classification_mlops.db.ingest import ImportOptions, register_source
from classification_mlops.db.session import open_engine, upgrade_database, writing
from classification_mlops.db.themes import create_theme
from classification_mlops.images.sources import SourceOptions
from classification_mlops.workspace import init_folders

LABELS = 20
TO_REACH = 2.5


def written_table(path: Path, rows: int) -> Path:
    "Pictures that exist nowhere, with hashes in no order."
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "sha256", "width", "height"])
        for number in range(rows):
            identity = sha256(b"%d" % number).hexdigest()
            table.writerow(
                [f"s3://far/line-3/{number:08d}.png", f"label {number % LABELS}", identity, 640, 480]
            )
    return path


def empty_database(folder: Path):
    "A workspace with one theme."
    workspace = init_folders(folder)
    engine = open_engine(workspace.database_url)
    upgrade_database(engine)
    with writing(engine) as session:
        create_theme(session, "far")
    return workspace, engine


def ours(folder: Path, table: Path) -> int:
    "What `cmlops data import --register` does."
    workspace, engine = empty_database(folder)
    options = ImportOptions(SourceOptions("column"), create_labels=True)
    done = register_source(engine, workspace, "far", table, options, actor="benchmark")
    engine.dispose()
    return done.added


def bare(folder: Path, table: Path) -> tuple[int, float]:
    "Rows and seconds of `executemany`; the rows are made before."
    workspace, engine = empty_database(folder)
    engine.dispose()
    now = "2026-01-01 00:00:00.000000"
    database = sqlite3.connect(workspace.root / "database.db", isolation_level=None)
    for setting in ("journal_mode = WAL", "synchronous = FULL", "cache_size = -65536", "foreign_keys = 1"):
        database.execute(f"PRAGMA {setting}")
    for number in range(LABELS):
        database.execute(
            "INSERT INTO label (theme_id, label_name, created_at) VALUES (1, ?, ?)", (f"{number}", now)
        )
    with table.open(newline="", encoding="utf-8") as file:
        rows = [
            (
                path,
                1,
                1 + n % LABELS,
                None,
                "benchmark",
                now,
                now,
                identity,
                None,
                int(width),
                int(height),
                path,
                None,
                None,
            )
            for n, (path, _, identity, width, height) in enumerate(list(csv.reader(file))[1:])
        ]
    statement = f"INSERT INTO train_data ({', '.join(COLUMNS)}) VALUES ({', '.join(['?'] * len(COLUMNS))})"
    start = perf_counter()
    database.execute("BEGIN IMMEDIATE")
    database.executemany(statement, rows)
    database.execute("COMMIT")
    return len(rows), perf_counter() - start


def measured(way: str, rows: int) -> dict:
    "Seconds and memory of one way, in this process."
    os.environ["CMLOPS_IMAGE_ROOTS"] = "s3://far"
    with TemporaryDirectory() as name:
        table = written_table(Path(name) / "table.csv", rows)
        before, start = resource.getrusage(resource.RUSAGE_SELF), perf_counter()
        if way == "bare":
            count, seconds = bare(Path(name) / "bare", table)
        else:
            count, seconds = ours(Path(name) / "ours", table), perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_SELF)
        assert count == rows
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": after.ru_maxrss // 1024}


def in_process(way: str, rows: int) -> dict:
    "The same in a process of its own."
    command = [sys.executable, __file__, "--rows", str(rows), "--only", way]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    return dict(zip(("seconds", "cpu_seconds", "peak_mb"), map(float, found), strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", choices=["bare", "ours"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(*measured(arguments.only, arguments.rows).values())
        return 0
    sizes = {rows: in_process("ours", rows) for rows in (arguments.rows // 100, arguments.rows // 10)}
    alone = in_process("bare", arguments.rows)
    whole = sizes[arguments.rows] = in_process("ours", arguments.rows)
    figures = {
        "rows": arguments.rows,
        "bare_s": round(alone["seconds"], 1),
        "ours_s": round(whole["seconds"], 1),
        "ratio": round(whole["seconds"] / alone["seconds"], 2),
        "to_reach": TO_REACH,
        "microseconds_per_row": {rows: round(1e6 * f["seconds"] / rows, 1) for rows, f in sizes.items()},
        "cpu_microseconds_per_row": {
            rows: round(1e6 * f["cpu_seconds"] / rows, 1) for rows, f in sizes.items()
        },
        "peak_mb": {rows: f["peak_mb"] for rows, f in sizes.items()},
    }
    report("register", figures)
    return int(figures["ratio"] > TO_REACH)


if __name__ == "__main__":
    sys.exit(main())
