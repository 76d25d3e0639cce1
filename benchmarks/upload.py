"""Seconds of photographs dropped into the page of a theme, against `cmlops data import` of the same files.

python benchmarks/upload.py CLOTHING_FOLDER [--pictures 1000] [--turns 3]

Both import into new themes of one workspace and take turns; ratios are medians. The browser sends the files
over loopback to `cmlops web`, which imports them; the time ends when the page shows the report.
"""

import argparse
import shutil
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from workspace import cmlops, new_workspace, report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from browser import add_people, chromium, served, signed_in

from classification_mlops.workspace import Workspace

TO_REACH = 0.6


def dropped_s(page, url: str, theme: int, folder: Path) -> float:
    "Seconds from choosing the files to the report."
    page.goto(f"{url}/theme/{theme}/")
    page.wait_for_selector(".upload[data-ready]")
    started = perf_counter()
    page.set_input_files(".upload [name=folder]", folder)
    page.wait_for_selector('.upload[data-done="1"]', timeout=600_000)
    return perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="photographs, in any folders")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    files = sorted(arguments.folder.rglob("*.jpg"))[: arguments.pictures]
    seconds = {"dropped": [], "imported": []}
    with new_workspace() as root, TemporaryDirectory() as place, chromium() as browser:
        source = Path(place) / "photographs"
        source.mkdir()
        for number, path in enumerate(files):
            shutil.copyfile(path, source / f"{number}.jpg")
        add_people(Workspace(root), ann="admin")
        with served(Workspace(root)) as url:
            page = signed_in(browser, url, "ann")
            for turn in range(arguments.turns):
                theme = cmlops(root, "theme", "create", f"dropped {turn}")["id"]
                seconds["dropped"].append(dropped_s(page, url, theme, source))
                cmlops(root, "theme", "create", f"imported {turn}")
                started = perf_counter()
                cmlops(root, "data", "import", f"imported {turn}", source, "--label-from", "none")
                seconds["imported"].append(perf_counter() - started)
    found = {name: round(median(times), 2) for name, times in seconds.items()}
    ratio = round(median(b / a for a, b in zip(seconds["dropped"], seconds["imported"], strict=True)), 2)
    report("upload", {"pictures": len(files), **found, "speed": ratio, "to_reach": TO_REACH})
    return int(ratio < TO_REACH)


if __name__ == "__main__":
    sys.exit(main())
