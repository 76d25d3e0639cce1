"The database room on SQLite and on PostgreSQL: migrations, constraints, themes, labels, models, jobs."

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone

import pytest
from schemas import differences
from sqlalchemy import delete, event, func, inspect, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from classification_mlops.config import SplitRatios
from classification_mlops.db.jobs import change_status, create_job, get_job, heartbeat
from classification_mlops.db.labels import (
    add_label,
    delete_label,
    get_label,
    list_labels,
    merge_labels,
    set_label,
)
from classification_mlops.db.models import images_of_model, record_model
from classification_mlops.db.queries import class_counts, page_of_images, statistics, theme_counts
from classification_mlops.db.schema import Base, LabelEvent, Model, SplitBatch, Theme, TrainData
from classification_mlops.db.session import (
    check_database,
    is_sqlite,
    known_versions,
    open_engine,
    reading,
    upgrade_database,
    writing,
)
from classification_mlops.db.snapshot import read_snapshot, take_snapshot
from classification_mlops.db.split import split_theme
from classification_mlops.db.themes import create_theme, delete_theme, get_theme, list_themes, rename_theme
from classification_mlops.text import UsageError, UserError


def fill(session, numbers=range(12), labels=("good", "bent", "worn"), name="screws"):
    "A theme whose pictures take turns with the labels; returns it."
    theme = create_theme(session, name)
    rows = [add_label(session, theme, label) for label in labels]
    for number in numbers:
        facts = dict(image_path=f"images/{theme.id}/{number}.png", sha256=f"{number:064x}")
        session.add(TrainData(theme_id=theme.id, label_id=rows[number % len(rows)].id, **facts))
    session.flush()
    return theme


def line_of(error) -> str:
    "What a person reads, which must be one line."
    line = str(error.value)
    assert line and "\n" not in line
    return line


# Migrations


def constraints(engine) -> dict:
    "Everything that alembic does not compare: the checks by table."
    found = inspect(engine)
    return {
        table: sorted(check["name"] for check in found.get_check_constraints(table))
        for table in Base.metadata.tables
    }


def test_models_and_migrations_agree(engine):
    assert differences(engine) == []
    expected = {
        table.name: sorted(
            str(c.name)
            for c in table.constraints
            if c.__visit_name__ in ("check_constraint", "table_or_column_check_constraint")
        )
        for table in Base.metadata.tables.values()
    }
    assert constraints(engine) == expected


def test_sqlite_tables_are_the_same_either_way(tmp_path):
    def definitions(engine):
        with engine.begin() as connection:
            rows = connection.execute(
                text("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'schema_version%'")
            )
            return {
                name: sorted(filter(None, (sql or "").replace(",", "\n").splitlines())) for name, sql in rows
            }

    migrated, created = (open_engine(f"sqlite:///{tmp_path}/{name}.db") for name in ("migrated", "created"))
    upgrade_database(migrated)
    with created.begin() as connection:
        Base.metadata.create_all(connection)
    left, right = definitions(migrated), definitions(created)
    left.pop("sqlite_autoindex_schema_version_1", None)
    normal = {name: {line.strip() for line in lines} for name, lines in left.items()}
    assert normal == {name: {line.strip() for line in lines} for name, lines in right.items()}


def test_head_is_the_newest_known_version():
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    from classification_mlops.db.session import MIGRATIONS

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [known_versions()[-1]]


def test_upgrade_twice_changes_nothing(database_url):
    engine = open_engine(database_url)
    upgrade_database(engine)
    with writing(engine) as session:
        fill(session)
    said = []
    event.listen(engine, "before_cursor_execute", lambda *args: said.append(args[2]))
    upgrade_database(engine)
    assert said and not [
        line for line in said if line.startswith(("CREATE", "ALTER", "DROP", "INSERT", "UPDATE"))
    ]
    with reading(engine) as session:
        assert theme_counts(session) == {"screws": 12}


def test_upgrade_by_several_at_once(database_url):
    engines = [open_engine(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upgrade_database, engines))
    check_database(engines[0])


@pytest.mark.parametrize("statement", [0, 1, 20, "last"])
def test_killed_upgrade_leaves_nothing(tmp_path, statement):
    url = f"sqlite:///{tmp_path}/database.db"
    program = f"""
import os, signal
from sqlalchemy import event
from classification_mlops.db.session import open_engine, upgrade_database
engine, seen = open_engine({url!r}), []
@event.listens_for(engine, "after_cursor_execute")
def kill(connection, cursor, statement, *rest):
    if statement.strip().startswith(("CREATE", "INSERT")):
        seen.append(statement)
        last = {statement!r} == "last" and "INSERT INTO schema_version" in statement
        if last or len(seen) - 1 == {statement!r}:
            os.kill(os.getpid(), signal.SIGKILL)
upgrade_database(engine)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL  # The fault fired
    engine = open_engine(url)
    assert inspect(engine).get_table_names() == []
    upgrade_database(engine)
    check_database(engine)


def test_newer_schema_is_refused(engine):
    with writing(engine) as session:
        session.execute(text("UPDATE schema_version SET version_num = 'from the future'"))
    for act in (check_database, upgrade_database):
        with pytest.raises(UserError) as error:
            act(engine)
        assert "newer than this program" in line_of(error)


def test_missing_schema_says_init(database_url, tmp_path):
    engine = open_engine(database_url)
    with pytest.raises(UserError) as error:
        check_database(engine)
    assert "cmlops init" in line_of(error)
    assert not list(tmp_path.iterdir())  # Asking must not create a file


def test_tables_of_others_are_refused(database_url):
    engine = open_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE label (words TEXT)"))
    with pytest.raises(UserError) as error:
        upgrade_database(engine)
    assert "another program (label)" in line_of(error)


@pytest.mark.parametrize("content", [b"\x89PNG" * 2000, b"{}" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_not_a_database(tmp_path, content):
    path = tmp_path / "database.db"
    path.write_bytes(content)
    for act in (check_database, upgrade_database):
        with pytest.raises(UserError) as error:
            act(open_engine(f"sqlite:///{path}"))
        assert "not a readable SQLite database" in line_of(error)
    assert path.read_bytes() == content


def test_database_is_a_folder(tmp_path):
    with pytest.raises(UserError) as error:
        upgrade_database(open_engine(f"sqlite:///{tmp_path}"))
    assert "cannot be written" in line_of(error)


def test_full_disk_is_one_line_and_loses_nothing(tmp_path):
    engine = open_engine(f"sqlite:///{tmp_path}/database.db")
    upgrade_database(engine)
    with writing(engine) as session:
        theme = fill(session)
    engine.dispose()
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    limit = event.listens_for(engine, "begin")
    limit(lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}"))
    with pytest.raises(UserError) as error, writing(engine) as session:
        fill(session, range(5000), name="nuts")
    assert "free some disk space" in line_of(error)
    roomy = open_engine(f"sqlite:///{tmp_path}/database.db")
    with writing(roomy) as session:
        assert theme_counts(session) == {"screws": 12}
        fill(session, range(100), name="nuts")
    assert theme.id


def test_unreachable_server_hides_the_password():
    engine = open_engine("postgresql://ann:secret-canary@127.0.0.1:1/cmlops")
    with pytest.raises(UserError) as error, reading(engine) as session:
        list_themes(session)
    assert "does not answer" in line_of(error) and "canary" not in line_of(error)


# Sessions and constraints


def test_reader_cannot_write(engine):
    with (
        pytest.raises((UserError, DBAPIError), match=r"cannot be written|read-only"),
        reading(engine) as session,
    ):
        session.add(Theme(name="smuggled"))
        session.flush()
    with writing(engine) as session:
        assert list_themes(session) == []


def test_reader_sees_one_moment(engine):
    with writing(engine) as session:
        create_theme(session, "screws")
    with reading(engine) as reader:
        before = len(list_themes(reader))
        with writing(engine) as session:
            create_theme(session, "nuts")
        assert len(list_themes(reader)) == before == 1


def test_times_are_utc_whatever_goes_in(engine):
    noon = datetime(2030, 6, 1, 12, tzinfo=timezone(timedelta(hours=9)))
    with writing(engine) as session:
        session.add(Theme(name="screws", created_at=noon))
    with reading(engine) as session:
        [theme] = list_themes(session)
    assert theme.created_at == noon and theme.created_at.tzinfo == UTC
    assert abs(theme.updated_at - datetime.now(UTC)) < timedelta(minutes=5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"split": "valnd"},
        {"label_id": 999},
        {"split_batch_id": 999},
        {"theme_id": 999},
        {"sha256": f"{0:064x}"},
    ],
)
def test_wrong_rows_are_refused(engine, wrong):
    with writing(engine) as session:
        theme = fill(session)
    with pytest.raises(IntegrityError), writing(engine) as session:
        session.add(TrainData(**dict(theme_id=theme.id, image_path="x.png", sha256="b" * 64) | wrong))


def test_split_batch_of_another_theme_is_refused(engine):
    with writing(engine) as session:
        theme, other = fill(session), fill(session, name="nuts")
        split_theme(session, other, SplitRatios(), 42, "ann")
        foreign = session.scalar(select(SplitBatch.id).where(SplitBatch.theme_id == other.id))
    said = "FOREIGN KEY" if is_sqlite(engine) else f"split batch {foreign} is not one of the theme"
    with pytest.raises(IntegrityError, match=said), writing(engine) as session:
        session.execute(
            update(TrainData).where(TrainData.theme_id == theme.id).values(split_batch_id=foreign)
        )


def test_a_split_batch_stays_as_long_as_it_has_pictures(engine):
    with writing(engine) as session:
        theme = fill(session)
        split_theme(session, theme, SplitRatios(), 42, "ann")
    with pytest.raises(IntegrityError), writing(engine) as session:
        session.execute(delete(SplitBatch))
    with writing(engine) as session:
        session.execute(delete(Theme))  # The database itself takes all of it
    with reading(engine) as session:
        assert session.scalar(select(func.count()).select_from(SplitBatch)) == 0


def test_label_of_another_theme_is_refused(engine):
    with writing(engine) as session:
        theme, other = fill(session), fill(session, name="nuts")
        foreign = list_labels(session, other)[0]
    with pytest.raises(IntegrityError), writing(engine) as session:
        session.add(TrainData(theme_id=theme.id, image_path="x.png", sha256="b" * 64, label_id=foreign.id))
    with pytest.raises(UsageError), writing(engine) as session:
        set_label(session, [session.scalar(select(func.min(TrainData.id)))], foreign, "ann")


# Themes and labels


def test_hostile_names_stay_text(engine):
    names = ["'; DROP TABLE theme; --", "<script>alert(1)</script>", "ねじ 検査", "%s %d {0}", "😀" * 50]
    with writing(engine) as session:
        for name in names:
            create_theme(session, name.replace("/", "∕"), description=name)
    with reading(engine) as session:
        assert {theme.description for theme in list_themes(session)} == set(names)
        for theme in list_themes(session):
            assert get_theme(session, theme.name).id == theme.id


@pytest.mark.parametrize(
    "name", ["", " ", " a", "a ", "a\tb", "a\x00b", "a\u202eb", "a/b", "a\\b", "a:b", ".", "..", "a" * 101]
)
def test_bad_theme_names(engine, name):
    with pytest.raises(UsageError) as error, writing(engine) as session:
        create_theme(session, name)
    line_of(error)


def test_theme_names_are_unique_when_renamed(engine):
    with writing(engine) as session:
        create_theme(session, "screws"), create_theme(session, "nuts")
    with pytest.raises(UsageError, match="exists already"), writing(engine) as session:
        rename_theme(session, "nuts", "screws")
    with writing(engine) as session:
        assert [theme.name for theme in list_themes(session)] == ["nuts", "screws"]


def test_delete_theme_takes_all_of_it_and_no_more(engine, tmp_path):
    with writing(engine) as session:
        other = fill(session, name="nuts")
        theme = fill(session)
        for each in (other, theme):
            set_label(session, select_ids(session, each)[:5], list_labels(session, each)[2], "ann")
            split_theme(session, each, SplitRatios(), 42, "ann")
            take_snapshot(session, each, tmp_path / "snapshot.csv")
            record_model(session, each, f"run of {each.name}", tmp_path / "snapshot.csv")
    with pytest.raises(UserError, match="--force"), writing(engine) as session:
        delete_theme(session, "screws")
    with writing(engine) as session:
        job = create_job(session, "train", get_theme(session, "screws"), {})
    with pytest.raises(UserError, match="unfinished"), writing(engine) as session:
        delete_theme(session, "screws", force=True)
    with writing(engine) as session:
        change_status(session, job.id, "queued", "cancelled")
        assert delete_theme(session, "screws", force=True) == theme.id
    with reading(engine) as session:
        assert theme_counts(session) == {"nuts": 12}
        assert {row.theme_id for row in session.scalars(select(LabelEvent))} == {other.id}
        assert [row.theme_id for row in session.scalars(select(Model))] == [other.id]
        assert len(list(images_of_model(session, session.scalar(select(Model))))) == 12


def select_ids(session, theme) -> list[int]:
    return list(
        session.scalars(select(TrainData.id).where(TrainData.theme_id == theme.id).order_by(TrainData.id))
    )


def test_history_tells_every_change(engine):
    with writing(engine) as session:
        theme = fill(session)
        good, bent, _ = list_labels(session, theme)
        first = select_ids(session, theme)[0]
        set_label(session, [first], bent, "ann")
        set_label(session, [first], None, "bob", source="api")
        set_label(session, [first], good, "model 3", source="model")
        events = session.scalars(select(LabelEvent).order_by(LabelEvent.id)).all()
        row = session.get(TrainData, first)
    assert [(e.old_label_id, e.new_label_id, e.source) for e in events] == [
        (good.id, bent.id, "human"),
        (bent.id, None, "api"),
        (None, good.id, "model"),
    ]
    assert (row.label_id, row.labeled_by) == (good.id, "model 3")


def test_thousands_are_labeled_in_chunks(engine):
    with writing(engine) as session:
        theme = fill(session, range(2500))
        worn = get_label(session, theme, "worn")
        assert set_label(session, select_ids(session, theme), worn, "ann") == 2500 - 833
        assert class_counts(session, theme)["worn"]["unsplit"] == 2500


def test_merge_keeps_history_and_lineage(engine, tmp_path):
    with writing(engine) as session:
        theme = fill(session)
        split_theme(session, theme, SplitRatios(), 42, "ann")
        take_snapshot(session, theme, tmp_path / "snapshot.csv")
        model = record_model(session, theme, "f00d", tmp_path / "snapshot.csv")
        assert merge_labels(session, theme, "worn", "bent", "ann") == 4
    with writing(engine) as session:
        assert [label.label_name for label in list_labels(session, theme)] == ["good", "bent"]
        assert {row.label for row in images_of_model(session, model)} == {"good", "bent", "worn"}
        with pytest.raises(UsageError):
            get_label(session, theme, "worn")
        with pytest.raises(UserError):
            delete_label(session, theme, "bent")
        assert add_label(session, theme, "worn").position == 3


# Queries, snapshots, models, jobs


def test_pages_cover_everything_once(engine):
    with writing(engine) as session:
        theme = fill(session, range(50))
        fill(session, range(50), name="nuts")
        split_theme(session, theme, SplitRatios(), 42, "ann")
        set_label(session, select_ids(session, theme)[:7], None, "ann")
        for choice in (
            {},
            {"unlabeled": True},
            {"label": "good"},
            {"split": "test"},
            {"label": "bent", "split": "train"},
        ):
            seen, after = [], 0
            while page := page_of_images(session, theme, after_id=after, limit=3, **choice):
                seen += [row["id"] for row in page]
                after = seen[-1]
            assert seen == sorted(set(seen))
            assert len(seen) == len(page_of_images(session, theme, limit=1000, **choice)) > 0
        assert statistics(session, theme)["unlabeled"] == 7


def test_deleted_pictures_are_not_counted(engine, tmp_path):
    with writing(engine) as session:
        theme = fill(session)
        split_theme(session, theme, SplitRatios(), 42, "ann")
        session.get(TrainData, select_ids(session, theme)[0]).deleted_at = datetime.now(UTC)
        session.flush()
        assert statistics(session, theme)["pictures"] == 11
        assert take_snapshot(session, theme, tmp_path / "snapshot.csv").count == 11
        with pytest.raises(UsageError):
            set_label(session, select_ids(session, theme)[:1], None, "ann")


def test_snapshot_is_the_same_on_every_database(engine, tmp_path):
    with writing(engine) as session:
        theme = fill(session, range(30))
        split_theme(session, theme, SplitRatios(), 42, "ann")
        snapshot = take_snapshot(session, theme, tmp_path / "snapshot.csv")
    rows = list(read_snapshot(tmp_path / "snapshot.csv"))
    assert (snapshot.count, len(rows)) == (30, 30)
    assert snapshot.hash == "dfdd82543f648aac45e535eca183ef7fce6e9e0c17de0f82bfe37d6ebb4c696c"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_record_model_twice(engine, tmp_path):
    with writing(engine) as session:
        theme = fill(session)
        split_theme(session, theme, SplitRatios(), 42, "ann")
        take_snapshot(session, theme, tmp_path / "snapshot.csv")
    numbers = []
    for _ in range(2):
        with writing(engine) as session:
            numbers.append(record_model(session, theme, "f00d", tmp_path / "snapshot.csv").id)
    assert len(set(numbers)) == 1
    (tmp_path / "strange.csv").write_text((tmp_path / "snapshot.csv").read_text().replace(",1,", ",77777,"))
    with pytest.raises(UserError, match="not in the database"), writing(engine) as session:
        record_model(session, theme, "beef", tmp_path / "strange.csv")


def test_job_moves_once(engine):
    with writing(engine) as session:
        theme = fill(session)
        job = create_job(session, "train", theme, {"trainer.max_epochs": 3}, "host:1:2")
    with writing(engine) as session:
        assert change_status(session, job.id, "queued", "running")
        assert not change_status(session, job.id, "queued", "running")
        assert heartbeat(session, job.id, {"epoch": 1})
        assert change_status(session, job.id, "running", "failed", error="no pictures")
        assert not heartbeat(session, job.id, {"epoch": 2})
    with reading(engine) as session:
        ended = get_job(session, job.id)
    assert (ended.status, ended.progress, ended.error) == ("failed", {"epoch": 1}, "no pictures")
    assert ended.started_at <= ended.finished_at


def test_split_batch_says_what_was_done(engine):
    with writing(engine) as session:
        theme = fill(session, range(40))
        batch = split_theme(session, theme, SplitRatios(), 7, "ann")
    with reading(engine) as session:
        stored = session.get(SplitBatch, batch.id)
        marked = session.scalar(select(func.count()).where(TrainData.split_batch_id == batch.id))
    assert stored.ratios == {"train": 0.7, "valid": 0.15, "test": 0.15}
    assert (stored.seed, stored.actor, sum(stored.counts.values()), marked) == (7, "ann", 40, 40)


def test_import_is_light():
    rooms = ["labels", "split", "snapshot", "queries", "models", "jobs"]
    imports = "; ".join(f"import classification_mlops.db.{room}" for room in rooms)
    heavy = "{'alembic', 'torch', 'mlflow', 'numpy', 'pandas', 'PIL', 'cv2'}"
    program = f"import sys; {imports}; print(*{heavy} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == ""
    )


def test_what_the_server_was_told_about_its_disks_stays(postgres_url):
    for more, cost in (("", "1.1"), ("&options=-c%20random_page_cost%3D3", "3")):
        engine = open_engine(postgres_url + more)
        with reading(engine) as session:
            assert session.scalar(text("SHOW random_page_cost")) == cost
        engine.dispose()
