"Near-duplicates: time, copies found, look-alikes kept apart. Arguments: MNIST CLOTHES [SAMPLE [SEED]]."

import sys
import time
from collections import defaultdict
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from workspace import report

from classification_mlops.config import DuplicateParams
from classification_mlops.db.duplicates import MOST_NEAR
from classification_mlops.images.examine import seen_in
from classification_mlops.images.fingerprint import SKETCH, sketches
from classification_mlops.images.likeness import Signatures, glance, plausible, same_size, similarity
from classification_mlops.images.neighbours import Nearest, candidates

PARAMS = DuplicateParams()
FILTERS = [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS]
TURNS = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def saved(image, format, **options):
    "The bytes of a file."
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def turned(image, numbers):
    "Stored lying down, with a note that says so."
    turn, exif = int(numbers.choice([3, 6, 8])), Image.Exif()
    exif[0x0112] = turn
    return saved(image.transpose(TURNS[turn]), "JPEG", quality=90, exif=exif)


def resized(image, numbers):
    "50 to 200 %."
    factor = 2 ** numbers.uniform(-1, 1)
    size = [round(side * factor) for side in image.size]
    return saved(image.resize(size, FILTERS[numbers.integers(3)]), "PNG")


def cut(image, numbers):
    "1 to 5 % at each side; one pixel where that is all that lies between."
    width, height = image.size
    left, top, right, bottom = (
        max(1, int(share * side))
        for share, side in zip(numbers.uniform(0.01, 0.05, 4), (width, height) * 2, strict=True)
    )
    return saved(image.crop((left, top, width - right, height - bottom)), "PNG")


def cut_unevenly(image, numbers):
    "1 to 5 % at one to four sides."
    shares = numbers.uniform(0.01, 0.05, 4) * (numbers.permutation(4) < numbers.integers(1, 5))
    left, top, right, bottom = (
        max(int(share > 0), int(share * side)) for share, side in zip(shares, image.size * 2, strict=True)
    )
    return saved(image.crop((left, top, image.width - right, image.height - bottom)), "PNG")


KINDS = {
    "turned by EXIF": turned,
    "JPEG 50-95": lambda image, numbers: saved(image, "JPEG", quality=int(numbers.integers(50, 96))),
    "PNG": lambda image, numbers: saved(image, "PNG", compress_level=1),
    "WebP 50-95": lambda image, numbers: saved(image, "WEBP", quality=int(numbers.integers(50, 96))),
    "resized 50-200 %": resized,
    "cut 1-5 %": cut,
    "cut 1-5 % at some sides": cut_unevenly,
}


def seconds_of(some, new):
    "Time of the candidates, and how many there are."
    start = time.perf_counter()
    count = sum(len(i) for i, _ in candidates(some, new, PARAMS.distance))
    return time.perf_counter() - start, count


def random_sketches(count, seed=0):
    "Hashes of unrelated pictures of many sizes, a tenth of them with a copy."
    numbers, some = np.random.default_rng(seed), np.zeros(count, SKETCH)
    some["whole"] = numbers.integers(0, 2**64, count, np.uint64)
    copies = count // 10
    some["whole"][-copies:] = some["whole"][:copies] ^ np.uint64(0b10101)
    some["middle"] = some["whole"] ^ np.uint64(0b111 << 20)
    some["width"], some["height"] = numbers.integers(300, 305, count), 300
    return some


def bare_seconds(some, rows=200):
    "A comparison of all with all, measured on a few rows."
    start = time.perf_counter()
    for hash_ in some["whole"][:rows]:
        np.flatnonzero(np.bitwise_count(hash_ ^ some["whole"]) <= PARAMS.distance)
    return (time.perf_counter() - start) * len(some) / rows


def times():
    "Seconds for more and more hashes."
    figures = {}
    for count in (10_000, 70_000, 1_000_000):
        some = random_sketches(count)
        seconds, found = seconds_of(some, np.ones(count, bool))
        figures[count] = {"seconds": seconds, "pairs": found, "all_with_all_seconds": bare_seconds(some)}
    figures["250 beside 1,000,000"] = seconds_of(some, np.arange(len(some)) >= len(some) - 250)[0]
    return figures


def examined(files):
    "Signatures and sketches of files, as an import takes them."
    small, sizes = [], []
    for data in files:
        seen = seen_in(data, "")
        small.append(np.frombuffer(seen.signature, np.uint8))
        sizes.append((seen.width, seen.height))
    small = np.stack(small).reshape(-1, 16, 16)
    parts = range(0, len(small), 5000)
    return small, np.concatenate([sketches(small[k : k + 5000], sizes[k : k + 5000]) for k in parts])


def copies_in(files, small, some, new):
    "Pairs that are found."
    signatures, nearest = Signatures(len(some)), Nearest(new, MOST_NEAR)
    signatures.fill(np.arange(len(some)), small)
    for i, j in candidates(some, new, PARAMS.distance):
        scores = plausible(some, signatures, i, j)
        nearest.add(i[scores > 0], j[scores > 0], scores[scores > 0])
    for a, b in nearest.prune().tolist():
        equal = bool(same_size(some[a], some[b]))
        least = PARAMS.similarity if equal else 2 * PARAMS.similarity - 1
        if similarity(glance(files(a)), glance(files(b)), equal) >= least:
            yield a, b


def quality(folder, sample, seed):
    "What is found among real pictures and copies of some of them."
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix in (".png", ".jpg"))
    numbers = np.random.default_rng(seed)
    chosen = numbers.choice(len(paths), min(sample, len(paths)), replace=False)
    small, some = examined(path.read_bytes() for path in paths)
    start = time.perf_counter()
    apart = set(copies_in(lambda n: paths[n].read_bytes(), small, some, np.ones(len(some), bool)))
    figures = {"pictures": len(paths), "seconds": time.perf_counter() - start, "pairs": len(apart)}
    figures["apart"] = 1 - len({n for pair in apart for n in pair}) / len(paths)
    figures["examples"] = [[str(paths[n].relative_to(folder)) for n in pair] for pair in sorted(apart)[:200]]
    made, kinds = [], []
    for kind, make in KINDS.items():
        for n in chosen:
            with Image.open(paths[n]) as image:
                upright = image.convert("L" if image.mode == "L" else "RGB")
            made.append(make(upright, numbers))
            kinds.append((kind, int(n)))
    more_small, more = examined(made)
    found, wrong = defaultdict(set), 0
    everything = np.concatenate([some, more])
    new = np.arange(len(everything)) >= len(some)

    def file_of(n):
        return paths[n].read_bytes() if n < len(paths) else made[n - len(paths)]

    for a, b in copies_in(file_of, np.concatenate([small, more_small]), everything, new):
        if a < len(paths):
            kind, original = kinds[b - len(paths)]
            found[kind].add(original) if original == a else None
            wrong += original != a
    figures["found"] = {kind: len(found[kind]) / len(chosen) for kind in KINDS}
    figures["bound_to_another"] = wrong / len(made)
    return figures


if __name__ == "__main__":
    sample = int(sys.argv[3]) if len(sys.argv) > 3 else 300
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    figures = {"hashes": times()}
    for name, folder in zip(("mnist", "clothes"), sys.argv[1:3], strict=True):
        figures[name] = quality(folder, sample, seed)
    timed = figures["hashes"]
    growth = np.log(timed[1_000_000]["seconds"] / timed[10_000]["seconds"]) / np.log(100)
    figures["growth"] = f"n^{growth:.2f}"
    figures["to_reach"] = {
        "70000": 10,
        "1000000": 300,
        "250": 2,
        "growth": 1.3,
        "found": 0.95,
        "apart": 0.999,
    }
    reached = timed[70_000]["seconds"] <= 10 and timed[1_000_000]["seconds"] <= 300 and growth <= 1.3
    for name in ("mnist", "clothes"):
        reached &= figures[name]["apart"] >= 0.999 and min(figures[name]["found"].values()) >= 0.95
    report("duplicates", figures | {"reached": bool(reached)})
    sys.exit(not reached)
