"""Peak memory of a training with few and with many pictures.

python benchmarks/training_memory.py [--few 1000] [--many 70000] [--size 32]

Each training runs in a process of its own: it decodes pictures into an empty cache, learns and predicts,
with a tiny network, so that what is measured belongs to the pictures. The peak is that of all
memory that the process and its helpers hold at once (the sum of their proportional shares, where the
system tells it).
"""

import argparse
import csv
import json
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from workspace import report

TO_REACH_MB = 200


def write_pictures(root: Path, count: int, side_px: int) -> Path:
    "Pictures of ten classes with noise, and a snapshot of them."
    import cv2
    import numpy as np

    random, rows = np.random.default_rng(0), []
    (root / "images").mkdir()
    for number in range(count):
        pixels = random.integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
        data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
        path = f"images/{number}.png"
        (root / path).write_bytes(data)
        split = ("train", "train", "train", "valid", "test")[number % 5]
        rows.append((sha256(data).hexdigest(), str(number % 10), split, path, number, number % 10))
    with (root / "snapshot.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("sha256", "label", "split", "image_path", "train_data_id", "label_id"))
        table.writerows(sorted(rows))
    return root


def memory_of(process) -> int:  # Bytes
    "What a process holds; shared pages in shares."
    facts = process.memory_full_info()
    return getattr(facts, "pss", 0) or facts.rss


def train(root: Path, side_px: int) -> dict:
    "One training in this process, and the most memory that it and its helpers held."
    import logging
    import warnings
    from contextlib import suppress

    import psutil
    import pytorch_lightning as pl

    from classification_mlops.config import Params
    from classification_mlops.model.classifier import Classifier
    from classification_mlops.model.network import network_of
    from classification_mlops.training.evaluate import predict
    from classification_mlops.vision.datamodule import ImageDataModule
    from classification_mlops.vision.preprocess import build_preprocessing
    from classification_mlops.workspace import Workspace

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    ended, peak, this = threading.Event(), [0], psutil.Process()

    def watch():
        while not ended.wait(0.1):
            with suppress(psutil.Error):
                peak[0] = max(peak[0], sum(map(memory_of, [this, *this.children(recursive=True)])))

    watcher = threading.Thread(target=watch)
    watcher.start()
    params = Params(image={"size_px": side_px}, model={"architecture": "timm/test_resnet"})
    preprocessing = build_preprocessing(params.preprocess, params.image)
    labels = [str(number) for number in range(10)]
    data = ImageDataModule(root / "snapshot.csv", Workspace(root), labels, preprocessing, None, 256, 0, 1)
    data.setup()
    filled = peak[0]
    network = network_of(params, 10)
    settings = params.loss, params.optimizer, params.scheduler, data.class_counts, 1
    quiet = dict(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    epochs = max(1, 20_000 // len(data.rows))  # few pictures need some time to reach their peak, too
    pl.Trainer(max_epochs=epochs, accelerator="cpu", **quiet).fit(
        Classifier(network, labels, *settings), data
    )
    predict(network, data.test_dataloader())
    ended.set()
    watcher.join()
    return {"pictures": len(data.rows), "filling_mb": filled >> 20, "peak_mb": peak[0] >> 20}


def in_a_new_process(count: int, side_px: int) -> dict:
    "The figures of one training."
    with TemporaryDirectory() as name:
        root = write_pictures(Path(name), count, side_px)
        command = [sys.executable, __file__, "--train", root, "--size", str(side_px)]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--few", type=int, default=1000)
    parser.add_argument("--many", type=int, default=70_000)
    parser.add_argument("--size", type=int, default=32, help="side in pixels")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        print(json.dumps(train(arguments.train, arguments.size)))
        return 0
    few, many = (in_a_new_process(count, arguments.size) for count in (arguments.few, arguments.many))
    more = many["peak_mb"] - few["peak_mb"]
    report("training_memory", {"few": few, "many": many, "more_mb": more, "to_reach": TO_REACH_MB})
    return int(more > TO_REACH_MB)


if __name__ == "__main__":
    sys.exit(main())
