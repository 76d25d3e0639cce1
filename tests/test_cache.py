"The store of preprocessed pictures: several processes at once, kills, limits, and what a run does without."

import json
import os
import pickle
import signal
import subprocess
import sys
from hashlib import sha256
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from classification_mlops.cli import main
from classification_mlops.text import UserError
from classification_mlops.vision import cache
from classification_mlops.vision.cache import FEW, fill, open_pixels, open_store, unusable
from classification_mlops.vision.preprocess import build_preprocessing
from classification_mlops.vision.room import hold, occupied
from classification_mlops.workspace import init_folders

COUNT = FEW + 300
PREPROCESSING = build_preprocessing([], {"size_px": 16, "channels": 1})


@pytest.fixture(scope="module")
def pictures():
    "Small PNG files with different contents."
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (COUNT, 20, 20), dtype=np.uint8)
    return [cv2.imencode(".png", pixels)[1].tobytes() for pixels in noise]


@pytest.fixture
def place(tmp_path, pictures):
    "A workspace, and its pictures as rows of a snapshot."
    workspace = init_folders(tmp_path / "workspace")
    for number, data in enumerate(pictures):
        (workspace.images / f"{number}.png").write_bytes(data)
    return workspace, [
        SimpleNamespace(sha256=sha256(data).hexdigest(), image_path=f"images/{number}.png")
        for number, data in enumerate(pictures)
    ]


FILL = """
import hashlib, sys
from pathlib import Path
from types import SimpleNamespace
from classification_mlops.vision import cache
from classification_mlops.vision.preprocess import build_preprocessing
from classification_mlops.workspace import Workspace
workspace = Workspace(Path(sys.argv[1]))
rows = [SimpleNamespace(sha256=hashlib.sha256((workspace.root / f"images/{n}.png").read_bytes()).hexdigest(),
                        image_path=f"images/{n}.png") for n in range(int(sys.argv[2]))]
cache.CHUNK_BYTES = cache.WRITE_BYTES = 10 * 256  # writes after every few pictures
def tell(done, total):
    print(done, flush=True)
    if done >= total // 2 and sys.argv[3] == "stop":
        sys.stdin.read()  # until it is killed
cache.open_pixels(rows, workspace, build_preprocessing([], {"size_px": 16, "channels": 1}), progress=tell)
"""


def start(workspace, *arguments):
    command = [sys.executable, "-c", FILL, workspace.root, str(COUNT), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_one_of_two_that_fill_the_same_store_is_killed(place):
    import psutil

    workspace, rows = place
    first = start(workspace, "stop")
    while int(first.stdout.readline()) < COUNT // 2:
        pass
    helpers = psutil.Process(first.pid).children()
    second = start(workspace, "go")
    assert open_store(workspace, PREPROCESSING).count >= COUNT // 2 and second.poll() is None
    first.send_signal(signal.SIGKILL)  # the fault: it holds the lock, and half is written
    assert first.wait(30) == -signal.SIGKILL
    assert second.wait(60) == 0
    told = [int(line) for line in second.stdout]
    assert told and told[-1] < COUNT  # what the first had written was not done again
    store = open_store(workspace, PREPROCESSING)
    assert store.count == COUNT == len(set(store.hashes().tolist()))
    pixels, fresh = (open_pixels(rows, workspace, PREPROCESSING, kept) for kept in (True, False))
    assert np.array_equal(pixels[np.arange(COUNT)], fresh[np.arange(COUNT)])
    assert (helpers or os.cpu_count() == 1) and not psutil.wait_procs(helpers, timeout=10)[1]


def test_processes_and_threads_write_the_same(place, tmp_path):
    workspace, rows = place
    for processes in (2, 0):
        store = open_store(workspace, PREPROCESSING)
        assert fill(store, rows, workspace, PREPROCESSING, processes=processes) == {}
        (store.folder / "pixels.bin").rename(tmp_path / f"{processes}")
        (store.folder / "hashes.bin").unlink()
    assert (tmp_path / "2").read_bytes() == (tmp_path / "0").read_bytes()


def test_a_large_file_is_read_as_a_small_one_is_mapped(place, monkeypatch):
    workspace, rows = place
    mapped = open_pixels(rows, workspace, PREPROCESSING)[np.arange(COUNT)[::-1]]
    monkeypatch.setattr(cache, "MAPPED_BYTES", 0)
    pixels = open_pixels(rows, workspace, PREPROCESSING)
    assert np.array_equal(pixels[np.arange(COUNT)[::-1]], mapped)
    assert pixels.store.mapped.mapped is None
    pickled = pickle.loads(pickle.dumps(pixels))
    assert np.array_equal(pickled[np.array([5, 5, 0])], pixels[np.array([5, 5, 0])])


def test_a_killed_helper_costs_nothing(place):
    "The rest is done without helpers."
    import psutil

    workspace, rows = place
    others, victims = set(psutil.Process().children()), []  # Servers of other tests

    def kill_one(done, total):
        helpers = [child for child in psutil.Process().children() if child not in others]
        if helpers and not victims:
            victims.append(helpers[0].pid)
            os.kill(helpers[0].pid, signal.SIGKILL)

    pixels = open_pixels(rows * 4, workspace, PREPROCESSING, progress=kill_one)
    assert victims or os.cpu_count() == 1
    assert (pixels.positions >= 0).all()


def test_the_limit_removes_what_was_not_used_for_longest(place, monkeypatch):
    workspace, rows = place
    three = [build_preprocessing([], {"size_px": size, "channels": 1}) for size in (16, 17, 18)]
    oldest, reading, _ = (open_pixels(rows[:100], workspace, each).store for each in three)
    del oldest
    for number, one in enumerate(occupied(workspace.preprocessed)):
        os.utime(one.folder / "in_use", (number, number))
        os.utime(one.folder / "hashes.bin", (number, number))
    reading.held.close()
    reading.held = hold(reading.folder)
    os.utime(reading.folder / "in_use", (0, 0))
    total = sum(one.bytes for one in occupied(workspace.preprocessed))
    monkeypatch.setenv("CMLOPS_CACHE_BYTES", str(total + 1000))
    open_pixels(rows[:100], workspace, build_preprocessing([], {"size_px": 15, "channels": 1}))
    left = {one.folder.name[:24] for one in occupied(workspace.preprocessed)}
    assert three[0].key[:24] not in left and {reading.folder.name, three[2].key[:24]} <= left
    monkeypatch.setenv("CMLOPS_CACHE_BYTES", "1K")
    other = build_preprocessing([], {"size_px": 19, "channels": 1})
    assert not hasattr(open_pixels(rows[:100], workspace, other), "store")  # auto: without
    with pytest.raises(UserError, match="raise CMLOPS_CACHE_BYTES"):
        open_pixels(rows[:100], workspace, other, cache=True)
    assert np.array_equal(reading.read(np.arange(3)).shape, (3, 1, 17, 17, 1))


def test_the_command_shows_exports_and_clears(place, monkeypatch, capsys, tmp_path):
    workspace, rows = place
    monkeypatch.setenv("CMLOPS_WORKSPACE", str(workspace.root))
    patches = build_preprocessing(
        [{"step": "patches", "rows": 1, "columns": 2}], {"size_px": 8, "channels": 3}
    )
    pixels = open_pixels(rows[:5], workspace, patches)
    assert main(["data", "cache", "--json"]) == 0
    [store] = json.loads(capsys.readouterr().out)["stores"]
    assert store["pictures"] == 5 and store["bytes"] >= 5 * 2 * 8 * 8 * 3
    assert main(["data", "cache", "--export", str(tmp_path / "seen"), "--count", "2"]) == 0
    files = sorted((tmp_path / "seen").rglob("*.png"))
    assert [path.name[16:] for path in files] == ["-0.png", "-1.png"] * 2
    name = files[1].name[:16]
    number = [row.sha256[:16] for row in rows[:5]].index(name)
    assert np.array_equal(cv2.imread(str(files[1]))[..., ::-1], pixels[np.array([number])][0, 1])
    assert main(["data", "cache", "--key", "nonsense"]) == 2
    capsys.readouterr()
    assert main(["data", "cache", "--clear"]) == 0 and "1 in use" in capsys.readouterr().out
    del pixels
    assert main(["data", "cache", "--clear"]) == 0 and not occupied(workspace.preprocessed)
    assert main(["data", "cache"]) == 0 and "no preprocessed pictures" in capsys.readouterr().out


@pytest.mark.parametrize("kept", [True, False])
def test_unusable_pictures_are_found(place, kept):
    workspace, rows = place
    rows = rows[:20]
    (workspace.root / rows[3].image_path).unlink()
    (workspace.root / rows[4].image_path).write_bytes(b"another")
    found = unusable(rows, workspace, PREPROCESSING, kept)
    assert set(found) == {rows[3].sha256, rows[4].sha256}
    with pytest.raises(UserError, match=r"3\.png"):
        open_pixels(rows, workspace, PREPROCESSING, cache=True)
