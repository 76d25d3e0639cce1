"Pictures of every kind, healthy and hostile, through decode, store, fingerprint and thumbnail."

import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, PngImagePlugin

from classification_mlops.images import decode as decode_module
from classification_mlops.images.decode import (
    FORMATS,
    UnreadableImage,
    decode,
    picture_of,
    read_header,
    read_picture,
)
from classification_mlops.images.fingerprint import hamming, perceptual_hash, sha256_of
from classification_mlops.images.store import (
    TEMPORARY,
    ChangedImage,
    MissingImage,
    read_image,
    store_image,
    store_images,
    sweep,
)
from classification_mlops.images.thumbnail import contact_sheet, thumbnail
from classification_mlops.text import UserError
from classification_mlops.workspace import Workspace


def scene(mode="RGB", size=(48, 32)):
    "A picture without symmetry."
    image = Image.new("RGB", size, (30, 60, 90))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, size[0] // 3, size[1] // 3), (250, 200, 20))
    draw.ellipse((size[0] // 2, size[1] // 2, size[0] - 2, size[1] - 2), (20, 200, 240))
    return image.convert(mode)


def file_of(image, format="PNG", **options):
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def reason_of(data, name="file"):
    with pytest.raises(UnreadableImage) as caught:
        decode(data, name)
    assert "\n" not in str(caught.value) and name in str(caught.value)
    return caught.value.reason


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width, height, *chunks):
    "A valid PNG header with whatever follows."
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


# Modes


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
@pytest.mark.parametrize("channels", [1, 3])
def test_plain_modes_keep_their_pixels(mode, channels):
    image = scene(mode)
    expected = np.asarray(image.convert("RGB").convert("L" if channels == 1 else "RGB"))
    pixels = decode(file_of(image), channels=channels)
    assert pixels.shape == (32, 48, channels) and pixels.dtype == np.uint8 and pixels.flags.writeable
    assert np.array_equal(pixels.squeeze(), expected)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_other_colour_spaces_come_close(mode):
    pixels = decode(file_of(scene(mode), "TIFF")).astype(int)
    assert np.abs(pixels - np.asarray(scene())).mean() < 4


def test_cmyk_jpeg_is_not_inverted():
    pixels = decode(file_of(scene("CMYK"), "JPEG", quality=95)).astype(int)
    assert np.abs(pixels - np.asarray(scene())).mean() < 8


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_and_not_clipped(format):
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    pixels = decode(file_of(Image.fromarray(grey), format), channels=1)
    assert np.array_equal(pixels[..., 0], grey // 257)


def test_16_bit_big_endian_tiff():
    grey = (np.arange(256).reshape(16, 16) * 257).astype(">u2")
    image = Image.frombytes("I;16B", (16, 16), grey.tobytes())
    assert np.array_equal(decode(file_of(image, "TIFF"), channels=1)[..., 0], grey // 257)


def test_white_is_zero_in_16_bits():
    grey = Image.fromarray(np.full((8, 8), 65535, np.uint16))
    assert decode(file_of(grey, "TIFF", tiffinfo={262: 0})).max() == 0


def test_12_bits_fill_the_range():
    "Strips of 12-bit samples, as industrial cameras write them."
    packed = bytes([0xFF]) * (12 * 8 * 8 // 8)
    entries = [
        (256, 8),
        (257, 8),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 8),
        (279, len(packed)),
    ]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    data = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed
    data += struct.pack("<H", len(entries)) + body + struct.pack("<I", 0)
    assert decode(data).min() == 255


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0.5, 1.0], [0, 128, 255]),
        ([0, 128, 255], [0, 128, 255]),
        ([0, 0, 300], None),
        ([-1, 0, 1], None),
        ([0, float("nan"), 1], None),
        ([0, float("inf"), 1], None),
    ],
)
def test_floats_have_a_known_scale_or_are_refused(values, expected):
    data = file_of(Image.fromarray(np.tile(np.array(values, np.float32), (3, 1))), "TIFF")
    if expected is None:
        assert reason_of(data) == "unsupported_mode"
    else:
        assert decode(data, channels=1)[0, :, 0].tolist() == expected


def test_wide_integers_beyond_16_bits_are_refused():
    fits = Image.fromarray(np.full((4, 4), 65535, np.int32))
    assert decode(file_of(fits, "TIFF")).min() == 255
    assert reason_of(file_of(Image.fromarray(np.full((4, 4), 70000, np.int32)), "TIFF")) == "unsupported_mode"


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_transparent_pixels_become_white(mode, format):
    if (mode, format) in {("PA", "PNG"), ("PA", "TIFF")}:
        pytest.skip("cannot be written")
    image = scene("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    assert decode(file_of(image.convert(mode), format, **options)).min() == 255


def test_half_transparent_pixels_are_mixed_with_white():
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert abs(int(decode(file_of(image))[0, 0, 0]) - 127) <= 1


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "I;16"])
def test_a_transparent_colour_becomes_white(mode):
    image = Image.new(mode, (4, 4))
    data = file_of(image, transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert decode(data).min() == 255


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_animations_show_their_first_frame(format):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    pixels = decode(file_of(frames[0], format, save_all=True, append_images=frames[1:]))
    assert pixels.shape == (16, 16, 3) and np.abs(pixels[8, 8].astype(int) - (255, 0, 0)).max() <= 4


# Orientation


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_come_out_upright(format, orientation):
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    image = scene()
    lying = image.transpose(back[orientation]) if orientation > 1 else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(lying, format, exif=exif, **({} if format in ("PNG", "TIFF") else {"quality": 95}))
    assert np.abs(decode(data).astype(int) - np.asarray(image)).mean() < 10
    assert read_header(data) == (48, 32, format)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_that_do_not_exist_are_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode(file_of(scene(), exif=exif)), np.asarray(scene()))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"\0" * 60000, b"Exif\0\0II*\0\x08\0\0\0"]
)
def test_broken_exif_does_not_touch_the_pixels(exif):
    assert decode(file_of(scene(), "JPEG", exif=exif)).shape == (32, 48, 3)


# Refusals


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello", "not_an_image"),
        (b"<!doctype html><img>", "not_an_image"),
        (b"MZ\x90\0" + bytes(200), "not_an_image"),
        (b"%PDF-1.7\n", "unsupported_format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported_format"),
        (b"\xc5\xd0\xd3\xc6" + bytes(60), "unsupported_format"),
        (b"\xd7\xcd\xc6\x9a" + bytes(60), "unsupported_format"),
        (b"<?xml version='1.0'?>\n<SVG onload='alert(1)'>", "unsupported_format"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "format_not_enabled"),
        (file_of(scene(), "ICO"), "unsupported_format"),
        (file_of(scene(), "TGA"), "not_an_image"),
        (file_of(scene())[:20], "truncated"),
        (file_of(Image.new("L", (1, 1))), "too_small"),
        (file_of(Image.new("L", (1, 60000))), "too_small"),
        (file_of(Image.new("1", (9000, 9000))), "too_many_pixels"),
        (file_of(Image.new("1", (13300, 13300))), "too_many_pixels"),
        (png_claiming(65000, 65000), "too_many_pixels"),
        (png_claiming(16, 16, chunk(b"IDAT", zlib.compress(b"short"))), "truncated"),
        (b"BM" + bytes(100), "damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[:12]),
)
def test_what_is_refused_has_a_reason(data, reason):
    assert reason_of(data) in (reason, "damaged" if reason == "truncated" else reason)


def test_a_bomb_costs_neither_time_nor_memory():
    data = file_of(Image.new("RGB", (30_000, 30_000)))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    assert reason_of(data) == "too_many_pixels"
    assert time.perf_counter() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB


def test_text_bombs_in_metadata_are_survived():
    info = PngImagePlugin.PngInfo()
    info.add_itxt("note", "x" * 100_000_000, zip=True)
    data = file_of(scene(), pnginfo=info)
    start = time.perf_counter()
    assert reason_of(data) == "damaged"
    assert time.perf_counter() - start < 5


def test_files_too_large_are_refused_unread(monkeypatch):
    monkeypatch.setattr(decode_module, "MAX_BYTES", 100)
    assert reason_of(file_of(scene())) == "too_many_bytes"


def test_postscript_starts_no_program():
    "A Ghostscript that would be found first leaves a trace if anybody calls it."
    code = (
        "import os, sys, stat, tempfile, pathlib\n"
        "folder = pathlib.Path(tempfile.mkdtemp()); trace = folder / 'trace'\n"
        "gs = folder / 'gs'; gs.write_text(f'#!/bin/sh\\necho > {trace}\\n'); gs.chmod(0o755)\n"
        "os.environ['PATH'] = f'{folder}:' + os.environ['PATH']\n"
        "data = b'%!PS-Adobe-3.0 EPSF-3.0\\n%%BoundingBox: 0 0 9 9\\n%%EndComments\\nshowpage\\n%%EOF\\n'\n"
        "from classification_mlops.images.decode import UnreadableImage, decode\n"
        "try: decode(data)\n"
        "except UnreadableImage: pass\n"
        "assert not trace.exists()\n"
        "import io\nfrom PIL import Image\n"
        "try: Image.open(io.BytesIO(data)).load()\n"
        "except Exception: pass\n"
        "print(trace.exists())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr  # True: the trap works


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_cut_off_files_are_refused(format, share):
    data = file_of(scene(), format)
    assert reason_of(data[: min(len(data) - 5, int(len(data) * share))]) in ("truncated", "damaged")


def test_a_jpeg_cut_off_says_so():
    data = file_of(scene(), "JPEG")
    assert {reason_of(data[: len(data) * share // 100]) for share in (10, 50, 90, 99)} == {"truncated"}


SEEDS = [file_of(scene(), format) for format in FORMATS if format not in ("MPO", "HEIF")]
SEEDS += [
    file_of(scene("CMYK"), "JPEG"),
    file_of(scene("P"), "GIF"),
    file_of(scene(), "JPEG", progressive=True),
]
SEEDS += [
    file_of(scene(), "TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")
]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
)
def test_random_damage_gives_pixels_or_a_reason(data, flips, keep):
    damaged = bytearray(data[: max(1, int(len(data) * max(keep, 0.5)))])
    for place, value in flips:
        damaged[int(place * len(damaged))] = value
    reason = None
    try:
        pixels = decode(bytes(damaged), "x.png")
    except UnreadableImage as error:
        assert (reason := error.reason) in decode_module.REASONS
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    try:
        picture_of(bytes(damaged), "x.png", grey=True)
    except UnreadableImage as error:
        assert error.reason == reason
    else:
        assert reason is None


def test_the_real_format_counts():
    data = file_of(scene(), "PNG")
    assert read_picture(data, "photo.jpg")[1] == "PNG"
    assert read_picture(data + b"PK\x03\x04 a zip behind the picture")[1] == "PNG"


# Fingerprint


def test_grey_and_colour_hash_alike():
    colour, grey = decode(file_of(scene("L"))), decode(file_of(scene("L")), channels=1)
    assert hamming(perceptual_hash(colour), perceptual_hash(grey)) <= 1


def test_hash_survives_jpeg_and_scaling():
    random = np.random.default_rng(3)
    image = Image.fromarray(random.integers(0, 255, (6, 8, 3), np.uint8)).resize(
        (320, 240), Image.Resampling.BICUBIC
    )
    original = perceptual_hash(np.asarray(image))
    assert hamming(original, perceptual_hash(decode(file_of(image, "JPEG", quality=30)))) <= 4
    assert hamming(original, perceptual_hash(np.asarray(image.resize((100, 75))))) <= 4
    assert -(2**63) <= original < 2**63


@given(st.integers(0, 255), st.integers(2, 40), st.integers(2, 40))
def test_even_pictures_hash_without_noise(value, height, width):
    assert perceptual_hash(np.full((height, width, 3), value, np.uint8)) in (0, -(2**63))


def test_unrelated_hashes_differ_in_half_of_their_bits():
    random = np.random.default_rng(0)
    hashes = [perceptual_hash(random.integers(0, 255, (32, 32, 3), np.uint8)) for _ in range(40)]
    distances = [hamming(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert 30 < np.mean(distances) < 34


# Store


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "ねじ 検査")


def test_store_keeps_bytes_and_leaves_nothing_else(workspace):
    files = [(data := str(i).encode(), sha256_of(data), ".png") for i in range(300)]
    paths = store_images(workspace, 3, files)
    assert store_images(workspace, 3, files) == paths
    assert [read_image(workspace, path, sha) for path, (_, sha, _) in zip(paths, files, strict=True)] == [
        f[0] for f in files
    ]
    assert sum(path.is_file() for path in workspace.images.rglob("*")) == 300


def test_a_shortened_file_is_put_right(workspace):
    data = b"a picture"
    path = store_image(workspace, 1, data, sha256_of(data), ".png")
    (workspace.root / path).write_bytes(b"a pic")
    store_image(workspace, 1, data, sha256_of(data), ".png")
    assert read_image(workspace, path) == data


def test_the_same_file_twice_in_one_call(workspace):
    file = (b"twin", sha256_of(b"twin"), ".png")
    first, second = store_images(workspace, 1, [file, file])
    assert first == second and read_image(workspace, first) == b"twin"
    assert len(list(workspace.images.rglob("*.*"))) == 1


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    "A limit on the size of files is the disk that is full; the test proves that it was reached."
    code = (
        "import resource, signal, sys, pathlib\n"
        "from classification_mlops.images.store import store_images\n"
        "from classification_mlops.images.fingerprint import sha256_of\n"
        "from classification_mlops.workspace import Workspace\n"
        "from classification_mlops.text import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "workspace = Workspace(pathlib.Path(sys.argv[1]))\n"
        "files = [(d := bytes([i]) * size, sha256_of(d), '.png') for i, size in enumerate((10, 5000))]\n"
        "try: store_images(workspace, 1, files)\n"
        "except UserError as error: print(error)\n"
        "print(sum(p.is_file() for p in workspace.images.rglob('*')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "CMLOPS_LANG": "en"},
    )
    message, left = done.stdout.splitlines()
    assert ("File too large" in message or "No space left" in message) and left == "0", done.stderr


def test_sweep_takes_only_old_temporary_files(workspace):
    path = workspace.root / store_image(workspace, 1, b"x", sha256_of(b"x"), ".png")
    old, new = (path.parent / f"{TEMPORARY}{name}" for name in ("old", "new"))
    old.write_bytes(b"")
    new.write_bytes(b"")
    os.utime(old, (0, 0))
    os.utime(path, (0, 0))
    assert sweep(workspace) == 1
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([path.name, new.name])


def test_reading_stays_inside_the_walls(workspace, tmp_path, monkeypatch):
    outside = tmp_path / "secret.png"
    outside.write_bytes(b"secret")
    workspace.images.mkdir(parents=True)
    (workspace.images / "link.png").symlink_to(outside)
    for path in (
        str(outside),
        "images/link.png",
        "images/../../secret.png",
        "file://" + str(outside),
        "params.yaml",
    ):
        with pytest.raises(UserError, match="outside"):
            read_image(workspace, path)
    monkeypatch.setenv("CMLOPS_IMAGE_ROOTS", str(tmp_path))
    assert read_image(workspace, str(outside)) == b"secret"


def test_addresses_are_read_below_allowed_roots_only(workspace, monkeypatch):
    import fsspec

    fsspec.filesystem("memory").pipe("/line/a.png", b"remote")
    monkeypatch.setenv("CMLOPS_IMAGE_ROOTS", "memory://line")
    assert read_image(workspace, "memory://line/a.png", sha256_of(b"remote")) == b"remote"
    with pytest.raises(ChangedImage):
        read_image(workspace, "memory://line/a.png", sha256_of(b"other"))
    with pytest.raises(MissingImage, match=r"b\.png"):
        read_image(workspace, "memory://line/b.png")
    for uri in ("memory://lines/a.png", "memory://line/../a.png", "simplecache::memory://line/a.png"):
        with pytest.raises(UserError, match="outside"):
            read_image(workspace, uri)


# Thumbnail


@pytest.mark.parametrize("size", [(8, 8), (1000, 10), (300, 300)])
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_thumbnails_fit(size, mode):
    small = Image.open(BytesIO(thumbnail(file_of(Image.new(mode, size)), side_px=100)))
    assert max(small.size) == min(100, max(size))


def test_contact_sheet_takes_files_and_pixels_and_any_label():
    images = [file_of(scene()), np.asarray(scene()), decode(file_of(scene("L")), channels=1)]
    sheet = contact_sheet(images, labels=["ねじ", "", 3], columns=2)
    assert sheet.width < 200 and sheet.height > sheet.width
