"""Seconds that a study adds to each of its trials, beyond the training itself.

python benchmarks/tuning_overhead.py [--trials N] [--epochs N] [--pictures FOLDER]

The same settings are trained bare in this process: pictures from the same cache, network, Trainer, nothing
else. Study and bare trainings take turns. The median of the differences is what a trial costs whatever it
trains: drawing, files, MLflow, checkpoints, reports, tidying. The figure is its share of one minute.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import pytorch_lightning as pl
from workspace import report

from classification_mlops.config import save_yaml
from classification_mlops.db.ingest import import_folder
from classification_mlops.demo import SAMPLE_THEME, sample_workspace
from classification_mlops.model.classifier import Classifier
from classification_mlops.model.network import network_of
from classification_mlops.training.fit import quiet_lightning, trainer_options, use_threads
from classification_mlops.training.material import load_data
from classification_mlops.training.run import end_run
from classification_mlops.tuning.outcome import begin_search
from classification_mlops.tuning.space import files_of
from classification_mlops.tuning.trial import run_trial
from classification_mlops.tuning.workers import announce, next_trial

MINUTE_S = 60


def bare_training(search, data) -> None:
    "The same training without a study, a run, files or checkpoints."
    params, _ = files_of(search.base)
    use_threads(params)
    pl.seed_everything(params.seed, verbose=False)
    network = network_of(params, len(search.run.labels))
    sections = params.loss, params.optimizer, params.scheduler
    module = Classifier(
        network, search.run.labels, *sections, class_counts=data.class_counts, seed=params.seed
    )
    with quiet_lightning():
        nothing = dict(logger=False, enable_checkpointing=False)
        pl.Trainer(**trainer_options(params) | nothing).fit(module, datamodule=data)


def timed(work, *arguments) -> tuple[float, float]:
    "Wall and processor seconds."
    wall, processor = perf_counter(), process_time()
    work(*arguments)
    return perf_counter() - wall, process_time() - processor


def one_trial(search) -> None:
    "What a worker does for each trial."
    begun, _ = next_trial(search, None)
    announce(search)
    run_trial(search, *begun)


def prepared_search(folder: Path, trials: int, epochs: int, pictures: Path | None):
    "A study whose trials all train the same, so that they can be compared."
    workspace, theme = sample_workspace(folder), SAMPLE_THEME
    if pictures:
        from classification_mlops.db.session import open_engine, writing
        from classification_mlops.db.themes import create_theme

        engine, theme = open_engine(workspace.database_url), "pictures"
        with writing(engine) as session:
            create_theme(session, theme)
        import_folder(engine, workspace, theme, pictures, create_labels=True, actor="benchmark")
    space = {"loss.gamma": {"low": 0.0, "high": 10.0}}  # of a loss that is not used: nothing depends on it
    save_yaml({"study": {"trials": trials + 1, "pruner": "none"}, "space": space}, workspace.study_file, "")
    overrides = [f"trainer.max_epochs={epochs}", "early_stopping.patience=10000", "trainer.threads=1"]
    return begin_search(theme, workspace, dict(files={}, overrides=overrides, budget={}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    with TemporaryDirectory() as name:
        search = prepared_search(Path(name), arguments.trials, arguments.epochs, arguments.pictures)
        data = load_data(replace(search.run))
        one_trial(search)  # what happens once is not counted
        studied, bare = [], []
        for _ in range(arguments.trials):
            bare.append(timed(bare_training, search, data))
            studied.append(timed(one_trial, search))
        end_run(search.run, "FINISHED")
    wall, processor = (
        median(with_study[k] - without[k] for with_study, without in zip(studied, bare, strict=True))
        for k in (0, 1)
    )
    figures = dict(trials=arguments.trials, epochs=arguments.epochs, pictures=len(data.rows))
    figures |= dict(bare_s=median(w for w, _ in bare), trial_s=median(w for w, _ in studied))
    report(
        "tuning_overhead",
        figures | dict(added_s=wall, added_cpu_s=processor, share_of_a_minute=wall / MINUTE_S),
    )


if __name__ == "__main__":
    main()
