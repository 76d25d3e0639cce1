"Checks find what is lost; repairs bring it back, and harm nothing when they are killed."

import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path

import pytest
from forked import in_a_child
from PIL import Image
from sqlalchemy import event, insert, select, update

from classification_mlops.db import repair
from classification_mlops.db.check import check_theme
from classification_mlops.db.labels import add_label
from classification_mlops.db.models import record_model
from classification_mlops.db.repair import repair_theme
from classification_mlops.db.schema import DuplicatePair, SplitBatch, TrainData, utc_now
from classification_mlops.db.session import is_sqlite, open_engine, reading, upgrade_database, writing
from classification_mlops.db.snapshot import take_snapshot
from classification_mlops.db.themes import create_theme, get_theme
from classification_mlops.images.store import TEMPORARY, store_images
from classification_mlops.text import UsageError, UserError
from classification_mlops.workspace import Workspace, init_folders

OLD = time.time() - 7200


class WithObjectStore(Workspace):
    "A workspace whose pictures are kept in object storage."

    @property
    def object_store(self) -> str:
        return os.environ["CMLOPS_IMAGES"]

    @property
    def allowed_uris(self) -> tuple:
        return (self.object_store,)


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return init_folders(tmp_path / "workspace")


def data_of(number: int, folder: Path) -> bytes:
    "The file of a small picture; kept in `folder`, under another name than in the store."
    path = folder / f"{number % 3}" / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 8), (number, 0, 99)).save(path)
    return path.read_bytes()


def fill(engine, workspace, folder: Path, name: str = "parts", numbers=range(9)) -> list[Path]:
    "A theme of stored pictures; their files in the order of the rows."
    files = [data_of(number, folder) for number in numbers]
    hashes = [sha256(data).hexdigest() for data in files]
    with writing(engine) as session:
        theme = create_theme(session, name)
        label = add_label(session, theme, "good").id
        triples = [(data, content, ".png") for data, content in zip(files, hashes, strict=True)]
        paths = store_images(workspace, theme.id, triples)
        for content, path in zip(hashes, paths, strict=True):
            facts = dict(theme_id=theme.id, label_id=label, sha256=content, image_path=path)
            session.execute(insert(TrainData).values(**facts))
    return [workspace.root / path for path in paths]


def counts(report) -> dict:
    return {kind: count for kind, count in report.counts.items() if count}


def rows(engine, *columns) -> list:
    with reading(engine) as session:
        return [tuple(row) for row in session.execute(select(*columns).order_by(TrainData.id))]


# Check


def test_every_kind_of_loss_is_found(engine, workspace, tmp_path):
    files = fill(engine, workspace, tmp_path / "source")
    told = []
    report = check_theme(engine, workspace, "parts", lambda *seen: told.append(seen))
    assert report.clean and report.checked == 9 and told == [(9, 9)] and counts(report) == {}
    files[0].unlink()
    files[1].write_bytes(files[2].read_bytes())
    files[3].write_bytes(b"")
    files[4].unlink()
    files[4].mkdir()
    orphan = files[5].with_name("f" * 64 + ".png")
    orphan.write_bytes(b"?")
    (files[5].parent / f"{TEMPORARY}x").touch()
    os.symlink("/etc/passwd", files[5].parent / "link.png")
    report = check_theme(engine, workspace, "parts")
    names = [path.relative_to(workspace.root).as_posix() for path in files]
    assert report.missing == [names[0], names[4]] and report.changed == [names[1], names[3]]
    assert [Path(path).name for path in sorted(report.orphaned)] == sorted([orphan.name, "link.png"])
    assert [Path(path).name for path in report.leftovers] == [f"{TEMPORARY}x"]
    assert not report.clean and "--repair --from" in report.summary()
    fast = check_theme(engine, workspace, "parts", fast=True)
    assert fast.missing == report.missing and fast.changed == []


def test_deleted_pictures_are_needed_by_models_only(engine, workspace, tmp_path):
    files = fill(engine, workspace, tmp_path / "source")
    with writing(engine) as session:
        theme = get_theme(session, "parts")
        session.execute(update(TrainData).where(TrainData.id <= 6).values(split="train"))
        take_snapshot(session, theme, tmp_path / "snapshot.csv")
        record_model(session, theme, "f00d", tmp_path / "snapshot.csv")
        session.execute(update(TrainData).values(deleted_at=utc_now()))
    for path in files:
        path.unlink()
    report = check_theme(engine, workspace, "parts")
    assert (report.checked, counts(report)) == (6, {"missing": 6})


def test_a_file_of_another_theme_or_place_is_no_orphan(engine, workspace, tmp_path):
    files = fill(engine, workspace, tmp_path / "source")
    with writing(engine) as session:
        other = create_theme(session, "others")
        session.execute(update(TrainData).where(TrainData.id == 1).values(theme_id=other.id, label_id=None))
        moved = update(TrainData).where(TrainData.id == 2)
        session.execute(moved.values(theme_id=other.id, label_id=None, image_path=str(files[1])))
    assert check_theme(engine, workspace, "parts").orphaned == []
    assert check_theme(engine, workspace, "others").clean


def test_pictures_in_place_are_checked_where_they_are(engine, workspace, s3_uri, tmp_path, monkeypatch):
    import fsspec

    roots = [s3_uri, str(tmp_path / "camera")]
    monkeypatch.setenv("CMLOPS_IMAGE_ROOTS", os.pathsep.join(roots))
    fill(engine, workspace, tmp_path / "source", numbers=range(6))
    good = data_of(100, tmp_path / "camera")
    places = [f"{s3_uri}/{name}.png" for name in ("good", "changed", "gone")]
    places += [
        str(tmp_path / "camera" / "1" / "100.png"),
        str(tmp_path / "elsewhere.png"),
        "s3://other/a.png",
    ]
    shutil.copy(places[3], places[4])
    with fsspec.open_files(places[:2], "wb") as written:
        written[0].write(data_of(0, tmp_path / "source"))
        written[1].write(good)
    with writing(engine) as session:
        for number, place in enumerate(places, 1):
            change = {"image_path": place} | ({"sha256": sha256(good).hexdigest()} if number == 4 else {})
            session.execute(update(TrainData).where(TrainData.id == number).values(**change))
    report = check_theme(engine, workspace, "parts")
    assert report.missing == [places[2], *places[4:]] and report.changed == [places[1]]
    assert check_theme(engine, workspace, "parts", fast=True).missing == report.missing


def test_an_object_store_is_looked_through(engine, workspace, s3_uri, tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("CMLOPS_IMAGES", f"{s3_uri}/pictures")
    fill(engine, workspace, tmp_path / "source", numbers=range(3))
    files = [data_of(number, tmp_path / "source") for number in range(3)]
    names = [sha256(data).hexdigest() for data in files]
    places = [f"{s3_uri}/pictures/1/{name[:2]}/{name}.png" for name in names]
    with fsspec.open_files([*places, f"{s3_uri}/pictures/1/ab/orphan.png"], "wb") as written:
        for file, data in zip(written, [*files, b"?"], strict=True):
            file.write(data)
    with writing(engine) as session:
        for number, place in enumerate(places, 1):
            session.execute(update(TrainData).where(TrainData.id == number).values(image_path=place))
    shutil.rmtree(workspace.images)
    remote = WithObjectStore(workspace.root)
    report = check_theme(engine, remote, "parts")
    assert report.clean and report.orphaned == [f"{s3_uri}/pictures/1/ab/orphan.png"]
    with fsspec.open_files(places[:2], "wb") as written:
        written[0].write(b"!" * len(files[0]))
        written[1].write(b"")
    result = repair_theme(engine, remote, "parts", folder=tmp_path / "source", delete_orphans=True)
    assert counts(result) == {"repaired": 2, "orphaned": 1}  # Objects are never deleted
    assert check_theme(engine, remote, "parts").clean


def test_rules_of_the_database(engine, workspace, tmp_path):
    fill(engine, workspace, tmp_path / "source")
    with writing(engine) as session:
        theme, other = get_theme(session, "parts"), create_theme(session, "others")
        batch = SplitBatch(theme_id=theme.id, ratios={}, seed=1, policy="x", actor="ann", counts={})
        gone = add_label(session, theme, "gone")
        session.add(batch)
        session.flush()
        gone.deleted_at = utc_now()
        wrong = [
            (1, {"golden": True, "split": "train"}),
            (2, {"split_batch_id": batch.id}),
            (3, {"cluster_id": 999}),
            (4, {"label_id": gone.id}),
            (5, {"golden": True, "split": "test", "split_batch_id": batch.id, "cluster_id": 5}),
            (6, {"golden": True, "split": "valid"}),
        ]
        for number, values in wrong:
            session.execute(update(TrainData).where(TrainData.id == number).values(**values))
        stranger = dict(theme_id=other.id, sha256="0" * 64, image_path="images/2/x.png")
        session.execute(insert(TrainData).values(**stranger))
        pair = dict(theme_id=theme.id, first_id=1, second_id=10, distance=1, similarity=1.0)
        session.execute(insert(DuplicatePair).values(**pair))
    report = check_theme(engine, workspace, "parts")
    assert [line.split()[1] for line in report.broken] == ["4", "1", "2", "3", "1"]
    assert "2 in all" in report.broken[1] and not report.clean
    assert check_theme(engine, workspace, "others").broken == []


def test_foreign_keys_that_another_program_broke(tmp_path):
    workspace = init_folders(tmp_path / "workspace")
    engine = open_engine(workspace.database_url)
    upgrade_database(engine)
    fill(engine, workspace, tmp_path / "source")
    with closing(sqlite3.connect(workspace.root / "database.db")) as database, database:
        database.execute("UPDATE train_data SET label_id = 77 WHERE id = 3")
    [line] = check_theme(engine, workspace, "parts").broken
    assert "row 3 of table train_data" in line


def test_statements_and_names_stay_few(engine, workspace, tmp_path):
    with writing(engine) as session:
        theme = create_theme(session, "parts")
        facts = [
            dict(theme_id=theme.id, sha256=f"{n:064x}", image_path=f"images/1/{n}") for n in range(11_000)
        ]
        session.execute(insert(TrainData), facts)
    statements = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    report = check_theme(engine, workspace, "parts", fast=True)
    assert report.counts["missing"] == 11_000 and len(report.missing) == 10_000
    assert len(report.summary().splitlines()) < 30 and len(statements) < 60


# Repair


def test_lost_files_come_back_from_anywhere(engine, workspace, tmp_path):
    files = fill(engine, workspace, tmp_path / "source")
    fill(engine, workspace, tmp_path / "source", "others", range(2))
    originals = [path.read_bytes() for path in files]
    files[0].unlink()
    files[1].write_bytes(b"!" * len(originals[1]))  # Of the same length
    os.rename(files[2], files[2].with_name("renamed.png"))
    files[3].write_bytes(b"")
    files[4].unlink()
    alone = repair_theme(engine, workspace, "parts")
    assert counts(alone) == {"missing": 1, "changed": 1, "repaired": 3}
    (tmp_path / "source" / "1" / "not a picture").write_bytes(b"?")
    os.mkfifo(tmp_path / "source" / "1" / "pipe.png")
    helped = repair_theme(engine, workspace, "parts", folder=tmp_path / "source")
    assert counts(helped) == {"repaired": 2} and helped.clean
    assert [path.read_bytes() for path in files] == originals
    assert counts(check_theme(engine, workspace, "parts")) == {}


def test_pictures_in_place_come_home_and_their_owner_keeps_his_files(
    engine, workspace, tmp_path, monkeypatch
):
    monkeypatch.setenv("CMLOPS_IMAGE_ROOTS", str(tmp_path / "camera"))
    files = fill(engine, workspace, tmp_path / "source", numbers=range(3))
    original = files[0].read_bytes()
    theirs = tmp_path / "camera" / "a.png"
    theirs.parent.mkdir()
    theirs.write_bytes(b"edited since")
    files[1].write_bytes(b"!" * files[1].stat().st_size)  # What lies at the new home already is damaged
    with writing(engine) as session:
        for number, place in enumerate((theirs, theirs.with_name("b.png")), 1):
            moved = update(TrainData).where(TrainData.id == number)
            session.execute(moved.values(image_path=str(place)))
    before = rows(engine, TrainData.id, TrainData.sha256, TrainData.label_id)
    report = repair_theme(engine, workspace, "parts", folder=tmp_path / "source")
    assert counts(report) == {"repaired": 2}
    assert [workspace.root / path for _, path in rows(engine, TrainData.id, TrainData.image_path)] == files
    assert rows(engine, TrainData.id, TrainData.sha256, TrainData.label_id) == before
    assert theirs.read_bytes() == b"edited since" and files[0].read_bytes() == original
    assert counts(check_theme(engine, workspace, "parts")) == {}


def test_orphans_are_deleted_on_request_when_old_and_nobodys(engine, workspace, tmp_path):
    files = fill(engine, workspace, tmp_path / "source")
    store = files[0].parent
    for name, age in (("young.png", time.time()), ("old.png", OLD), (f"{TEMPORARY}young", time.time())):
        (store / name).write_bytes(name.encode())
        os.utime(store / name, (age, age))
    (store / f"{TEMPORARY}old").touch()
    os.utime(store / f"{TEMPORARY}old", (OLD, OLD))
    os.symlink(tmp_path / "source" / "0" / "0.png", store / "link.png")
    for path in files:
        os.utime(path, (OLD, OLD))
    assert counts(repair_theme(engine, workspace, "parts")) == {"orphaned": 3, "leftovers": 1, "removed": 1}
    report = repair_theme(engine, workspace, "parts", delete_orphans=True)
    assert counts(report) == {"orphaned": 2, "leftovers": 1, "removed": 1}
    assert not (store / "old.png").exists() and (store / "young.png").exists()
    assert check_theme(engine, workspace, "parts").clean and (tmp_path / "source" / "0" / "0.png").exists()


def test_an_orphan_that_an_import_takes_over_stays(engine, workspace, tmp_path, monkeypatch):
    files = fill(engine, workspace, tmp_path / "source")
    orphan = files[0].with_name("e" * 64 + ".png")
    orphan.write_bytes(b"nobody's yet")
    os.utime(orphan, (OLD, OLD))
    last_look = repair.unknown_paths

    def looked(session, workspace, theme_id, paths):
        found = last_look(session, workspace, theme_id, paths)
        os.utime(orphan)  # As an import does that finds the file there
        return found

    monkeypatch.setattr(repair, "unknown_paths", looked)
    report = repair_theme(engine, workspace, "parts", delete_orphans=True)
    assert report.orphaned and orphan.exists()


def test_a_deleted_picture_gets_its_file_again(engine, workspace, tmp_path):
    files = fill(engine, workspace, tmp_path / "source")
    with writing(engine) as session:
        session.execute(update(TrainData).where(TrainData.id == 1).values(deleted_at=utc_now()))
    os.rename(files[0], files[1].with_name("moved.png"))
    assert counts(repair_theme(engine, workspace, "parts", delete_orphans=True)) == {"repaired": 1}
    assert files[0].exists() and counts(check_theme(engine, workspace, "parts")) == {}


def test_refusals_of_a_repair(engine, workspace, tmp_path):
    files = fill(engine, workspace, tmp_path / "source")
    files[0].unlink()
    with pytest.raises(UsageError, match="no folder"):
        repair_theme(engine, workspace, "parts", folder=tmp_path / "nowhere")
    with pytest.raises(UsageError, match="does not exist"):
        repair_theme(engine, workspace, "ports")
    shutil.rmtree(files[0].parent)
    files[0].parent.write_bytes(b"a file where a folder must be")
    with pytest.raises(UserError, match="cannot be stored") as error:
        repair_theme(engine, workspace, "parts", folder=tmp_path / "source")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("step", ["write_beside", "sync", "replace", "commit", "unlink"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_killed_repair_harms_nothing(tmp_path, step, moment, monkeypatch):
    monkeypatch.setenv("CMLOPS_IMAGE_ROOTS", str(tmp_path / "camera"))
    workspace = init_folders(tmp_path / "workspace")
    engine = open_engine(workspace.database_url)
    upgrade_database(engine)
    files = fill(engine, workspace, tmp_path / "source")
    fill(engine, workspace, tmp_path / "source", "others", range(2))
    originals = [path.read_bytes() for path in files]
    files[0].write_bytes(b"torn")
    os.rename(files[2], files[2].with_name("renamed.png"))
    files[3].unlink()
    with writing(engine) as session:
        moved = update(TrainData).where(TrainData.id == 4)
        session.execute(moved.values(image_path=str(tmp_path / "camera" / "gone.png")))
    engine.dispose()

    def fatal(work):
        def die(*arguments, **options):
            if moment == "after":
                with suppress(OSError):  # Perhaps there is nothing to do
                    work(*arguments, **options)
            os.kill(os.getpid(), signal.SIGKILL)

        return die

    def work():
        mine = open_engine(workspace.database_url)
        if step == "commit":
            listener = "commit" if moment == "before" else "after_cursor_execute"
            changed = fatal(lambda *_: None)
            wanted = lambda *seen: changed() if step == "commit" and _is_update(seen) else None  # noqa: E731
            event.listen(mine, listener, changed if moment == "before" else wanted)
        elif step == "replace":
            os.replace = fatal(os.replace)
        elif step == "unlink":
            os.unlink = fatal(os.unlink)
        else:
            setattr(repair, step, fatal(getattr(repair, step)))
        repair_theme(mine, workspace, "parts", folder=tmp_path / "source")

    assert in_a_child(work) == -signal.SIGKILL  # The fault fired
    for number, path in enumerate(files):
        if number not in (0, 2, 3):
            assert path.read_bytes() == originals[number]
    repair_theme(engine, workspace, "parts", folder=tmp_path / "source")
    report = check_theme(engine, workspace, "parts")
    assert report.clean and set(counts(report)) <= {"leftovers", "orphaned"}
    assert [path.read_bytes() for path in files] == originals
    assert is_sqlite(engine)


def _is_update(seen) -> bool:
    return len(seen) > 2 and str(seen[2]).startswith("UPDATE")
