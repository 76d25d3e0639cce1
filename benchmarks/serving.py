"""The model server under load, against the same model in process and behind other servers.

python benchmarks/serving.py FOLDER [--requests N] [--memory N] [--no-peers]

resnet18 with 10 classes and untrained weights at 224 px, JPEG photographs from below FOLDER. The load comes
from `serving_load.py` in a process of its own, which keeps its connections. In process: decoding,
preprocessing and network one picture at a time, with one torch thread; and the network alone on batches, with
all cores. The server and its peers have all cores too, each in the way that it offers. The peers of
`serving_peers.py` are installed into an environment in a temporary folder, on top of this one.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from urllib.request import urlopen

import numpy as np
import psutil
import torch
from workspace import report

from classification_mlops.config import parse_params
from classification_mlops.model.network import network_of
from classification_mlops.registry.pyfunc import (
    load_classifier,
    network_logits,
    read_pixels,
    write_model_folder,
)
from classification_mlops.registry.registration import (
    download,
    promote,
    register_model,
    theme_experiment,
    use_tracking,
)
from classification_mlops.serving.server import ModelServer, server_environment
from classification_mlops.workspace import init_folders

HERE = Path(__file__).parent
CORES = len(os.sched_getaffinity(0))
LABELS = [f"class {n}" for n in range(10)]
IMPORT_AND_LOAD = """
import sys, torchvision
from mlflow.pyfunc import load_model, scoring_server
load_model(sys.argv[1])
"""


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="JPEG photographs, at any depth")
    parser.add_argument("--requests", type=int, default=600, help="of each measurement")
    parser.add_argument("--memory", type=int, default=10_000, help="requests of the memory measurement")
    parser.add_argument("--no-peers", action="store_true")
    return parser.parse_args()


def photographs(source: Path, target: Path, count: int = 64) -> list[bytes]:
    "The first photographs below a folder, copied to one folder; their contents."
    target.mkdir()
    for path in islice(sorted(source.rglob("*.jpg")), count):
        shutil.copy(path, target)
    return [path.read_bytes() for path in sorted(target.iterdir())]


def registered(workspace) -> Path:  # The model folder
    "A champion for the theme `clothing`."
    torch.manual_seed(0)
    params = parse_params({"image": {"size_px": 224}, "model": {"architecture": "resnet18"}})
    run_id = use_tracking(workspace).create_run(theme_experiment(workspace, "clothing")).info.run_id
    folder = workspace.runs / run_id / "model"
    write_model_folder(folder, network_of(params, len(LABELS)), params, [], LABELS)
    promote(workspace, "clothing", register_model(workspace, "clothing", run_id, folder).version)
    return folder


def in_process(folder: Path, pictures: list[bytes]) -> dict:
    "What the machine can do without a server."
    classifier = load_classifier(folder)
    bags = np.stack([read_pixels(picture, classifier.preprocess) for picture in pictures])
    single, batched = [], []
    for picture in pictures:
        begun = perf_counter()
        network_logits(classifier.network, read_pixels(picture, classifier.preprocess)[None])
        single.append(perf_counter() - begun)
    torch.set_num_threads(CORES)
    for _ in range(3):
        begun = perf_counter()
        for start in range(0, len(bags), 16):
            network_logits(classifier.network, bags[start : start + 16])
        batched.append(len(bags) / (perf_counter() - begun))
    return {"p50_ms": round(median(single) * 1000, 2), "batched_forward_per_s": round(median(batched), 1)}


def ask(url: str, clients: int, requests: int, pictures: Path, *options) -> dict:
    "The load from another process."
    line = [sys.executable, HERE / "serving_load.py", url, clients, requests, pictures, *options]
    result = subprocess.run(list(map(str, line)), stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(result.stdout)
    return {**found, "per_s": round(found["answered"] / found["wall_s"], 1)}


def memory_mb(process: subprocess.Popen) -> int:
    "Of the processes that answer."
    return round(sum(one.memory_info().rss for one in psutil.Process(process.pid).children()) / 2**20)


def import_and_load(workspace, scratch: Path) -> float:  # seconds
    "What no server can do without."
    model = download(workspace, "clothing", "champion", scratch / "alone")
    begun = perf_counter()
    line = [sys.executable, "-c", IMPORT_AND_LOAD, str(model)]
    subprocess.run(line, env=server_environment(), check=True, stderr=subprocess.DEVNULL)
    return round(perf_counter() - begun, 2)


def ours(workspace, scratch: Path, options) -> dict:
    "All figures of our server."
    pictures, begun = scratch / "pictures", perf_counter()
    with ModelServer(workspace, "clothing") as server:
        found = {"start_s": round(perf_counter() - begun, 2)}
        ask(server.url, 1, 20, pictures)
        found["one_client"] = ask(server.url, 1, min(200, options.requests), pictures)
        found["16_clients"] = ask(server.url, 16, options.requests, pictures)
        found["1000_clients"] = ask(server.url, 1000, 2000, pictures)
        begun = perf_counter()
        urlopen(f"{server.url}/health").read()
        found["health_after_ms"] = round((perf_counter() - begun) * 1000, 1)
    with ModelServer(workspace, "clothing") as server:
        ask(server.url, 16, 100, pictures)
        found["memory_after_100_mb"] = memory_mb(server.process)
        ask(server.url, 16, options.memory, pictures)
        found[f"memory_after_{options.memory}_mb"] = memory_mb(server.process)
    return found


def peer_python(scratch: Path) -> Path | None:  # None if they cannot be installed
    "An environment with the peers, on top of this one."
    subprocess.run([sys.executable, "-m", "venv", scratch / "peers"], check=True)
    python = scratch / "peers" / "bin" / "python"
    place = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], text=True
    )
    (Path(place.strip()) / "zz_ours.pth").write_text(
        os.pathsep.join(p for p in sys.path if "site-packages" in p)
    )
    line = [python, "-m", "pip", "install", "-q", "-r", HERE / "serving_requirements.txt"]
    done = subprocess.run(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return None if done.returncode else python


@contextmanager
def peer_server(name: str, python: Path, model: Path, log: Path):
    "A running peer; its address."
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = [python, HERE / "serving_peers.py", name, model, str(port)]
    environment = server_environment() | {"BENTOML_DO_NOT_TRACK": "True"}
    with log.open("w") as output:
        process = subprocess.Popen(
            line, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    family = [psutil.Process(process.pid)]
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            with socket.socket() as knock:
                if not knock.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/predict"
    finally:
        family += family[0].children(recursive=True) if process.poll() is None else []
        for one in family:
            one.kill() if one.is_running() else None
        process.wait()


def peers(folder: Path, scratch: Path, options) -> dict:
    "The same load on the same model behind others."
    python = peer_python(scratch)
    if python is None:
        return {"skipped": "the peers cannot be installed here"}
    found = {}
    for name in ("fastapi", "litserve", "bentoml"):
        log = scratch / f"{name}.log"
        try:
            with peer_server(name, python, folder, log) as url:
                form = "--plain", "list" if name == "bentoml" else "text"
                ask(url, 16, 32, scratch / "pictures", *form)
                found[name] = ask(url, 16, options.requests, scratch / "pictures", *form)
        except (OSError, subprocess.CalledProcessError, psutil.Error):
            found[name] = {"skipped": "did not answer", "log": log.read_text()[-500:]}
    return found


def main():
    options = parse_arguments()
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        scratch = Path(name)
        pictures = photographs(options.folder, scratch / "pictures")
        workspace = init_folders(scratch / "workspace")
        folder = registered(workspace)
        figures = {"in_process": in_process(folder, pictures), "load_s": import_and_load(workspace, scratch)}
        figures["ours"] = ours(workspace, scratch, options)
        figures["peers"] = {} if options.no_peers else peers(folder, scratch, options)
    forward, mine = figures["in_process"]["batched_forward_per_s"], figures["ours"]
    figures["share_of_forward"] = round(mine["16_clients"]["per_s"] / forward, 2)
    figures["p50_over_ms"] = round(mine["one_client"]["p50_ms"] - figures["in_process"]["p50_ms"], 2)
    report("serving", figures)


if __name__ == "__main__":
    main()
