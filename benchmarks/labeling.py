"""One label at a time in a theme of a million pictures, and eight people who label at once.

python benchmarks/labeling.py [COUNT] [postgresql://…/empty_database]
"""

import multiprocessing
import random
import sqlite3
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from statistics import quantiles
from time import perf_counter, process_time

from labeled import million
from sqlalchemy import func, select
from workspace import report

from classification_mlops.db.labels import list_labels, set_label
from classification_mlops.db.schema import LabelEvent, TrainData
from classification_mlops.db.session import is_sqlite, open_engine, reading, writing
from classification_mlops.db.themes import get_theme
from classification_mlops.text import UserError

WRITERS, SECONDS = 8, 10


def label_some(url: str, count: int, seed: int, times: int | None = None) -> list[tuple]:
    "Label pictures one by one, several times or for some seconds; (picture, label, seconds of the act)."
    engine, chance, done = open_engine(url), random.Random(), []
    with reading(engine) as session:
        labels = list_labels(session, get_theme(session, "screws"))
    until = perf_counter() + SECONDS
    while len(done) < times if times else perf_counter() < until:
        number, label = (
            chance.randrange(count // WRITERS) * WRITERS + 1 + seed % WRITERS,
            chance.choice(labels),
        )
        began, changed = perf_counter(), 0
        with suppress(UserError), writing(engine) as session:  # A golden picture stays as it is
            changed = set_label(session, [number], label, f"person {seed}")
        if changed:
            done.append((number, label.id, perf_counter() - began))
    engine.dispose()
    return done


def bare_commits(path: str, times: int = 300) -> list[float]:
    "Seconds of an update and an insert with their commit, without us."
    connection, runs = sqlite3.connect(path, isolation_level=None, timeout=30), []
    connection.execute("PRAGMA synchronous = FULL")
    for number in range(times):
        began = perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        change = "INSERT INTO label_event (theme_id, train_data_id, new_label_id, actor, source, created_at)"
        connection.execute(
            f"{change} VALUES (1, ?, 1, 'bare', 'model', '2030-01-01 00:00:00')", (number + 1,)
        )
        connection.execute(
            "UPDATE train_data SET label_id = 1 + ? % 19 WHERE id = ?", (number, 3 * number + 1)
        )
        connection.execute("COMMIT")
        runs.append(perf_counter() - began)
    connection.close()
    return runs


def p95(runs: list[float]) -> float:
    return round(quantiles(runs, n=20)[-1] * 1000, 2)


def lost(engine, done: list[tuple]) -> int:
    "Acknowledged labels that are not in the history, or not the present one although they were the last."
    present = {number: label for number, label, _ in done}
    numbers, missing = list(present), 0
    with reading(engine) as session:
        people = LabelEvent.actor.like("person %")
        events = session.scalar(select(func.count()).where(people))
        for start in range(0, len(numbers), 500):
            some = TrainData.id.in_(numbers[start : start + 500])
            rows = session.execute(select(TrainData.id, TrainData.label_id).where(some))
            missing += sum(present[number] != label for number, label in rows)
    return missing + max(0, len(done) - events)


def main(arguments: list[str]) -> int:
    with million(arguments) as (engine, count):
        url = engine.url.render_as_string(hide_password=False)
        began = process_time()
        alone = label_some(url, count, 100, 300)
        busy = (process_time() - began) / len(alone) * 1000
        bare = bare_commits(engine.url.database) if is_sqlite(engine) else None
        with ProcessPoolExecutor(WRITERS, multiprocessing.get_context("spawn")) as pool:
            jobs = [pool.submit(label_some, url, count, seed) for seed in range(WRITERS)]
            done = [each for job in jobs for each in job.result()]
        times = [seconds for *_, seconds in done]
        result = {
            "database": engine.dialect.name,
            "pictures": count,
            "one_label_p95_ms": p95([seconds for *_, seconds in alone]),
            "one_label_cpu_ms": round(busy, 2),
            "bare_commit_p95_ms": bare and p95(bare),
            "labels_per_s_of_8_writers": round(len(done) / SECONDS, 1),
            "wait_p95_ms": p95(times),
            "wait_longest_ms": round(max(times) * 1000),
            "lost": lost(engine, [*alone, *done]),
            "to_reach": {"one_label_p95_ms": 5, "labels_per_s_of_8_writers": 200, "lost": 0},
        }
        report("labeling", result)
    few = result["labels_per_s_of_8_writers"] < 200
    return int(result["one_label_p95_ms"] > 5 or few or result["lost"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
