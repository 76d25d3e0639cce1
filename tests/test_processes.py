"Several processes train one model, with an architecture of somebody else's and a rate that was found."

import csv
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from classification_mlops.config import load_params, parse_params, save_params
from classification_mlops.demo import sample_workspace
from classification_mlops.training import settings
from classification_mlops.training.asked import Cancelled, Lost, Paused
from classification_mlops.training.jobs import run_training
from classification_mlops.training.processes import run_together

MODULE = """
from torch import nn
from classification_mlops.model.zoo import architecture


@architecture
def three_layers(classes, channels):
    layers = []
    for width in (16, 32, 64):
        layers += [nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    "An installed package that announces an architecture, as far as Python can tell."
    folder = tmp_path / "installed"
    info = folder / "three_layers-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "three_layers.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: three_layers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[classification_mlops.architectures]\nthree_layers = three_layers\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    return folder


def test_two_processes_train_one_model(plugin, tmp_path):
    from mlflow import MlflowClient

    workspace, heard = sample_workspace(tmp_path / "workspace"), []
    overrides = ["trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=3", "trainer.max_epochs=10"]
    overrides += ["model.architecture=three_layers", "trainer.tune=learning_rate", "model.freeze_epochs=1"]
    outcome = run_training(workspace, "digits", overrides, progress=heard.append)
    assert outcome.status == "FINISHED" and outcome.model_version == 1
    assert outcome.metrics["test_accuracy"] >= 0.75
    assert any(said.get("step") for said in heard)

    client, folder = MlflowClient(workspace.tracking_uri), outcome.notebook.parent
    runs = client.search_runs([item.experiment_id for item in client.search_experiments()])
    assert [run.info.run_id for run in runs] == [outcome.run_id]
    assert len(client.search_model_versions("name='digits'")) == 1
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        judged = [row["sha256"] for row in csv.DictReader(file)]
    rows = list(csv.DictReader((folder / "snapshot.csv").open(newline="", encoding="utf-8")))
    assert sorted(judged) == sorted(row["sha256"] for row in rows if row["split"] != "train")
    history = client.get_metric_history(outcome.run_id, "valid_accuracy")
    valid = sum(row["split"] == "valid" for row in rows)
    right = [metric.value * valid for metric in history]
    assert len(history) == 10 and right == pytest.approx([round(number) for number in right], abs=1e-3)

    params = load_params(folder / "params.yaml")
    assert params.trainer.tune == "none" and params.trainer.devices == 2
    logged = runs[0].data.params
    assert logged["trainer.tune"] == "none"
    assert float(logged["optimizer.learning_rate"]) == params.optimizer.learning_rate
    assert not (folder / "processes").exists()

    alone = ["trainer.devices=1", "trainer.strategy=auto", "data.batch_size=6"]
    one = run_training(workspace, "digits", alone, params_file=folder / "params.yaml")
    assert outcome.metrics["test_accuracy"] == pytest.approx(one.metrics["test_accuracy"], abs=0.1)


PARENT = """
import sys
from pathlib import Path
from classification_mlops.training.processes import run_together
rank = "import json, os, time; from classification_mlops.training.processes import listen_to_parent;"
rank += "listen_to_parent(print); print(json.dumps({'progress': {'pid': os.getpid()}}), flush=True);"
rank += "time.sleep(600)"
run_together(["-c", rank], 2, Path(sys.argv[1]), lambda said: print(said["pid"], flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_one_that_waits(tmp_path, number):
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    ranks = [psutil.Process(int(parent.stdout.readline())) for _ in range(2)]
    parent.send_signal(number)
    parent.wait(60)
    gone, alive = psutil.wait_procs(ranks, timeout=60)
    assert len(gone) == 2 and not alive


RANK = """
import json, os, sys, threading
from classification_mlops.training.processes import listen_to_parent
asked = threading.Event()
listen_to_parent(lambda wish: asked.set() if wish == "pause" else None)
print(json.dumps({"progress": {"pid": os.getpid()}}), flush=True)
asked.wait()
if os.environ["LOCAL_RANK"] == "0":
    print(json.dumps({"error": "saved", "wish": "pause"}), flush=True)
"""


@pytest.mark.parametrize(("wish", "kind"), [("pause", Paused), ("cancel", Cancelled), ("lost", Lost)])
def test_ranks_save_for_a_pause_and_end_for_anything_else(tmp_path, wish, kind):
    heard = []
    with pytest.raises(kind):
        run_together(["-c", RANK], 2, tmp_path, heard.append, lambda: wish)
    assert heard and not any(psutil.pid_exists(said["pid"]) for said in heard)


def test_what_was_found_once_is_not_searched_again(tmp_path):
    "A run that was interrupted after its tuning goes on with the same settings."
    asked = parse_params({"trainer": {"tune": "auto"}})
    save_params(parse_params({"data": {"batch_size": 7}, "trainer": {"threads": 1}}), tmp_path / "tuned.yaml")
    run = SimpleNamespace(params=asked, folder=tmp_path, tell=lambda told: None)  # Without any picture
    facts = settings.tune(run)
    assert (run.params.data.batch_size, run.params.trainer.tune) == (7, "none")
    assert facts["data.batch_size"] == "64 → 7"
    assert load_params(tmp_path / "params.yaml") == run.params
