"""Pictures per second and peak memory of `cmlops predict FOLDER --out FILE` through a running server.

python benchmarks/predict.py FOLDER [--few 10000 --many 100000]

FOLDER holds pictures; hard links to some of them, under new names, make a folder of any size. A small
network with random weights answers, because the figure is that of the client. The bare alternative, in the
same run, posts the same batches of 64 on one connection, one after the other, and keeps nothing.
"""

import argparse
import http.client
import json
import os
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from workspace import report

from classification_mlops.config import parse_params
from classification_mlops.model.network import network_of
from classification_mlops.registry.pyfunc import write_model_folder
from classification_mlops.registry.registration import promote, register_model, theme_experiment, use_tracking
from classification_mlops.serving.server import ModelServer
from classification_mlops.workspace import init_folders

THEME, BATCH = "parts", 64
MEASURED = """
import json, sys, time
from classification_mlops.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"peak_mb": int(peak.split()[1]) // 1024, "cpu_s": round(time.process_time(), 1)}))
"""


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="pictures")
    parser.add_argument("--few", type=int, default=10_000)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=32, help="side in pixels")
    parser.add_argument("--engine", choices=["torch", "onnxruntime", "openvino"], default="onnxruntime")
    parser.add_argument("--in-flight", type=int, default=4)
    return parser.parse_args()


def workspace_with_model(root: Path, arguments):
    "A workspace whose theme has a champion."
    sections = {
        "image": {"size_px": arguments.size},
        "model": {"architecture": "shufflenet_v2_x0_5"},
        "serving": {"engine": arguments.engine},
    }
    workspace, params = init_folders(root), parse_params(sections)
    run_id = use_tracking(workspace).create_run(theme_experiment(workspace, THEME)).info.run_id
    folder = workspace.runs / run_id / "model"
    write_model_folder(folder, network_of(params, 10).eval(), params, [], [str(n) for n in range(10)])
    promote(workspace, THEME, register_model(workspace, THEME, run_id, folder).version)
    return workspace


def linked(source: list[Path], target: Path, count: int) -> Path:
    "A folder of `count` names, a thousand in each folder below it."
    for number in range(count):
        below = target / f"{number // 1000:04}"
        if number % 1000 == 0:
            below.mkdir(parents=True)
        os.link(source[number % len(source)], below / f"{number:07}.png")
    return target


def predicted(workspace, url: str, folder: Path, out: Path, arguments) -> dict:
    "The command in a process of its own."
    line = ["predict", THEME, folder, "--url", url, "--out", out, "--in-flight", arguments.in_flight]
    command = [sys.executable, "-c", MEASURED, *map(str, line)]
    clock = perf_counter()
    done = subprocess.run(
        command,
        env=os.environ | {"CMLOPS_WORKSPACE": str(workspace.root)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds = perf_counter() - clock
    with out.open("rb") as stream:
        count = sum(1 for _ in stream) - 1
    facts = json.loads(done.stdout.splitlines()[-1])
    return {
        "pictures": count,
        "pictures_per_s": round(count / seconds, 1),
        "seconds": round(seconds, 1),
        **facts,
    }


def bare_rate(server, folder: Path) -> float:
    "Pictures per second of the loop that everybody writes."
    paths = sorted(path for path in folder.rglob("*.png"))
    connection, clock = http.client.HTTPConnection(server.host, server.port), perf_counter()
    for start in range(0, len(paths), BATCH):
        data = [[b64encode(path.read_bytes()).decode()] for path in paths[start : start + BATCH]]
        body = json.dumps({"dataframe_split": {"columns": ["image"], "data": data}})
        connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
        json.loads(connection.getresponse().read())
    return len(paths) / (perf_counter() - clock)


def main() -> int:
    arguments = parse_arguments()
    files = sorted(path for path in arguments.folder.rglob("*") if path.is_file())
    pictures = [path for path in files if path.suffix.lower() in (".png", ".jpg", ".jpeg")]
    pictures = pictures[:: max(1, len(pictures) // 1000)][:1000]
    with TemporaryDirectory(dir=arguments.folder.parent) as root:  # hard links stay on one disk
        workspace, results = workspace_with_model(Path(root) / "work", arguments), {}
        with ModelServer(workspace, THEME) as server:
            folders = {n: linked(pictures, Path(root) / str(n), n) for n in (arguments.few, arguments.many)}
            bare = bare_rate(server, folders[arguments.few])
            for count, folder in folders.items():
                out = Path(root) / f"{count}.csv"
                results[count] = predicted(workspace, server.url, folder, out, arguments)
            again = predicted(workspace, server.url, folders[arguments.many], out, arguments)
    few, many = results[arguments.few], results[arguments.many]
    figures = {
        "engine": arguments.engine,
        "in_flight": arguments.in_flight,
        "bare_pictures_per_s": round(bare, 1),
        "few": few,
        "many": many,
        "ratio": round(few["pictures_per_s"] / bare, 2),
        "more_memory_mb": many["peak_mb"] - few["peak_mb"],
        "repeated_when_done": {name: again[name] for name in ("seconds", "peak_mb", "cpu_s")},
        "to_reach": {"ratio": 1.0, "more_memory_mb": 20},
    }
    report("predict", figures)
    return int(figures["more_memory_mb"] > 20 or figures["ratio"] < 1)


if __name__ == "__main__":
    sys.exit(main())
