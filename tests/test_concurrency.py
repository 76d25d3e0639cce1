"Many processes at one database, and processes that are killed in the middle of an act."

import multiprocessing
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from pathlib import Path
from time import perf_counter

import pytest
from sqlalchemy import func, insert, select, update

from classification_mlops.config import SplitRatios
from classification_mlops.db.jobs import change_status, create_job
from classification_mlops.db.labels import add_label, list_labels, merge_labels, set_label
from classification_mlops.db.models import images_of_model, models_of_theme, record_model
from classification_mlops.db.queries import statistics
from classification_mlops.db.schema import Label, LabelEvent, SplitBatch, Theme, TrainData
from classification_mlops.db.selection import Filter, label_selected
from classification_mlops.db.session import WAIT_S, open_engine, reading, upgrade_database, writing
from classification_mlops.db.snapshot import take_snapshot
from classification_mlops.db.split import split_counts, split_theme
from classification_mlops.db.tallies import kept_counts, scanned_counts
from classification_mlops.db.themes import create_theme, get_theme
from classification_mlops.db.undo import undo
from classification_mlops.text import UserError

WRITERS = 4
ROUNDS = 25


def start(url: str, pictures: int = 30):
    "A database with one theme; returns its engine."
    engine = open_engine(url)
    upgrade_database(engine)
    with writing(engine) as session:
        theme = create_theme(session, "screws", description="0")
        labels = [add_label(session, theme, name) for name in ("good", "bent", "worn")]
        for number in range(pictures):
            facts = dict(image_path=f"{number}.png", sha256=f"{number:064x}", label_id=labels[number % 3].id)
            session.add(TrainData(theme_id=theme.id, **facts))
    return engine


def together(function, url: str, writers: int = WRITERS) -> list:
    "What `function(url, number)` returns in several new processes at once."
    with ProcessPoolExecutor(writers, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(function, [url] * writers, range(writers)))


def count_up(url: str, number: int) -> float:
    "Read, add one, write; again and again. Returns the longest wait in seconds."
    engine, worst = open_engine(url), 0.0
    for _ in range(ROUNDS):
        began = perf_counter()
        with writing(engine) as session:
            theme = get_theme(session, "screws")
            theme.description = str(int(theme.description) + 1)
        worst = max(worst, perf_counter() - began)
    return worst


def test_writers_on_sqlite_lose_nothing(tmp_path):
    url = f"sqlite:///{tmp_path}/database.db"
    engine = start(url)
    waits = together(count_up, url, writers=8)  # An error such as "database is locked" would be raised here
    with reading(engine) as session:
        assert int(get_theme(session, "screws").description) == 8 * ROUNDS
    assert max(waits) < WAIT_S


def label_everything(url: str, number: int) -> int:
    "Give all pictures one label after another; returns how many labels changed."
    engine, changed = open_engine(url), 0
    with reading(engine) as session:
        theme = get_theme(session, "screws")
        ids = list(session.scalars(select(TrainData.id).where(TrainData.theme_id == theme.id)))
    for turn in range(ROUNDS // 5):
        with writing(engine) as session:
            label = list_labels(session, theme)[(turn + number) % 3]
            changed += set_label(session, ids, label, f"annotator {number}")
    return changed


def test_every_label_change_is_in_the_history(database_url):
    engine = start(database_url)
    with reading(engine) as session:
        before = dict(session.execute(select(TrainData.id, TrainData.label_id)).all())
    changed = together(label_everything, database_url)
    with reading(engine) as session:
        events = session.scalars(select(LabelEvent).order_by(LabelEvent.id)).all()
        after = dict(session.execute(select(TrainData.id, TrainData.label_id)).all())
    changes = [event for event in events if event.old_label_id != event.new_label_id]  # The others only agree
    assert len(changes) == sum(changed) > len(before)
    chains = defaultdict(list)
    for event in events:
        chains[event.train_data_id].append(event)
    for number, chain in chains.items():
        olds, news = [event.old_label_id for event in chain], [event.new_label_id for event in chain]
        assert olds == [before[number], *news[:-1]] and after[number] == news[-1]


def grow_and_split(url: str, number: int) -> int:
    "Add pictures and split them, in small steps; returns how many were split."
    engine, split = open_engine(url), 0
    for turn in range(ROUNDS // 5):
        with writing(engine) as session:
            theme = get_theme(session, "screws")
            label = list_labels(session, theme)[turn % 3]
            for picture in range(3):
                name = f"{number}/{turn}/{picture}"
                facts = dict(image_path=name, sha256=f"{hash((number, turn, picture)) & (2**63 - 1):064x}")
                session.add(TrainData(theme_id=theme.id, label_id=label.id, **facts))
        with writing(engine) as session:
            batch = split_theme(session, theme, SplitRatios(), 42, f"process {number}")
            split += sum(batch.counts.values()) if batch else 0
    return split


def test_splits_at_once_do_not_interleave(database_url):
    engine = start(database_url)
    split = together(grow_and_split, database_url)
    total = 30 + WRITERS * (ROUNDS // 5) * 3
    assert sum(split) == total
    with reading(engine) as session:
        theme = get_theme(session, "screws")
        marked = select(TrainData.split_batch_id, TrainData.split, func.count()).group_by(
            TrainData.split_batch_id, TrainData.split
        )
        found = {(batch, split): count for batch, split, count in session.execute(marked)}
        for batch in session.scalars(select(SplitBatch)):
            assert {s: n for s, n in batch.counts.items() if n} == {
                s: n for (b, s), n in found.items() if b == batch.id
            }
        counts = split_counts(session, theme)
    assert counts["unsplit"] == 0
    for name, share in (("train", 0.7), ("valid", 0.15), ("test", 0.15)):
        assert abs(counts[name] - share * total) <= 3  # One per label


def take_job(url: str, number: int) -> bool:
    "Try to start the only job."
    with writing(open_engine(url)) as session:
        return change_status(session, 1, "queued", "running", owner=f"process {number}")


def test_one_of_many_gets_the_job(database_url):
    engine = start(database_url)
    with writing(engine) as session:
        create_job(session, "train", get_theme(session, "screws"), {})
    assert sum(together(take_job, database_url)) == 1


def record(url: str, path: str) -> int:
    with writing(open_engine(url)) as session:
        return record_model(session, get_theme(session, "screws"), "f00d", path).id


def test_a_run_is_recorded_once(database_url, tmp_path):
    engine, path = start(database_url), str(tmp_path / "snapshot.csv")
    with writing(engine) as session:
        theme = get_theme(session, "screws")
        split_theme(session, theme, SplitRatios(), 42, "ann")
        take_snapshot(session, theme, path)
    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        assert len(set(pool.map(record, [database_url] * 4, [path] * 4))) == 1
    with reading(engine) as session:
        [model] = models_of_theme(session, theme)
        assert len(list(images_of_model(session, model))) == 30


def create_same(url: str, number: int) -> str:
    try:
        with writing(open_engine(url)) as session:
            create_theme(session, "nuts")
    except UserError as error:
        return str(error)
    return "created"


def test_one_of_many_gets_the_name(database_url):
    engine = start(database_url)
    answers = together(create_same, database_url)
    assert sorted(set(answers)) == ["created", "theme nuts exists already"] and answers.count("created") == 1
    with reading(engine) as session:
        assert session.scalar(select(func.count()).select_from(Theme)) == 2


def one_by_one(url: str, number: int) -> list[tuple[int, str]]:
    "Label pictures one at a time, each in a transaction of its own; returns what was acknowledged."
    engine, done = open_engine(url), []
    with reading(engine) as session:
        labels = list_labels(session, get_theme(session, "screws"))
    for turn in range(ROUNDS):
        label, picture = labels[(turn + number) % 3], 1 + (turn * 7 + number) % 30
        with writing(engine) as session:
            if set_label(session, [picture], label, f"person {number}"):
                done.append((picture, label.id))
    return done


def test_labels_of_eight_people_are_all_there(database_url):
    engine = start(database_url)
    done = Counter(each for some in together(one_by_one, database_url, 8) for each in some)
    with reading(engine) as session:
        events = session.execute(select(LabelEvent).order_by(LabelEvent.id)).scalars().all()
        changes = [each for each in events if each.old_label_id != each.new_label_id]
        assert Counter((each.train_data_id, each.new_label_id) for each in changes) == done
        last = {each.train_data_id: each.new_label_id for each in changes}
        now = dict(session.execute(select(TrainData.id, TrainData.label_id)).all())
        assert {number: now[number] for number in last} == last
        assert kept_counts(session.connection()) == scanned_counts(session.connection())


def grow_label_split(url: str, number: int) -> tuple[int, int]:
    "Add pictures, label, merge, undo and split, in turns; returns how many were added and how many split."
    engine, added, split = open_engine(url), 0, 0
    for turn in range(6):
        with writing(engine) as session:
            theme = get_theme(session, "screws")
            label = add_label(session, theme, f"label {number} {turn}")
            names = [f"{number}/{turn}/{picture}" for picture in range(120)]
            rows = [dict(image_path=name, sha256=sha256(name.encode()).hexdigest()) for name in names]
            session.execute(insert(TrainData), [row | {"theme_id": theme.id} for row in rows])
            added += len(rows)
        with writing(engine) as session:
            chosen = Filter(unlabeled=True)
            label_selected(session, theme, chosen, f"label {number} {turn}", f"person {number}")
        with writing(engine) as session:
            merge_labels(session, theme, label.label_name, "good", f"person {number}")
            undo(session, theme, f"person {number}")
            batch = split_theme(session, theme, SplitRatios(), 42, f"person {number}")
            split += sum(batch.counts.values()) if batch else 0
    return added, split


def test_importing_labeling_and_splitting_at_once(database_url):
    engine = start(database_url)
    done = together(grow_label_split, database_url, 2)
    added, split = (sum(column) for column in zip(*done, strict=True))
    with writing(engine) as session:
        theme = get_theme(session, "screws")
        batch = split_theme(session, theme, SplitRatios(), 42, "ann")  # What came after the last split
        split += sum(batch.counts.values()) if batch else 0
        counts = split_counts(session, theme)
        assert split == 30 + added == sum(counts.values()) and counts["unsplit"] == 0
        assert statistics(session, theme)["unlabeled"] == 0
        assert kept_counts(session.connection()) == scanned_counts(session.connection())


# Killed in the middle

SPLIT_AND_DIE = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import event
from classification_mlops.config import SplitRatios
from classification_mlops.db.session import open_engine, writing
from classification_mlops.db.split import split_theme
from classification_mlops.db.themes import get_theme

url, hit, when = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
engine, updates = open_engine(url), []

def die():
    hit.write_text(f"killed at {when} after {len(updates)} updates")
    os.kill(os.getpid(), signal.SIGKILL)

@event.listens_for(engine, "after_cursor_execute")
def count(connection, cursor, statement, *rest):
    if statement.startswith("UPDATE train_data"):
        updates.append(statement)
        if when == str(len(updates)):
            die()

if when == "commit":
    event.listen(engine, "commit", lambda connection: die())
with writing(engine) as session:
    split_theme(session, get_theme(session, "screws"), SplitRatios(), 42, "ann")
if when == "after":
    die()
"""


@pytest.mark.parametrize("when", ["1", "commit", "after"])
def test_killed_split_is_old_or_complete(database_url, tmp_path, when):
    engine, hit = start(database_url, pictures=3000), tmp_path / "hit"
    child = subprocess.run([sys.executable, "-c", SPLIT_AND_DIE, database_url, str(hit), when])
    assert child.returncode == -signal.SIGKILL and hit.read_text().startswith(f"killed at {when}")
    with writing(engine) as session:
        theme = get_theme(session, "screws")
        counts, batches = (
            split_counts(session, theme),
            session.scalar(select(func.count()).select_from(SplitBatch)),
        )
        complete = {"train": 2100, "valid": 450, "test": 450, "unsplit": 0}
        old = {"train": 0, "valid": 0, "test": 0, "unsplit": 3000}
        assert (counts, batches) == ((complete, 1) if when == "after" else (old, 0))
        split_theme(session, theme, SplitRatios(), 42, "ann")  # Again, and it is complete
        assert split_counts(session, theme) == complete


LABEL_FOR_EVER = """
import sys
from classification_mlops.db.labels import list_labels, set_label
from classification_mlops.db.session import open_engine, writing
from classification_mlops.db.themes import get_theme
engine, turn = open_engine(sys.argv[1]), 0
while True:
    turn += 1
    with writing(engine) as session:
        theme = get_theme(session, "screws")
        set_label(session, range(1, 31), list_labels(session, theme)[turn % 3], f"turn {turn}")
    print(turn, flush=True)
"""


@pytest.mark.parametrize("acknowledged", [2, 7, 20])
def test_acknowledged_labels_survive_a_kill(tmp_path, acknowledged):
    url = f"sqlite:///{tmp_path}/database.db"
    engine = start(url)
    child = subprocess.Popen([sys.executable, "-c", LABEL_FOR_EVER, url], stdout=subprocess.PIPE, text=True)
    for _ in range(acknowledged):
        turn = int(child.stdout.readline())
    child.kill()
    assert child.wait() == -signal.SIGKILL
    turn = max([turn, *map(int, child.stdout.read().split())])
    with reading(engine) as session:
        actors = session.execute(select(LabelEvent.actor, func.count()).group_by(LabelEvent.actor)).all()
        latest = set(session.scalars(select(TrainData.labeled_by)))
        figures = statistics(session, get_theme(session, "screws"))
    turns = {int(actor.split()[1]): count for actor, count in actors}
    assert set(range(2, turn + 1)) <= set(turns) and max(turns) <= turn + 1
    assert all(count == 30 for number, count in turns.items() if number > 1)  # Whole turns only
    assert latest == {f"turn {max(turns)}"} and figures["labeled"] == 30


def test_nothing_is_left_open(database_url):
    "A process that is done leaves a database that others can copy: the log of SQLite is folded back."
    engine = start(database_url)
    engine.dispose()
    if database_url.startswith("sqlite"):
        path = Path(engine.url.database)
        assert [file.name for file in path.parent.iterdir()] == [path.name]


ACT_AND_DIE = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import event
from classification_mlops.db.labels import merge_labels
from classification_mlops.db.selection import Filter, label_selected
from classification_mlops.db.session import open_engine, writing
from classification_mlops.db.themes import get_theme
from classification_mlops.db.undo import undo

url, hit, what, when = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
engine, seen = open_engine(url), []

def die():
    hit.write_text(f"killed at {when} after {len(seen)}")
    os.kill(os.getpid(), signal.SIGKILL)

@event.listens_for(engine, "after_cursor_execute")
def count(connection, cursor, statement, *rest):
    if statement.startswith(("UPDATE train_data", "INSERT INTO label_event")):
        seen.append(statement)
        if when == str(len(seen)):
            die()

if when == "commit":
    event.listen(engine, "commit", lambda connection: die())
with writing(engine) as session:
    theme = get_theme(session, "screws")
    if what == "merge":
        merge_labels(session, theme, "worn", "good", "ann")
    elif what == "bulk":
        label_selected(session, theme, Filter(label="good"), "bent", "ann")
    else:
        undo(session, theme, "ben")
die()
"""


def everything(engine) -> tuple:
    with reading(engine) as session:
        labels = session.execute(
            select(Label.label_name, Label.deleted_at.is_(None)).order_by(Label.id)
        ).all()
        rows = session.execute(
            select(TrainData.id, TrainData.label_id, TrainData.labeled_by).order_by(TrainData.id)
        )
        assert kept_counts(session.connection()) == scanned_counts(session.connection())
        events = session.scalar(select(func.count()).select_from(LabelEvent))
        return [tuple(label) for label in labels], [tuple(row) for row in rows], events


@pytest.mark.parametrize("what", ["merge", "bulk", "undo"])
@pytest.mark.parametrize("when", ["1", "2", "commit", "after"])
def test_killed_acts_are_old_or_complete(database_url, tmp_path, what, when):
    engine, hit = start(database_url, pictures=600), tmp_path / "hit"
    with writing(engine) as session:
        label_selected(session, get_theme(session, "screws"), Filter(label="bent"), "worn", "ben")
    before = everything(engine)
    child = subprocess.run([sys.executable, "-c", ACT_AND_DIE, database_url, str(hit), what, when])
    assert child.returncode == -signal.SIGKILL and hit.read_text().startswith(f"killed at {when}")
    wait_for_the_dead(engine)
    after = everything(engine)
    assert (after == before) == (when != "after")
    assert after[2] - before[2] == (0 if when != "after" else {"merge": 400, "bulk": 200, "undo": 200}[what])


def wait_for_the_dead(engine):
    "PostgreSQL ends the transaction of a killed client when it notices: a writer waits for that."
    with writing(engine) as session:
        session.execute(update(TrainData).values(fold=None))
