"""Images per second of one epoch of training, against a bare loop over tensors in memory.

python benchmarks/throughput.py FOLDER [--size 128 --augment]

FOLDER/train or FOLDER holds one folder per class. All train resnet18 with batches of 64. The bare loop has
everything in memory, as floats, normalised. Ours goes through import, split, snapshot, data module, network
and Lightning's Trainer, with the checks, metrics and clipping of a real run. The bare loop uses AdamW as it
comes; with the fused AdamW that ours uses it is measured as well, so that what the optimiser gains does not
hide what the rest costs. With `--augment`, ours changes every picture as the default auguments.yaml says; the
bare loop does not. They take turns, because a shared machine drifts; ratios are medians over the turns.
"""

import argparse
import logging
import shutil
import sys
import warnings
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import numpy as np
import pytorch_lightning as pl
import torch
from torch.nn import functional as F
from workspace import report

from classification_mlops.config import AUGMENTATIONS_EXAMPLE, Params, SplitRatios, load_augmentations
from classification_mlops.db.ingest import import_folder
from classification_mlops.db.labels import list_labels
from classification_mlops.db.session import open_engine, upgrade_database, writing
from classification_mlops.db.snapshot import take_snapshot
from classification_mlops.db.split import split_theme
from classification_mlops.db.themes import create_theme, get_theme
from classification_mlops.model.classifier import Classifier
from classification_mlops.model.network import network_of
from classification_mlops.vision.augment import build_augmentation
from classification_mlops.vision.datamodule import ImageDataModule
from classification_mlops.vision.preprocess import build_preprocessing
from classification_mlops.workspace import init_folders

QUIET = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="pictures, one folder per class")
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=32, help="side in pixels")
    parser.add_argument("--augment", action="store_true", help="with the default augmentation")
    parser.add_argument("--channels", type=int, choices=[1, 3], default=3)
    parser.add_argument("--turns", type=int, default=3)
    return parser.parse_args()


def first_pictures(source: Path, target: Path, count: int) -> Path:
    "Copies of the first pictures of each class, evenly."
    source = source / "train" if (source / "train").is_dir() else source
    classes = sorted(folder for folder in source.iterdir() if folder.is_dir())
    for folder in classes:
        (target / folder.name).mkdir(parents=True)
        for path in sorted(folder.glob("*.*"))[: count // len(classes)]:
            shutil.copy(path, target / folder.name)
    return target


def import_pictures(
    folder: Path, pictures: Path, params: Params, augment: bool = False
) -> tuple[ImageDataModule, dict]:
    "The way of a team's pictures to a data module, and the seconds of its parts."
    workspace, seconds, clock = init_folders(folder), {}, perf_counter()
    engine = open_engine(workspace.database_url)
    upgrade_database(engine)
    with writing(engine) as session:
        create_theme(session, "digits")
    found = import_folder(engine, workspace, "digits", pictures, create_labels=True, actor="benchmark")
    assert found.added == found.found, found.summary()
    seconds["import"], clock = perf_counter() - clock, perf_counter()
    with writing(engine) as session:
        theme = get_theme(session, "digits")
        split_theme(session, theme, SplitRatios(train=1, valid=0, test=0), params.seed, "benchmark")
        take_snapshot(session, theme, folder / "snapshot.csv")
        labels = [label.label_name for label in list_labels(session, theme)]
    seconds["split"], clock = perf_counter() - clock, perf_counter()
    preprocessing = build_preprocessing(params.preprocess, params.image)
    settings = params.data.batch_size, params.data.workers, params.seed, params.data.cache
    workspace.augmentations_file.write_text(AUGMENTATIONS_EXAMPLE)
    changes = build_augmentation(load_augmentations(workspace.augmentations_file)) if augment else None
    data = ImageDataModule(folder / "snapshot.csv", workspace, labels, preprocessing, changes, *settings)
    data.setup()
    seconds["cache"] = perf_counter() - clock
    return data, {name: round(value, 2) for name, value in seconds.items()}


def bare_epoch(images, targets, params: Params, fused: bool = False) -> tuple[float, float]:
    "Wall and CPU seconds of an epoch of the loop that everybody writes."
    network = network_of(params, 10).backbone.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=params.optimizer.learning_rate, fused=fused)
    start = perf_counter(), process_time()
    for batch in torch.randperm(len(images)).split(params.data.batch_size):
        loss = F.cross_entropy(network(images[batch]), targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return perf_counter() - start[0], process_time() - start[1]


class Clock(pl.Callback):
    "Wall and CPU seconds of the training itself."

    def on_train_start(self, trainer, module):
        self.start = perf_counter(), process_time()

    def on_train_end(self, trainer, module):
        self.seconds = perf_counter() - self.start[0], process_time() - self.start[1]


def our_epoch(data: ImageDataModule, params: Params) -> tuple[float, float]:
    "Wall and CPU seconds of an epoch of ours."
    settings = params.loss, params.optimizer, params.scheduler, data.class_counts, params.seed
    model, clock = Classifier(network_of(params, 10), data.labels, *settings), Clock()
    options = dict(
        deterministic=params.trainer.deterministic, gradient_clip_val=params.trainer.gradient_clip_val
    )
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[clock], **options, **QUIET)
    trainer.fit(model, data)
    return clock.seconds


def main():
    arguments = parse_arguments()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    params = Params(image={"size_px": arguments.size, "channels": arguments.channels})
    with TemporaryDirectory() as name:
        pictures = first_pictures(arguments.folder, Path(name) / "pictures", arguments.pictures)
        data, preparation = import_pictures(Path(name) / "workspace", pictures, params, arguments.augment)
        bags = torch.from_numpy(data.pixels[np.arange(len(data.rows))])
        images = ((bags[:, 0].permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5).contiguous()
        targets = torch.from_numpy(data.targets)
        bare_epoch(images[:640], targets[:640], params)  # the first steps of a process are slower
        turns = [
            (
                bare_epoch(images, targets, params),
                our_epoch(data, params),
                bare_epoch(images, targets, params, fused=True),
            )
            for _ in range(arguments.turns)
        ]
    bare, ours, fused = np.array(turns).transpose(1, 2, 0)  # each: wall and CPU × turns
    figures = {
        "pictures": len(images),
        "size_px": arguments.size,
        "augmented": arguments.augment,
        "threads": torch.get_num_threads(),
        "bare_images_per_s": round(len(images) / median(bare[0]), 1),
        "our_images_per_s": round(len(images) / median(ours[0]), 1),
        "ratio": round(median(bare[0] / ours[0]), 3),
        "ratio_of_cpu_seconds": round(median(bare[1] / ours[1]), 3),
        "ratio_to_fused": round(median(fused[0] / ours[0]), 3),
        "ratio_to_fused_of_cpu_seconds": round(median(fused[1] / ours[1]), 3),
        "turns": [[round(seconds[0], 1) for seconds in turn] for turn in turns],
        "preparation_s": preparation,
        "to_reach": 0.95 if arguments.augment else 0.97,
    }
    report("throughput", figures)
    return int(figures["ratio"] < figures["to_reach"])


if __name__ == "__main__":
    sys.exit(main())
