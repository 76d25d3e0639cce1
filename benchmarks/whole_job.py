"""Seconds from `cmlops train` to a registered model, beyond what learning itself takes.

python benchmarks/whole_job.py FOLDER [--pictures 10000]

FOLDER/train or FOLDER holds one folder per class. One epoch of resnet18 at 32 px, batches of 64, on pictures
that are imported already. The bare loop learns from as many train pictures, held in memory, in a process that
has imported everything; it neither validates nor tests nor reports. The command does all of that, from the
first line of Python to the version in the registry; until it has ended is told as well.
"""

import argparse
import sys
from pathlib import Path
from statistics import median
from time import perf_counter, time

import mlflow
import numpy as np
import torch
from throughput import bare_epoch, first_pictures
from workspace import cmlops, new_workspace, report

from classification_mlops.config import Params
from classification_mlops.db.queries import class_counts
from classification_mlops.db.session import open_engine, reading
from classification_mlops.db.themes import get_theme
from classification_mlops.workspace import find_workspace

SETTINGS = ["image.size_px=32", "trainer.max_epochs=1", "preprocess=[]"]


def prepared(folder: Path, source: Path, count: int) -> int:  # Train pictures
    "Import pictures, in place, and split them."
    pictures = first_pictures(source, folder / "images" / "digits", count)
    cmlops(folder, "theme", "create", "digits")
    cmlops(folder, "data", "import", "digits", pictures, "--create-labels", "--in-place")
    cmlops(folder, "split", "digits")
    with reading(open_engine(find_workspace(folder).database_url)) as session:
        counts = class_counts(session, get_theme(session, "digits"))
    return sum(splits["train"] for splits in counts.values())


def job(folder: Path) -> tuple[float, float]:
    "Seconds of a training, until its model is registered and until the command has ended."
    options = [word for setting in SETTINGS for word in ("--set", setting)]
    began, clock = time(), perf_counter()
    outcome = cmlops(folder, "train", "digits", *options)
    ended = perf_counter() - clock
    client = mlflow.MlflowClient(find_workspace(folder).tracking_uri)
    version = client.get_model_version("digits", str(outcome["model_version"]))
    return version.creation_timestamp / 1000 - began, ended


def bare(count: int) -> float:
    "Seconds of one epoch over as many pictures, of any content."
    params = Params(image={"size_px": 32, "channels": 3})
    images, targets = torch.rand(count, 3, 32, 32), torch.randint(0, 10, (count,))
    bare_epoch(images[:640], targets[:640], params)
    return bare_epoch(images, targets, params)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    with new_workspace() as folder:
        count = prepared(folder, arguments.folder, arguments.pictures)
        turns = np.array([(bare(count), *job(folder)) for _ in range(arguments.turns)])
    figures = {
        "pictures": count,
        "bare_s": round(median(turns[:, 0]), 1),
        "registered_s": round(median(turns[:, 1]), 1),
        "command_s": round(median(turns[:, 2]), 1),
        "beyond_learning_s": round(median(turns[:, 1] - turns[:, 0]), 1),
        "command_beyond_learning_s": round(median(turns[:, 2] - turns[:, 0]), 1),
        "to_reach": "beyond_learning_s <= 25",
    }
    report("whole_job", figures)
    return int(figures["beyond_learning_s"] > 25)


if __name__ == "__main__":
    sys.exit(main())
