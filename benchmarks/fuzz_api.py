"""What 10,000 generated requests, by somebody who has signed in, find in the REST API.

python benchmarks/fuzz_api.py [--cases 10000]

A server of two processes over a small workspace is asked what its own description (OpenAPI) allows, and much
that it does not allow, by schemathesis. To be found: nothing. An answer of 500 or above, a status or a body
that the description does not know, and another type of content each count as a failure. Only the beginning
of trainings is left out: it would start programs.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from workspace import report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from browser import add_people, served

from classification_mlops.db.session import open_engine, writing
from classification_mlops.db.signin import make_token, secret_key
from classification_mlops.demo import sample_workspace

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
LEFT_OUT = "training/start"


def fuzzed(url: str, token: str, each: int, folder: Path) -> tuple[int, dict]:
    "Exit status and report of schemathesis."
    line = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--continue-on-failure"]
    line += ["-H", f"Authorization: Bearer {token}", "-n", str(each), "--checks", CHECKS]
    line += ["--phases", "examples,coverage,fuzzing", "--exclude-path-regex", LEFT_OUT]
    line += ["--report", "json", "--report-json-path", str(folder / "report.json"), "--no-color"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    found = re.search(r"(\d+) generated(?:, (\d+) found (\d+))?", done.stdout)
    if found is None:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-1000:])
    return done.returncode, {
        "cases": int(found[1]),
        "failures": int(found[3] or 0),
        "said": done.stdout[-4000:],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    arguments = parser.parse_args()
    with TemporaryDirectory() as place:
        workspace = sample_workspace(Path(place) / "workspace")
        add_people(workspace, ann="admin")
        engine = open_engine(workspace.database_url)
        with writing(engine) as session:
            token = make_token(session, "ann", "fuzz", secret_key(workspace))
        with served(workspace, workers=2) as url:
            started = perf_counter()
            status, found = fuzzed(url, token, max(1, arguments.cases // 14), Path(place))
            seconds = perf_counter() - started
    said = found.pop("said")
    report("fuzz_api", found | {"seconds": round(seconds, 1), "cases_to_reach": arguments.cases})
    if status:
        print(said, file=sys.stderr)
    return int(status != 0 or found["cases"] < arguments.cases)


if __name__ == "__main__":
    sys.exit(main())
