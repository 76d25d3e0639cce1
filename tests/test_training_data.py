"From stored files to weights: the same bytes whatever the workers, and clear words when a file has changed."

import csv
import hashlib
import logging
import subprocess
import sys
import warnings

import cv2
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits

from classification_mlops.config import Params
from classification_mlops.db.snapshot import SnapshotRow
from classification_mlops.model.classifier import Classifier
from classification_mlops.model.freezing import Freezing
from classification_mlops.model.network import network_of
from classification_mlops.text import UserError
from classification_mlops.vision.augment import build_augmentation
from classification_mlops.vision.cache import open_pixels, open_store
from classification_mlops.vision.datamodule import EpochSampler, ImageDataModule
from classification_mlops.vision.preprocess import build_preprocessing
from classification_mlops.workspace import Workspace

AUGMENTATIONS = [
    {"transform": "Affine", "rotate": [-15, 15], "translate_percent": 0.1, "p": 0.9},
    {"transform": "HorizontalFlip", "p": 0.5},
    {"transform": "VerticalFlip", "p": 0.5},
    {"transform": "OneOf", "transforms": [{"transform": "GaussNoise"}, {"transform": "RandomGamma"}]},
    {"transform": "torchvision.ColorJitter", "brightness": 0.4},
]
QUIET = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="pytorch_lightning")


def make_workspace(root, count, classes=3, splits=("train", "train", "train", "valid", "test")):
    "Digits as stored pictures, with their snapshot."
    workspace, digits = Workspace(root), load_digits()
    workspace.images.mkdir(parents=True)
    chosen = np.flatnonzero(digits.target < classes)[:count]
    with open(root / "snapshot.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(SnapshotRow._fields)
        for place, number in enumerate(chosen):
            data = cv2.imencode(".png", (digits.images[number] * 15.9).astype(np.uint8))[1].tobytes()
            name, target = f"images/{number}.png", int(digits.target[number])
            (root / name).write_bytes(data)
            sha256, split = hashlib.sha256(data).hexdigest(), splits[place % len(splits)]
            table.writerow(SnapshotRow(sha256, str(target), split, name, place + 1, target + 1))
    return workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("digits"), count=120)


def make_data(
    workspace, workers=0, batch_size=16, items=AUGMENTATIONS, steps=(), seed=42, size_px=16, **options
):
    return ImageDataModule(
        workspace.root / "snapshot.csv",
        workspace,
        ["0", "1", "2"],
        build_preprocessing(list(steps), {"size_px": size_px, "channels": 1}),
        build_augmentation(items),
        batch_size=batch_size,
        workers=workers,
        seed=seed,
        **options,
    )


class Recorder(pl.Callback):
    "Hashes every byte that reaches the network."

    def __init__(self):
        self.digest = hashlib.sha256()

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.digest.update(b"".join(part.numpy().tobytes() for part in batch))


def train(workspace, workers, epochs=2, seed=42, noise=0, checkpoint=None, until=None, **options):
    "Hash of the pixels and of the weights after some epochs; `noise` disturbs the global stream before."
    params = Params(
        seed=seed, image={"size_px": 16, "channels": 1}, model={"architecture": "resnet18", "dropout": 0.5}
    )
    torch.manual_seed(noise)
    torch.rand(noise)
    model = Classifier(
        network_of(params, 3), ["0", "1", "2"], params.loss, params.optimizer, params.scheduler, seed=seed
    )
    recorder, data = Recorder(), make_data(workspace, workers, seed=seed, **options)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", deterministic=True, callbacks=[recorder], **QUIET
    )
    trainer.fit(model, data)
    weights = hashlib.sha256()
    for tensor in model.state_dict().values():
        weights.update(tensor.numpy().tobytes())
    return recorder.digest.hexdigest(), weights.hexdigest()


def test_pixels_and_weights_do_not_depend_on_workers(workspace):
    alone = train(workspace, workers=0)
    assert train(workspace, workers=2, noise=7) == alone
    assert train(workspace, workers=0, noise=3) == alone
    assert train(workspace, workers=0, cache=False) == alone


def test_another_seed_is_another_run(workspace):
    first, second = train(workspace, 0, epochs=1), train(workspace, 0, epochs=1, seed=43)
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_augmentation_differs_between_epochs_and_pictures(workspace):
    data = make_data(workspace, batch_size=200)
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        images, _, numbers = next(iter(loader))
        epochs.append(images[numbers.argsort()])
    assert (epochs[0] != epochs[1]).flatten(1).any(1).float().mean() > 0.9


def test_only_the_training_split_is_augmented(workspace):
    plain, augmented = make_data(workspace, items=[]), make_data(workspace)
    for loader in ("val_dataloader", "test_dataloader"):
        for one, other in zip(getattr(plain, loader)(), getattr(augmented, loader)(), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_splits_share_nothing_and_miss_nothing(workspace):
    data = make_data(workspace, steps=[{"step": "patches", "rows": 2, "columns": 1}])
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    numbers = [torch.cat([batch[2] for batch in loader]).tolist() for loader in loaders]
    assert sorted(number for some in numbers for number in some) == list(range(120))
    assert next(iter(loaders[0]))[0].shape == (16, 2, 16, 16, 1)


@pytest.mark.parametrize(("batch_size", "batches"), [(71, 1), (72, 1), (12, 6), (7, 11)])
def test_no_batch_of_one(workspace, batch_size, batches):
    loader = make_data(workspace, batch_size=batch_size, items=[]).train_dataloader()
    sizes = [len(targets) for _, targets, _ in loader]
    assert len(sizes) == len(loader) == batches
    assert min(sizes) > 1


def test_sampler_evens_out_the_classes(tmp_path):
    workspace = make_workspace(tmp_path, count=90, splits=("train",))
    rows = (tmp_path / "snapshot.csv").read_text().splitlines()
    kept = [row for place, row in enumerate(rows) if ",0,train" not in row or place < 10]
    (tmp_path / "snapshot.csv").write_text("\n".join(kept) + "\n")
    data = make_data(workspace, items=[], imbalance="sampler")
    assert data.class_counts["0"] < 5
    loader, drawn = data.train_dataloader(), torch.zeros(3)
    for epoch in range(20):
        loader.sampler.set_epoch(epoch)
        for _, targets, _ in loader:
            drawn += targets.bincount(minlength=3)
    assert (drawn / drawn.sum() - 1 / 3).abs().max() < 0.05
    assert data.val_dataloader() == []


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 2, 20])
def test_devices_share_an_epoch(ranks, count):
    samplers = [EpochSampler(count, seed=1, rank=rank, ranks=ranks) for rank in range(ranks)]
    parts = [list(sampler) for sampler in samplers]
    assert {len(part) for part in parts} == {len(samplers[0])}
    assert {number for part in parts for number, _ in part} == set(range(count))


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_other_precisions(workspace, precision, optimizer):
    # At 16 px this network ends in planes of one pixel, where bfloat16 on a CPU now and then gives NaN.
    params = Params(
        image={"size_px": 32, "channels": 1}, optimizer={"name": optimizer}, scheduler={"name": "plateau"}
    )
    model = Classifier(
        network_of(params, 3), ["0", "1", "2"], params.loss, params.optimizer, params.scheduler
    )
    options = dict(max_epochs=1, accelerator="cpu", precision=precision, gradient_clip_val=1.0)
    trainer = pl.Trainer(**options, **QUIET)
    trainer.fit(model, make_data(workspace, size_px=32))
    assert trainer.callback_metrics["train_loss"].isfinite()


@pytest.mark.parametrize(("freeze", "mix"), [(0, "none"), (2, "mixup")])
def test_a_resumed_run_ends_with_the_same_weights(workspace, tmp_path, freeze, mix):
    def run(**resume):
        params = Params(
            image={"size_px": 16, "channels": 1},
            model={"architecture": "resnet18", "dropout": 0.5},
            loss={"mix": mix},
        )
        model = Classifier(
            network_of(params, 3), ["0", "1", "2"], params.loss, params.optimizer, params.scheduler
        )
        saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        callbacks = [saver, Freezing(freeze)]
        options = QUIET | dict(
            max_epochs=3, accelerator="cpu", callbacks=callbacks, enable_checkpointing=True
        )
        pl.Trainer(**options).fit(model, make_data(workspace), **resume)
        return model.state_dict()

    whole = run()
    torch.rand(9)
    resumed = run(ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    if freeze:
        frozen = torch.load(tmp_path / f"epoch={freeze - 1}.ckpt", weights_only=True)["state_dict"]
        start = network_of(Params(image={"size_px": 16, "channels": 1}), 3).state_dict()
        same = [name for name in start if torch.equal(frozen[f"network.{name}"], start[name])]
        assert set(start) - set(same) == {"backbone.fc.weight", "backbone.fc.bias"}
        assert not torch.equal(whole["network.backbone.conv1.weight"], start["backbone.conv1.weight"])


FILL = """
import sys
from pathlib import Path
from classification_mlops.db.snapshot import read_snapshot
from classification_mlops.vision.cache import open_pixels
from classification_mlops.vision.preprocess import build_preprocessing
from classification_mlops.workspace import Workspace
root = Path(sys.argv[1])
preprocessing = build_preprocessing([], dict(size_px=16, channels=1))
open_pixels(list(read_snapshot(root / "snapshot.csv")), Workspace(root), preprocessing)
"""


def test_two_runs_fill_one_store(tmp_path):
    workspace = make_workspace(tmp_path, count=100)
    processes = [subprocess.Popen([sys.executable, "-c", FILL, tmp_path]) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    data = make_data(workspace, items=[])
    data.setup()
    assert data.pixels.store.count == 100
    fresh = open_pixels(data.rows, workspace, build_preprocessing([], {"size_px": 16, "channels": 1}), False)
    assert np.array_equal(data.pixels[np.arange(100)], fresh[np.arange(100)])


@pytest.mark.parametrize(
    "torn", [{"pixels.bin": 0}, {"pixels.bin": 1000}, {"hashes.bin": 33}, {"hashes.bin": 0}]
)
def test_a_torn_store_heals(tmp_path, torn):
    workspace = make_workspace(tmp_path, count=30)
    data = make_data(workspace, items=[])
    data.setup()
    before, folder = data.pixels[np.arange(30)], data.pixels.store.folder
    for name, size in torn.items():
        with open(folder / name, "r+b") as file:
            file.truncate(size)
        assert (folder / name).stat().st_size == size
    again = make_data(workspace, items=[])
    again.setup()
    assert again.pixels.store.count == 30
    assert np.array_equal(again.pixels[np.arange(30)], before)


def test_second_run_decodes_nothing(tmp_path):
    workspace = make_workspace(tmp_path, count=30)
    make_data(workspace, items=[]).setup()
    for path in workspace.images.iterdir():
        path.unlink()
    make_data(workspace, items=[]).setup()


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_lost_picture_is_named(tmp_path, cache, workers):
    workspace = make_workspace(tmp_path, count=30)
    data = make_data(workspace, workers=workers, items=[], cache=cache)
    victim = data.rows[0].image_path
    (tmp_path / victim).unlink()
    with pytest.raises(UserError, match=victim):
        list(data.train_dataloader())


def test_a_full_disk_is_said(tmp_path):
    import resource
    import signal

    workspace = make_workspace(tmp_path, count=60)
    preprocessing = build_preprocessing([], {"size_px": 64, "channels": 1})
    rows = make_data(workspace, items=[]).rows
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match="free some space"):
            open_pixels(rows, workspace, preprocessing, cache=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    pixels = open_pixels(rows, workspace, preprocessing, cache=True)
    assert open_store(workspace, preprocessing).count == 60
    fresh = open_pixels(rows, workspace, preprocessing, cache=False)
    assert np.array_equal(pixels[np.arange(60)], fresh[np.arange(60)])
