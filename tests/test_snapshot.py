"Snapshots: what differs between two, and the theme as it was at a run."

import csv
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from sqlalchemy import delete, select

from classification_mlops.config import SplitRatios
from classification_mlops.db.labels import add_label, list_labels, merge_labels, rename_label, set_label
from classification_mlops.db.models import record_model
from classification_mlops.db.past import find_run, restore_snapshot, rows_of_model, snapshot_rows
from classification_mlops.db.schema import Model, ModelTrainData, TrainData, utc_now
from classification_mlops.db.session import open_engine, reading, upgrade_database, writing
from classification_mlops.db.snapshot import (
    Change,
    SnapshotRow,
    change_table,
    compare_snapshots,
    read_snapshot,
    take_snapshot,
    write_snapshot,
)
from classification_mlops.db.split import split_theme
from classification_mlops.db.themes import create_theme
from classification_mlops.text import UsageError, UserError
from classification_mlops.workspace import Folders

pictures = some.dictionaries(
    some.integers(0, 40),
    some.tuples(some.sampled_from("ab傷"), some.sampled_from(["train", "valid", "test"])),
)


def rows_from(chosen: dict) -> list[SnapshotRow]:
    "Rows of a snapshot by number of the picture."
    return [
        SnapshotRow(f"{n:064x}", label, split, f"{n}.png", n, 1)
        for n, (label, split) in sorted(chosen.items())
    ]


@given(pictures, pictures)
@settings(max_examples=200, deadline=None)
def test_a_difference_is_what_sets_say(before, after):
    seen = []
    found = compare_snapshots(iter(rows_from(before)), iter(rows_from(after)), seen.append)
    both = before.keys() & after.keys()
    expected = {
        "added": len(after.keys() - before.keys()),
        "removed": len(before.keys() - after.keys()),
        "relabeled": sum(before[n][0] != after[n][0] for n in both),
        "moved": sum(before[n][1] != after[n][1] for n in both),
    }
    assert dict(found.counts) == expected
    assert found.unchanged == sum(before[n] == after[n] for n in both)
    assert (found.count_before, found.count_after) == (len(before), len(after))
    assert (found.hash_before == found.hash_after) == (before == after) == (not seen)
    assert sum(row["pictures"] for row in found.table()) == len(seen)
    back = compare_snapshots(rows_from(after), rows_from(before))
    assert [back.counts[kind] for kind in ("added", "removed")] == [expected["removed"], expected["added"]]


def test_a_long_difference_takes_no_memory():
    def rows(step):
        for number in range(0, 60_000, step):
            yield SnapshotRow(f"{number:064x}", "good", "train", "a.png", number, 1)

    compare_snapshots(rows(3000), rows(2000))  # Whatever is made once
    tracemalloc.start()
    found = compare_snapshots(rows(3), rows(2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.unchanged, found.counts["removed"], found.counts["added"]) == (10_000, 10_000, 20_000)
    assert peak < 200_000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"path,label\n",
        b"\xff\xfe" * 10,
        b"sha256,label,split,image_path,train_data_id,label_id\nabc,good\n",
        b"sha256,label,split,image_path,train_data_id,label_id\nabc,good,train,a.png,one,1\n",
        b"sha256,label,split,image_path,train_data_id,label_id\nabc,good,train," + b"a" * 200_000 + b",1,1\n",
        b"sha256,label,split,image_path,train_data_id,label_id\nb,g,train,a,1,1\na,g,train,a,1,1\n",
    ],
)
def test_a_damaged_manifest_is_one_line(tmp_path, content):
    (tmp_path / "snapshot.csv").write_bytes(content)
    with pytest.raises(UserError) as error:
        compare_snapshots(read_snapshot(tmp_path / "snapshot.csv"), [])
    assert "\n" not in str(error.value) and "snapshot" in str(error.value)


def test_changes_are_no_formulas(tmp_path):
    with change_table(tmp_path / "changes.csv") as note:
        compare_snapshots(
            rows_from({1: ("=1+1", "train"), 2: ("a", "test")}), rows_from({1: ("@x", "test")}), note
        )
    with (tmp_path / "changes.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == list(Change._fields)
    assert [line[0] for line in lines] == ["relabeled+moved", "removed"]
    assert lines[0][2:6] == ["'=1+1", "'@x", "train", "test"]


def test_an_interrupted_table_of_changes_is_not_there(tmp_path):
    with pytest.raises(RuntimeError), change_table(tmp_path / "changes.csv"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


# The theme at a run


def fill(session, name="screws", numbers=range(1, 31)):
    "A theme of pictures that take turns with three labels."
    theme = create_theme(session, name)
    labels = [add_label(session, theme, label) for label in ("good", "bent", "傷")]
    for number in numbers:
        facts = dict(image_path=f"images/{theme.id}/{number}.png", sha256=f"{number:064x}")
        session.add(TrainData(theme_id=theme.id, label_id=labels[number % 3].id, **facts))
        session.flush()  # In this order
    return theme


@pytest.fixture
def trained(engine, tmp_path):
    "A theme with a run, and what has happened since: everything that may."
    folders = Folders(tmp_path)
    with writing(engine) as session:
        theme = fill(session)
        split_theme(session, theme, SplitRatios(), 42, "ann")
        manifest = folders.runs / "f00d" / "snapshot.csv"
        snapshot = take_snapshot(session, theme, manifest)
        record_model(session, theme, "f00d", manifest)
    with writing(engine) as session:
        merge_labels(session, theme, "傷", "bent", "ben")
        rename_label(session, theme, "good", "fine")
        set_label(session, [3], None, "ben")
        session.get(TrainData, 4).deleted_at = utc_now()
        session.get(TrainData, 5).split = "test"
        fifth = session.get(TrainData, 5)
        fifth.image_path = "images/1/moved.png"
    return theme, folders, snapshot


def test_a_run_is_remembered_word_by_word(engine, trained, tmp_path):
    theme, folders, snapshot = trained
    with reading(engine) as session:
        rows = list(snapshot_rows(session, folders, theme, "run:f00d"))
        copy = list(snapshot_rows(session, folders, theme, str(folders.runs / "f00d" / "snapshot.csv")))
    assert rows == copy and {row.label for row in rows} == {"good", "bent", "傷"}
    assert write_snapshot(rows, tmp_path / "again.csv").hash == snapshot.hash


def test_without_its_folder_the_rows_remember_a_run(engine, trained):
    theme, folders, _ = trained
    before = list(read_snapshot(folders.runs / "f00d" / "snapshot.csv"))
    (folders.runs / "f00d" / "snapshot.csv").unlink()
    with reading(engine) as session:
        rows = list(snapshot_rows(session, folders, theme, "run:f00"))
    assert [row.sha256 for row in rows] == sorted(row.sha256 for row in rows)
    assert [row.split for row in rows] == [row.split for row in before]
    names = {"good": "fine"}  # The merged label keeps its row, and thus its name
    assert [row.label for row in rows] == [names.get(row.label, row.label) for row in before]


def test_the_past_is_restored_without_touching_the_theme(engine, trained, tmp_path):
    theme, folders, snapshot = trained
    facts = (TrainData.id, TrainData.label_id, TrainData.split, TrainData.deleted_at, TrainData.updated_at)
    with reading(engine) as session:
        before = session.execute(select(*facts)).all()
        rows = snapshot_rows(session, folders, theme, "run:f00d")
        restored = restore_snapshot(session, theme, rows, tmp_path / "again.csv")
        assert session.execute(select(*facts)).all() == before
    assert restored == snapshot
    again = {row.train_data_id: row for row in read_snapshot(tmp_path / "again.csv")}
    assert again[5].image_path == "images/1/moved.png" and again[4].split
    with writing(engine) as session:  # A second model on the same data
        model = record_model(session, theme, "beef", tmp_path / "again.csv")
        assert {row.label for row in rows_of_model(session, model)} == {"fine", "bent", "傷"}


def test_a_manifest_of_another_workspace_is_restored_by_content(engine, trained, tmp_path):
    _, folders, snapshot = trained
    other = open_engine(f"sqlite:///{tmp_path}/other.db")
    upgrade_database(other)
    with writing(other) as session:
        fill(session, "nuts", range(100, 110))
        theme = fill(session, "screws", range(40, 0, -1))
        rows = read_snapshot(folders.runs / "f00d" / "snapshot.csv")
        restored = restore_snapshot(session, theme, rows, tmp_path / "here.csv")
        assert (restored.hash, restored.count) == (snapshot.hash, 30)
        names = {label.id: label.label_name for label in list_labels(session, theme)}
        for row in read_snapshot(tmp_path / "here.csv"):
            picture = session.get(TrainData, row.train_data_id)
            assert (picture.sha256, picture.image_path) == (row.sha256, row.image_path)
            assert names[row.label_id] == row.label
    other.dispose()


@pytest.mark.parametrize(("wrong", "said"), [({"sha256": "f" * 64}, "gone.png"), ({"label": "new"}, "new")])
def test_what_is_not_here_is_not_restored(engine, trained, tmp_path, wrong, said):
    theme, folders, _ = trained
    [first, *_] = read_snapshot(folders.runs / "f00d" / "snapshot.csv")
    strange = first._replace(image_path="gone.png", train_data_id=999)._replace(**wrong)
    with reading(engine) as session, pytest.raises(UserError, match=f"{said} of the snapshot"):
        restore_snapshot(session, theme, [strange], tmp_path / "again.csv")
    assert not (tmp_path / "again.csv").exists()


def test_runs_are_found_or_refused(engine, trained):
    theme, folders, _ = trained
    with writing(engine) as session:
        other = fill(session, "nuts", range(1))
        session.add_all(Model(theme_id=theme.id, mlflow_run_id=name) for name in ("f00e", "%"))
        session.flush()
        assert find_run(session, theme, "f00d").mlflow_run_id == "f00d"
        assert find_run(session, theme, "%").mlflow_run_id == "%"
        for run, where in (("f00", theme), ("", theme), ("f00d", other), ("..", theme), ("f__d", theme)):
            with pytest.raises(UsageError) as error:
                snapshot_rows(session, folders, where, f"run:{run}")
            assert "\n" not in str(error.value)
        session.execute(delete(ModelTrainData))
        assert list(rows_of_model(session, find_run(session, theme, "f00d"))) == []


def test_a_run_is_read_as_a_stream(engine, tmp_path):
    "Rows of a model and rows of pictures are read at the same time through one session."
    folders = Folders(tmp_path)
    with writing(engine) as session:
        theme = fill(session, numbers=range(1, 1201))
        split_theme(session, theme, SplitRatios(), 42, "ann")
        snapshot = take_snapshot(session, theme, tmp_path / "first.csv")
        record_model(session, theme, "f00d", tmp_path / "first.csv")
    with reading(engine) as session:
        rows = snapshot_rows(session, folders, theme, "run:f00d")
        assert restore_snapshot(session, theme, rows, tmp_path / "again.csv") == snapshot
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "first.csv").read_bytes()
