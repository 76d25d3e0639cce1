"""Milliseconds from what a training tells to the chart of a browser that watches it.

python benchmarks/progress.py [--events 50]

A training writes a line into its folder whenever it has something to tell. Here the benchmark writes the
lines of a job that is running, one after another, and the time ends when Chromium has drawn the new
point.
"""

import argparse
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from workspace import report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from browser import add_people, chromium, served, signed_in

from classification_mlops.db.jobs import create_job
from classification_mlops.db.owners import process_name
from classification_mlops.db.schema import Theme, utc_now
from classification_mlops.db.session import open_engine, writing
from classification_mlops.demo import sample_workspace
from classification_mlops.training.run import LIVE, keep_live

TO_REACH_MS = 1000


def running_job(workspace) -> Path:
    "The folder of a job that this process seems to work on."
    engine, run = open_engine(workspace.database_url), "0" * 32
    with writing(engine) as session:
        job = create_job(session, "train", session.get(Theme, 1), {}, process_name())
        job.status, job.mlflow_run_id, job.started_at, job.heartbeat = "running", run, utc_now(), utc_now()
    engine.dispose()
    folder = workspace.runs / run
    folder.mkdir(parents=True)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=50)
    arguments = parser.parse_args()
    with TemporaryDirectory() as place:
        workspace = sample_workspace(Path(place) / "workspace")
        add_people(workspace, ann="admin")
        folder, times = running_job(workspace), []
        with served(workspace) as url, chromium() as browser:
            page = signed_in(browser, url, "ann")
            page.goto(f"{url}/theme/1/training/run/")
            page.wait_for_selector('.run[data-watching="1"]')
            for number in range(1, arguments.events + 1):
                started = perf_counter()
                keep_live(folder, {"epoch": 1, "step": number, "loss": 1 / number})
                page.wait_for_selector(f'.charts[data-points="{number}"]')
                times.append(1000 * (perf_counter() - started))
        assert len((folder / LIVE).read_text().splitlines()) == arguments.events
    figures = {"events": len(times), "p50_ms": round(median(times)), "most_ms": round(max(times))}
    report("progress", figures | {"to_reach_ms": TO_REACH_MS})
    return int(max(times) > TO_REACH_MS)


if __name__ == "__main__":
    sys.exit(main())
