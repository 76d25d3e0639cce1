"""Seconds of the first epoch with an empty cache, against decoding alone and learning alone.

python benchmarks/first_epoch.py FOLDER     where FOLDER/train or FOLDER holds one folder per class

Decoding alone reads and decodes the same files in as many processes as fill the cache, and keeps nothing.
Learning alone is an epoch of the same training with a full cache. The first epoch does both, preprocesses,
and writes the cache. The three take turns, because a shared machine drifts; figures are medians.
"""

import argparse
import logging
import multiprocessing
import os
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from shutil import copy, rmtree
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from throughput import import_pictures, our_epoch
from workspace import report

from classification_mlops.config import Params
from classification_mlops.images.decode import decode
from classification_mlops.vision.cache import FEW, helpers
from classification_mlops.vision.datamodule import ImageDataModule
from classification_mlops.vision.preprocess import build_preprocessing
from classification_mlops.workspace import Workspace


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="pictures, one folder per class")
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=32, help="side in pixels")
    parser.add_argument("--architecture", default="resnet18")
    parser.add_argument("--turns", type=int, default=3)
    return parser.parse_args()


def some_pictures(source: Path, target: Path, count: int) -> Path:
    "Copies of pictures of each class, evenly, as far as there are so many."
    source = source / "train" if (source / "train").is_dir() else source
    classes = sorted(folder for folder in source.iterdir() if folder.is_dir())[:10]
    for folder in classes:
        (target / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[: count // len(classes)]:
            copy(path, target / folder.name)
    return target


def decode_files(paths: list[str], channels: int) -> int:
    "Read and decode, and keep nothing."
    return sum(decode(Path(path).read_bytes(), path, channels).nbytes for path in paths)


def decoding_alone(paths: list[str], channels: int) -> tuple[float, int]:  # Seconds and processes
    "What any first epoch must do."
    executor, count = helpers(len(paths))
    executor.shutdown()
    processes = len(paths) >= FEW and count > 1
    pool = (
        ProcessPoolExecutor(count, multiprocessing.get_context("fork"))
        if processes
        else ThreadPoolExecutor(count)
    )
    chunks = [paths[start : start + 200] for start in range(0, len(paths), 200)]
    start = perf_counter()
    with pool:
        list(pool.map(decode_files, chunks, [channels] * len(chunks)))
    return perf_counter() - start, count


def first_epoch(data: ImageDataModule, workspace: Workspace, params: Params) -> tuple[float, float]:
    "Seconds of everything from an empty cache on, and of filling the cache alone."
    folder, data.pixels = data.pixels.store.folder, None
    rmtree(folder)
    start = perf_counter()
    data.setup()
    filled = perf_counter() - start
    return filled + our_epoch(data, params)[0], filled


def main():
    arguments = parse_arguments()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    params = Params(image={"size_px": arguments.size}, model={"architecture": arguments.architecture})
    with TemporaryDirectory() as name:
        pictures = some_pictures(arguments.folder, Path(name) / "pictures", arguments.pictures)
        data, _ = import_pictures(Path(name) / "workspace", pictures, params)
        workspace = Workspace(Path(name) / "workspace")
        paths = [str(workspace.root / row.image_path) for row in data.rows]
        our_epoch(data, params)  # the first steps of a process are slower
        turns = []
        for _ in range(arguments.turns):
            decoding, processes = decoding_alone(paths, params.image.channels)
            turns.append((decoding, our_epoch(data, params)[0], *first_epoch(data, workspace, params)))
    decoding, learning, first, filling = (median(column) for column in zip(*turns, strict=True))
    figures = {
        "pictures": len(paths),
        "size_px": arguments.size,
        "architecture": arguments.architecture,
        "steps": [name for name, _ in build_preprocessing(params.preprocess, params.image).steps],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "decoding_s": round(decoding, 2),
        "learning_s": round(learning, 2),
        "filling_s": round(filling, 2),
        "first_epoch_s": round(first, 2),
        "ratio": round(first / max(decoding, learning), 3),
        "filling_to_decoding": round(filling / decoding, 2),
        "turns": [[round(seconds, 2) for seconds in turn] for turn in turns],
        "to_reach": 1.15,
    }
    report("first_epoch", figures)
    return int(figures["ratio"] > figures["to_reach"])


if __name__ == "__main__":
    sys.exit(main())
