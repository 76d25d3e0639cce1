"""Seconds and memory of splitting 10,000 to 1,000,000 new pictures, of 100 more, and of the leak score.

python benchmarks/split.py [--database postgresql://…] [--tied]     20 labels; the database must be empty

Rows are synthetic. Every step runs in a process of its own, so that its peak memory is its own. The bare
alternative writes one split to all pictures with a single UPDATE on the same table and indexes, and rolls it
back; PostgreSQL then sweeps the dead rows away. `--tied` puts half of the pictures into lots of five and half
into pairs of near-duplicates.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

from sqlalchemy import select, text
from workspace import report

from classification_mlops.config import SplitRatios
from classification_mlops.db.labels import add_label, list_labels
from classification_mlops.db.leaks import leak_score
from classification_mlops.db.schema import TrainData
from classification_mlops.db.session import is_sqlite, open_engine, reading, upgrade_database, writing
from classification_mlops.db.split import split_theme
from classification_mlops.db.themes import create_theme, get_theme

SIZES = (10_000, 100_000, 1_000_000)
COLUMNS = "image_path theme_id label_id created_at updated_at sha256 group_key cluster_id golden".split()
MOMENT = "2026-01-01 00:00:00.000000+00:00"
TO_REACH = {"split_s": 20, "split_peak_mb": 600, "hundred_s": 1, "leaks_s": 5}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--database", help="URL; a new SQLite file unless given")
    parser.add_argument("--tied", action="store_true", help="with groups and near-duplicates")
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)  # Name and size: one step, in this process
    return parser.parse_args()


def rows(theme_id: int, labels: list[int], numbers: range, tied: bool) -> Iterator[tuple]:
    "Pictures of a theme in the order of `COLUMNS`."
    for n in numbers:
        content = sha256(f"{theme_id}/{n}".encode())
        label = labels[content.digest()[0] % len(labels)]
        group = f"lot {n // 10}" if tied and n % 2 else None
        cluster = n // 4 if tied and n % 4 < 2 else None
        yield f"{n}.png", theme_id, label, MOMENT, MOMENT, content.hexdigest(), group, cluster, False


def fill(engine, name: str, numbers: range, tied: bool):
    "Write rows as fast as the database takes them."
    with writing(engine) as session:
        theme = get_theme(session, name) if numbers.start else create_theme(session, name)
        if not numbers.start:
            for number in range(20):
                add_label(session, theme, f"label {number}")
        labels = [label.id for label in list_labels(session, theme)]
        cursor = session.connection().connection.cursor()
        values = rows(theme.id, labels, numbers, tied)
        if is_sqlite(engine):
            marks = ", ".join("?" * len(COLUMNS))
            cursor.executemany(f"INSERT INTO train_data ({', '.join(COLUMNS)}) VALUES ({marks})", values)
            return
        with cursor.copy(f"COPY train_data ({', '.join(COLUMNS)}) FROM STDIN") as copy:
            for row in values:
                copy.write_row(row)


def bare(engine, name: str, size: int, tied: bool):
    "One UPDATE of everything, rolled back; returns its seconds."
    with engine.connect() as connection, connection.begin() as transaction:
        begin = perf_counter(), process_time()
        update = "UPDATE train_data SET split = 'train', updated_at = :now WHERE theme_id = :theme"
        theme = connection.scalar(text("SELECT id FROM theme WHERE name = :name"), {"name": name})
        connection.execute(text(update), {"now": MOMENT, "theme": theme})
        seconds = perf_counter() - begin[0], process_time() - begin[1]
        transaction.rollback()
    if not is_sqlite(engine):
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(text("VACUUM (FULL, ANALYZE) train_data, picture_place"))
    return seconds


def split(engine, name: str, size: int, tied: bool):
    with writing(engine) as session:
        split_theme(session, get_theme(session, name), SplitRatios(), 42, "benchmark")


def hundred(engine, name: str, size: int, tied: bool):
    "Split 100 new pictures beside all the others; returns its seconds."
    fill(engine, name, range(size, size + 100), tied)
    begin = perf_counter(), process_time()
    split(engine, name, size, tied)
    seconds = perf_counter() - begin[0], process_time() - begin[1]
    with reading(engine) as session:
        theme = get_theme(session, name)
        waiting = select(TrainData.id).where(TrainData.theme_id == theme.id, TrainData.split.is_(None))
        assert session.scalar(waiting.limit(1)) is None
    return seconds


def leaks(engine, name: str, size: int, tied: bool):
    with reading(engine) as session:
        assert leak_score(session, get_theme(session, name)).leaking == {"test": 0, "valid": 0}


def run_step(arguments) -> int:
    "One step in this process; prints its figures."
    name, size = arguments.step[0], int(arguments.step[1])
    engine = open_engine(arguments.database)
    if name == "fill":
        upgrade_database(engine)
        work = lambda *_: fill(engine, str(size), range(size), arguments.tied)  # noqa: E731
    else:
        work = {"bare": bare, "split": split, "hundred": hundred, "leaks": leaks}[name]
    begin = perf_counter(), process_time()
    seconds = work(engine, str(size), size, arguments.tied)
    seconds = seconds or (perf_counter() - begin[0], process_time() - begin[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = dict(zip(("s", "cpu_s", "peak_mb"), (*seconds, peak), strict=True))
    print(json.dumps({f"{name}_{key}": round(value, 2) for key, value in figures.items()}))
    return 0


def step(name: str, size: int, database: str, tied: bool) -> dict:
    "The figures of one step in a new process."
    line = [sys.executable, __file__, "--database", database, "--step", name, str(size)]
    result = subprocess.run(line + ["--tied"] * tied, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout)


def main() -> int:
    arguments = parse_arguments()
    if arguments.step:
        return run_step(arguments)
    sizes, figures = [size for size in SIZES if size <= arguments.largest], {}
    with TemporaryDirectory() as folder:
        database = arguments.database or f"sqlite:///{Path(folder)}/database.db"
        for size in sizes:
            step("fill", size, database, arguments.tied)
            names = ("bare", "split", "hundred", "leaks")
            steps = [step(name, size, database, arguments.tied) for name in names]
            figures[size] = {key: value for one in steps for key, value in one.items()}
    last, first = figures[sizes[-1]], figures[sizes[0]]
    growth = last["split_cpu_s"] / first["split_cpu_s"] / (sizes[-1] / sizes[0])
    result = {
        "tied": arguments.tied,
        "pictures": figures,
        "time_per_picture_largest_to_smallest": round(growth, 2),
        "ratio_to_bare": round(last["split_s"] / last["bare_s"], 2),
        "to_reach": TO_REACH,
    }
    report("split_tied" if arguments.tied else "split", result)
    return int(any(last[name] > most for name, most in TO_REACH.items()))


if __name__ == "__main__":
    sys.exit(main())
