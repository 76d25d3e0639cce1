"What sources offer: folders, archives, tables, buckets; labels, groups and splits from them."

import csv
import io
import os
import random
import resource
import stat
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from classification_mlops.images import archives, objects, tables
from classification_mlops.images.archives import archive_members, member_path, read_zipped
from classification_mlops.images.candidates import matched_groups
from classification_mlops.images.decode import REASONS, UnreadableImage
from classification_mlops.images.examine import read_file
from classification_mlops.images.sources import Candidate, SourceOptions, offers
from classification_mlops.images.tables import Reach, plain_offers, row_offer
from classification_mlops.text import UsageError, UserError
from classification_mlops.workspace import Workspace


def picture(number: int, format="PNG") -> bytes:
    "A small picture that no other number has."
    buffer, pixels = io.BytesIO(), np.random.default_rng(number).integers(0, 255, (8, 8), np.uint8)
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def found_in(source, workspace, **options) -> list:
    return list(offers(source, workspace, SourceOptions(**options))())


def reasons_of(found) -> dict[str, str]:
    return {offer.name: offer.reason for offer in found if isinstance(offer, UnreadableImage)}


def facts_of(found, *names) -> list[tuple]:
    return [tuple(getattr(o, name) for name in names) for o in found if isinstance(o, Candidate)]


def tree(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number))
    return folder


# Folders


def test_label_split_and_group_of_a_published_tree(tmp_path, workspace):
    names = ["train/cat/a1_x.png", "validation/cat/a2_x.png", "dev/dog/deep/b1_x.png", "Testing/dog/b1_y.png"]
    source = tree(tmp_path / "s", *names, "extra/cat/1.png", "train/1.png", "unsplit/cat/c1.png", "loose.png")
    found = found_in(source, workspace, split_from="folder", group_from=r"([a-z]\d)[_.]")
    assert sorted(facts_of(found, "split", "label", "group_key"), key=str) == sorted(
        [
            ("train", "cat", "a1"),
            ("valid", "cat", "a2"),
            ("valid", "dog", "b1"),
            ("test", "dog", "b1"),
            (None, "cat", "c1"),
        ],
        key=str,
    )
    assert reasons_of(found) == {
        "extra/cat/1.png": "no_split",
        "loose.png": "no_split",
        "train/1.png": "no_label",
    }


@pytest.mark.parametrize(
    ("label_from", "labels"),
    [
        ("auto", ["a", "a"]), ("folder", ["a", "a"]), ("parent", ["a", "c"]), ("none", [None, None]),
        ("=x", ["x", "x"]), ("=folder", ["folder", "folder"]), ("=か\u3099", ["が", "が"]),
    ],
)  # fmt: skip
def test_labels_from_everywhere(tmp_path, workspace, label_from, labels):
    source = tree(tmp_path / "s", "a/1.png", "a/b/c/2.png")
    assert [
        label for (label,) in facts_of(found_in(source, workspace, label_from=label_from), "label")
    ] == labels


@pytest.mark.parametrize(
    "options", [{"label_from": "foldr"}, {"label_from": "="}, {"split_from": "x"}, {"label_from": "Column"}]
)
def test_slips_in_options_are_refused(options):
    with pytest.raises(UsageError):
        SourceOptions(**options)


@pytest.mark.parametrize("option", ["label_from", "split_from"])
@pytest.mark.parametrize("name", ["s", "s.zip"])
def test_trees_have_no_columns(tmp_path, workspace, option, name):
    tree(tmp_path / "s", "a/1.png")
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as file:
        file.writestr("a/1.png", b"x")
    with pytest.raises(UsageError, match="no table"):
        offers(tmp_path / name, workspace, SourceOptions(**{option: "column"}))()


def test_what_is_no_source(tmp_path, workspace):
    (tmp_path / "notes.txt").write_text("hello")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.zip").mkdir()
    for name, said in (("nothing", "does not exist"), ("notes.txt", r"\.csv"), ("pipe.csv", "no folder")):
        with pytest.raises(UsageError, match=said):
            offers(tmp_path / name, workspace)
    assert found_in(tmp_path / "folder.zip", workspace) == []


# Groups


def test_groups_of_a_million_hostile_names_take_linear_time():
    "Python's own engine would need longer than the age of the universe."
    names = ["a" * 1000 + "!"] * 50
    start = time.process_time()
    for pattern in (r"(a+)+$", r"(a|a)*$", r"(.*)(.*)(.*)(.*)x", r"([a-z]+)*\d"):
        assert not any(matched_groups(pattern, names))
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("pattern", "group"),
    [
        (r"lot(\d+)", "17"), (r"lot\d+", "lot17"), (r"(?:lot)(\d)", "1"), (r"[(]x|lot(1)", "1"),
        (r"(?P<lot>lot\d\d)/(cam\d)", "lot17"), (r"[^](]+", "lot17/cam2/003.png"), (r"\(|lot(\d)", "1"),
        (r"(?i)LOT(\d+)", "17"), (r"(nothing)?lot", None),
    ],
)  # fmt: skip
def test_first_bracket_or_whole_match(pattern, group):
    assert (matched_groups(pattern, ["lot17/cam2/003.png"])[0] or None) == group


@pytest.mark.parametrize(
    "pattern", ["lot(", "(?=a)", "(?<=a)b", r"(a)\1", "a{1000}{1000}{1000}", "x" * 501, "[z-a]", "\udcff"]
)
def test_expressions_that_cannot_be_used(pattern):
    with pytest.raises(UsageError, match="regular expression"):
        SourceOptions(group_from=pattern)


def test_an_expression_that_fits_nothing_ends_the_walk(tmp_path, workspace):
    source = tree(tmp_path / "s", "a/1.png")
    with pytest.raises(UsageError, match=r"a/1\.png"):
        found_in(source, workspace, group_from="lot")
    assert found_in(tree(tmp_path / "empty", ".DS_Store"), workspace, group_from="lot") == [None]


def test_long_groups_are_refused(tmp_path, workspace):
    source = tree(tmp_path / "s", "a/" + "x" * 220 + ".png", "a/1.png")
    assert list(reasons_of(found_in(source, workspace, group_from=".*")).values()) == ["long_group"]


# Tables


def write_rows(path: Path, columns, rows, **options) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(
            pa.table(
                {name: list(values) for name, values in zip(columns, zip(*rows, strict=True), strict=True)}
            ),
            path,
        )
        return path
    with path.open("w", newline="", encoding=options.pop("encoding", "utf-8")) as file:
        writer = csv.writer(file, **options)
        writer.writerows([columns, *rows])
    return path


FULL = ("path", "label", "labeled_by", "group", "split", "sha256", "width", "height", "original_name")
ROW = ("a/1.png", "が", "山田", "lot 7", "val", "AB" * 32, "640", "480", "IMG 1.png")


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.parquet", "T.CSV"])
def test_every_column_in_any_order(tmp_path, workspace, name):
    order = random.Random(name).sample(range(len(FULL)), len(FULL))
    columns, row = [FULL[i] for i in order] + ["weather"], [ROW[i] for i in order] + ["rain"]
    table = write_rows(tmp_path / name, columns, [row], delimiter="\t" if name == "t.tsv" else ",")
    (offer,) = found_in(table, workspace, split_from="column")
    assert offer == Candidate(
        str(tmp_path / "a/1.png"), "a/1.png", "が", "山田", "lot 7", "valid", "ab" * 32, 640, 480, "IMG 1.png"
    )
    assert found_in(table, workspace)[0].split is None
    assert found_in(table, workspace, label_from="none")[0].label is None
    assert found_in(table, workspace, label_from="=x")[0].label == "x"
    assert found_in(table, workspace, label_from="folder")[0].label == "が"  # A column says it better


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_spreadsheets_of_all_countries(tmp_path, workspace, encoding, delimiter):
    table = write_rows(
        tmp_path / "t.csv", ["Path ", "LABEL"], [["ねじ.png", "傷"]], encoding=encoding, delimiter=delimiter
    )
    assert facts_of(found_in(table, workspace), "name", "label") == [("ねじ.png", "傷")]


def test_labels_by_place_where_no_column_says_them(tmp_path, workspace):
    table = write_rows(
        tmp_path / "t.csv", ["path"], [["train/cat/1.png"], ["test/dog/b/2.png"], ["3.png"], ["train/4.png"]]
    )
    found = found_in(table, workspace, label_from="parent", split_from="folder")
    assert facts_of(found, "label", "split") == [("cat", "train"), ("b", "test")]
    assert reasons_of(found) == {"3.png": "no_split", "train/4.png": "no_label"}
    assert [label for (label,) in facts_of(found_in(table, workspace), "label")] == [None] * 4


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        (["label"], {}, "no column path"),
        (["path"], {"label_from": "column"}, "no column label"),
        (["path"], {"split_from": "column"}, "no column split"),
        (["path", "lable"], {}, "did you mean label"),
        (["filename", "label"], {}, "did you mean path"),
        (["path", "class"], {}, "did you mean label"),
        (["path", "sha265"], {}, "did you mean sha256"),
        (["path", "group_key"], {}, "did you mean group"),
        (["path", "label", "Label"], {}, "twice"),
        ([], {}, "no column path"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_columns_that_cannot_be(tmp_path, workspace, columns, options, said, name):
    if name == "t.parquet" and (len(set(map(str.lower, columns))) < len(columns) or not columns):
        columns = columns or ["weather"]
    table = write_rows(tmp_path / name, columns, [["x"] * len(columns)])
    with pytest.raises(UsageError, match=said):
        found_in(table, workspace, **options)


def test_harmless_columns_are_passed_over(tmp_path, workspace):
    columns = [
        "path",
        "label",
        "labels",
        "label_id",
        "weather",
        "id",
        "perceptual_hash",
        "fold",
        "golden",
        "",
    ]
    assert (
        len(facts_of(found_in(write_rows(tmp_path / "t.csv", columns, [["x"] * 10]), workspace), "path")) == 1
    )


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_values_that_cannot_be_name_their_column(tmp_path, workspace, name):
    rows = [
        ["1.png", "train", "0" * 64, "1", "2"],
        ["2.png", "tset", "", "", ""],
        ["3.png", "", "0" * 63, "", ""],
        ["4.png", "", "x" * 64, "", ""],
        ["5.png", "", "", "-1", ""],
        ["6.png", "", "", "", "1e3"],
        ["7.png", "", "", "640.0", "9" * 7],
        ["8.png", "", "", "640.0", "480"],
        ["9.png", "", "", "١", ""],
    ]  # fmt: skip
    found = found_in(
        write_rows(tmp_path / name, ["path", "split", "sha256", "width", "height"], rows),
        workspace,
        split_from="column",
    )
    assert facts_of(found, "name", "width") == [("1.png", 1), ("8.png", 640)]
    assert set(reasons_of(found).values()) == {"bad_value"} and len(reasons_of(found)) == 7
    assert "split" in str(found[1]) and "tset" in str(found[1]) and "height" in str(found[5])


def test_types_of_parquet(tmp_path, workspace):
    table = pa.table({
        "path": pa.array(["a.png", None, "c.png"]).dictionary_encode(),
        "label": pa.array([3, None, 4]),
        "width": pa.array([640.0, None, float("nan")]),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    found = found_in(tmp_path / "t.parquet", workspace)
    assert facts_of(found, "name", "label", "width") == [("a.png", "3", 640), ("c.png", "4", None)]


def test_parquet_that_is_none(tmp_path, workspace, monkeypatch):
    good = write_rows(tmp_path / "t.parquet", ["path"], [["a.png"]]).read_bytes()
    for content in (b"", b"PAR1", good[:-20], b"x" * 100, good[:4] + bytes(len(good) - 8) + good[-4:]):
        (tmp_path / "t.parquet").write_bytes(content)
        with pytest.raises(UsageError, match="Parquet"):
            found_in(tmp_path / "t.parquet", workspace)
    (tmp_path / "t.parquet").write_bytes(good)
    monkeypatch.setattr(tables, "MOST_COLUMN_BYTES", 10)
    with pytest.raises(UsageError, match="row groups"):
        found_in(tmp_path / "t.parquet", workspace)


def test_paths_stay_below_the_table_or_the_allowed_roots(tmp_path, workspace, monkeypatch):
    here = tree(tmp_path / "here", "a/1.png", "b.png")
    there = tree(tmp_path / "there", "1.png")
    (here / "link.png").symlink_to(there / "1.png")
    (here / "inside.png").symlink_to(here / "b.png")
    (here / "door").symlink_to(there)
    paths = [
        "a/1.png",
        "./a/../b.png",
        "a\\1.png",
        "link.png",
        "inside.png",
        "door/1.png",
        str(there / "1.png"),
        "../there/1.png",
    ]
    paths += [
        "s3://bucket/x/1.png",
        "s3://bucket/../1.png",
        "s3://other/1.png",
        "zip://1-2::/etc/a.zip",
        "file:///etc/passwd",
        "a\0.png",
        "/x.png",
    ]
    table = write_rows(here / "t.csv", ["path"], [[path] for path in paths])

    def inside():
        return [name for (name,) in facts_of(found_in(table, workspace), "name")]

    assert inside() == ["a/1.png", "./a/../b.png", "a\\1.png", "inside.png"]
    monkeypatch.setenv("CMLOPS_IMAGE_ROOTS", os.pathsep.join((str(there), "s3://bucket")))
    allowed = [
        "a/1.png",
        "./a/../b.png",
        "a\\1.png",
        "link.png",
        "inside.png",
        "door/1.png",
        str(there / "1.png"),
        "../there/1.png",
    ]
    assert inside() == [*allowed, "s3://bucket/x/1.png"]
    for offer in found_in(table, workspace):
        if isinstance(offer, Candidate) and "://" not in offer.path:
            assert read_file(offer.path, offer.name)


FIELDS = st.sampled_from([
    "", "a", "a/1.png", "a/2.png", "b/3.png", "../x.png", "/x.png", "a\\1.png", "s3://b/1.png", "s3://b/a/2.png",
    "s3://c/1.png", "s3://b/..", "a/", "a/..", "a//b.png", "good", "が", "か\u3099", "train", "VAL", "tset",
    "0" * 64, "F" * 64, "12", "-3", "1.0", "x" * 201, "x" * 1100, "a\u202eb", "a\nb", "a\0b", "zip://1-1::a",
])  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(FIELDS, min_size=9, max_size=9), min_size=1, max_size=6),
    st.sampled_from(["auto", "column", "none", "=x", "folder"]),
    st.sampled_from(["none", "column", "folder"]),
)
def test_a_block_says_what_its_rows_say(tmp_path_factory, rows, label_from, split_from):
    "The fast way and the rule agree, or the fast way declines."
    workspace, options = Workspace(Path("/tmp/none")), SourceOptions(label_from, None, split_from)
    reach = Reach(Path("/tmp/t.csv"), workspace)
    reach.uris = ("s3://b",)
    block = plain_offers({name: [row[at] for row in rows] for at, name in enumerate(FULL)}, reach, options)
    if block is not None:
        assert block == [
            row_offer(dict(zip(FULL, row, strict=True)), "t.csv:1", reach, options) for row in rows
        ]


def test_plain_rows_take_the_fast_way(tmp_path, workspace, monkeypatch):
    monkeypatch.setattr(tables, "row_offer", None)
    rows = [(f"d{i % 3}/{i}.png", *ROW[1:5], f"{i:064x}", *ROW[6:]) for i in range(2500)]
    table = write_rows(tmp_path / "t.csv", FULL, rows)
    assert [offer.name for offer in found_in(table, workspace, split_from="column")] == [
        row[0] for row in rows
    ]


# Buckets


def test_a_bucket_is_listed_page_by_page(s3_uri, workspace, monkeypatch):
    import fsspec

    store = fsspec.filesystem("s3")
    names = [f"cat/{number:03}.png" for number in range(25)] + [
        "dog/deep/1.png",
        "dog/.DS_Store",
        "loose.png",
        "dog/50%.png",
    ]
    store.pipe({f"{s3_uri}/day1/{name}": picture(1) for name in names})
    store.pipe(f"{s3_uri}/day1/dog/empty.png", b"")
    store.pipe(f"{s3_uri}/day10/cat/other.png", b"not below day1")
    monkeypatch.setenv("CMLOPS_IMAGE_ROOTS", s3_uri)
    asked, whole = [], objects.s3_pages

    def small_pages(system, path):
        def call(method, **request):
            asked.append(method)
            return system.call_s3(method, **request, MaxKeys=10)

        return whole(type("Pager", (), {"call_s3": staticmethod(call)}), path)

    monkeypatch.setattr(objects, "s3_pages", small_pages)
    walk = offers(f"{s3_uri}/day1/", workspace, SourceOptions(group_from=r"cat|dog"))()
    found = list(walk)
    assert Counter(facts_of(found, "label")) == {("cat",): 25, ("dog",): 1} and len(asked) == 3
    assert reasons_of(found) == {
        "loose.png": "no_label",
        "dog/empty.png": "empty",
        "dog/50%.png": "unsafe_address",
    }
    assert found.count(None) == 1
    asked.clear()
    next(offers(f"{s3_uri}/day1", workspace)())
    assert len(asked) == 1  # Lazily: nobody asked for the second page
    assert read_file(facts_of(found, "path")[0][0], "x") == picture(1)


def test_buckets_outside_or_missing_are_said(s3_uri, workspace, monkeypatch):
    with pytest.raises(UsageError, match="CMLOPS_IMAGE_ROOTS"):
        found_in(s3_uri, workspace)
    monkeypatch.setenv("CMLOPS_IMAGE_ROOTS", f"{s3_uri}:s3://no-such-bucket-here")
    with pytest.raises(UsageError, match="nothing lies below"):
        found_in(f"{s3_uri}/nothing", workspace)
    with pytest.raises(UserError, match="cannot be listed") as caught:
        found_in("s3://no-such-bucket-here", workspace)
    assert "canary" not in str(caught.value)


def test_tables_of_addresses(s3_uri, workspace, monkeypatch, tmp_path):
    import fsspec

    fsspec.filesystem("s3").pipe(f"{s3_uri}/a.png", picture(1))
    monkeypatch.setenv("CMLOPS_IMAGE_ROOTS", s3_uri)
    rows = [[f"{s3_uri}/a.png"], [f"{s3_uri}/gone.png"], ["s3://elsewhere/a.png"]]
    there, gone, outside = found_in(write_rows(tmp_path / "t.csv", ["path"], rows), workspace)
    assert read_file(there.path, "a") == picture(1) and outside.reason == "outside"
    with pytest.raises(UnreadableImage) as caught:
        read_file(gone.path, "gone.png")
    assert caught.value.reason == "unreadable" and "canary" not in str(caught.value)


# Archives


def zipped(path: Path, files: dict[str, bytes], method=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


def content_of(archive: Path) -> dict[str, bytes | str]:
    "What comes of each member: bytes, or a reason."
    found = {}
    for member in archive_members(archive):
        try:
            good = not isinstance(member, UnreadableImage)
            found[member.name] = (
                read_zipped(member_path(archive, member), member.name) if good else member.reason
            )
        except UnreadableImage as error:
            found[member.name] = error.reason
    return found


class Pipe(io.BytesIO):
    "Sizes follow the data where nobody can go back."

    def seek(self, *_):
        raise OSError


LETTERS = st.characters(codec="utf-8", exclude_characters="\0\\/:", exclude_categories=["Cs"])


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.text(LETTERS, min_size=1, max_size=9), st.binary(max_size=300), max_size=8),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    st.binary(max_size=20),
    st.booleans(),
)
def test_archives_read_as_zipfile_reads_them(tmp_path_factory, files, method, prefix, streamed):
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    files = {
        f"x{name}": data
        for name, data in files.items()
        if not name.lower().endswith(archives.ARCHIVE_ENDINGS)
    }
    buffer = Pipe() if streamed else io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in files.items():
            file.writestr(name, data)
    path.write_bytes(prefix + buffer.getvalue())
    assert content_of(path) == files


def test_many_members_and_large_numbers(tmp_path):
    "More than 65,535 members need the long form of the numbers; memory stays flat."
    heads, listed, at = [], [], 0
    for number in range(70_000):
        name = f"c/{number}.png".encode()
        heads.append(struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0) + name)
        numbers = (20, 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0, 0, 0, 0, 0, at)
        listed.append(struct.pack("<4s6H3I5H2I", b"PK\1\2", *numbers) + name)
        at += len(heads[-1])
    size = sum(map(len, listed))
    wide = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 70_000, 70_000, size, at)
    where = struct.pack("<4sIQI", b"PK\6\7", 0, at + size, 1)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path = tmp_path / "a.zip"
    path.write_bytes(b"".join([*heads, *listed, wide, where, end]))
    with zipfile.ZipFile(path) as file:
        assert len(file.namelist()) == 70_000  # The test builds what others read too
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(1 for _ in archive_members(path)) == 70_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000  # KB
    with (
        zipfile.ZipFile(tmp_path / "b.zip", "w") as file,
        file.open("a.png", "w", force_zip64=True) as member,
    ):
        member.write(b"pixels")
    assert content_of(tmp_path / "b.zip") == {"a.png": b"pixels"}


def test_members_of_one_name_are_two_pictures(tmp_path, workspace):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file, pytest.warns(UserWarning):
        file.writestr("c/1.png", b"first")
        file.writestr("c/1.png", b"second")
    found = found_in(tmp_path / "a.zip", workspace)
    assert [read_file(path, name) for path, name in facts_of(found, "path", "name")] == [b"first", b"second"]


def test_names_in_all_encodings(tmp_path):
    names = {"傷/ねじ.png": "cp932", "Grün/é.png": "cp437", "が/1.png": "utf-8", "🙂.png": "utf-8"}
    path = zipped(
        tmp_path / "a.zip", {"x" * len(name.encode(code)): name.encode() for name, code in names.items()}
    )
    data = path.read_bytes()
    for name, code in names.items():
        data = data.replace(b"x" * len(name.encode(code)), name.encode(code)) if len(name) else data
    path.write_bytes(data)
    lengths = [len(name.encode(code)) for name, code in names.items()]
    assert len(set(lengths)) == len(lengths)
    assert sorted(content_of(path)) == sorted(names)


UNSAFE = [
    "../../evil.png", "..\\..\\evil.png", "/etc/evil.png", "\\evil.png", "C:\\evil.png", "c:evil.png",
    "a/../../evil.png", "..", "a/..", "a\\..\\..\\evil.png", "//host/share/evil.png", "./../evil.png",
]  # fmt: skip


def test_names_that_lead_out_are_refused_and_the_rest_goes_on(tmp_path, workspace):
    path = zipped(tmp_path / "a.zip", dict.fromkeys(UNSAFE, b"evil") | {"c/good.png": b"good"})
    found = found_in(path, workspace)
    assert reasons_of(found) == dict.fromkeys(UNSAFE, "unsafe_path")
    assert facts_of(found, "name") == [("c/good.png",)]
    assert sorted(os.listdir(tmp_path)) == ["a.zip"]


def test_links_leftovers_and_folders(tmp_path, workspace):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name, mode in (
            ("c/link.png", stat.S_IFLNK),
            ("c/pipe.png", stat.S_IFIFO),
            ("c/good.png", stat.S_IFREG),
        ):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (mode | 0o777) << 16
            file.writestr(entry, b"/etc/passwd")
        for name in ("c/", "empty/", "__MACOSX/c/._good.png", "c/.DS_Store", "c/Thumbs.db"):
            file.writestr(name, b"")
    found = found_in(tmp_path / "a.zip", workspace)
    assert reasons_of(found) == {"c/link.png": "not_regular_file", "c/pipe.png": "not_regular_file"}
    assert facts_of(found, "name") == [("c/good.png",)] and found.count(None) == 5


def test_bombs_are_refused_by_what_they_claim_and_by_what_they_do(tmp_path):
    path = zipped(
        tmp_path / "a.zip", {"zeros.bmp": bytes(50 * 2**20), "c/good.png": b"good", "more.zip": b"PK"}
    )
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert content_of(path) == {"zeros.bmp": "bomb", "c/good.png": b"good", "more.zip": "archive"}
    data = path.read_bytes()
    at = data.rindex(b"zeros.bmp") - 46
    for claimed in (0, 1000, 9 * 2**20):  # The header lies
        path.write_bytes(data[: at + 24] + struct.pack("<I", claimed) + data[at + 28 :])
        assert content_of(path)["zeros.bmp"] == "damaged"
    assert time.process_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KB


def test_entries_that_share_bytes_are_refused(tmp_path):
    "A thousand entries, one kernel: the first counts, or none."
    path = zipped(tmp_path / "a.zip", {"a.png": b"kernel" * 100})
    data = path.read_bytes()
    at, end = data.rindex(b"PK\1\2"), data.rindex(b"PK\5\6")
    entry = data[at:end]
    many = b"".join(entry.replace(b"a.png", f"{number:05}".encode()) for number in range(1000))
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1001, 1001, len(entry) + len(many), at, 0)
    path.write_bytes(data[:at] + entry + many + tail)
    assert Counter(content_of(path).values()) == {b"kernel" * 100: 1, "overlapping": 1000}


def test_archives_beyond_all_measure(tmp_path, monkeypatch):
    path = zipped(tmp_path / "a.zip", {f"{number}.png": b"12345" for number in range(10)})
    for limit, value in (("MOST_MEMBERS", 9), ("MOST_UNPACKED", 49)):
        with monkeypatch.context() as patch, pytest.raises(UsageError, match="in parts"):
            patch.setattr(archives, limit, value)
            content_of(path)
    monkeypatch.setattr(archives, "MAX_BYTES", 4)
    assert set(content_of(path).values()) == {"too_many_bytes"}


def changed(data: bytes, name: str, place: int, value: bytes) -> bytes:
    "The entry of a member, with other bytes at one place."
    at = data.rindex(name.encode()) - 46 + place
    return data[:at] + value + data[at + len(value) :]


def test_damage_in_one_member_leaves_the_others(tmp_path):
    files = {f"{number}.png": os.urandom(500) for number in range(8)}
    path = zipped(tmp_path / "a.zip", files)
    data = path.read_bytes()
    data = changed(data, "1.png", 8, b"\1\0")  # Encrypted
    data = changed(data, "2.png", 10, b"\x0e\0")  # LZMA
    data = changed(data, "3.png", 16, b"\0\0\0\0")  # Checksum
    data = changed(data, "4.png", 42, b"\xff\xff\xff\x7f")  # Data beyond the end
    data = changed(data, "5.png", 24, struct.pack("<I", 501))  # One byte more than there is
    data = data.replace(b"6.png", b"9.png", 1)  # Two names
    path.write_bytes(data)
    assert content_of(path) == {
        "0.png": files["0.png"], "1.png": "encrypted", "2.png": "unsupported_method", "3.png": "damaged",
        "4.png": "vanished", "5.png": "truncated", "6.png": "vanished", "7.png": files["7.png"],
    }  # fmt: skip
    with pytest.raises(UnreadableImage) as caught:
        read_zipped(member_path(tmp_path / "gone.zip", next(archive_members(path))), "0.png")
    assert caught.value.reason == "vanished"


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PK\5\6", b"PK\5\6" + b"\xff" * 18, b"PK\3\4" + bytes(500)]
)
def test_files_that_are_no_archives(tmp_path, workspace, content):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UsageError, match="no zip archive"):
        found_in(tmp_path / "a.zip", workspace)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_archives_give_bytes_or_a_reason(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.zip"
    zipped(path, {"c/1.png": b"abc" * 50, "c/2.png": b"\x07\xf0random", "ねじ.png": b""})
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        for found in content_of(path).values():
            assert isinstance(found, bytes) or found in REASONS
    except UsageError as error:
        assert "\n" not in str(error)


def test_a_worker_reads_members(tmp_path):
    "The path alone is enough for another process."
    path = zipped(tmp_path / "日本 a::b.zip", {"c/1.png": picture(3)})
    code = (
        "import sys; from classification_mlops.images.examine import examine\n"
        "print(examine(*sys.argv[1:])[0].width)"
    )
    command = [sys.executable, "-c", code, member_path(path, next(archive_members(path))), "c/1.png"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "8\n"


def test_crc_is_that_of_the_bytes(tmp_path):
    path = zipped(tmp_path / "a.zip", {"1.png": b"pixels"})
    assert next(archive_members(path)).crc == zlib.crc32(b"pixels")


def test_an_archive_with_a_table_comes_in_by_it(tmp_path, workspace):
    "As an export leaves; folders, leftovers and files that no row names are silent."
    pictures = {f"train/c/{number}.png": picture(number) for number in range(3)}
    rows = [f"{name},=x,ann,lot {n},{'train' if n else 'test'}" for n, name in enumerate(pictures)]
    table = "\n".join(
        ["path,label,labeled_by,group,split", *rows, "gone.png,a,,,", "secret.png,a,,,", "..\\up.png,a,,,"]
    )
    path = zipped(
        tmp_path / "a.zip",
        pictures | {"secret.png": b"x", "no row.png": b"x", "manifest.csv": table.encode()},
    )
    path.write_bytes(changed(path.read_bytes(), "secret.png", 8, b"\1\0"))
    found = found_in(path, workspace, split_from="column")
    assert facts_of(found, "label", "labeled_by", "group_key", "split")[1] == ("=x", "ann", "lot 1", "train")
    assert [read_file(offer.path, offer.name) for offer in found[:3]] == list(pictures.values())
    assert reasons_of(found) == {"gone.png": "outside", "..\\up.png": "outside"}
    with pytest.raises(UnreadableImage) as caught:
        read_file(found[4].path, found[4].name)
    assert caught.value.reason == "encrypted"


def test_a_large_table_in_an_archive_leaves_memory_flat(tmp_path, workspace):
    names = [f"{number}.png" for number in range(50)]
    table = "path,label\n" + "".join(f"{names[n % 50]},label {n % 7}\n" for n in range(60_000))
    path = zipped(tmp_path / "a.zip", dict.fromkeys(names, b"x") | {"manifest.csv": table.encode()})
    assert Counter(o.label for o in found_in(path, workspace))["label 3"] == 8571
    data = path.read_bytes()
    path.write_bytes(data.replace(data[data.index(b"manifest.csv") + 60 :][:40], bytes(40)))
    with pytest.raises(UserError):
        found_in(path, workspace)
