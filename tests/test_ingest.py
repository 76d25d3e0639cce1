"Imports: what is found, refused, met again; kills, crashes, walls; check and export."

import csv
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from sqlalchemy import event, func, select, update

from classification_mlops.db.check import check_theme
from classification_mlops.db.export import export_theme
from classification_mlops.db.ingest import ImportReport, import_csv, import_folder
from classification_mlops.db.labels import add_label, delete_label, list_labels
from classification_mlops.db.schema import Label, LabelEvent, Theme, TrainData, utc_now
from classification_mlops.db.session import open_engine, reading, upgrade_database, writing
from classification_mlops.db.themes import create_theme, delete_theme, get_theme
from classification_mlops.images import examine as examine_module
from classification_mlops.images.store import TEMPORARY
from classification_mlops.text import UsageError, UserError
from classification_mlops.workspace import Workspace, init_folders


def picture(path: Path, number: int, side_px: int = 8, format="PNG"):
    "Write a picture that no other number has."
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 255, (side_px, side_px), np.uint8)
    Image.fromarray(pixels).save(path, format)
    return path


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return init_folders(tmp_path / "workspace")


@pytest.fixture
def theme(engine) -> str:
    with writing(engine) as session:
        create_theme(session, "parts")
    return "parts"


@pytest.fixture
def source(tmp_path) -> Path:
    for number in range(6):
        picture(tmp_path / "source" / ("good", "bad", "傷")[number % 3] / f"{number}.png", number)
    return tmp_path / "source"


def rows_of(engine, *columns, theme="parts"):
    columns = columns or (TrainData.original_name, Label.label_name)
    query = select(*columns).join(Label, Label.id == TrainData.label_id, isouter=True).order_by(TrainData.id)
    with reading(engine) as session:
        chosen = TrainData.theme_id == get_theme(session, theme).id, TrainData.deleted_at.is_(None)
        return session.execute(query.where(*chosen)).all()


def assert_sound(engine, workspace, report: ImportReport | None = None, theme="parts"):
    "Numbers add up; rows, files and hashes agree; nothing temporary is left."
    if report:
        rejected = sum(report.reasons.values())
        assert report.found == report.added + report.already_there + report.ignored + rejected == report.done
        assert len(report.rejected) == rejected and report.added == sum(report.by_label.values())
        json.dumps(report.as_dict()), report.summary()
    found = check_theme(engine, workspace, theme)
    assert (found.missing, found.changed) == ([], [])
    assert not list(workspace.images.rglob(f"{TEMPORARY}*"))


# Folders


def test_class_folders_become_labels(engine, workspace, theme, source):
    told = []
    progress = lambda done, total: told.append((done, total))  # noqa: E731
    report = import_folder(
        engine, workspace, theme, source, create_labels=True, actor="ann", progress=progress
    )
    assert (report.found, report.added, dict(report.by_label)) == (6, 6, {"good": 2, "bad": 2, "傷": 2})
    assert told[-1] == (6, 6)
    assert ("傷/2.png", "傷") in rows_of(engine)
    facts = rows_of(
        engine, TrainData.width, TrainData.height, TrainData.labeled_by, TrainData.perceptual_hash
    )
    assert all(row[:3] == (8, 8, "ann") and row[3] is not None for row in facts)
    with reading(engine) as session:
        events = session.execute(select(LabelEvent.actor, LabelEvent.source, LabelEvent.old_label_id)).all()
    assert events == [("ann", "import", None)] * 6
    assert_sound(engine, workspace, report)


def test_a_repeated_import_changes_nothing(engine, workspace, theme, source):
    import_folder(engine, workspace, theme, source, create_labels=True, actor="ann")
    before = rows_of(engine, TrainData.id, TrainData.updated_at, TrainData.labeled_by)
    report = import_folder(engine, workspace, theme, source, actor="ben")
    assert (report.added, report.already_there) == (0, 6)
    assert rows_of(engine, TrainData.id, TrainData.updated_at, TrainData.labeled_by) == before
    assert_sound(engine, workspace, report)


def test_unknown_labels_are_refused_before_anything_is_written(engine, workspace, theme, source):
    with writing(engine) as session:
        add_label(session, get_theme(session, theme), "good")
    with pytest.raises(UsageError, match="bad, 傷"):
        import_folder(engine, workspace, theme, source, actor="ann")
    assert rows_of(engine) == [] and not list(workspace.images.rglob("*.png"))


def test_a_bad_label_name_creates_no_label_at_all(engine, workspace, theme, source):
    picture(source / " blank " / "1.png", 9)
    with pytest.raises(UsageError, match="blank"):
        import_folder(engine, workspace, theme, source, create_labels=True, actor="ann")
    with reading(engine) as session:
        assert list_labels(session, get_theme(session, theme)) == []


@pytest.mark.parametrize("label_from", ["none", "=folder", "good"])
def test_labels_from_elsewhere(engine, workspace, theme, source, label_from):
    picture(source / "0.png", 77)
    report = import_folder(
        engine, workspace, theme, source, label_from=label_from, create_labels=True, actor="ann"
    )
    label = None if label_from == "none" else label_from.removeprefix("=")
    assert {row.label_name for row in rows_of(engine)} == {label} and report.added == 7
    assert_sound(engine, workspace, report)


def test_both_normal_forms_of_a_folder_are_one_label(engine, workspace, theme, tmp_path):
    picture(tmp_path / "s" / "が" / "1.png", 1)
    picture(tmp_path / "s" / "か\u3099" / "1.png", 2)
    report = import_folder(engine, workspace, theme, tmp_path / "s", create_labels=True, actor="ann")
    assert dict(report.by_label) == {"が": 2}
    assert [row.label_name for row in rows_of(engine)] == ["が", "が"]


def test_every_kind_of_trouble_is_named_and_the_rest_goes_on(engine, workspace, theme, source):
    good = source / "good"
    (good / "empty.png").touch()
    (good / "page.jpg").write_text("<html>")
    (good / "cut.png").write_bytes((good / "0.png").read_bytes()[:-20])
    (good / "paper.pdf").write_bytes(b"%PDF-1.7")
    (good / "passwd.png").symlink_to("/etc/passwd")
    (good / "loop").symlink_to(good)
    (good / "twin.png").symlink_to(good / "0.png")
    os.mkfifo(good / "pipe.png")
    (good / "folder.png").mkdir()
    (good / "copy.png").write_bytes((good / "0.png").read_bytes())
    (source / "stray.txt").write_text("about this folder")
    for leftover in (".DS_Store", "._0.png", "Thumbs.db", "desktop.ini"):
        (good / leftover).write_bytes((good / "0.png").read_bytes())
    picture(source / "__MACOSX" / "good" / "0.png", 90)
    picture(source / ".ipynb_checkpoints" / "0.png", 91)
    picture(good / ".hidden.png", 92)
    report = import_folder(engine, workspace, theme, source, create_labels=True, actor="ann")
    assert dict(report.reasons) == {
        **dict.fromkeys(("empty", "not_an_image", "truncated", "unsupported_format", "no_label"), 1),
        "not_regular_file": 4,
    }
    assert (report.added, report.already_there, report.ignored) == (7, 1, 6)
    assert any("good/empty.png" in remark.message for remark in report.rejected)
    assert_sound(engine, workspace, report)


def test_strange_names_are_kept_escaped(engine, workspace, theme, tmp_path):
    folder = tmp_path / "s" / "x"
    names = [
        b"\xff\xfe.png",
        "絵\u202e.png".encode(),
        b"new\nline.png",
        b"\x1b[31m.png",
        b"-rf.png",
        "🙂.png".encode(),
    ]
    names += [
        "が.png".encode(),
        "か\u3099.png".encode(),
        b"nul.png",
        b"a" * 251 + b".png",
        b"dot. ",
        b"%2e%2e%2f.png",
    ]
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:
            file.write(picture(tmp_path / "one.png", number).read_bytes())
    report = import_folder(engine, workspace, theme, tmp_path / "s", create_labels=True, actor="ann")
    stored = [row.original_name for row in rows_of(engine)]
    assert report.added == len(names) == len(set(stored))
    assert all(name.isprintable() or "🙂" in name for name in stored)
    "".join(stored).encode()
    assert_sound(engine, workspace, report)


def test_a_class_folder_that_is_no_text_is_refused(engine, workspace, theme, source):
    folder = os.fsencode(source) + b"/\xff\xfe"
    os.mkdir(folder)
    with open(folder + b"/1.png", "wb") as file:
        file.write((source / "good" / "0.png").read_bytes())
    report = import_folder(engine, workspace, theme, source, create_labels=True, actor="ann")
    assert dict(report.reasons) == {"name_encoding": 1} and report.added == 6


def test_files_that_vanish_or_cannot_be_read(engine, workspace, theme, source, monkeypatch):
    "A file is removed after it was listed."
    import classification_mlops.db.ingest as ingest

    whole = ingest.settle_labels

    def settle_and_remove(*arguments):
        found = whole(*arguments)
        (source / "good" / "0.png").unlink()
        return found

    monkeypatch.setattr(ingest, "settle_labels", settle_and_remove)
    report = import_folder(engine, workspace, theme, source, create_labels=True, actor="ann")
    assert (report.added, dict(report.reasons)) == (5, {"vanished": 1})


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_closed_folders_and_files(engine, workspace, theme, source):
    (source / "good" / "0.png").chmod(0)
    (source / "bad").chmod(0)
    try:
        report = import_folder(engine, workspace, theme, source, create_labels=True, actor="ann")
    finally:
        (source / "bad").chmod(0o700)
    assert dict(report.reasons) == {"unreadable": 2} and report.added == 3


def test_deep_folders(engine, workspace, theme, tmp_path):
    deep = tmp_path / "s" / "a" / Path(*["d"] * 200)
    picture(deep / "1.png", 1)
    report = import_folder(engine, workspace, theme, tmp_path / "s", create_labels=True, actor="ann")
    assert report.added == 1 and report.by_label == {"a": 1}


def test_a_folder_that_is_none(engine, workspace, theme, tmp_path):
    with pytest.raises(UsageError, match="no folder"):
        import_folder(engine, workspace, theme, tmp_path / "nothing", actor="ann")
    with pytest.raises(UsageError, match="did you mean parts"):
        import_folder(engine, workspace, "part", tmp_path, actor="ann")


def test_real_format_and_misnamed_files(engine, workspace, theme, tmp_path):
    picture(tmp_path / "s" / "a" / "photo.jpg", 1, format="PNG")
    picture(tmp_path / "s" / "a" / "photo.jpeg", 2, format="JPEG")
    report = import_folder(engine, workspace, theme, tmp_path / "s", create_labels=True, actor="ann")
    suffixes = {Path(path).suffix for (path,) in rows_of(engine, TrainData.image_path)}
    assert (report.misnamed, suffixes) == (1, {".png", ".jpg"})


def test_same_name_different_content_and_same_content_in_two_themes(engine, workspace, theme, source):
    picture(source / "good" / "deep" / "0.png", 55)
    with writing(engine) as session:
        create_theme(session, "other")
    for name in (theme, "other"):
        report = import_folder(engine, workspace, name, source, create_labels=True, actor="ann")
        assert report.added == 7
        assert_sound(engine, workspace, report, name)


# Meeting again


def test_labels_and_groups_are_filled_in_but_not_replaced(engine, workspace, theme, source):
    import_folder(engine, workspace, theme, source / "good", label_from="none", actor="ann")
    first = import_folder(
        engine, workspace, theme, source / "good", label_from="x", create_labels=True, actor="ben"
    )
    assert (first.already_there, first.labeled, len(first.conflicts)) == (2, 2, 0)
    second = import_folder(
        engine, workspace, theme, source / "good", label_from="y", create_labels=True, actor="eve"
    )
    assert (second.already_there, second.labeled, len(second.conflicts)) == (2, 0, 2)
    found = rows_of(engine, Label.label_name, TrainData.labeled_by)
    assert found == [("x", "ben")] * 2
    assert_sound(engine, workspace, second)


def test_a_deleted_picture_comes_back_with_its_new_label(engine, workspace, theme, source):
    import_folder(engine, workspace, theme, source / "good", label_from="x", create_labels=True, actor="ann")
    with writing(engine) as session:
        session.execute(update(TrainData).values(deleted_at=utc_now()))
    for path in workspace.images.rglob("*.png"):
        path.unlink()
    report = import_folder(
        engine, workspace, theme, source / "good", label_from="y", create_labels=True, actor="ben"
    )
    assert (report.added, report.already_there, dict(report.by_label)) == (2, 0, {"y": 2})
    assert rows_of(engine, Label.label_name, TrainData.labeled_by) == [("y", "ben")] * 2
    assert_sound(engine, workspace, report)


def test_lost_and_shortened_files_are_put_right(engine, workspace, theme, source):
    import_folder(engine, workspace, theme, source, create_labels=True, actor="ann")
    lost, short, *_ = sorted(workspace.images.rglob("*.png"))
    lost.unlink()
    short.write_bytes(short.read_bytes()[:-5])
    damaged = check_theme(engine, workspace, theme)
    assert (len(damaged.missing), len(damaged.changed), damaged.clean) == (1, 1, False)
    assert_sound(engine, workspace, import_folder(engine, workspace, theme, source, actor="ann"))


def test_what_is_deleted_during_an_import_is_said(engine, workspace, theme, source, monkeypatch):
    import classification_mlops.db.ingest as ingest

    import_folder(
        engine, workspace, theme, source / "good", label_from="good", create_labels=True, actor="ann"
    )
    with writing(engine) as session:
        add_label(session, get_theme(session, theme), "bad")
        add_label(session, get_theme(session, theme), "傷")
    whole = ingest.settle_labels

    def settle_and(act):
        def wrapped(engine, *arguments):
            found = whole(engine, *arguments)
            with writing(engine) as session:
                act(session)
            return found

        return wrapped

    monkeypatch.setattr(
        ingest, "settle_labels", settle_and(lambda s: delete_label(s, get_theme(s, theme), "bad"))
    )
    with pytest.raises(UserError, match="label bad was deleted"):
        import_folder(engine, workspace, theme, source, actor="ann")
    monkeypatch.setattr(ingest, "settle_labels", settle_and(lambda s: delete_theme(s, theme)))
    with pytest.raises(UserError, match="theme was deleted"):
        import_folder(engine, workspace, theme, source / "good", label_from="good", actor="ann")


def test_two_imports_at_once(engine, workspace, theme, source):
    with writing(engine) as session:
        for name in ("good", "bad", "傷"):
            add_label(session, get_theme(session, theme), name)
    for number in range(100, 200):
        picture(source / "good" / f"{number}.png", number)
    reports, barrier = [], threading.Barrier(3)

    def work(actor):
        barrier.wait()
        reports.append(import_folder(engine, workspace, theme, source, actor=actor, workers=1))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("ann", "ben", "eve")]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(reports) == 3 and sum(report.added for report in reports) == 106 == len(rows_of(engine))
    for report in reports:
        assert_sound(engine, workspace, report)


# Tables


def write_table(path: Path, text: str, encoding="utf-8") -> Path:
    path.write_text(text, encoding=encoding)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(
    "order", [("path", "label", "labeled_by", "group"), ("group", "label", "path", "labeled_by")]
)
def test_columns_in_any_order(engine, workspace, theme, source, encoding, order):
    row = {"path": "傷/2.png", "label": "傷, deep", "labeled_by": "山田", "group": "lot 7"}
    text = ",".join(order) + "\r\n" + ",".join(f'"{row[name]}"' for name in order) + "\r\n\r\n"
    report = import_csv(
        engine,
        workspace,
        theme,
        write_table(source / "t.csv", text, encoding),
        create_labels=True,
        actor="ann",
    )
    columns = (Label.label_name, TrainData.labeled_by, TrainData.group_key)
    assert rows_of(engine, *columns) == [("傷, deep", "山田", "lot 7")]
    assert_sound(engine, workspace, report)


def test_only_paths(engine, workspace, theme, source):
    table = write_table(source / "t.csv", "path\ngood\\0.png\n./bad/../bad/1.png\n")
    report = import_csv(engine, workspace, theme, table, actor="ann")
    assert [row.label_name for row in rows_of(engine)] == [None, None]
    assert rows_of(engine, TrainData.labeled_by) == [(None,), (None,)]
    assert_sound(engine, workspace, report)


def test_rows_that_cannot_be(engine, workspace, theme, source, tmp_path):
    picture(tmp_path / "secret.png", 5)
    (source / "link.png").symlink_to(tmp_path / "secret.png")
    rows = [
        "good/0.png,a",
        "good/0.png,b",
        "good/0.png",
        "a,b,c",
        ",a",
        f"{tmp_path}/secret.png,a",
        "../secret.png,a",
    ]
    rows += [
        "..\\secret.png,a",
        "link.png,a",
        "s3://bucket/a.png,a",
        "file:///etc/passwd,a",
        "gone.png,a",
        "good,a",
    ]
    rows += ["a\0b.png,a", "=cmd|' /C calc'!A0,a"]
    table = write_table(source / "t.csv", "path,label\n" + "\n".join(rows))
    report = import_csv(engine, workspace, theme, table, create_labels=True, actor="ann")
    assert dict(report.reasons) == {"bad_row": 3, "outside": 7, "vanished": 2, "not_regular_file": 1}
    assert (report.found, report.added, report.already_there, len(report.conflicts)) == (15, 1, 1, 1)
    assert_sound(engine, workspace, report)


def test_allowed_roots_open_other_places(engine, workspace, theme, source, tmp_path, monkeypatch):
    import fsspec

    far = picture(tmp_path / "camera" / "1.png", 5)
    table = write_table(source / "t.csv", f"path\n{far}\n")
    monkeypatch.setenv("CMLOPS_IMAGE_ROOTS", str(tmp_path / "camera"))
    assert import_csv(engine, workspace, theme, table, actor="ann").added == 1
    fsspec.filesystem("file")  # Addresses are fetched by the worker, which shares files with us but no memory
    monkeypatch.setenv("CMLOPS_IMAGE_ROOTS", "memory://line")
    write_table(source / "t.csv", "path\nmemory://line/gone.png\n")
    assert dict(import_csv(engine, workspace, theme, table, actor="ann").reasons) == {"unreadable": 1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("label\nx\n", "no column path"),
        ("", "no column path"),
        ("filepath,label\na,b\n", "did you mean path"),
        ("path,lable\na,b\n", "did you mean label"),
        ("path,path\na,b\n", "twice"),
        ("path,label\nねじ.png,傷\n".encode("cp932"), "Shift_JIS"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_tables_that_are_none(engine, workspace, theme, source, content, said):
    (source / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=said):
        import_csv(engine, workspace, theme, source / "t.csv", create_labels=True, actor="ann")
    with pytest.raises(UsageError, match=r"cannot be read|does not exist"):
        import_csv(engine, workspace, theme, source / "nothing.csv", actor="ann")
    assert rows_of(engine) == []


# Crashes

ON_SQLITE = pytest.mark.parametrize(
    "database_url", ["sqlite"], indirect=True
)  # Where the database plays no part


def a_decoder_that(act: str, monkeypatch):
    "Let workers meet a decoder that does something terrible at pictures of 13 pixels."
    code = (
        "import os, signal, time\n"
        "import classification_mlops.images.examine as examine\n"
        "whole = examine.seen_in\n"
        "def seen_in(data, name):\n"
        "    seen = whole(data, name)\n"
        f"    if seen.height == 13: {act}\n"
        "    return seen\n"
        "examine.seen_in = seen_in\n"
        "examine.work()\n"
    )
    popen = subprocess.Popen

    def start(command, **options):
        return popen([*command[:-1], code], **options)

    monkeypatch.setattr(examine_module.subprocess, "Popen", start)


@ON_SQLITE
@pytest.mark.parametrize("act", ["os.kill(os.getpid(), signal.SIGSEGV)", "os._exit(3)", "time.sleep(600)"])
def test_a_file_that_brings_the_decoder_down_costs_only_itself(
    engine, workspace, theme, source, monkeypatch, act
):
    a_decoder_that(act, monkeypatch)
    monkeypatch.setattr(examine_module, "PATIENCE_S", 8 if "sleep" in act else 120)
    picture(source / "bad" / "terrible.png", 99, side_px=13)
    report = import_folder(engine, workspace, theme, source, create_labels=True, actor="ann")
    assert (report.added, dict(report.reasons)) == (6, {"crashed": 1})
    assert report.rejected[0].name == "bad/terrible.png"
    assert_sound(engine, workspace, report)


@ON_SQLITE
def test_memory_of_a_worker_is_limited(engine, workspace, theme, source, monkeypatch):
    a_decoder_that("bytearray(8 * 2**30)", monkeypatch)
    picture(source / "bad" / "terrible.png", 99, side_px=13)
    report = import_folder(engine, workspace, theme, source, create_labels=True, actor="ann")
    assert (report.added, dict(report.reasons)) == (6, {"crashed": 1})


@ON_SQLITE
def test_a_worker_that_cannot_start_is_said(engine, workspace, theme, source, monkeypatch):
    monkeypatch.setattr(examine_module.sys, "path", [])
    popen = subprocess.Popen
    monkeypatch.setattr(
        examine_module.subprocess,
        "Popen",
        lambda command, **options: popen([*command[:-1], "import nothing"], **options),
    )
    with pytest.raises(UserError, match="cannot run this package"):
        import_folder(engine, workspace, theme, source, create_labels=True, actor="ann")


def test_a_script_without_main_guard_can_import(tmp_path, source):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from classification_mlops.db.ingest import import_folder\n"
        "from classification_mlops.db.session import open_engine, upgrade_database, writing\n"
        "from classification_mlops.db.themes import create_theme\n"
        "from classification_mlops.workspace import init_folders\n"
        "workspace = init_folders(Path(sys.argv[1]) / 'w')\n"
        "engine = open_engine(workspace.database_url)\nupgrade_database(engine)\n"
        "with writing(engine) as session: create_theme(session, 'parts')\n"
        "options = dict(create_labels=True, actor='ann', workers=2)\n"
        "print(import_folder(engine, workspace, 'parts', sys.argv[2], **options).added)\n"
    )
    done = subprocess.run([sys.executable, script, tmp_path, source], capture_output=True, text=True)
    assert done.stdout == "6\n", done.stderr


IMPORT = (
    "import sys\nfrom classification_mlops.db.ingest import import_folder\n"
    "from classification_mlops.db.session import open_engine\n"
    "from classification_mlops.workspace import Workspace\nfrom pathlib import Path\n"
    "tell = lambda done, total: print(done, flush=True)\n"
    "workspace = Workspace(Path(sys.argv[1]))\n"
    "import_folder(open_engine(sys.argv[3]), workspace, 'parts', sys.argv[2], create_labels=True,"
    " actor='ann', progress=tell, workers=2)\n"
    "print('finished', flush=True)\n"
)


@pytest.fixture
def small_batches(monkeypatch):
    "Ten files in a batch, so that there are many moments to be killed in."
    return IMPORT.replace(
        "tell =",
        "import classification_mlops.images.examine as e, classification_mlops.db.ingest as i\n"
        "e.MOST_FILES = i.ENOUGH = 10\ntell =",
    )


def start_import(code, workspace, source, url):
    command = [sys.executable, "-c", code, workspace.root, source, url]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen(command, text=True, **pipes)


@pytest.mark.parametrize("round_number", range(2))
def test_kill_9_in_the_middle_and_again(engine, workspace, theme, tmp_path, small_batches, round_number):
    "Everything that was acknowledged is there; nothing is half; the repetition completes it."
    for number in range(400):
        picture(tmp_path / "s" / f"label {number % 4}" / f"{number}.png", number)
    process = start_import(small_batches, workspace, tmp_path / "s", engine.url.render_as_string(False))
    acknowledged = 0
    for line in process.stdout:
        acknowledged = int(line)
        if acknowledged >= 50 + 70 * round_number:
            break
    children = psutil.Process(process.pid).children(recursive=True)
    time.sleep(random.Random(round_number).random() * 0.05)
    process.kill()
    output, _ = process.communicate()
    acknowledged = int([str(acknowledged), *output.split()][-1])
    assert process.returncode == -signal.SIGKILL and "finished" not in output  # The kill hit
    assert children and psutil.wait_procs(children, timeout=30)[1] == []
    rows = rows_of(engine, TrainData.image_path, TrainData.sha256, TrainData.label_id)
    assert acknowledged <= len(rows) < 400
    for path, digest, label_id in rows:
        assert sha256((workspace.root / path).read_bytes()).hexdigest() == digest and label_id
    for path in workspace.images.rglob("*"):  # Also files without a row are whole, or temporary
        if path.is_file() and not path.name.startswith(TEMPORARY):
            assert sha256(path.read_bytes()).hexdigest() == path.stem
    report = import_folder(engine, workspace, theme, tmp_path / "s", create_labels=True, actor="ann")
    assert (report.added, report.already_there) == (400 - len(rows), len(rows))
    with reading(engine) as session:
        assert session.scalar(select(func.count()).select_from(LabelEvent)) == 400
    for path in workspace.images.rglob(f"{TEMPORARY}*"):
        os.utime(path, (0, 0))
    again = import_folder(engine, workspace, theme, tmp_path / "s", actor="ann")
    assert again.added == 0
    assert_sound(engine, workspace, again)


@ON_SQLITE
def test_ctrl_c_ends_an_import_and_its_workers(engine, workspace, theme, tmp_path, small_batches):
    for number in range(400):
        picture(tmp_path / "s" / "a" / f"{number}.png", number)
    told = "print(done, flush=True)"
    waits = small_batches.replace(told, f"({told}, done > 50 and sys.stdin.readline())")
    process = start_import(waits, workspace, tmp_path / "s", engine.url.render_as_string(False))
    process.stdout.readline()
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert "finished" not in output and "KeyboardInterrupt" in errors
    assert children and psutil.wait_procs(children, timeout=30)[1] == []
    assert 0 < len(rows_of(engine)) < 400
    assert not list(workspace.images.rglob(f"{TEMPORARY}*"))
    report = import_folder(engine, workspace, theme, tmp_path / "s", actor="ann")
    assert len(rows_of(engine)) == 400
    assert_sound(engine, workspace, report)


def test_batches_fit_into_memory(tmp_path):
    "Large files come alone, small ones together."
    side = 3464
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    big = Image.fromarray(pixels).resize((side, side))
    for number in range(3):
        big.putpixel((0, 0), (number, 0, 0))
        path = tmp_path / "s" / f"{number}.bmp"
        path.parent.mkdir(exist_ok=True)
        big.save(path)
    files = ((str(path), path.name) for path in sorted((tmp_path / "s").iterdir()))
    assert max(map(len, examine_module.in_batches(files))) == 1
    tiny = ((str(picture(tmp_path / "t" / f"{n}.png", n)), "") for n in range(600))
    assert [len(batch) for batch in examine_module.in_batches(tiny)] == [500, 100]


def test_statements_per_batch_do_not_grow(engine, workspace, theme, tmp_path):
    for number in range(240):
        picture(tmp_path / "s" / "a" / f"{number}.png", number)
    import_folder(engine, workspace, theme, tmp_path / "s", create_labels=True, actor="ann", workers=1)
    statements = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    report = import_folder(engine, workspace, theme, tmp_path / "s", actor="ann", workers=1)
    assert report.already_there == 240 and len(statements) < 30


# Export


def test_export_and_import_again(engine, workspace, theme, source, tmp_path):
    table = write_table(
        source / "t.csv",
        'path,label,labeled_by,group\ngood/0.png,=1+1,@ann,-7\nbad/1.png,"a/b, c",ben,\n傷/2.png,..x,,\n',
    )
    import_csv(engine, workspace, theme, table, create_labels=True, actor="ann")
    columns = (Label.label_name, TrainData.labeled_by, TrainData.group_key, TrainData.sha256)
    before = rows_of(engine, *columns)
    told = []
    exported = export_theme(engine, workspace, theme, tmp_path / "out", progress=lambda *a: told.append(a))
    assert exported.count == 3
    assert told[-1] == (3, 3)
    with (tmp_path / "out" / "manifest.csv").open(encoding="utf-8-sig", newline="") as file:
        manifest = list(csv.DictReader(file))
    assert not any(field.startswith(("=", "@", "+", "-")) for row in manifest for field in row.values())
    for row in manifest:
        path = (tmp_path / "out" / row["path"]).resolve()
        assert (
            path.is_relative_to(tmp_path / "out") and sha256(path.read_bytes()).hexdigest() == row["sha256"]
        )
    with writing(engine) as session:
        create_theme(session, "copy")
    report = import_csv(
        engine, workspace, "copy", tmp_path / "out" / "manifest.csv", create_labels=True, actor="eve"
    )
    assert report.added == 3 and rows_of(engine, *columns, theme="copy") == before


def test_export_refuses_a_folder_in_use_and_a_lost_picture(engine, workspace, theme, source, tmp_path):
    import_folder(engine, workspace, theme, source, create_labels=True, actor="ann")
    with pytest.raises(UsageError, match="not an empty folder"):
        export_theme(engine, workspace, theme, source)
    next(workspace.images.rglob("*.png")).write_bytes(b"other bytes")
    with pytest.raises(UserError, match="was changed"):
        export_theme(engine, workspace, theme, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.csv").exists()


def test_check_finds_orphans(engine, workspace, theme, source):
    import_folder(engine, workspace, theme, source, create_labels=True, actor="ann")
    with reading(engine) as session:
        folder = workspace.images / str(session.scalar(select(Theme.id)))
    (folder / "ab").mkdir(exist_ok=True)
    (folder / "ab" / f"{TEMPORARY}x").touch()
    assert check_theme(engine, workspace, theme).leftovers == [f"images/{folder.name}/ab/{TEMPORARY}x"]


def test_the_engine_of_a_fresh_process(tmp_path):
    "A database that is not set up is said in one line."
    workspace = init_folders(tmp_path)
    engine = open_engine(workspace.database_url)
    upgrade_database(engine)
    with pytest.raises(UsageError, match="does not exist"):
        check_theme(engine, workspace, "parts")
