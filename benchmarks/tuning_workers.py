"""How much faster two workers are than one, and whether they lose or double a trial.

python benchmarks/tuning_workers.py [--trials N] [--epochs N] [--workers K]

The same study twice, in two sample workspaces: one worker, then K on this machine, each with one thread.
Random sampling without pruning, so that both do the same work. Where the cores are not free, neither is the
figure: the bare alternative, K processes that only compute, says what the machine had to give meanwhile.
"""

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from workspace import report

from classification_mlops.config import save_yaml
from classification_mlops.demo import SAMPLE_THEME, sample_workspace
from classification_mlops.training.run import end_run
from classification_mlops.tuning.outcome import begin_search
from classification_mlops.tuning.workers import work_together

SPIN = """
import torch
torch.set_num_threads(1)
values = torch.rand(400, 400)
for _ in range(4000):
    values = (values @ values).relu() / 400
"""


def spin(count: int) -> float:  # Seconds
    "So many processes compute the same at once."
    began = perf_counter()
    processes = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    for process in processes:
        process.wait()
    return perf_counter() - began


def study(folder: Path, trials: int, epochs: int, workers: int) -> tuple[float, Counter]:
    "Seconds of a study, and its trials by how they ended."
    workspace = sample_workspace(folder)
    space = {"optimizer.learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}}
    settings = dict(trials=trials, pruner="none", sampler="random")
    save_yaml({"study": settings, "space": space}, workspace.study_file, "")
    overrides = [f"trainer.max_epochs={epochs}", "early_stopping.patience=10000", "trainer.threads=1"]
    asked = dict(files={}, overrides=overrides, budget={})
    search = begin_search(SAMPLE_THEME, workspace, asked, workers=workers)
    began = perf_counter()
    work_together(search, workers)
    seconds = perf_counter() - began
    end_run(search.run, "FINISHED")
    found = search.study.get_trials(deepcopy=False)
    drawn = {trial.params["optimizer.learning_rate"] for trial in found}
    return seconds, Counter(trial.state.name for trial in found) | Counter(different=len(drawn))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    free = arguments.workers * spin(1) / spin(arguments.workers)  # cores that the machine really gave
    with TemporaryDirectory() as name:
        sizes = arguments.trials, arguments.epochs
        alone, ended = study(Path(name) / "one", *sizes, workers=1)
        together, shared = study(Path(name) / "many", *sizes, workers=arguments.workers)
    whole = dict(COMPLETE=arguments.trials, different=arguments.trials)
    figures = dict(trials=arguments.trials, workers=arguments.workers, alone_s=alone, together_s=together)
    figures |= dict(speedup=alone / together, cores_free=free, none_lost_or_doubled=ended == shared == whole)
    report("tuning_workers", figures)


if __name__ == "__main__":
    main()
