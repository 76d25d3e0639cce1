"""Images per second of training with the settings that `trainer.tune: auto` chooses, against the defaults.

python benchmarks/tune_settings.py [FOLDER] [--set image.size_px=224 …]     FOLDER: one folder per class

Without a folder: scikit-learn's digits. Both settings take turns in one process, because a shared machine
drifts; the ratio is the median over the turns. Threads are as many as the machine has, unless OMP_NUM_THREADS
says otherwise.
"""

import argparse
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from workspace import report

from classification_mlops.db.ingest import import_folder
from classification_mlops.db.session import open_engine, upgrade_database, writing
from classification_mlops.db.themes import create_theme
from classification_mlops.demo import start_repository, write_digits
from classification_mlops.registry.lineage import machine_facts
from classification_mlops.training.material import load_data, split_new
from classification_mlops.training.run import TrainingRun, plan_run
from classification_mlops.training.settings import TUNED, changed, images_per_second, tuned
from classification_mlops.workspace import init_folders


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--turns", type=int, default=5)
    return parser.parse_args()


def prepared_run(root: Path, pictures: Path, overrides: list[str]) -> TrainingRun:
    "A run that has everything it needs to begin."
    workspace = init_folders(root)
    start_repository(root)
    engine = open_engine(workspace.database_url)
    upgrade_database(engine)
    with writing(engine) as session:
        create_theme(session, "pictures")
    import_folder(engine, workspace, "pictures", pictures, create_labels=True, actor="benchmark")
    run = plan_run(workspace, "pictures", overrides=["trainer.tune=auto", *overrides])
    run.run_id = "benchmark"
    run.folder.mkdir(parents=True)
    split_new(run)
    return run


def settings_of(params) -> dict:
    "What may have been chosen."
    sections = {name: name.split(".") for name in TUNED}
    return {name: getattr(getattr(params, section), field) for name, (section, field) in sections.items()}


def main() -> int:
    arguments = parse_arguments()
    with TemporaryDirectory() as name:
        pictures = arguments.folder or write_digits(Path(name) / "digits")
        run = prepared_run(Path(name) / "workspace", pictures, arguments.set)
        data, start = load_data(run), perf_counter()
        usual, chosen = changed(run.params, trainer__tune="none"), tuned(run, data)
        seconds = perf_counter() - start
        turns = [
            [images_per_second(run, data, params, seconds=4) for params in (usual, chosen)]
            for _ in range(arguments.turns)
        ]
    figures = {
        "default": settings_of(usual),
        "chosen": settings_of(chosen),
        "default_images_per_s": round(median(turn[0] for turn in turns), 1),
        "chosen_images_per_s": round(median(turn[1] for turn in turns), 1),
        "ratio": round(median(turn[1] / turn[0] for turn in turns), 3),
        "choosing_s": round(seconds, 1),
        "size_px": run.params.image.size_px,
        "architecture": run.params.model.architecture,
        "threads": torch.get_num_threads(),
        "machine": machine_facts(),
        "to_reach": 1.3,
    }
    report("tune_settings", figures)
    return int(figures["ratio"] < figures["to_reach"])


if __name__ == "__main__":
    sys.exit(main())
