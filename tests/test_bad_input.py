"Bad input of every kind: a line with name and reason, and the rest goes on."

import io
import os
import socket
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from classification_mlops.db.ingest import import_folder
from classification_mlops.db.session import writing
from classification_mlops.db.themes import create_theme
from classification_mlops.images.decode import (
    REASONS,
    TRIED,
    UnreadableImage,
    decode,
    picture_of,
    pixels_of,
    read_picture,
)
from classification_mlops.images.examine import read_file
from classification_mlops.images.sources import Candidate, SourceOptions, offers
from classification_mlops.text import UsageError
from classification_mlops.workspace import Workspace, init_folders


def file_of(image, format="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def scene(number=0, size=(48, 32)) -> Image.Image:
    "A smooth picture that no other number has."
    y, x = np.mgrid[: size[1], : size[0]]
    planes = (x * 5, y * 7, (x + y) * 2 + number * 5)
    return Image.fromarray(np.stack(planes, 2).clip(0, 255).astype(np.uint8))


def png(width, height, depth=8, kind=2, *chunks) -> bytes:
    "A PNG that claims a size, and whatever follows."
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)),
        *chunks,
        (b"IEND", b""),
    ]
    parts = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg_with(frame_marker: int, bits: int) -> bytes:
    "A JPEG whose frame header says that it is of a rare kind."
    data = bytearray(file_of(scene(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = frame_marker, bits
    return bytes(data)


def reason_of(data: bytes) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode(data, "file")
    assert "file" in str(caught.value) and "\n" not in str(caught.value)
    return caught.value.reason


GOOD = {
    "16 bits.png": file_of(Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257)),
    "float.tif": file_of(Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)), "TIFF"),
    "cmyk.jpg": file_of(scene(1).convert("CMYK"), "JPEG"),
    "palette.png": file_of(scene(2).quantize(16), transparency=3),
    "one bit.png": file_of(scene(3).convert("1")),
    "animated.gif": file_of(scene(4), "GIF", save_all=True, append_images=[scene(5)]),
    "animated.webp": file_of(scene(6), "WEBP", save_all=True, append_images=[scene(7)]),
    "animated.png": file_of(scene(8), "PNG", save_all=True, append_images=[scene(9)]),
    "broken exif.jpg": file_of(scene(10), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "really.jpg": file_of(scene(11), "PNG"),
    "picture and zip.png": file_of(scene(12)) + b"PK\3\4 and a web page <script>",
    "profile.png": file_of(
        scene(13), icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    ),
    "a" * 251 + ".png": file_of(scene(14)),
    "絵 🙂\n.png": file_of(scene(15)),
    "..png": file_of(scene(16)),
    "-rf.png": file_of(scene(17)),
    "narrow.png": file_of(scene(18, (2, 4000))),
}
WIDE_GIF = b"GIF89a" + struct.pack("<2H", 65_535, 65_535) + file_of(scene(), "GIF")[10:]
TALL_BMP = b"BM" + struct.pack("<4IiiHH", 0, 0, 54, 40, 65_535, -65_535, 1, 24) + bytes(24)
BAD = {
    "empty.png": (b"", "empty"),
    "cut.jpg": (file_of(scene(), "JPEG")[:-200], "truncated"),
    "cut.png": (file_of(scene())[:-20], "truncated"),
    "cut.webp": (file_of(scene(), "WEBP")[:-20], "truncated"),
    "cut.tif": (file_of(scene(), "TIFF")[:-200], "truncated"),
    "flipped.png": (file_of(scene()).replace(b"IDAT", b"IDAX", 1), "damaged"),
    "bomb.png": (png(65_000, 65_000), "too_many_pixels"),
    "side.png": (png(65_535, 65_535, 1, 0), "too_many_pixels"),
    "wide.gif": (WIDE_GIF, "too_many_pixels"),
    "tall.bmp": (TALL_BMP, "too_many_pixels"),
    "line.png": (file_of(Image.new("L", (65_535, 1))), "too_small"),
    "text.jpg": (b"just text", "not_an_image"),
    "page.png": (b"<!doctype html><html><img src=x>", "not_an_image"),
    "drawing.svg": (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_format"),
    "photo.heic": (b"\0\0\0\x1cftypheic" + bytes(100), "format_not_enabled"),
    "film.mp4": (b"\0\0\0\x1cftypisom" + bytes(100), "unsupported_format"),
    "scan.dcm": (bytes(128) + b"DICM" + bytes(50), "unsupported_format"),
    "paper.pdf": (b"%PDF-1.7", "unsupported_format"),
    "more.png": (b"PK\3\4" + bytes(50), "archive"),
    "twelve.jpg": (jpeg_with(0xC1, 12), "unsupported_format"),
    "lossless.jpg": (jpeg_with(0xC3, 8), "unsupported_format"),
    "numbers.tif": (file_of(Image.fromarray(np.full((8, 8), 1e9, np.float32)), "TIFF"), "unsupported_mode"),
    "nan.tif": (file_of(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"), "unsupported_mode"),
}  # fmt: skip


def settled(source, workspace, **options) -> dict[str, str]:
    "What comes of everything that a source offers: a reason, or ok."
    found = {}
    for offer in offers(source, workspace, SourceOptions(**options))():
        try:
            if isinstance(offer, Candidate):
                read_picture(read_file(offer.path, offer.name), offer.name)
                found[offer.name] = "ok"
            elif offer is not None:
                found[offer.name] = offer.reason
                assert "\n" not in str(offer) and offer.name in str(offer)
        except UnreadableImage as error:
            found[error.name] = error.reason
    return found


def shown(name: str) -> str:
    return name.replace("\n", "\\n")


EXPECTED = {f"c/{shown(name)}": "ok" for name in GOOD} | {
    f"c/{name}": reason for name, (_, reason) in BAD.items()
}


@pytest.fixture
def files(tmp_path) -> Path:
    folder = tmp_path / "source" / "c"
    folder.mkdir(parents=True)
    for name, data in (GOOD | {name: data for name, (data, _) in BAD.items()}).items():
        (folder / name).write_bytes(data)
    return folder


# Pictures


@pytest.mark.parametrize("name", BAD)
def test_each_bad_picture_has_its_reason(name):
    assert reason_of(BAD[name][0]) == BAD[name][1]


def test_a_folder_of_everything(tmp_path, files):
    (files / "link.png").symlink_to("/etc/passwd")
    (files / "loop").symlink_to(files)
    os.mkfifo(files / "pipe.png")
    (files / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(files)  # Names of sockets are short
        server.bind("socket.png")
        os.chdir(here)
        found = settled(tmp_path / "source", Workspace(tmp_path / "w"))
    special = dict.fromkeys(("c/link.png", "c/loop", "c/pipe.png", "c/socket.png"), "not_regular_file")
    assert found == EXPECTED | special


def test_an_archive_of_everything(tmp_path, files):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files.iterdir():
            archive.write(path, f"c/{path.name}")
    assert settled(tmp_path / "a.zip", Workspace(tmp_path / "w")) == EXPECTED
    assert sorted(os.listdir(tmp_path)) == ["a.zip", "source"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_import_of_everything_reports_each_and_keeps_the_rest(engine, tmp_path, files):
    workspace = init_folders(tmp_path / "w")
    with writing(engine) as session:
        create_theme(session, "parts")
    report = import_folder(engine, workspace, "parts", tmp_path / "source", create_labels=True, actor="ann")
    assert {remark.name: remark.reason for remark in report.rejected} == {
        n: r for n, r in EXPECTED.items() if r != "ok"
    }
    assert (report.added, report.found) == (len(GOOD), len(EXPECTED))
    assert all(remark.name in remark.message for remark in report.rejected)


def test_files_that_vanish_between_listing_and_reading(tmp_path, files):
    walk = offers(tmp_path / "source", Workspace(tmp_path / "w"))()
    first = next(walk)
    (files / os.path.basename(first.path)).unlink()
    with pytest.raises(UnreadableImage) as caught:
        read_file(first.path, first.name)
    assert caught.value.reason == "vanished" and sum(1 for _ in walk) == len(EXPECTED) - 1


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "/proc/self/mem"])
def test_devices_are_not_read(name):
    with pytest.raises(UnreadableImage) as caught:
        read_file(name, "device")
    assert caught.value.reason in ("not_regular_file", "unreadable")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_closed_files_and_folders(tmp_path, files):
    (files / "really.jpg").chmod(0)
    closed = tmp_path / "source" / "closed"
    closed.mkdir(mode=0)
    found = settled(tmp_path / "source", Workspace(tmp_path / "w"))
    assert found == EXPECTED | {"c/really.jpg": "unreadable", "closed": "unreadable"}


def test_bombs_cost_neither_time_nor_memory():
    "In a process of its own, since memory that was used once is not given back."
    code = (
        "import resource, sys, time\n"
        "from classification_mlops.images.decode import UnreadableImage, decode\n"
        "usage = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "data = open(sys.argv[1], 'rb').read(); before, start = usage(), time.process_time()\n"
        "try: decode(data)\n"
        "except UnreadableImage as error: print(error.reason)\n"
        "print(usage() - before < 50_000, time.process_time() - start < 1)\n"
    )
    for name in ("bomb.png", "side.png", "wide.gif", "tall.bmp"):
        path = Path(os.environ.get("TMPDIR", "/tmp")) / f"cmlops-{os.getpid()}-{name}"
        try:
            path.write_bytes(BAD[name][0])
            done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        finally:
            path.unlink()
        assert done.stdout == "too_many_pixels\nTrue True\n", done.stderr


def test_ycck_has_the_colours_of_its_cmyk():
    "What Photoshop writes: luminance and colour of inverted inks, said by the Adobe mark."
    size, (c, m, y, k) = (16, 16), (40, 200, 90, 30)
    bands = Image.new("RGB", size, (c, m, y)).convert("YCbCr").split()
    stored = Image.merge(
        "CMYK", [*(band.point(lambda v: 255 - v) for band in bands), Image.new("L", size, k)]
    )
    data = file_of(stored, "JPEG", quality=100)
    at = data.index(b"Adobe") + 11
    ycck = data[:at] + b"\2" + data[at + 1 :]
    assert Image.open(io.BytesIO(ycck)).info["adobe_transform"] == 2
    wanted = np.asarray(Image.new("CMYK", size, (c, m, y, k)).convert("RGB")).astype(int)
    assert np.abs(decode(ycck).astype(int) - wanted).max() <= 6
    plain = file_of(Image.new("CMYK", size, (c, m, y, k)), "JPEG", quality=100)
    assert np.abs(decode(plain).astype(int) - wanted).max() <= 6


def test_heic_is_read_where_it_can_be(tmp_path):
    "A package of that name is found at the first such file, and not before."
    (tmp_path / "pillow_heif.py").write_text(
        "from PIL import Image, ImageFile\n"
        "class Heif(ImageFile.ImageFile):\n"
        "    format = 'HEIF'\n"
        "    def _open(self):\n"
        "        self._size, self._mode, self.tile = (4, 3), 'RGB', []\n"
        "        self.im = Image.new('RGB', (4, 3), 'red').im\n"
        "def register_heif_opener():\n"
        "    Image.register_open('HEIF', Heif, lambda prefix: prefix[4:8] == b'ftyp')\n"
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from classification_mlops.images.decode import FORMATS, UnreadableImage, read_picture\n"
        "try: read_picture(b'text')\n"
        "except UnreadableImage: print('pillow_heif' in sys.modules)\n"
        "pixels, format = read_picture(b'\\0\\0\\0\\x1cftypheic' + bytes(100))\n"
        "print(pixels.shape, pixels[0, 0], FORMATS[format])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.stdout == "False\n(3, 4, 3) [255   0   0] .heic\n", done.stderr


def test_arrays_and_pictures_are_the_same_pixels():
    for data in GOOD.values():
        image, format = picture_of(data)
        assert image.mode in ("L", "RGB") and format in (*TRIED, "MPO")
        for channels in (1, 3):
            pixels = pixels_of(image, channels)
            assert np.array_equal(pixels, decode(data, channels=channels)) and pixels.flags.writeable


SEEDS = list(GOOD.values()) + [data for data, _ in BAD.values() if data]


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    st.floats(0, 1),
    st.binary(max_size=8),
)
def test_damage_gives_pixels_or_a_reason_and_nothing_else(data, flips, keep, tail):
    damaged = bytearray(data[: max(1, int(len(data) * keep))] + tail)
    for place, value in flips:
        damaged[int(place * len(damaged))] = value
    try:
        pixels = decode(bytes(damaged), "x")
    except UnreadableImage as error:
        assert error.reason in REASONS and "\n" not in str(error)
    else:
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3


# Tables


def table_of(tmp_path, content: bytes, name="t.csv") -> dict[str, str]:
    "What comes of a table beside one good picture."
    (tmp_path / "good.png").write_bytes(GOOD["one bit.png"])
    (tmp_path / name).write_bytes(content)
    return settled(tmp_path / name, Workspace(tmp_path / "w"))


@pytest.mark.parametrize(
    ("row", "name", "reason"),
    [
        (b"one field", "t.csv:2", "bad_row"),
        (b"a,b,c", "t.csv:2", "bad_row"),
        (b",label", "t.csv:2", "bad_row"),
        (b"a," * 75_000, "t.csv:2", "bad_row"),
        (b'"never closed,label', "t.csv:2", "bad_quotes"),
        (b'"closed"too early,label', "t.csv:2", "bad_quotes"),
        (b"," * 1_000_000, "t.csv:2", "long_line"),
        (b"x" * 1_000_000 + b",label", "t.csv:2", "long_line"),
        (b"x" * 20_000 + b",label", "t.csv:2", "long_line"),
        (b"a\0b.png,label", r"a\x00b.png", "outside"),
        (b"../../etc/passwd,label", "../../etc/passwd", "outside"),
        (b"gone.png,label", "gone.png", "vanished"),
        (b"t.csv,label", "t.csv", "not_an_image"),
        ("ね" * 90 + ".png,label", "ね" * 90 + ".png", "unreadable"),
    ],
    ids=lambda value: repr(value)[:20],
)
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_one_bad_row_costs_only_itself(tmp_path, row, name, reason, ending):
    row = row if isinstance(row, bytes) else row.encode()
    content = ending.join([b"path,label", row, b"good.png,x", b""])
    assert table_of(tmp_path, content) == {name: reason, "good.png": "ok"}


def test_the_last_row_may_be_the_bad_one(tmp_path):
    for row, reason in ((b'"open', "bad_quotes"), (b"y" * 500_000, "long_line"), (b"a,b,c", "bad_row")):
        assert table_of(tmp_path, b"path,label\ngood.png,x\n" + row) == {"t.csv:3": reason, "good.png": "ok"}


def test_numbers_of_lines_are_those_of_an_editor(tmp_path):
    rows = [b"path,label", b'"a\nb.png",x', b"", b"z" * 300_000, b'"', b"good.png,x", b"one"]
    found = table_of(tmp_path, b"\n".join(rows))
    assert found == {
        r"a\nb.png": "vanished", "t.csv:5": "long_line", "t.csv:6": "bad_quotes", "good.png": "ok",
        "t.csv:8": "bad_row",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-8", None), ("utf-8-sig", None), ("utf-16", None), ("cp932", "Shift_JIS"), ("euc_jp", "EUC-JP"),
        ("utf-16-le", "UTF-16"), ("utf-16-be", "UTF-16"),
        ("iso2022_jp", "ISO-2022-JP"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("text", ["良品", "キズあり", "傷 ﾈｼﾞ", "部品の表面に小さな傷があります"])
def test_encodings_are_read_or_said(tmp_path, encoding, said, text):
    if "ﾈ" in text and encoding == "euc_jp":
        said = "Shift_JIS"  # Which these bytes are as well; the remedy is the same
    if "ﾈ" in text and encoding == "iso2022_jp":
        pytest.skip("cannot be written")
    content = f"path,label,note\ngood.png,{text},{text}\n"
    if said is None:
        assert table_of(tmp_path, content.encode(encoding)) == {"good.png": "ok"}
    else:
        with pytest.raises(UsageError, match=said):
            table_of(tmp_path, content.encode(encoding))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no column path"), (b"\n\n", "no column path"), (b"," * 2_000_000, "no column path"),
        (b"x" * 2_000_000, "no column path"), (b'"path', "no column path"), (b"p\0a\0t\0h\0", "UTF-16"),
        (bytes(100), "UTF-16"), ("größe,path\n".encode("latin-1"), "UTF-8"),
        (b"path\n\xff\xfe\xfd\xff\n", "UTF-8"),
        (b"\xff\xfea", "UTF-8"), (b"\x89PNG\r\n\x1a\n", "UTF-8"),
    ],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_tables_that_are_none_say_why(tmp_path, content, said):
    with pytest.raises(UsageError, match=said) as caught:
        table_of(tmp_path, content)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_line_of_100_megabytes_leaves_memory_flat(tmp_path):
    with (tmp_path / "t.csv").open("wb") as file:
        file.write(b"path\n" + b"x" * 100_000_000 + b"\ngood.png\n" + b'"' + b"y,\n" * 100_000)
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from classification_mlops.images.sources import offers\n"
        "from classification_mlops.workspace import Workspace\n"
        "usage = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "walk = offers(sys.argv[1], Workspace(Path('/tmp/none')))\nbefore = usage()\n"
        "found = [(offer.name, getattr(offer, 'reason', 'ok')) for offer in walk()]\n"
        "print(found[:3], len(found), usage() - before < 100_000)\n"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "t.csv"], capture_output=True, text=True)
    wanted = [("t.csv:2", "long_line"), ("good.png", "ok"), ("t.csv:4", "bad_quotes")]
    assert done.stdout.split("] ")[0] + "]" == str(wanted), done.stderr
    assert done.stdout.split()[-1] == "True" and time.perf_counter() - start < 30


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ['"', '""', ",", "\n", "\r\n", "good.png", "x", "\0", "'", "=1", "が", "\u2028", " "]
        ),
        max_size=30,
    )
)
def test_any_text_is_a_table_with_reports(tmp_path_factory, parts):
    "Whatever the rows, each physical line ends up in one offer at most, and the last row is read."
    folder = tmp_path_factory.getbasetemp() / "tables"
    folder.mkdir(exist_ok=True)
    body = "".join(parts)
    (folder / "t.csv").write_text(f"path,label\n{body}\nlast.png,x\n", encoding="utf-8", newline="")
    found = list(offers(folder / "t.csv", Workspace(folder))())
    assert all(isinstance(offer, Candidate) or offer.reason in REASONS for offer in found)
    if body.count('"') % 2 == 0 or '"' not in body:
        assert any("last.png" in offer.name for offer in found)
