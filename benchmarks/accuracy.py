"""Test accuracy on folders of class folders, through `cmlops` alone.

python benchmarks/accuracy.py mnist FOLDER --limit 14286 --set image.size_px=32 …
"""

import argparse
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from workspace import cmlops, new_workspace, report


def first_pictures(sources: list[Path], target: Path, limit: int | None) -> Path:
    "Links to the pictures of all class folders, at most `limit` in all and evenly by class."
    classes = sorted({folder.name for source in sources for folder in source.iterdir() if folder.is_dir()})
    for name in classes:
        (target / name).mkdir(parents=True)
        files = (file for source in sources for file in sorted((source / name).glob("*")))
        for number, file in enumerate(islice(files, limit and -(-limit // len(classes)))):
            (target / name / f"{number:06d}{file.suffix}").hardlink_to(file)
    return target


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("theme")
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    overrides = [f"--set={override}" for override in arguments.set]
    with new_workspace() as folder, TemporaryDirectory(dir=arguments.sources[0].parent) as links:
        pictures = first_pictures(arguments.sources, Path(links) / arguments.theme, arguments.limit)
        cmlops(folder, "theme", "create", arguments.theme)
        imported = cmlops(folder, "data", "import", arguments.theme, pictures, "--create-labels")
        start = perf_counter()
        outcome = cmlops(folder, "train", arguments.theme, *overrides)
        seconds = round(perf_counter() - start, 1)
        counts = cmlops(folder, "stats", arguments.theme)["splits"]
    figures = {"added": imported["added"], "split": counts, "train_seconds": seconds, **outcome["metrics"]}
    report(f"accuracy_{arguments.theme}", figures | {"overrides": arguments.set})


if __name__ == "__main__":
    main()
