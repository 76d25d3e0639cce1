"The API keeps what its description promises, whatever is asked; benchmarks/fuzz_api.py asks 10,000 times."

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_generated_requests_find_nothing():
    command = [sys.executable, "fuzz_api.py", "--cases", "300"]
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["failures"] == 0 and found["cases"] >= 300
