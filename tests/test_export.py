"What leaves comes back as the same data, whatever it is called; what is interrupted does not look complete."

import csv
import io
import os
import resource
import shutil
import signal
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
from forked import in_a_child
from hypothesis import given, settings
from hypothesis import strategies as some
from PIL import Image
from sqlalchemy import insert, select, update

from classification_mlops.config import SplitRatios
from classification_mlops.db import export
from classification_mlops.db.export import (
    FORMATS,
    Choice,
    ExportRow,
    export_theme,
    exported_path,
    folder_names,
)
from classification_mlops.db.ingest import ImportOptions, import_source
from classification_mlops.db.labels import add_label, get_label, merge_labels, rename_label, set_label
from classification_mlops.db.models import record_model
from classification_mlops.db.schema import Label, TrainData, utc_now
from classification_mlops.db.session import open_engine, reading, upgrade_database, writing
from classification_mlops.db.snapshot import take_snapshot
from classification_mlops.db.split import split_theme
from classification_mlops.db.themes import create_theme, get_theme
from classification_mlops.images.sources import SourceOptions
from classification_mlops.images.store import store_images
from classification_mlops.images.tables import plain_text
from classification_mlops.text import UsageError, UserError
from classification_mlops.workspace import Workspace, init_folders

LABELS = ["良品", "曲がり / 傷", "曲がり \\ 傷", "=1+1", "CON", "Bent", "bent", "😀 ok", "a, \"b\" 'c'"]
NAMES = [
    "傷 😀.png",
    "=1+1.png",
    "-x.png",
    "a, \"b\" 'c'.png",
    "'@x.png",
    "line\\nfeed.png",
    "n" * 200 + ".png",
]


def picture(path: Path, number: int) -> Path:
    "A small picture whose pixels say its number."
    path.parent.mkdir(parents=True, exist_ok=True)
    color = (number % 256, number // 256, 99)
    Image.new("RGB", (8 + number % 5, 8), color).save(path)
    return path


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return init_folders(tmp_path / "workspace")


def fill(engine, workspace, folder: Path, name: str = "parts", count: int = 40):
    "A theme with hostile labels, names, groups, golden and unlabeled pictures, split."
    files = [picture(folder / f"{number}.png", number).read_bytes() for number in range(count)]
    hashes = [sha256(data).hexdigest() for data in files]
    with writing(engine) as session:
        theme = create_theme(session, name)
        labels = [add_label(session, theme, label).id for label in LABELS]
        named = zip(files, hashes, strict=True)
        paths = store_images(workspace, theme.id, [(data, content, ".png") for data, content in named])
        for number, (content, path) in enumerate(zip(hashes, paths, strict=True)):
            label = None if number % 10 == 7 else labels[number % len(labels)]
            facts = {"theme_id": theme.id, "sha256": content, "image_path": path, "label_id": label}
            facts |= {"labeled_by": label and ["ann", "@ben", "検査員"][number % 3], "width": 8 + number % 5}
            facts |= {"height": 8, "original_name": NAMES[number % len(NAMES)]}
            group = [None, "=lot 7", "ロット", f"'{number}"][number % 4] if number < 12 else None
            session.execute(insert(TrainData).values(group_key=group, **facts))
        split_theme(session, theme, SplitRatios(), 42, "ann")
        own = TrainData.theme_id == theme.id, TrainData.split == "test"
        test = session.scalars(select(TrainData.id).where(*own).order_by(TrainData.sha256)).all()
        session.execute(update(TrainData).where(TrainData.id.in_(test[:2])).values(golden=True))


def facts_of(engine, name: str) -> list:
    "Everything that people decided or know about the pictures of a theme."
    columns = (TrainData.sha256, Label.label_name, TrainData.split, TrainData.labeled_by, TrainData.group_key)
    columns += (TrainData.golden, TrainData.width, TrainData.height, TrainData.original_name)
    query = select(*columns).join(Label, Label.id == TrainData.label_id, isouter=True)
    with reading(engine) as session:
        chosen = TrainData.theme_id == get_theme(session, name).id, TrainData.deleted_at.is_(None)
        return [tuple(row) for row in session.execute(query.where(*chosen).order_by(TrainData.sha256))]


def snapshot_hash(engine, name: str, folder: Path) -> str:
    with reading(engine) as session:
        return take_snapshot(session, get_theme(session, name), folder / "snapshot.csv").hash


def manifest_of(target: Path, format: str) -> list[dict]:
    "The rows of the manifest of an export, as an import reads them."
    if format == "parquet":
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(target).to_pylist()
        return [{key: value for key, value in row.items() if value is not None} for row in rows]
    if format == "zip":
        text = zipfile.ZipFile(target).read("manifest.csv").decode()
    else:
        text = (target / "manifest.csv" if format == "folders" else target).read_text(encoding="utf-8")
    rows = csv.DictReader(io.StringIO(text, newline=""))
    plain = [{key: plain_text(value) for key, value in row.items() if value} for row in rows]
    return [row | {"golden": row.get("golden") == "true"} for row in plain]


def import_again(engine, workspace, name: str, target: Path):
    "Import an export into a new theme."
    with writing(engine) as session:
        create_theme(session, name)
    options = ImportOptions(SourceOptions(split_from="column"), create_labels=True, workers=1)
    report = import_source(engine, workspace, name, target, options, actor="eve")
    assert not report.rejected and not report.conflicts


def target_of(tmp_path: Path, format: str) -> Path:
    return tmp_path / ("out" if format == "folders" else f"out.{format}")


# Round trips


@pytest.mark.parametrize("format", FORMATS)
def test_an_import_of_an_export_is_the_same_data(engine, workspace, tmp_path, format):
    fill(engine, workspace, tmp_path / "source")
    before, target = snapshot_hash(engine, "parts", tmp_path), target_of(tmp_path, format)
    told = []
    result = export_theme(
        engine, workspace, "parts", target, None, Choice(unlabeled=True), lambda *seen: told.append(seen)
    )
    assert (result.count, result.hash, result.format) == (40, before, format)
    assert told == [(number, 40) for number in range(1, 41)]
    import_again(engine, workspace, "copy", target)
    assert facts_of(engine, "copy") == facts_of(engine, "parts")
    assert snapshot_hash(engine, "copy", tmp_path) == before


def test_every_exported_file_is_its_original(engine, workspace, tmp_path):
    fill(engine, workspace, tmp_path / "source")
    export_theme(engine, workspace, "parts", tmp_path / "out", choice=Choice(unlabeled=True))
    export_theme(engine, workspace, "parts", tmp_path / "out.zip", choice=Choice(unlabeled=True))
    originals = {path.read_bytes() for path in (tmp_path / "source").glob("*.png")}
    files = {
        path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*.png")
    }
    assert {path.read_bytes() for path in files.values()} == originals
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.testzip() is None and archive.namelist()[-1] == "manifest.csv"
        assert {name: archive.read(name) for name in files} == {n: p.read_bytes() for n, p in files.items()}
    manifest = (tmp_path / "out" / "manifest.csv").read_bytes()
    assert zipfile.ZipFile(tmp_path / "out.zip").read("manifest.csv") == manifest
    for row in manifest_of(tmp_path / "out", "folders"):
        assert sha256(files[row["path"]].read_bytes()).hexdigest() == row["sha256"]
        assert row["path"].split("/")[0] == row.get("split", "unsplit")
    for line in csv.reader(io.StringIO(manifest.decode())):
        assert not [field for field in line if field.startswith(("=", "+", "-", "@", "\t", "\r"))]


def test_equal_themes_give_equal_archives(engine, workspace, tmp_path):
    fill(engine, workspace, tmp_path / "source")
    export_theme(engine, workspace, "parts", tmp_path / "first.zip", choice=Choice(unlabeled=True))
    export_theme(engine, workspace, "parts", tmp_path / "table.parquet", choice=Choice(unlabeled=True))
    other = init_folders(tmp_path / "other")
    elsewhere = open_engine(other.database_url)
    upgrade_database(elsewhere)
    with writing(elsewhere) as session:
        create_theme(session, "nuts")
    import_again(elsewhere, other, "parts", tmp_path / "first.zip")
    export_theme(elsewhere, other, "parts", tmp_path / "second.zip", choice=Choice(unlabeled=True))
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()
    elsewhere.dispose()


def test_pictures_in_object_storage_leave_too(engine, workspace, s3_uri, tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("CMLOPS_IMAGE_ROOTS", s3_uri)
    data = picture(tmp_path / "a.png", 3).read_bytes()
    with fsspec.open(f"{s3_uri}/lot 7/傷.png", "wb") as file:
        file.write(data)
    with writing(engine) as session:
        theme = create_theme(session, "parts")
        label = add_label(session, theme, "good")
        facts = dict(theme_id=theme.id, label_id=label.id, split="train", sha256=sha256(data).hexdigest())
        session.execute(insert(TrainData).values(image_path=f"{s3_uri}/lot 7/傷.png", **facts))
    before = snapshot_hash(engine, "parts", tmp_path)
    for format in FORMATS:
        target = target_of(tmp_path, format)
        assert export_theme(engine, workspace, "parts", target).hash == before
    [copy] = (tmp_path / "out").rglob("*.png")
    assert copy.read_bytes() == data and zipfile.ZipFile(tmp_path / "out.zip").testzip() is None
    import_again(engine, workspace, "copy", tmp_path / "out.csv")
    assert snapshot_hash(engine, "copy", tmp_path) == before


# The past, and parts


def test_a_run_leaves_as_it_was_trained(engine, workspace, tmp_path):
    fill(engine, workspace, tmp_path / "source")
    with writing(engine) as session:
        session.execute(update(TrainData).values(golden=False))
        theme = get_theme(session, "parts")
        manifest = workspace.runs / "f00d" / "snapshot.csv"
        trained = take_snapshot(session, theme, manifest)
        record_model(session, theme, "f00d", manifest)
    before = facts_of(engine, "parts")
    with writing(engine) as session:
        merge_labels(session, theme, "Bent", "bent", "eve")
        rename_label(session, theme, "良品", "good")
        ids = session.scalars(select(TrainData.id).where(TrainData.theme_id == theme.id)).all()
        set_label(session, ids[20:25], get_label(session, theme, "CON"), "eve")
        gone = update(TrainData).where(TrainData.id.in_(ids[:5])).values(deleted_at=utc_now())
        session.execute(gone.execution_options(synchronize_session=False))
    result = export_theme(engine, workspace, "parts", tmp_path / "out", choice=Choice(run="f00d"))
    assert (result.hash, result.count) == (trained.hash, trained.count)
    import_again(engine, workspace, "copy", tmp_path / "out")
    assert snapshot_hash(engine, "copy", tmp_path) == trained.hash
    then = {row[0]: row for row in before if row[1] and row[2]}
    for row in facts_of(engine, "copy"):
        assert row[:3] + row[4:] == then[row[0]][:3] + then[row[0]][4:]
    assert {row[3] for row in facts_of(engine, "copy")} == {"ann", "@ben", "検査員", "eve"}
    manifest.unlink()  # The database remembers, with the names of today
    export_theme(engine, workspace, "parts", tmp_path / "rows.csv", choice=Choice(run="f00d"))
    assert {row["label"] for row in manifest_of(tmp_path / "rows.csv", "csv")} >= {"good", "Bent", "bent"}


@pytest.mark.parametrize(
    ("choice", "fits"),
    [
        (Choice(), lambda label, split: label),
        (Choice(unlabeled=True), lambda label, split: True),
        (Choice(("=1+1", "CON")), lambda label, split: label in ("=1+1", "CON")),
        (Choice(("CON",), "train", True), lambda label, split: label in (None, "CON") and split == "train"),
        (Choice(split="unsplit", unlabeled=True), lambda label, split: split is None),
    ],
)
def test_a_choice_is_what_it_says(engine, workspace, tmp_path, choice, fits):
    fill(engine, workspace, tmp_path / "source")
    expected = [row for row in facts_of(engine, "parts") if fits(row[1], row[2])]
    assert expected
    assert export_theme(engine, workspace, "parts", tmp_path / "out.csv", choice=choice).count == len(
        expected
    )
    found = [
        (row["sha256"], row.get("label"), row.get("split"))
        for row in manifest_of(tmp_path / "out.csv", "csv")
    ]
    assert found == [row[:3] for row in expected]


def test_an_export_is_one_moment(engine, workspace, tmp_path):
    "Who labels meanwhile is not disturbed, and changes nothing in what leaves."
    fill(engine, workspace, tmp_path / "source")
    with writing(engine) as session:
        session.execute(update(TrainData).values(golden=False))
    before, facts = snapshot_hash(engine, "parts", tmp_path), facts_of(engine, "parts")

    def disturb(done, total):
        with writing(engine) as session:
            theme = get_theme(session, "parts")
            ids = session.scalars(select(TrainData.id).where(TrainData.theme_id == theme.id)).all()
            set_label(session, ids, get_label(session, theme, LABELS[done % len(LABELS)]), "eve")

    result = export_theme(
        engine, workspace, "parts", tmp_path / "out.zip", None, Choice(unlabeled=True), disturb
    )
    assert result.hash == before != snapshot_hash(engine, "parts", tmp_path)
    labels = [(row["sha256"], row.get("label")) for row in manifest_of(tmp_path / "out.zip", "zip")]
    assert labels == [row[:2] for row in facts]


# Names


@given(some.sets(some.text(min_size=1, max_size=100), max_size=12))
@settings(max_examples=200, deadline=None)
def test_any_labels_get_folders_of_their_own(labels):
    folders = folder_names(labels | {None})
    assert len({name.casefold() for name in folders.values()}) == len(labels) + 1
    for name in folders.values():
        assert name not in ("", ".", "..") and not set(name) & set('/\\\0<>:"|?*\n') and name[0] not in ".-"
        assert len(name.encode()) < 143 and not name.endswith((" ", "."))


@given(some.text())
@settings(max_examples=200, deadline=None)
def test_no_path_of_the_database_chooses_the_name_of_a_file(image_path):
    row = ExportRow("a" * 64, "good", "train", None, None, False, None, None, None, image_path)
    path = exported_path(row, folder_names(["good"]))
    assert path.startswith("train/good/" + "a" * 32) and path.count("/") == 2 and len(path) < 60


# Refusals and faults


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(("out", "new", ".")))


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_written_over(engine, workspace, tmp_path, format):
    fill(engine, workspace, tmp_path / "source", count=12)
    target = target_of(tmp_path, format)
    export_theme(engine, workspace, "parts", target)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for _ in range(2):
        with pytest.raises(UsageError, match="choose another"):
            export_theme(engine, workspace, "parts", target)
        with pytest.raises(UsageError, match="choose another"):
            export_theme(engine, workspace, "parts", tmp_path / "source" / "1.png", format)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_misuse_is_said_before_anything_is_written(engine, workspace, tmp_path):
    fill(engine, workspace, tmp_path / "source", count=12)
    wrong = [
        ("parts", None, Choice(("gud",)), "gud"),
        ("parts", None, Choice(split="trian"), "trian"),
        ("parts", "tar", Choice(), "tar"),
        ("ports", None, Choice(), "ports"),
        ("parts", None, Choice(run="beef"), "beef"),
    ]
    for theme, format, choice, named in wrong:
        with pytest.raises(UsageError, match=named) as error:
            export_theme(engine, workspace, theme, tmp_path / "new" / "out", format, choice)
        assert "\n" not in str(error.value)
    assert leftovers(tmp_path) == []


def test_an_empty_folder_is_filled_in_place(engine, workspace, tmp_path):
    fill(engine, workspace, tmp_path / "source", count=12)
    (tmp_path / "out").mkdir()
    same = (tmp_path / "out").stat().st_ino
    export_theme(engine, workspace, "parts", tmp_path / "out")
    assert (tmp_path / "out").stat().st_ino == same  # A shell that stands in it still does
    assert (tmp_path / "out" / "manifest.csv").exists()


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    "A workspace with a filled SQLite database."
    workspace = init_folders(tmp_path_factory.mktemp("template") / "workspace")
    engine = open_engine(workspace.database_url)
    upgrade_database(engine)
    fill(engine, workspace, workspace.root.parent / "source", count=20)
    engine.dispose()
    return workspace.root


@pytest.fixture
def local(template, tmp_path) -> Workspace:
    "A copy of the template: what is tried with its export does not depend on the database."
    shutil.copytree(template, tmp_path / "workspace")
    (tmp_path / "source").mkdir()
    return Workspace(tmp_path / "workspace")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("moment", [1, 7, 18, "sync", "manifest"])
def test_a_killed_export_does_not_look_complete(local, tmp_path, format, moment):
    target = target_of(tmp_path, format)

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def work():
        if moment == "sync":
            os.fsync = export.sync = die
        if moment == "manifest":  # The last file that comes to its place
            rename, replace = os.rename, Path.replace
            os.rename = lambda old, new: die() if str(new).endswith("manifest.csv") else rename(old, new)
            Path.replace = lambda old, new: die() if str(new) == str(target) else replace(old, new)
        engine = open_engine(local.database_url)
        export_theme(engine, local, "parts", target, progress=lambda n, _: die() if n == moment else None)

    assert in_a_child(work) == -signal.SIGKILL  # The fault fired
    assert not (target / "manifest.csv").exists() and not target.is_file()
    again = target
    if format == "folders":  # Its remains are named, not mixed with
        with pytest.raises(UsageError, match="interrupted"):
            export_theme(open_engine(local.database_url), local, "parts", target)
        shutil.rmtree(target)
    assert export_theme(open_engine(local.database_url), local, "parts", again).count == 18


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_is_one_line_and_leaves_nothing(local, tmp_path, format):
    target, said = target_of(tmp_path, format), tmp_path / "source" / "said"
    engine = open_engine(local.database_url)
    rows = [
        dict(theme_id=1, label_id=1, split="train", sha256=f"{n:064x}", image_path=f"images/1/{'x' * 200}{n}")
        for n in range(600)
    ]
    if format in ("folders", "zip"):  # A table needs many pictures to become long, these need one
        data = os.urandom(100_000)
        [path] = store_images(local, 1, [(data, sha256(data).hexdigest(), ".png")])
        rows = [dict(rows[0], sha256=sha256(data).hexdigest(), image_path=path)]
    with writing(engine) as session:
        session.execute(insert(TrainData), rows)
    engine.dispose()

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, 80_000))
        try:
            export_theme(open_engine(local.database_url), local, "parts", target, format)
        except UserError as error:
            said.write_text(str(error))

    assert in_a_child(work) == 0
    line = said.read_text()
    assert "cannot be written" in line and "File too large" in line and "\n" not in line
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("format", ["folders", "zip"])
@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_lost_picture_ends_an_export_with_its_name(local, tmp_path, format, damage):
    lost = sorted(local.images.rglob("*.png"))[5]
    lost.unlink() if damage == "gone" else lost.write_bytes(b"rotten")
    with pytest.raises(UserError, match=lost.name):
        export_theme(
            open_engine(local.database_url),
            local,
            "parts",
            target_of(tmp_path, format),
            choice=Choice(unlabeled=True),
        )
    assert leftovers(tmp_path) == []
