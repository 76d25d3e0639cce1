"""What a search for parameters wins against the default ones, on valid and on test.

python benchmarks/tuned.py THEME FOLDER… [--limit N] [--trials N] [--workers K] [--space FILE] [--set …]

The folders hold class folders. First a training with the parameters of the workspace, then a search that
begins from them; both see the same split, and neither sees test before it is finished. `models compare` then
holds the two registered models against each other on the test pictures: the gain, picture by picture,
with its interval of 95 %.
"""

import argparse
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from accuracy import first_pictures
from workspace import cmlops, new_workspace, report


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("theme")
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--space", type=Path, help="an optuna_params.yaml; that of the workspace unless given"
    )
    parser.add_argument("--set", action="append", default=[], help="for the default and for all trials")
    return parser.parse_args()


def timed(folder: Path, *arguments) -> dict:
    "What a command answers, and its seconds."
    begun = perf_counter()
    return cmlops(folder, *arguments) | {"seconds": round(perf_counter() - begun, 1)}


def tuned(folder: Path, pictures: Path, options) -> dict:
    "The default, the search, and how their models compare."
    theme, overrides = options.theme, [f"--set={override}" for override in options.set]
    cmlops(folder, "theme", "create", theme)
    cmlops(folder, "data", "import", theme, pictures, "--create-labels")
    if options.space:
        shutil.copyfile(options.space, folder / "optuna_params.yaml")
    usual = timed(folder, "train", theme, *overrides)
    found = timed(folder, "tune", theme, "--trials", options.trials, "--workers", options.workers, *overrides)
    versions = usual["model_version"], found["model_version"]
    contest = cmlops(folder, "models", "compare", theme, *versions)["contest"]
    names = ("pictures", "right", "gain", "gain_low", "gain_high", "p_value")
    return {
        "split": cmlops(folder, "stats", theme)["splits"],
        "default": {"valid_accuracy": usual["metrics"].get("valid_accuracy"), "seconds": usual["seconds"]},
        "tuned": {name: found[name] for name in ("states", "best_trial", "values", "params", "seconds")},
        "default_trial": found["default_values"],
        "test": {name: contest[name] for name in names},
    }


def main():
    options = parse_arguments()
    with new_workspace() as folder, TemporaryDirectory(dir=options.sources[0].parent) as links:
        pictures = first_pictures(options.sources, Path(links) / options.theme, options.limit)
        figures = tuned(folder, pictures, options)
    report(f"tuned_{options.theme}", figures | {"overrides": options.set})


if __name__ == "__main__":
    main()
