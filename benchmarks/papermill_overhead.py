"""What executing the notebook adds to calling the same functions in a script.

Both begin with a fresh process and end with a registered model; they take turns, on one sample workspace.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import nbformat
from workspace import report

from classification_mlops.demo import SAMPLE_THEME, sample_workspace

JOB = """
import sys
from classification_mlops.training.jobs import run_training
from classification_mlops.workspace import find_workspace
run_training(find_workspace(sys.argv[1]), sys.argv[2])
"""


def script_of(notebook: Path, **parameters) -> str:
    "The code of a notebook, with values for its parameters."
    lines = []
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "code":
            lines.append(cell.source)
            if "parameters" in cell.metadata.get("tags", []):
                lines += [f"{name} = {value!r}" for name, value in parameters.items()]
    return "\n".join(lines)


def timed(code: str, *arguments: str) -> tuple[float, float]:
    "Wall and processor seconds of a Python program and its children."
    before, start = getrusage(RUSAGE_CHILDREN), perf_counter()
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    wall, after = perf_counter() - start, getrusage(RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    with TemporaryDirectory() as folder:
        workspace = sample_workspace(folder)
        place = dict(theme=SAMPLE_THEME, workspace=str(workspace.root))
        script = script_of(workspace.pipeline("train"), **place)
        jobs, scripts = [], []
        for _ in range(repeat):
            scripts.append(timed(script))
            jobs.append(timed(JOB, str(workspace.root), SAMPLE_THEME))
    wall = [median(times) for times in ([w for w, _ in scripts], [w for w, _ in jobs])]
    processor = [median(times) for times in ([p for _, p in scripts], [p for _, p in jobs])]
    figures = {
        "script_s": round(wall[0], 1),
        "notebook_s": round(wall[1], 1),
        "overhead_s": round(wall[1] - wall[0], 1),
        "overhead_processor_s": round(processor[1] - processor[0], 1),
        "load": round(os.getloadavg()[0], 1),
        "to_reach": "overhead_s <= 10",
    }
    report("papermill_overhead", figures)


if __name__ == "__main__":
    main()
