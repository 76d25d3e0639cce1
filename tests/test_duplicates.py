"Near-duplicates: the index finds what a comparison with all finds, pixels decide, decisions last."

import json
import os
import random
import signal
import subprocess
import sys
from hashlib import sha256
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from sqlalchemy import func, select, update

from classification_mlops.cli import main
from classification_mlops.config import DuplicateParams, Params, params_hash
from classification_mlops.db import duplicates
from classification_mlops.db.duplicates import (
    components,
    confirm_pairs,
    delete_duplicates,
    find_duplicates,
    judged,
    list_clusters,
    list_pairs,
    reject_pairs,
)
from classification_mlops.db.labels import add_label
from classification_mlops.db.schema import DuplicatePair, Fingerprint, TrainData
from classification_mlops.db.session import open_engine, reading, upgrade_database, writing
from classification_mlops.db.themes import create_theme, delete_theme, get_theme
from classification_mlops.db.undo import undo
from classification_mlops.images import neighbours
from classification_mlops.images.examine import examine, seen_in
from classification_mlops.images.fingerprint import SKETCH, signature, sketches
from classification_mlops.images.likeness import glance, same_size, similarity
from classification_mlops.images.neighbours import (
    Groups,
    candidates,
    close_pairs,
    flips_of,
    meetings,
    pieces,
    radius_of,
)
from classification_mlops.images.store import store_image
from classification_mlops.text import UsageError, UserError
from classification_mlops.workspace import init_folders

PARAMS = DuplicateParams()


def drawing(seed, size=(240, 180)):
    "Random ellipses."
    numbers = np.random.default_rng(seed)
    image = Image.new("RGB", size, "white")
    for x, y, width, height, *colour in numbers.integers(10, 150, (14, 7)).tolist():
        ImageDraw.Draw(image).ellipse((x, y, x + width, y + height), tuple(colour))
    return image


def saved(image, format="PNG", **options):
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def turned(image):
    "The same picture, lying on its side with a note that it does."
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=90, exif=exif)


COPIES = {
    "turned": turned,
    "jpeg50": lambda image: saved(image, "JPEG", quality=50),
    "jpeg95": lambda image: saved(image, "JPEG", quality=95),
    "webp": lambda image: saved(image, "WEBP", quality=60),
    "half": lambda image: saved(image.resize((image.width // 2, image.height // 2))),
    "double": lambda image: saved(image.resize((image.width * 2, image.height * 2))),
    "cut": lambda image: saved(image.crop((9, 3, image.width - 4, image.height - 8))),
}


@pytest.fixture
def workspace(tmp_path):
    return init_folders(tmp_path / "w")


@pytest.fixture
def theme(engine):
    with writing(engine) as session:
        create_theme(session, "parts")
    return "parts"


def register(engine, workspace, files, **columns):
    "Rows for stored pictures, as after an import without fingerprints."
    with writing(engine) as session:
        theme = get_theme(session, "parts")
        for name, data in files.items():
            digest = sha256(data).hexdigest()
            path = store_image(workspace, theme.id, data, digest, ".png")
            size = dict(zip(("width", "height"), Image.open(BytesIO(data)).size, strict=True))
            facts = dict(image_path=path, sha256=digest, original_name=name) | size
            session.add(TrainData(theme_id=theme.id, **facts, **columns))
            session.flush()


def found_pairs(engine):
    "What the database says, by names."
    with reading(engine) as session:
        names = dict(map(tuple, session.execute(select(TrainData.id, TrainData.original_name))))
        rows = session.execute(select(DuplicatePair.first_id, DuplicatePair.second_id, DuplicatePair.status))
        return {(frozenset((names[a], names[b])), status) for a, b, status in rows}


def clusters(engine):
    "Names of pictures that are bound together."
    with reading(engine) as session:
        rows = session.execute(
            select(TrainData.cluster_id, TrainData.original_name).where(TrainData.cluster_id.is_not(None))
        )
        found = {}
        for cluster, name in rows:
            found.setdefault(cluster, set()).add(name)
        return sorted(map(sorted, found.values()))


def files_of(*seeds, kinds=COPIES):
    "Originals and their copies."
    files = {}
    for seed in seeds:
        image = drawing(seed)
        files |= {f"{seed}": saved(image)} | {f"{seed} {kind}": kinds[kind](image) for kind in kinds}
    return files


# Index

HASHES = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=12)
FLIPS = st.lists(st.lists(st.integers(0, 63), max_size=14), min_size=1, max_size=60)


def around(centres, flips):
    "Hashes that lie close to each other."
    chosen = [centres[number % len(centres)] for number in range(len(flips))]
    return np.array([c ^ sum({1 << bit for bit in f}) for c, f in zip(chosen, flips, strict=True)], np.uint64)


@settings(max_examples=60, deadline=None)
@given(HASHES, FLIPS, FLIPS, st.integers(0, 15))
def test_the_index_finds_what_a_comparison_with_all_finds(centres, one, other, distance):
    a, b = around(centres, one), around(centres, other)
    found = [pair for i, j in close_pairs(a, b, distance, few=0) for pair in zip(i, j, strict=True)]
    wanted = {(i, j) for i, x in enumerate(a) for j, y in enumerate(b) if int(x ^ y).bit_count() <= distance}
    assert len(found) == len(set(found)) and set(found) == wanted


@settings(max_examples=40, deadline=None)
@given(HASHES, FLIPS, st.lists(st.integers(1, 3), min_size=60, max_size=60), st.data())
def test_candidates_do_not_depend_on_batches(centres, flips, widths, data):
    count = len(flips)
    all_of = np.zeros(count, SKETCH)
    all_of["whole"], all_of["middle"] = around(centres, flips), around(centres, flips[::-1])
    all_of["width"], all_of["height"] = widths[:count], 1
    whole = pairs_in(all_of, np.ones(count, bool))
    cuts = sorted({0, count, *data.draw(st.lists(st.integers(0, count), max_size=4))})
    parts = [pairs_in(all_of[:end], np.arange(end) >= start) for start, end in pairwise(cuts)]
    assert set().union(*parts) == whole


def pairs_in(some, new):
    return {pair for i, j in candidates(some, new, 9) for pair in zip(i.tolist(), j.tolist(), strict=True)}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(31, 60)), min_size=1, max_size=40))
def test_components(pairs):
    groups = {n: {n} for pair in pairs for n in pair}
    for a, b in pairs:
        merged = groups[a] | groups[b]
        groups.update(dict.fromkeys(merged, merged))
    assert components(np.array(pairs)).tolist() == [min(groups[a]) for a, _ in pairs]


def test_a_cluster_that_is_too_large_is_doubted_but_for_what_was_confirmed():
    pairs = np.array([(1, n) for n in range(2, 7)] + [(20, 21)])
    confirmed = np.array([True, *[False] * 5])
    binds, large = judged(pairs, confirmed, 4)
    assert binds.tolist() == [True, False, False, False, False, True] and large == 1


# Pixels


@pytest.mark.parametrize("kind", COPIES)
def test_every_kind_of_copy_is_found(kind):
    hits = 0
    for seed in range(12):
        files = [saved(drawing(seed)), COPIES[kind](drawing(seed))]
        looks = [glance(data) for data in files]
        sizes = [look.shape for look in (np.asarray(Image.open(BytesIO(data))) for data in files)]
        sizes[1] = sizes[1] if kind != "turned" else sizes[0]
        known = sketches(np.stack([signature(look) for look in looks]), [(s[1], s[0]) for s in sizes])
        near = pairs_in(known, np.ones(2, bool))
        hits += bool(near) and similarity(*looks, bool(same_size(known[0], known[1]))) >= PARAMS.similarity
    assert hits >= 11


def test_look_alikes_are_no_copies():
    "The same part in the same pose with another grain, a defect, and an empty picture."
    numbers = np.random.default_rng(0)
    part = np.asarray(drawing(1)).astype(int)
    spot = drawing(1)
    ImageDraw.Draw(spot).ellipse((60, 60, 75, 75), "white")
    grain = np.repeat(np.repeat(numbers.normal(0, 24, (45, 60, 1)), 4, 0), 4, 1)
    for other in (
        np.asarray(spot),
        np.clip(part + grain, 0, 255).astype(np.uint8),
        np.full_like(part, 255, np.uint8),
    ):
        looks = [glance(saved(Image.fromarray(p))) for p in (part.astype(np.uint8), other)]
        assert similarity(*looks, True) < PARAMS.similarity
    blank = [glance(saved(Image.new("L", (60, 60), grey))) for grey in (0, 255)]
    assert similarity(*blank, True) == 0 and similarity(blank[0], blank[0], True) == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(2, 300), st.integers(2, 9), st.integers(2, 300))
def test_any_size_can_be_compared(a, b, c, d):
    looks = [glance(saved(drawing(1, (max(w, 2), max(h, 2))))) for w, h in ((a, b), (d, c))]
    assert 0 <= similarity(*looks, False) <= 1


# Database


def test_copies_are_bound_and_look_alikes_are_not(engine, workspace, theme):
    files = files_of(1, 2) | {"3": saved(drawing(3))}
    register(engine, workspace, files)
    report = find_duplicates(engine, workspace, theme, "ann")
    assert (report.searched, report.clusters, report.skipped) == (17, 2, [])
    assert clusters(engine) == [sorted(n for n in files if n[0] == seed) for seed in "12"]
    again = find_duplicates(engine, workspace, theme, "ann")
    assert (again.searched, again.pairs, again.compared, again.clusters) == (0, 0, 0, 2)


def test_order_and_batches_do_not_matter(tmp_path, workspace):
    files, results = files_of(1, 2, 3, kinds={k: COPIES[k] for k in ("half", "cut", "webp")}), []
    for round_number, size in enumerate((100, 1, 5)):
        engine = open_engine(f"sqlite:///{tmp_path}/{round_number}.db")
        upgrade_database(engine)
        with writing(engine) as session:
            create_theme(session, "parts")
        names = sorted(files)
        random.Random(round_number).shuffle(names)
        for start in range(0, len(names), size):
            register(engine, workspace, {name: files[name] for name in names[start : start + size]})
            find_duplicates(engine, workspace, "parts", "ann")
        results.append((found_pairs(engine), clusters(engine)))
        engine.dispose()
    assert results[0] == results[1] == results[2] and len(results[0][1]) == 3


def test_decisions_last(engine, workspace, theme):
    register(engine, workspace, files_of(1, kinds={"webp": COPIES["webp"]}))
    find_duplicates(engine, workspace, theme, "ann")
    with writing(engine) as session:
        found = get_theme(session, theme)
        (pair,) = list_pairs(session, found)
        reject_pairs(session, found, [pair["id"]], "ben")
    assert clusters(engine) == []
    with writing(engine) as session:
        session.execute(update(Fingerprint).values(searched=False))
    find_duplicates(engine, workspace, theme, "ann")
    with writing(engine) as session:
        found = get_theme(session, theme)
        assert clusters(engine) == [] and list_pairs(session, found) == []
        assert list_pairs(session, found, "rejected")[0]["decided_by"] == "ben"
        confirm_pairs(session, found, [pair["id"]], "ann")
    assert clusters(engine) == [["1", "1 webp"]]
    with writing(engine) as session, pytest.raises(UsageError, match="no pair 999"):
        confirm_pairs(session, get_theme(session, theme), [999], "ann")
    with reading(engine) as session, pytest.raises(UsageError, match="choose from"):
        list_pairs(session, get_theme(session, theme), "lost")


def test_a_large_cluster_is_reported_and_binds_nobody(engine, workspace, theme):
    image = drawing(1)
    files = {f"{q}": saved(image, "JPEG", quality=q) for q in range(72, 94)}
    register(engine, workspace, files)
    report = find_duplicates(engine, workspace, theme, "ann")
    assert (report.clusters, report.reported) == (0, 1) and clusters(engine) == []
    assert {status for _, status in found_pairs(engine)} == {"reported"}
    with writing(engine) as session:
        found = get_theme(session, theme)
        confirm_pairs(session, found, [list_pairs(session, found)[0]["id"]], "ann")
    assert len(clusters(engine)) == 1
    wide = find_duplicates(engine, workspace, theme, "ann", params=DuplicateParams(largest_share=1.0))
    assert (wide.clusters, wide.reported) == (1, 0) and len(clusters(engine)[0]) == len(files)


def test_delete_keeps_the_best(engine, workspace, theme):
    register(engine, workspace, files_of(1, kinds={k: COPIES[k] for k in ("half", "double")}))
    find_duplicates(engine, workspace, theme, "ann")
    with writing(engine) as session:
        found = get_theme(session, theme)
        labels = [add_label(session, found, name).id for name in ("good", "bad")]
        rows = {row.original_name: row for row in session.scalars(select(TrainData))}
        rows["1"].label_id, rows["1 half"].label_id = labels
    with pytest.raises(UserError, match="different labels"):
        delete_duplicates(engine, theme, "ann")
    assert delete_duplicates(engine, theme, "ann", force=True) == 2
    with reading(engine) as session:
        assert session.scalars(
            select(TrainData.original_name).where(TrainData.deleted_at.is_(None))
        ).all() == ["1"]
        assert session.scalar(select(func.count()).select_from(TrainData)) == 3
        assert list_clusters(session, get_theme(session, theme)) == []
        assert {pair.decided_by for pair in session.scalars(select(DuplicatePair))} == {"ann"}
    assert delete_duplicates(engine, theme, "ann") == 0
    with writing(engine) as session:
        delete_theme(session, theme)
        assert session.scalar(select(func.count()).select_from(Fingerprint)) == 0


def test_a_missing_file_is_said_and_tried_again(engine, workspace, theme):
    register(engine, workspace, files_of(1, kinds={"webp": COPIES["webp"]}))
    path = sorted(workspace.images.rglob("*.png"))[0]
    data = path.read_bytes()
    path.unlink()
    report = find_duplicates(engine, workspace, theme, "ann")
    assert len(report.skipped) == 1 and report.clusters == 0
    path.write_bytes(data)
    assert find_duplicates(engine, workspace, theme, "ann").clusters == 1


def test_pictures_in_a_bucket(engine, workspace, theme, s3_uri, monkeypatch):
    import fsspec

    monkeypatch.setenv("CMLOPS_IMAGE_ROOTS", s3_uri)
    files = files_of(1, kinds={"cut": COPIES["cut"]})
    with writing(engine) as session:
        for name, data in files.items():
            path = f"{s3_uri}/{name.replace(' ', '-')}.png"
            with fsspec.open(path, "wb") as file:
                file.write(data)
            row = dict(image_path=path, sha256=sha256(data).hexdigest(), original_name=name)
            session.add(TrainData(theme_id=get_theme(session, theme).id, **row))
    report = find_duplicates(engine, workspace, theme, "ann")
    assert report.skipped == [] and clusters(engine) == [["1", "1 cut"]]


# Faults

SEARCH = (
    "import sys; from pathlib import Path\n"
    "import classification_mlops.db.duplicates as d\n"
    "from classification_mlops.db.session import open_engine\n"
    "from classification_mlops.workspace import Workspace\n"
    "def telling(real):\n"
    "    def told(*arguments):\n        real(*arguments); print('wrote', flush=True)\n"
    "    return told\n"
    "d.insert_new, d.insert_tuples = map(telling, (d.insert_new, d.insert_tuples))\n"
    "report = d.find_duplicates(open_engine(sys.argv[2]), Workspace(Path(sys.argv[1])), 'parts', 'ann')\n"
    "print('finished', flush=True)\n"
)


def start_search(workspace, engine, code=SEARCH):
    command = [sys.executable, "-c", code, str(workspace.root), engine.url.render_as_string(False)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("lines", [1, 2])
def test_kill_9_in_the_middle_and_again(engine, workspace, theme, lines):
    "Killed after fingerprints, and between pairs and clusters; the repetition completes it."
    files = files_of(1, 2, kinds={k: COPIES[k] for k in ("half", "webp")})
    register(engine, workspace, files)
    process = start_search(
        workspace,
        engine,
        SEARCH.replace("'wrote', flush=True)", "'wrote', flush=True); sys.stdin.readline()"),
    )
    for line in range(lines):  # It waits for an answer after every write
        assert process.stdout.readline() == "wrote\n"
        if line < lines - 1:
            print(file=process.stdin, flush=True)
    process.kill()
    rest = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL and "finished" not in rest  # The kill hit
    find_duplicates(engine, workspace, theme, "ann")
    assert clusters(engine) == [sorted(n for n in files if n[0] == seed) for seed in "12"]
    assert len(found_pairs(engine)) == 6


def test_two_processes_at_once(engine, workspace, theme):
    files = files_of(1, 2, 3, kinds={k: COPIES[k] for k in ("half", "webp")})
    register(engine, workspace, files)
    processes = [start_search(workspace, engine) for _ in range(2)]
    assert all("finished" in process.communicate(timeout=120)[0] for process in processes)
    assert len(clusters(engine)) == 3 and len(found_pairs(engine)) == 9
    with reading(engine) as session:
        assert session.scalars(select(Fingerprint.searched).distinct()).all() == [True]


# Command line and parameters


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CMLOPS_DATABASE_URL", raising=False)
    monkeypatch.setenv("CMLOPS_WORKSPACE", str(tmp_path))
    assert main(["init", str(tmp_path)]) == 0 and main(["theme", "create", "parts"]) == 0
    (tmp_path / "s").mkdir()
    for name, data in files_of(1, kinds={k: COPIES[k] for k in ("half", "webp")}).items():
        (tmp_path / "s" / f"{name}.png").write_bytes(data)
    assert main(["data", "import", "parts", "s", "--label-from", "none"]) == 0
    capsys.readouterr()

    def answer(*arguments):
        status = main(["data", "duplicates", "parts", *arguments, "--json"])
        return status, json.loads(capsys.readouterr().out or "null")

    assert answer("--search")[1]["clusters"] == 1
    pairs = answer("--sheet", "pairs.png")[1]
    assert len(pairs) == 3 and Image.open(tmp_path / "pairs.png").width > 600
    assert answer("--reject", str(pairs[0]["id"]))[1] == {"confirmed": 0, "rejected": 1}
    assert len(answer()[1]) == 2 and answer("--status", "rejected")[1][0]["id"] == pairs[0]["id"]
    assert len(answer("--limit", "1", "--after", str(pairs[1]["id"]))[1]) == 1
    assert answer("--reject", "x")[0] == 2 and answer("--search", "--delete")[0] == 2
    assert answer("--delete")[0] == 1  # Nobody there to confirm
    assert answer("--delete", "--yes")[1] == {"deleted": 2}


def test_what_counts_as_a_copy_is_no_part_of_a_run():
    other = Params(duplicates=DuplicateParams(similarity=0.9))
    assert params_hash(Params(), []) == params_hash(other, [])


def comparisons(hashes, distance=9):
    "How many pairs of hashes are compared, and how many pairs there are."
    count = 0
    for mask in pieces(distance):
        groups, flips = Groups(hashes, mask), flips_of(mask, radius_of(distance))
        count += sum((part.stop - part.start) * len(near) for part, near in meetings(groups, groups, flips))
    return count, len(hashes) ** 2 // 2


@pytest.mark.parametrize(("distance", "share"), [(9, 0.011), (13, 0.07)])
def test_few_of_all_pairs_are_compared(distance, share):
    hashes = np.random.default_rng(0).integers(0, 2**64, 100_000, np.uint64)
    done, pairs = comparisons(hashes, distance)
    assert done < share * pairs


@pytest.mark.parametrize("distance", [9, 13])
def test_a_crowd_costs_no_square(monkeypatch, distance):
    "Photographs of one part in one pose: comparisons grow with their number, and most copies still meet."
    monkeypatch.setattr(neighbours, "CROWD", 64)
    random, work = np.random.default_rng(0), []
    for count in (1_000, 4_000):
        flips = np.uint64(1) << random.integers(0, 64, (count, 2), np.uint64)
        hashes = np.bitwise_xor.reduce(flips, axis=1) ^ np.uint64(2**60 - 12345)
        hashes[-100:] = hashes[:100] ^ (np.uint64(1) << random.integers(0, 64, 100, np.uint64))
        work.append(comparisons(hashes, distance)[0])
    assert work[1] < 8 * work[0]  # A square would be 16
    found = [
        np.stack([np.minimum(i, j), np.maximum(i, j)])
        for i, j in close_pairs(hashes, hashes, distance, few=0)
    ]
    first, second = np.concatenate(found, 1)
    assert len(np.unique(first[second == first + count - 100])) >= 50  # Not all: see the notebook


@pytest.mark.parametrize("few", [0, neighbours.FEW])
def test_look_alikes_do_not_fill_the_memory(monkeypatch, few):
    "Where everybody is close to everybody, pairs come in portions, and few of them wait for whoever is slow."
    monkeypatch.setattr(neighbours, "MUCH", 0)
    close, made, taken = neighbours.close_in_tile, [], 0

    def counted(*given):
        found = close(*given)
        made.append(sum(len(i) for i, _ in found))
        return found

    monkeypatch.setattr(neighbours, "close_in_tile", counted)
    hashes = np.zeros(12_000, np.uint64)
    for i, _ in close_pairs(hashes, hashes, 13, few=few):
        taken += 1
        assert len(i) <= neighbours.LOT
        if taken == 100:
            break
    assert max(made) <= neighbours.LOT and len(made) <= taken + 2 * neighbours.AHEAD + (os.cpu_count() or 1)


def test_only_the_nearest_of_many_are_opened(engine, workspace, theme, monkeypatch):
    "Look-alikes in any number cost a fixed number of files each, and the report says so."
    monkeypatch.setattr(duplicates, "MOST_NEAR", 3)
    files = {f"{q}": saved(drawing(1), "JPEG", quality=q) for q in range(60, 90)}
    register(engine, workspace, files)
    report = find_duplicates(engine, workspace, theme, "ann", params=DuplicateParams(largest_share=1.0))
    assert report.crowded > 20 and report.compared <= 4 * len(files)
    assert clusters(engine) == [sorted(files)]
    assert f"{report.crowded} pictures look like many others" in report.summary()


def test_deleted_copies_come_back(engine, workspace, theme):
    "One act, which undo takes back; a golden picture is the one that stays."
    register(engine, workspace, files_of(1, 2, kinds={k: COPIES[k] for k in ("half", "webp")}))
    find_duplicates(engine, workspace, theme, "ann")
    with writing(engine) as session:
        golden = TrainData.original_name == "1 half"
        session.execute(update(TrainData).where(golden).values(golden=True, split="test"))
    assert delete_duplicates(engine, theme, "ann") == 4
    left = select(TrainData.original_name).where(TrainData.deleted_at.is_(None)).order_by(TrainData.id)
    with writing(engine) as session:
        assert session.scalars(left).all() == ["1 half", "2"]
        assert undo(session, get_theme(session, theme), "ann").restored == 4
        assert len(session.scalars(left).all()) == 6
    with writing(engine) as session:
        session.execute(update(TrainData).values(golden=True, split="test"))
    with pytest.raises(UserError, match="golden"):
        delete_duplicates(engine, theme, "ann")


def test_both_ways_take_the_same_fingerprint(tmp_path):
    "At import from a file, and later from what is stored."
    for name, size in (("photo", (1601, 907)), ("digit", (28, 28)), ("line", (3, 4000))):
        path = tmp_path / f"{name}.png"
        drawing(1, size).save(path)
        seen = seen_in(path.read_bytes(), name)
        facts = examine(str(path), name)[0]
        assert (facts.signature, facts.width, facts.height) == (seen.signature, *size)
        full = signature(np.asarray(Image.open(path))).astype(int)
        assert np.abs(np.frombuffer(seen.signature, np.uint8).reshape(16, 16) - full).mean() < 6
