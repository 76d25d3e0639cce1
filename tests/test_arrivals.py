"Imports: in place, into a storage, with published splits, from believed tables; what interrupts them."

import csv
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sqlalchemy import func, select, text

from classification_mlops.config import SplitRatios
from classification_mlops.db.check import check_theme
from classification_mlops.db.import_report import write_report
from classification_mlops.db.ingest import ImportOptions, import_folder, import_source, register_source
from classification_mlops.db.labels import add_label, get_label, set_label
from classification_mlops.db.leaks import leak_score
from classification_mlops.db.schema import Label, LabelEvent, SplitBatch, TrainData
from classification_mlops.db.session import reading, writing
from classification_mlops.db.split import split_theme
from classification_mlops.db.themes import create_theme, get_theme
from classification_mlops.images.decode import picture_of
from classification_mlops.images.plain_png import plain_pixels
from classification_mlops.images.sources import SourceOptions
from classification_mlops.images.store import TEMPORARY, read_image, stored_paths
from classification_mlops.text import UsageError, UserError
from classification_mlops.workspace import Workspace, init_folders

ROUNDS = int(os.environ.get("CMLOPS_KILLS", "2"))  # More of them find rarer moments
NOTHING = {"label_from": "none"}


def picture(path: Path, number: int, format="PNG") -> Path:
    "Write a picture that no other number has."
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 255, (8, 9), np.uint8)
    Image.fromarray(pixels).save(path, format)
    return path


@pytest.fixture(params=["local"])
def workspace(request, tmp_path, monkeypatch) -> Workspace:
    "Pictures are kept in a folder or, where a test asks for both, in a bucket."
    if request.param == "s3":
        monkeypatch.setenv("CMLOPS_IMAGES", request.getfixturevalue("s3_uri") + "/kept")
    return init_folders(tmp_path / "workspace")


EVERYWHERE = pytest.mark.parametrize("workspace", ["local", "s3"], indirect=True)
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def theme(engine) -> str:
    with writing(engine) as session:
        create_theme(session, "parts")
    return "parts"


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    "Six pictures in three class folders, where the workspace may read."
    for number in range(6):
        picture(tmp_path / "source" / ("good", "bad", "傷")[number % 3] / f"{number}.png", number)
    monkeypatch.setenv("CMLOPS_IMAGE_ROOTS", str(tmp_path / "source"))
    return tmp_path / "source"


def options(in_place=False, workers=1, **meaning) -> ImportOptions:
    return ImportOptions(SourceOptions(**meaning), create_labels=True, in_place=in_place, workers=workers)


def rows_of(engine, *columns, theme="parts"):
    with reading(engine) as session:
        chosen = TrainData.theme_id == get_theme(session, theme).id, TrainData.deleted_at.is_(None)
        query = select(*columns).join(Label, Label.id == TrainData.label_id, isouter=True)
        return session.execute(query.where(*chosen).order_by(TrainData.id)).all()


def paths_of(engine, theme="parts") -> list[str]:
    return [path for (path,) in rows_of(engine, TrainData.image_path, theme=theme)]


def state_of(folder: Path) -> dict:
    "Everything that an import must not change."
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode) for path in files}


def assert_sound(engine, workspace, theme="parts"):
    "Rows, files and hashes agree, every label has its event, and nothing temporary is left."
    found = check_theme(engine, workspace, theme)
    assert (found.missing, found.changed) == ([], [])
    assert not list(workspace.images.rglob(f"{TEMPORARY}*"))
    with reading(engine) as session:
        chosen = TrainData.theme_id == get_theme(session, theme).id
        labeled = session.scalar(
            select(func.count()).select_from(TrainData).where(chosen, TrainData.label_id.is_not(None))
        )
        last = select(func.max(LabelEvent.id)).group_by(LabelEvent.train_data_id)
        same = (
            select(func.count())
            .select_from(LabelEvent)
            .join(TrainData, TrainData.id == LabelEvent.train_data_id)
        )
        same = same.where(chosen, LabelEvent.id.in_(last), LabelEvent.new_label_id == TrainData.label_id)
        assert session.scalar(same) == labeled


# Where pictures are kept


@EVERYWHERE
def test_copies_are_named_after_their_content(engine, workspace, theme, source):
    before = state_of(source)
    report = import_source(engine, workspace, theme, source, options(), actor="ann")
    assert report.added == 6 and state_of(source) == before
    for path, digest in rows_of(engine, TrainData.image_path, TrainData.sha256):
        assert Path(path).stem == digest == sha256(read_image(workspace, path, digest)).hexdigest()
    assert sorted(stored_paths(workspace, 1)) == sorted(paths_of(engine))
    again = import_source(engine, workspace, theme, source, options(), actor="ben")
    assert (again.added, again.already_there) == (0, 6)
    assert sorted(stored_paths(workspace, 1)) == sorted(paths_of(engine))
    assert_sound(engine, workspace)


@EVERYWHERE
def test_a_lost_copy_is_put_right(engine, workspace, theme, source):
    import_source(engine, workspace, theme, source, options(), actor="ann")
    lost, *_ = paths_of(engine)
    if "://" in lost:
        import fsspec

        fsspec.filesystem("s3").rm(lost)
    else:
        (workspace.root / lost).unlink()
    assert len(check_theme(engine, workspace, theme).missing) == 1
    import_source(engine, workspace, theme, source, options(), actor="ann")
    assert_sound(engine, workspace)


@ON_SQLITE
def test_a_storage_that_refuses_keeps_its_secrets(engine, workspace, theme, source, s3_uri, monkeypatch):
    monkeypatch.setenv("CMLOPS_IMAGES", f"{s3_uri}-is-not-there/kept")
    with pytest.raises(UserError, match="cannot be stored") as caught:
        import_source(engine, workspace, theme, source, options(), actor="ann")
    assert "canary" not in str(caught.value) and paths_of(engine) == []


# In place


def test_in_place_copies_nothing(engine, workspace, theme, source):
    before = state_of(source)
    report = import_source(engine, workspace, theme, source, options(in_place=True), actor="ann")
    assert report.added == 6 and state_of(source) == before
    assert list(workspace.images.rglob("*.png")) == []
    assert sorted(paths_of(engine)) == sorted(map(str, before))
    assert_sound(engine, workspace)


def test_in_place_stays_inside_the_roots(engine, workspace, theme, source, tmp_path, monkeypatch):
    picture(tmp_path / "secret" / "1.png", 50)
    (source / "out").symlink_to(tmp_path / "secret")
    table = source / "t.csv"
    table.write_text("path\nout/1.png\n../secret/1.png\ngood/0.png\n")
    report = import_source(engine, workspace, theme, table, options(in_place=True), actor="ann")
    assert (report.added, sum(report.reasons.values())) == (1, 2)
    monkeypatch.setenv("CMLOPS_IMAGE_ROOTS", str(tmp_path / "elsewhere"))
    with pytest.raises(UsageError, match="CMLOPS_IMAGE_ROOTS"):
        import_source(engine, workspace, theme, source, options(in_place=True), actor="ann")


def test_what_moved_is_found_again_and_a_copy_counts_more(engine, workspace, theme, source):
    import_source(engine, workspace, theme, source, options(in_place=True), actor="ann")
    (source / "good").rename(source / "moved")
    report = import_source(
        engine, workspace, theme, source / "moved", options(in_place=True, **NOTHING), actor="ann"
    )
    assert (report.added, report.already_there, report.moved) == (0, 2, 2)
    assert sum("/moved/" in path for path in paths_of(engine)) == 2
    assert_sound(engine, workspace)
    report = import_source(engine, workspace, theme, source, options(**NOTHING), actor="ann")
    assert (report.added, report.moved) == (0, 6)
    assert all(path.startswith("images/") for path in paths_of(engine))
    assert_sound(engine, workspace)
    back = import_source(engine, workspace, theme, source, options(in_place=True, **NOTHING), actor="ann")
    assert (back.moved, check_theme(engine, workspace, theme).orphaned) == (0, [])


def test_a_bucket_in_place_and_copied(engine, workspace, theme, source, s3_uri, monkeypatch):
    import fsspec

    fsspec.filesystem("s3").put(f"{source}/", f"{s3_uri}/photos/", recursive=True)
    monkeypatch.setenv("CMLOPS_IMAGE_ROOTS", s3_uri)
    report = import_source(engine, workspace, theme, f"{s3_uri}/photos", options(in_place=True), actor="ann")
    assert report.added == 6 and all(path.startswith(f"{s3_uri}/photos/") for path in paths_of(engine))
    assert_sound(engine, workspace)
    copied = import_source(engine, workspace, theme, f"{s3_uri}/photos", options(), actor="ann")
    assert (copied.added, copied.moved) == (0, 6) and len(list(workspace.images.rglob("*.png"))) == 6
    assert_sound(engine, workspace)


@ON_SQLITE
def test_an_archive_cannot_stay_in_place(engine, workspace, theme, source):
    archive = shutil.make_archive(str(source / "photos"), "zip", source / "good")
    with pytest.raises(UsageError, match="copied"):
        import_source(engine, workspace, theme, archive, options(in_place=True), actor="ann")
    report = import_source(engine, workspace, theme, archive, options(**NOTHING), actor="ann")
    assert report.added == 2
    assert_sound(engine, workspace)


# Published splits


def test_a_published_split_is_taken_over_once(engine, workspace, theme, source):
    table = source / "t.csv"
    lines = ["path,label,split", "good/0.png,good,train", "bad/1.png,bad,test", "good/3.png,good,valid"]
    table.write_text("\n".join([*lines, "bad/4.png,bad,"]))
    taken = options(split_from="column")
    report = import_source(engine, workspace, theme, table, taken, actor="ann")
    assert (report.added, dict(report.by_split)) == (4, {"train": 1, "test": 1, "valid": 1})
    splits = rows_of(engine, TrainData.split)
    assert splits == [("train",), ("test",), ("valid",), (None,)]
    with reading(engine) as session:
        batch = session.scalars(select(SplitBatch)).one()
        assert (batch.policy, batch.actor, batch.counts) == ("imported", "ann", dict(report.by_split))
        assert sum(batch.ratios.values()) == pytest.approx(1)
    table.write_text(
        "\n".join([*lines[:1], "good/0.png,good,test", "bad/1.png,bad,test", "bad/4.png,bad,train"])
    )
    again = import_source(engine, workspace, theme, table, taken, actor="ben")
    assert [(remark.name, remark.reason) for remark in again.conflicts] == [("good/0.png", "other_split")]
    assert dict(again.by_split) == {"train": 1}
    assert rows_of(engine, TrainData.split) == [("train",), ("test",), ("valid",), ("train",)]
    with reading(engine) as session:
        assert [b.policy for b in session.scalars(select(SplitBatch))] == ["imported"] * 2


@pytest.mark.parametrize("at_once", [1, 250])
def test_a_group_is_not_torn_by_a_published_split(engine, workspace, theme, source, monkeypatch, at_once):
    "Whether its pictures come together or one by one."
    import classification_mlops.db.ingest as ingest
    import classification_mlops.images.examine as examine

    monkeypatch.setattr(examine, "MOST_FILES", at_once)
    monkeypatch.setattr(ingest, "ENOUGH", at_once)
    table = source / "t.csv"
    table.write_text(
        "path,label,group,split\ngood/0.png,good,lot 7,train\ngood/3.png,good,lot 7,test\n"
        "傷/2.png,good,,test\n"
    )
    report = import_source(engine, workspace, theme, table, options(split_from="column"), actor="ann")
    assert [(remark.name, remark.reason) for remark in report.conflicts] == [("good/3.png", "split_group")]
    assert rows_of(engine, TrainData.split) == [("train",), (None,), ("test",)]
    with writing(engine) as session:
        split_theme(
            session, get_theme(session, theme), SplitRatios(train=0.7, valid=0.15, test=0.15), 1, "ann"
        )
    assert rows_of(engine, TrainData.split) == [("train",), ("train",), ("test",)]


def test_labels_groups_and_splits_from_the_path(engine, workspace, theme, tmp_path):
    for number in range(8):
        split, label = ("train", "test")[number % 2], ("a", "b")[number // 4]
        picture(tmp_path / "s" / split / label / f"part{number // 2}_{number}.png", number)
    meaning = options(split_from="folder", group_from=r"part(\d+)_")
    report = import_source(engine, workspace, theme, tmp_path / "s", meaning, actor="ann")
    assert report.added == 8
    found = rows_of(engine, Label.label_name, TrainData.group_key, TrainData.original_name)
    assert {(label, group) for label, group, _ in found} == {("a", "0"), ("a", "1"), ("b", "2"), ("b", "3")}
    assert len(report.conflicts) == 4  # Each part was published in train and in test


# Tables that are believed


def stated_table(source: Path, *lines: str) -> Path:
    (source / "stated.csv").write_text("\n".join(lines))
    return source / "stated.csv"


def test_registered_pictures_are_what_the_table_says(engine, workspace, theme, source):
    digest = {path.name: sha256(path.read_bytes()).hexdigest() for path in source.rglob("*.png")}
    table = stated_table(
        source,
        "path,label,group,sha256,width,height",
        f"good/0.png,good,lot 7,{digest['0.png']},9,8",
        f"bad/1.png,,,{digest['1.png'].upper()},,",
        "bad/4.png,bad,,,,",
        f"/etc/passwd,bad,,{digest['2.png']},,",
    )
    report = register_source(engine, workspace, theme, table, options(), actor="ann")
    assert (report.added, report.verified, sum(report.reasons.values())) == (2, False, 2)
    assert report.reasons["no_sha256"] == 1 and "not verified" in report.summary()
    columns = (Label.label_name, TrainData.group_key, TrainData.width, TrainData.perceptual_hash)
    assert rows_of(engine, *columns) == [("good", "lot 7", 9, None), (None, None, None, None)]
    assert list(workspace.images.rglob("*.png")) == []
    assert_sound(engine, workspace)
    again = register_source(engine, workspace, theme, table, options(), actor="ben")
    assert (again.added, again.already_there) == (0, 2)
    seen = import_source(engine, workspace, theme, source, options(in_place=True, **NOTHING), actor="ann")
    assert (seen.added, seen.already_there) == (4, 2)
    assert None not in {row[0] for row in rows_of(engine, TrainData.perceptual_hash)}


def test_a_wrong_table_is_found_by_the_check(engine, workspace, theme, source):
    table = stated_table(source, "path,sha256", f"good/0.png,{'0' * 64}", f"gone.png,{'1' * 64}")
    assert register_source(engine, workspace, theme, table, options(), actor="ann").added == 2
    found = check_theme(engine, workspace, theme)
    assert (len(found.changed), len(found.missing)) == (1, 1)


def test_what_came_is_planned_for_at_once(engine, workspace, theme, source, monkeypatch):
    monkeypatch.setenv("CMLOPS_IMAGE_ROOTS", "s3://far")
    rows = [f"s3://far/{n}.png,label {n % 2},{sha256(b'%d' % n).hexdigest()}" for n in range(2000)]
    table = stated_table(source, "path,label,sha256", *rows)
    register_source(engine, workspace, theme, table, options(), actor="ann")
    with writing(engine) as session:
        split_theme(session, get_theme(session, theme), SplitRatios(), 1, "ann")
    with reading(engine) as session:
        assert leak_score(session, get_theme(session, theme)).leaking == {"test": 0, "valid": 0}
        if engine.dialect.name == "postgresql":  # Which else would believe that nothing is there
            splits = "SELECT n_distinct FROM pg_stats WHERE (tablename, attname) = ('train_data', 'split')"
            assert session.scalar(text("SELECT reltuples FROM pg_class WHERE relname = 'train_data'")) == 2000
            assert session.scalar(text(splits)) == 3


def test_many_rows_are_registered_in_few_statements(engine, workspace, theme, source, monkeypatch):
    monkeypatch.setenv("CMLOPS_IMAGE_ROOTS", "s3://far")
    monkeypatch.setattr("classification_mlops.db.ingest.AT_ONCE", 5000)
    rows = [f"s3://far/{n}.png,label {n % 3},{sha256(b'%d' % n).hexdigest()}" for n in range(12_000)]
    table = stated_table(source, "path,label,sha256", *rows, *rows[:10])
    report = register_source(engine, workspace, theme, table, options(), actor="ann")
    assert (report.added, report.already_there, dict(report.by_label)) == (
        12_000,
        10,
        {f"label {n}": 4000 for n in range(3)},
    )
    with reading(engine) as session:
        assert session.scalar(select(func.count()).select_from(LabelEvent)) == 12_000
    assert paths_of(engine)[::4000] == [f"s3://far/{n}.png" for n in (0, 4000, 8000)]


# Reports


@ON_SQLITE
def test_a_report_names_everything_and_runs_nothing(engine, workspace, theme, source, tmp_path):
    for number, name in enumerate(["=cmd.png", "@sum.png", "-1.png", "new\nline.png"]):
        (source / "good" / name).write_bytes(b"no picture %d" % number)
    picture(source / "good" / "photo.jpg", 70)
    report = import_source(engine, workspace, theme, source, options(), actor="ann")
    assert (report.added, len(report.rejected), report.warnings) == (7, 4, 5)
    for name in ("r.json", "r.csv"):
        write_report(report, tmp_path / name)
    assert json.loads((tmp_path / "r.json").read_text("utf-8")) == report.as_dict()
    with (tmp_path / "r.csv").open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["kind"] for line in lines].count("rejected") == 4
    assert {"added": "7"}.items() <= {line["kind"]: line["count"] for line in lines}.items()
    assert not any(field.startswith(("=", "@", "+", "-")) for line in lines for field in line.values())


def cmlops(folder: Path, *arguments) -> subprocess.CompletedProcess:
    program = "import sys; from classification_mlops.cli import main; sys.exit(main())"
    variables = os.environ | {"CMLOPS_WORKSPACE": str(folder), "CMLOPS_USER": "ann"}
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], env=variables, capture_output=True, text=True
    )


def test_the_command_line(tmp_path, source):
    (source / "good" / "empty.png").touch()
    cmlops(tmp_path / "w", "init", tmp_path / "w")
    cmlops(tmp_path / "w", "theme", "create", "parts")
    line = ("data", "import", "parts", source, "--create-labels", "--report", tmp_path / "r.csv")
    done = cmlops(tmp_path / "w", *line)
    assert done.returncode == 0 and "1 warnings" in done.stdout, done.stderr
    assert "empty.png" in (tmp_path / "r.csv").read_text("utf-8-sig")
    strict = cmlops(tmp_path / "w", *line, "--strict", "--in-place", "--json")
    assert strict.returncode == 1 and json.loads(strict.stdout)["already_there"] == 6
    wrong = cmlops(tmp_path / "w", *line[:-1], tmp_path / "r.txt")
    assert wrong.returncode == 2 and ".csv" in wrong.stderr


# Small pictures


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(2, 30), st.integers(2, 30)),
    mode=st.sampled_from(["L", "RGB", "RGBA", "P", "1", "LA"]),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=3),
    cut=st.integers(0, 40),
)
def test_the_short_way_accepts_and_sees_what_the_long_way_does(size, mode, changes, cut):
    from io import BytesIO

    pixels = np.random.default_rng(1).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer := BytesIO(), "PNG")
    data = bytearray(buffer.getvalue())
    for place, value in changes:
        data[place % len(data)] = value
    data = bytes(data[: len(data) - cut] if cut > 30 else data)
    found = plain_pixels(data)
    if found is not None:
        seen = np.asarray(picture_of(data)[0])
        assert np.array_equal(found, seen.reshape(found.shape))
    elif not changes and cut <= 30:
        assert mode not in ("L", "RGB")


# Faults

IMPORT = (
    "import sys\nfrom pathlib import Path\n"
    "import classification_mlops.images.examine as examine, classification_mlops.db.ingest as ingest\n"
    "from classification_mlops.db.session import open_engine\n"
    "from classification_mlops.images.sources import SourceOptions\n"
    "from classification_mlops.text import UserError\n"
    "from classification_mlops.workspace import Workspace\n"
    "examine.MOST_FILES = ingest.AT_ONCE = ingest.ENOUGH = 10\n"
    "way, root, source, url, place = sys.argv[1:]\n"
    "options = ingest.ImportOptions(SourceOptions(), True, place == 'in_place', 2)\n"
    "tell = lambda done, total: print(done, flush=True)\n"
    "print(0, flush=True)\n"
    "try:\n"
    "    done = getattr(ingest, way)(open_engine(url), Workspace(Path(root)), 'parts', source, options,"
    " actor='ann', progress=tell)\n"
    "    print('finished', done.added, flush=True)\n"
    "except UserError as error:\n"
    "    print('refused', error, flush=True)\n"
)


def start(engine, workspace, source, way="import_source", place="copied", **more):
    url = engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", IMPORT, way, workspace.root, source, url, place]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def many(folder: Path, count: int) -> Path:
    "Pictures, and a table that states what they are."
    lines = ["path,label,sha256"]
    for number in range(count):
        path = picture(folder / f"label {number % 4}" / f"{number}.png", number)
        digest = sha256(path.read_bytes()).hexdigest()
        lines.append(f"{path.relative_to(folder.parent)},label {number % 4},{digest}")
    table = folder.parent / "stated.csv"
    table.write_text("\n".join(lines))
    return table


@pytest.mark.parametrize("round_number", range(ROUNDS))
@pytest.mark.parametrize("way", ["copied", "in_place", "registered"])
def test_kill_9_at_any_moment(engine, workspace, theme, tmp_path, monkeypatch, way, round_number):
    "Everything acknowledged is there, nothing is half, and the repetition completes it."
    monkeypatch.setenv("CMLOPS_IMAGE_ROOTS", str(tmp_path / "s"))
    table, dice = many(tmp_path / "s", 120), random.Random(f"{way} {round_number}")
    source, act = (table, "register_source") if way == "registered" else (tmp_path / "s", "import_source")
    process = start(engine, workspace, source, act, way)
    acknowledged, wanted = 0, dice.choice([0, 10, 40, 90])
    for line in process.stdout:
        acknowledged = int(line) if line.strip().isdigit() else acknowledged
        if acknowledged >= wanted:
            break
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    psutil.wait_procs(children, timeout=dice.random() * 0.1)  # Some time passes
    process.kill()
    output, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL or "finished" in output, errors
    assert psutil.wait_procs(children, timeout=30)[1] == []
    numbers = [int(word) for word in output.split() if word.isdigit()]
    there = rows_of(engine, TrainData.image_path, TrainData.sha256, TrainData.label_id)
    assert max([acknowledged, *numbers[:-1]]) <= len(there) <= 120
    for path, digest, label_id in there:
        assert sha256((workspace.root / path).read_bytes()).hexdigest() == digest and label_id
    whole = options(in_place=way == "in_place", workers=2)
    again = {"import_source": import_source, "register_source": register_source}[act]
    report = again(engine, workspace, theme, source, whole, actor="ann")
    assert (report.added, report.already_there) == (120 - len(there), len(there))
    for path in workspace.images.rglob(f"{TEMPORARY}*"):
        path.unlink()
    with reading(engine) as session:
        assert session.scalar(select(func.count()).select_from(LabelEvent)) == 120
    assert_sound(engine, workspace)


def test_processes_import_label_and_split_at_once(engine, workspace, theme, tmp_path):
    "The same source twice and another one, while somebody labels and splits."
    many(tmp_path / "s", 150)
    for number in range(100, 250):  # 50 of them are in the other source as well
        picture(tmp_path / "other" / f"label {number % 4}" / f"{number}.png", number)
    with writing(engine) as session:
        for name in ("seen", *(f"label {n}" for n in range(4))):
            add_label(session, get_theme(session, theme), name)
    running = [start(engine, workspace, tmp_path / name) for name in ("s", "s", "other")]
    ratios, labeled = SplitRatios(train=0.7, valid=0.15, test=0.15), set()
    while any(process.poll() is None for process in running):
        with writing(engine) as session:
            found = get_theme(session, theme)
            ids = session.scalars(
                select(TrainData.id)
                .where(TrainData.id.not_in(labeled))
                .order_by(TrainData.id.desc())
                .limit(5)
            ).all()
            set_label(session, ids, get_label(session, found, "seen"), "ben")
            labeled |= set(ids)
        with writing(engine) as session:
            split_theme(session, get_theme(session, theme), ratios, 1, "ben")
    said = [process.communicate() for process in running]
    assert all("finished" in output for output, _ in said), said
    assert sum(int(output.split()[-1]) for output, _ in said) == 250 == len(paths_of(engine))
    found = dict(rows_of(engine, TrainData.id, Label.label_name))
    assert labeled and {found[number] for number in labeled} == {"seen"}
    assert_sound(engine, workspace)


@ON_SQLITE
@pytest.mark.parametrize("limit", [150_000, 250_000])
def test_a_full_disk_is_said_and_nothing_is_lost(engine, workspace, theme, tmp_path, limit):
    "No file of the import may grow beyond a limit that its database soon reaches."
    many(tmp_path / "s", 400)
    engine.dispose()
    narrow = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: E731
    process = start(engine, workspace, tmp_path / "s", preexec_fn=narrow)
    output, errors = process.communicate(timeout=120)
    assert "refused" in output and "cannot grow" in output, output + errors
    acknowledged = max(int(word) for word in output.split() if word.isdigit())
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"
    there = len(paths_of(engine))
    assert acknowledged <= there < 400
    report = import_folder(
        engine, workspace, theme, tmp_path / "s", label_from="folder", create_labels=True, actor="ann"
    )
    assert (report.added, report.already_there) == (400 - there, there)
    assert_sound(engine, workspace)


@ON_SQLITE
def test_a_store_without_room_is_said(engine, workspace, theme, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (500, 500, 3), np.uint8)
    (tmp_path / "s" / "a").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "s" / "a" / "large.png")
    narrow = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))  # noqa: E731
    output, errors = start(engine, workspace, tmp_path / "s", preexec_fn=narrow).communicate(timeout=120)
    assert "pictures cannot be stored" in output, output + errors
    assert not list(workspace.images.rglob("*.*")) and paths_of(engine) == []


@ON_SQLITE
def test_a_source_that_vanishes_costs_only_itself(engine, workspace, theme, tmp_path):
    many(tmp_path / "s", 400)
    process = start(engine, workspace, tmp_path / "s")
    for line in process.stdout:
        if int(line) >= 20:
            break
    (tmp_path / "s").rename(tmp_path / "gone")
    output, errors = process.communicate(timeout=120)
    there = len(paths_of(engine))
    assert f"finished {there}" in output and 20 <= there < 400, output + errors
    assert_sound(engine, workspace)
