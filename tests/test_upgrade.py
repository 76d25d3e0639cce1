"A database of the first release, with data in every table, becomes one of today: whole or not at all."

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest
from forked import in_a_child
from schemas import TALLIES, differences
from sqlalchemy import Engine, event, inspect, select, text

from classification_mlops.config import SplitRatios
from classification_mlops.db.check import broken_rules
from classification_mlops.db.labels import add_label, get_label, list_labels, set_label
from classification_mlops.db.models import images_of_model, model_of_run
from classification_mlops.db.queries import class_counts, page_of_images, statistics
from classification_mlops.db.schema import Base, TrainData
from classification_mlops.db.session import (
    MIGRATIONS,
    check_database,
    is_sqlite,
    known_versions,
    open_engine,
    schema_version,
    upgrade_database,
    writing,
)
from classification_mlops.db.snapshot import take_snapshot
from classification_mlops.db.split import split_theme
from classification_mlops.db.tallies import kept_counts, misplaced, scanned_counts
from classification_mlops.db.themes import create_theme, get_theme
from classification_mlops.text import UserError

NOON = "2024-02-29 12:00:00.123456+00:00"
LABELS = ["good", "曲がり", "worn 'out'"]


def first_release_rows() -> Iterator[tuple[str, dict]]:
    "Rows of every table of the first release, as that release wrote them; numbers count from one."
    times = {"created_at": NOON, "updated_at": NOON}
    for name in ("screws", "ねじ 😀"):
        yield "theme", {"name": name, "description": "a; b -- c", **times}
    yield (
        "user",
        {"username": "ann", "password_hash": "x", "role": "admin", "disabled": True, "created_at": NOON},
    )
    for position, name in enumerate(LABELS):
        facts = {"theme_id": 1, "label_name": name, "created_at": NOON, "color": "#123456"}
        gone = NOON if position == 2 else None
        yield "label", facts | {"position": position, "deleted_at": gone}
    yield (
        "label",
        {"theme_id": 2, "label_name": "good", "created_at": NOON, "position": 7, "color": "#000000"},
    )
    ratios = json.dumps({"train": 0.7, "valid": 0.15, "test": 0.15})
    batch = {"theme_id": 1, "ratios": ratios, "seed": 2**40, "policy": "stratified", "actor": "ann"}
    yield "split_batch", batch | {"created_at": NOON, "counts": json.dumps({"train": 6})}
    for number in range(1, 13):
        split = [None, "train", "valid", "test"][number % 4]
        facts = {"image_path": f"images/1/{number}.png", "theme_id": 1, "sha256": f"{number:064x}"}
        facts |= {"label_id": [None, 1, 2][number % 3], "split": split, "split_batch_id": split and 1}
        facts |= {"labeled_by": "ann" if number % 3 else None, "perceptual_hash": -(2**63) + number, **times}
        facts |= {"width": 8, "height": 9, "original_name": f"傷{number}.png", "group_key": f"lot {number}"}
        yield "train_data", facts | {"deleted_at": NOON if number == 12 else None}
    yield (
        "train_data",
        {"image_path": "s3://b/a.png", "theme_id": 2, "sha256": "a" * 64, "label_id": 4, **times},
    )
    for number in (1, 2):
        event = {"theme_id": 1, "train_data_id": number, "old_label_id": 3, "new_label_id": number}
        yield "label_event", event | {"actor": "ann", "source": "human", "created_at": NOON}
    yield "model", {"theme_id": 1, "mlflow_run_id": "f00d", **times}
    for number, label, split in ((1, 1, "train"), (2, 3, "valid"), (12, 2, "test")):
        yield "model_train_data", {"model_id": 1, "train_data_id": number, "label_id": label, "split": split}
    item = {"theme_id": 1, "train_data_id": 3, "reason": "unsure", "score": 0.25, "model_id": 1}
    yield (
        "review_item",
        item | {"status": "decided", "decided_by": "ben", "created_at": NOON, "decided_at": NOON},
    )
    job = {"kind": "train", "theme_id": 1, "status": "failed", "control": "cancel", "parameters": "{}"}
    job |= {"mlflow_run_id": "f00d", "owner": "host:1:2", "heartbeat": NOON, "progress": "{}", "error": "no"}
    yield "job", job | {"created_at": NOON, "started_at": NOON, "finished_at": NOON}


def make_first_release(engine: Engine, rows=None):
    "The tables of the first release, and rows in them, written by plain SQL."
    from alembic import command
    from alembic.config import Config

    with engine.execution_options(purpose="migrate").begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(MIGRATIONS))
        command.upgrade(config, "0001")
    with engine.begin() as connection:
        for table, row in first_release_rows() if rows is None else rows:
            row = {key: _stored(value, engine) for key, value in row.items() if value is not None}
            names = ", ".join(f":{name}" for name in row)
            connection.execute(text(f'INSERT INTO "{table}" ({", ".join(row)}) VALUES ({names})'), row)


def _stored(value, engine):
    "A time as SQLAlchemy writes it into SQLite."
    return value.removesuffix("+00:00") if value == NOON and is_sqlite(engine) else value


def contents(engine: Engine, tables: dict[str, list[str]]) -> dict[str, list]:
    "All rows of some columns."
    with engine.connect() as connection:
        return {
            table: sorted(map(str, connection.execute(text(f'SELECT {", ".join(columns)} FROM "{table}"'))))
            for table, columns in tables.items()
        }


def columns_of(engine: Engine) -> dict[str, list[str]]:
    "The names of the columns of every table, without the version."
    found = inspect(engine)
    names = set(found.get_table_names()) - {"schema_version"}
    return {table: [column["name"] for column in found.get_columns(table)] for table in sorted(names)}


def definitions(engine: Engine) -> set:
    "Every table, column, constraint, index and trigger; not the order of columns."
    if is_sqlite(engine):
        asked = ["SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"]
    else:
        asked = [
            "SELECT table_name, column_name, data_type, is_nullable, column_default, "
            "character_maximum_length FROM information_schema.columns WHERE table_schema = 'public'",
            "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'",
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE connamespace = 'public'::regnamespace",
            "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
            "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
        ]
    with engine.connect() as connection:
        rows = [row for query in asked for row in connection.execute(text(query))]
    if not is_sqlite(engine):
        return set(map(str, rows))
    return {(name, line.strip()) for name, sql in rows for line in sql.replace(",", "\n").splitlines()}


@pytest.fixture
def first(database_url) -> Engine:
    "A database of the first release with data in it."
    engine = open_engine(database_url)
    make_first_release(engine)
    yield engine
    engine.dispose()


def test_the_old_data_fills_every_column(first):
    "Otherwise the test below would prove less than it says."
    tables = columns_of(first)
    assert len(tables) == 10
    with first.connect() as connection:
        for table, columns in tables.items():
            for column in columns:
                query = text(f'SELECT count(*) FROM "{table}" WHERE {column} IS NOT NULL')
                assert connection.scalar(query), (table, column)


def test_upgrade_keeps_every_row(first):
    tables = columns_of(first)
    before = contents(first, tables)
    with pytest.raises(UserError, match="older than this program"):
        check_database(first)
    upgrade_database(first)
    check_database(first)
    assert contents(first, tables) == before
    with first.connect() as connection:
        assert misplaced(connection) == 0 and kept_counts(connection) == scanned_counts(connection)
    assert {n for n in columns_of(first) if not n.startswith(TALLIES)} == set(Base.metadata.tables)
    assert upgrade_database(first) is None and contents(first, tables) == before


def test_upgraded_tables_are_those_of_a_new_database(first, tmp_path):
    upgrade_database(first)
    assert differences(first) == []
    if is_sqlite(first):
        url = f"sqlite:///{tmp_path}/new.db"
    else:
        with first.execution_options(isolation_level="AUTOCOMMIT").connect() as server:
            name = f"{first.url.database}_new"
            server.execute(text(f"CREATE DATABASE {name}"))
        url = first.url.set(database=name).render_as_string(hide_password=False)
    new = open_engine(url)
    upgrade_database(new)
    assert definitions(first) == definitions(new)
    new.dispose()


def test_an_upgraded_theme_lives_on(first, tmp_path):
    upgrade_database(first)
    with writing(first) as session:
        theme = get_theme(session, "screws")
        found = statistics(session, theme)
        assert (found["pictures"], found["labeled"], found["unlabeled"]) == (11, 8, 3)
        assert [label.label_name for label in list_labels(session, theme)] == LABELS[:2]
        assert sum(class_counts(session, theme)["good"].values()) == 4
        assert len(page_of_images(session, theme, limit=50)) == 11
        model = model_of_run(session, "f00d")
        assert [(row.label, row.split) for row in images_of_model(session, model)] == [
            ("good", "train"),
            (LABELS[2], "valid"),
            ("曲がり", "test"),
        ]
        splits = dict(session.execute(select(TrainData.id, TrainData.split)).all())
        set_label(session, [3], get_label(session, theme, "good"), "ben")
        split_theme(session, theme, SplitRatios(), 42, "ben")
        moved = dict(session.execute(select(TrainData.id, TrainData.split)).all())
        assert {number for number, split in splits.items() if split != moved[number]} == {4, 8}
        snapshot = take_snapshot(session, theme, tmp_path / "snapshot.csv")
        assert snapshot.count == sum(1 for number in range(1, 12) if number % 3 or number == 3)
        assert not session.scalar(select(TrainData.id).where(TrainData.golden))
        assert create_theme(session, "nuts").id == 3  # Numbers go on where they were
        assert add_label(session, get_theme(session, "nuts"), "good").id == 5
    assert list(broken_rules(first, 1)) == []


def test_killed_at_every_statement(first, tmp_path):
    "Nothing has happened until everything has happened."
    tables = columns_of(first)
    before, old = contents(first, tables), definitions(first)
    url = first.url.render_as_string(hide_password=False)
    for fatal in range(1000):
        status = upgrade_and_die(first, url, fatal)
        if status == 0:
            break
        assert status == -signal.SIGKILL, fatal  # The fault fired
        with first.connect() as connection:
            assert schema_version(connection) == "0001", fatal
        assert (contents(first, tables), definitions(first)) == (before, old), fatal
        first.dispose()
    assert fatal > 15  # As many deaths as there are statements
    check_database(first)
    assert contents(first, tables) == before
    if is_sqlite(first):
        copy = open_engine(f"sqlite:///{tmp_path}/database.db.before-{known_versions()[-1]}")
        assert contents(copy, tables) == before and columns_of(copy) == tables
        copy.dispose()
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def upgrade_and_die(engine: Engine, url: str, fatal: int) -> int:
    "The exit status of a child that upgrades and is killed after the statement `fatal`, or at the commit."
    engine.dispose()  # Connections must not be shared with a child
    seen = []

    def die(*_):
        seen.append(1)
        if len(seen) > fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def work():
        mine = open_engine(url)
        event.listen(mine, "after_cursor_execute", die)
        event.listen(mine, "commit", die)
        upgrade_database(mine)

    return in_a_child(work)


def test_sqlite_is_copied_first_and_told(tmp_path):
    workspace = tmp_path / "workspace"
    program = [
        sys.executable,
        "-c",
        "import sys; from classification_mlops.cli import main; sys.exit(main())",
    ]
    variables = os.environ | {"CMLOPS_WORKSPACE": str(workspace), "CMLOPS_LANG": "en"}
    variables.pop("CMLOPS_DATABASE_URL", None)
    workspace.mkdir()
    engine = open_engine(f"sqlite:///{workspace}/database.db")
    make_first_release(engine)
    tables = columns_of(engine)
    before = contents(engine, tables)
    engine.dispose()
    command = [*program, "init", str(workspace), "--json"]
    result = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    copy = f"{workspace}/database.db.before-{known_versions()[-1]}"
    assert copy in json.loads(result.stdout)["upgrade"]
    kept = open_engine(f"sqlite:///{copy}")
    with kept.connect() as connection:
        assert schema_version(connection) == "0001"
    assert contents(kept, tables) == before
    kept.dispose()
    ignored = (workspace / ".gitignore").read_text()
    assert re.search(r"^database\.db\*$", ignored, re.MULTILINE)  # The copy is not committed to git either


def test_an_empty_sqlite_database_is_not_copied(tmp_path):
    engine = open_engine(f"sqlite:///{tmp_path}/database.db")
    make_first_release(engine, rows=[])
    assert upgrade_database(engine) is None
    assert not list(tmp_path.glob("*.before-*"))
    check_database(engine)


def test_a_copy_that_cannot_be_made_is_said(tmp_path):
    engine = open_engine(f"sqlite:///{tmp_path}/database.db")
    make_first_release(engine)
    (tmp_path / f"database.db.before-{known_versions()[-1]}").mkdir()
    said = upgrade_database(engine)
    assert said.startswith("no copy at") and "\n" not in said
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    check_database(engine)


def test_a_full_disk_during_an_upgrade_is_one_line_and_changes_nothing(tmp_path):
    engine = open_engine(f"sqlite:///{tmp_path}/database.db")
    make_first_release(engine)
    tables = columns_of(engine)
    before = contents(engine, tables)
    engine.dispose()
    with closing(sqlite3.connect(tmp_path / "database.db")) as database:
        [pages] = database.execute("PRAGMA page_count").fetchone()
    limited = open_engine(f"sqlite:///{tmp_path}/database.db")
    limit = f"PRAGMA max_page_count = {pages}"
    event.listen(limited, "begin", lambda connection: connection.exec_driver_sql(limit))
    with pytest.raises(UserError, match="free some disk space") as error:
        upgrade_database(limited)
    assert "\n" not in str(error.value)
    limited.dispose()
    assert contents(engine, tables) == before
    upgrade_database(engine)
    check_database(engine)
