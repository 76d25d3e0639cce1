"A theme of synthetic rows, written fast, for benchmarks of pages and labels."

import hashlib
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from sqlalchemy import Engine, insert, text

from classification_mlops.db.labels import add_label
from classification_mlops.db.queries import theme_counts
from classification_mlops.db.schema import ReviewItem, Theme, TrainData
from classification_mlops.db.session import (
    in_chunks,
    is_sqlite,
    open_engine,
    reading,
    upgrade_database,
    writing,
)
from classification_mlops.db.themes import create_theme

LABELS = 20


def row_of(number: int, count: int, theme: Theme, labels: list[int]) -> dict:
    "One picture; the last thousand hold what a search from the start finds late."
    chance = random.Random(number)
    late = number >= count - 1000
    unlabeled = chance.random() < 0.02
    label = None if unlabeled else labels[-1] if late and number % 50 == 0 else labels[number % (LABELS - 1)]
    split = None if unlabeled or late else chance.choices(("train", "valid", "test"), (70, 15, 15))[0]
    by = "zoe" if late and number % 20 == 0 else "ann" if chance.random() < 0.7 else "ben"
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    name = "needle" if late and number % 100 == 0 else "IMG"
    return dict(
        theme_id=theme.id,
        image_path=f"images/{theme.id}/{digest}.png",
        sha256=digest,
        perceptual_hash=chance.getrandbits(62),
        width=640,
        height=480,
        label_id=label,
        labeled_by=None if unlabeled else by,
        split=split,
        group_key=f"lot {number // 5000}",
        original_name=f"lot{number // 5000:03}/{name}_{number:07}.png",
        golden=not late and split == "test" and chance.random() < 0.1,
        cluster_id=number + 1 - number % 3 if chance.random() < 0.01 else None,
    )


def fill(engine: Engine, count: int) -> float:  # Seconds
    "Write a theme named `screws` of `count` pictures."
    upgrade_database(engine)
    began = perf_counter()
    with writing(engine) as session:
        theme = create_theme(session, "screws")
        labels = [add_label(session, theme, f"label {n}").id for n in range(LABELS)]
    for numbers in in_chunks(range(count), 50_000):
        with writing(engine) as session:
            rows = [row_of(number, count, theme, labels) for number in numbers]
            session.connection().execute(TrainData.__table__.insert(), rows)
    with writing(engine) as session:
        common = dict(theme_id=theme.id, score=0.5, status="open")
        items = [
            common | dict(train_data_id=number, reason="disagrees" if number < count - 5000 else "rare")
            for number in range(1, count, 37)
        ]
        session.execute(insert(ReviewItem), items)
    if not is_sqlite(engine):
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
    return perf_counter() - began


@contextmanager
def million(arguments: list[str]) -> Iterator[tuple[Engine, int]]:
    "An engine on a filled database: SQLite in a temporary folder, or that of a URL, filled if it is empty."
    count = int(next((a for a in arguments if a.isdigit()), 1_000_000))
    url = next((a for a in arguments if "://" in a), None)
    with tempfile.TemporaryDirectory() as folder:
        engine = open_engine(url or f"sqlite:///{Path(folder)}/database.db")
        upgrade_database(engine)
        with reading(engine) as session:
            there = theme_counts(session).get("screws")
        if there is None:
            print(f"{count} pictures written in {fill(engine, count):.0f} s", file=sys.stderr)
        yield engine, there or count
        engine.dispose()
