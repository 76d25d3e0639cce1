"A workspace of its own for a benchmark: a git repository in a temporary folder, used through `cmlops` alone."

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

PROGRAM = [sys.executable, "-c", "import sys; from classification_mlops.cli import main; sys.exit(main())"]
RESULTS = Path(__file__).parent / "results"


def cmlops(folder: Path, *arguments) -> dict | list:
    "What one command answers; its progress and errors go to the terminal."
    line = [*PROGRAM, *map(str, arguments), "--json"]
    variables = os.environ | {"CMLOPS_WORKSPACE": str(folder)}
    result = subprocess.run(line, cwd=folder, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout)


@contextmanager
def new_workspace() -> Iterator[Path]:
    "An initialised workspace with one commit."
    with TemporaryDirectory() as name:
        folder = Path(name)
        cmlops(folder, "init", folder)
        author = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@example.invalid"]
        for line in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "Start"]):
            subprocess.run(["git", *line], cwd=folder, check=True)
        yield folder


def report(name: str, figures: dict):
    "Print figures as JSON and keep them."
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(figures, indent=2))
    print(json.dumps(figures))
