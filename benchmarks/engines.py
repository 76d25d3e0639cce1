"""Pictures per second of each engine behind the packaged classifier, against PyTorch.

python benchmarks/engines.py FOLDER [--size 224 --architecture resnet18]

FOLDER holds pictures in class folders. One network with random but settled weights is packaged three
times; the engines take turns on the same preprocessed pictures in one process, each with as many threads,
because a shared machine drifts. Ratios are medians over the turns, for batches of several sizes: 64 is what
the client sends and the packaged classifier takes at once, and not PyTorch's best size. So each engine at
its best is held against PyTorch at its best, too. Decoding and preprocessing cost the same for all and are
measured apart. Start and memory are those of a fresh process that loads the package and answers once.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import torch
from workspace import report

from classification_mlops.config import parse_params
from classification_mlops.model.network import network_of
from classification_mlops.registry.pyfunc import (
    load_classifier,
    network_logits,
    read_pixels,
    write_model_folder,
)

ENGINES = ("torch", "onnxruntime", "openvino")
BATCHES = (1, 16, 64)
TO_REACH = {"speed": 1.5, "difference": 1e-4}
LOAD = """
import json, sys, time
start = time.perf_counter()
from classification_mlops.registry.pyfunc import load_classifier
classifier = load_classifier(sys.argv[1])
classifier.classify([open(sys.argv[2], "rb").read()])
seconds = time.perf_counter() - start
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([round(seconds, 2), int(peak.split()[1]) // 1024]))
"""


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="pictures, one folder per class")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--size", type=int, default=224, help="side in pixels")
    parser.add_argument("--architecture", default="resnet18")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    return parser.parse_args()


def read_bags(files: list[bytes], preprocess) -> np.ndarray:
    "The pictures that can be read, preprocessed."
    read = (read_pixels(data, preprocess) for data in files)
    return np.stack([bag for bag in read if not isinstance(bag, str)])


def settled_network(params, images: np.ndarray):
    "A network whose statistics fit the pictures, so that its answers differ."
    network = network_of(params, 10).train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.from_numpy(images))
    return network.eval()


def packages(root: Path, arguments, files: list[bytes]) -> dict[str, Path]:
    "One model folder per engine, all with the same weights."
    image = {"size_px": arguments.size, "channels": 3}
    sections = {"image": image, "model": {"architecture": arguments.architecture}}
    plain = write_model_folder(
        root / "first", network_of(parse_params(sections), 10), parse_params(sections), [], list("abcdefghij")
    )
    images = read_bags(files[:16], load_classifier(plain).preprocess)
    network, made = settled_network(parse_params(sections), images), {}
    for engine in ENGINES:
        params = parse_params({**sections, "serving": {"engine": engine}})
        made[engine] = write_model_folder(root / engine, network, params, [], list("abcdefghij"))
    return made


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def seconds_for(network, bags: np.ndarray, size: int) -> float:
    "One pass over all pictures, so many at a time."
    clock = perf_counter()
    for start in range(0, len(bags), size):
        network_logits(network, bags[start : start + size])
    return perf_counter() - clock


def fresh_start(folder: Path, picture: Path) -> tuple[float, int]:
    "Seconds and peak MB of a new process until its first answer."
    command = [sys.executable, "-c", LOAD, str(folder), str(picture)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def main() -> int:
    arguments = parse_arguments()
    os.environ["CMLOPS_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    torch.set_num_threads(arguments.threads)
    paths = sorted(path for path in arguments.folder.rglob("*") if path.is_file())
    paths = paths[:: max(1, len(paths) // arguments.pictures)][: arguments.pictures]
    files = [path.read_bytes() for path in paths]
    with TemporaryDirectory() as root:
        folders = packages(Path(root), arguments, files)
        loaded = {engine: load_classifier(folder) for engine, folder in folders.items()}
        clock = perf_counter()
        bags = read_bags(files, loaded["torch"].preprocess)
        reading_s = perf_counter() - clock
        scores = {engine: network_logits(found.network, bags) for engine, found in loaded.items()}
        seconds = {(engine, size): [] for engine in ENGINES for size in BATCHES}
        for _ in range(arguments.turns):
            for engine, size in seconds:
                seconds[engine, size].append(seconds_for(loaded[engine].network, bags, size))
        starts = {engine: fresh_start(folder, paths[0]) for engine, folder in folders.items()}
    typical = {key: median(turns) for key, turns in seconds.items()}
    best = {engine: min(typical[engine, size] for size in BATCHES) for engine in ENGINES}
    speed = {
        engine: {
            size: round(
                median(t / own for t, own in zip(seconds["torch", size], seconds[engine, size], strict=True)),
                2,
            )
            for size in BATCHES
        }
        for engine in ENGINES[1:]
    }
    truth = softmax(scores["torch"])
    figures = {
        "architecture": arguments.architecture,
        "size_px": arguments.size,
        "pictures": len(bags),
        "threads": arguments.threads,
        "images_per_s_by_batch": {
            engine: {size: round(len(bags) / typical[engine, size], 1) for size in BATCHES}
            for engine in ENGINES
        },
        "speed_against_torch_by_batch": speed,
        "best_against_best": {engine: round(best["torch"] / best[engine], 2) for engine in ENGINES[1:]},
        "largest_difference": {
            engine: float(np.abs(softmax(scores[engine]) - truth).max()) for engine in ENGINES[1:]
        },
        "reading_images_per_s": round(len(bags) / reading_s, 1),
        "start_s_and_peak_mb": starts,
        "to_reach": TO_REACH,
    }
    report("engines", figures)
    reached = all(speed[engine][64] >= TO_REACH["speed"] for engine in ENGINES[1:])
    return int(not reached or max(figures["largest_difference"].values()) > TO_REACH["difference"])


if __name__ == "__main__":
    sys.exit(main())
