"Other engines than PyTorch: the same answers, from a server that never loads it."

import json
import os
import shutil
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
import pytest
import torch
from packaged import CALIBRATION, LABELS, has_torch, pictures

from classification_mlops.config import Params, params_hash, parse_params, save_params
from classification_mlops.demo import sample_workspace
from classification_mlops.model.engines import (
    EXPORTED,
    ExportedNetwork,
    asked_threads,
    example_bags,
    export_network,
    refuse_missing_engine,
)
from classification_mlops.model.network import network_of
from classification_mlops.model.zoo import ARCHITECTURES, architecture
from classification_mlops.registry.pyfunc import load_classifier, load_network, write_model_folder
from classification_mlops.registry.registration import (
    download,
    parity_gate,
    promote,
    register_model,
    theme_experiment,
    use_tracking,
)
from classification_mlops.serving.client import PredictionClient, request_body
from classification_mlops.serving.parity import TrialServer
from classification_mlops.serving.server import ModelServer
from classification_mlops.text import UserError
from classification_mlops.training.jobs import run_training
from classification_mlops.training.run import refuse_unknown_names
from classification_mlops.workspace import init_folders

ENGINES = ("onnxruntime", "openvino")


SMALL = {"image": {"size_px": 32}, "model": {"architecture": "timm/test_resnet"}}


def served_by(engine: str, **sections) -> Params:
    return parse_params({**(sections or SMALL), "serving": {"engine": engine}})


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    "The model folder that PyTorch runs."
    network = network_of(served_by("torch"), len(LABELS)).eval()
    folder = tmp_path_factory.mktemp("plain") / "model"
    return write_model_folder(folder, network, served_by("torch"), [], LABELS, CALIBRATION)


@pytest.fixture(scope="module")
def exported(plain, tmp_path_factory):
    "The same, exported for ONNX Runtime."
    params = served_by("onnxruntime")
    network = load_network(plain, params, len(LABELS))
    folder = tmp_path_factory.mktemp("exported") / "model"
    return write_model_folder(folder, network, params, [], LABELS, CALIBRATION)


@pytest.fixture(scope="module", params=ENGINES)
def registered(request, plain, exported, tmp_path_factory):
    "A registered model that an engine runs; the classifier that PyTorch runs, with the same weights."
    workspace = init_folders(tmp_path_factory.mktemp(request.param))
    client = use_tracking(workspace)
    run_id = client.create_run(theme_experiment(workspace, "screws")).info.run_id
    folder = workspace.runs / run_id / "model"
    shutil.copytree(exported, folder)  # The file is the same for all engines
    save_params(served_by(request.param), folder / "params.yaml")
    model = register_model(workspace, "screws", run_id, folder)
    return request.param, workspace, model, load_classifier(plain)


def probabilities(answers: pd.DataFrame) -> np.ndarray:
    return np.array([list(row.values()) for row in answers.probabilities])


def test_the_packaged_engine_passes_the_gate(registered, tmp_path):
    _, _, model, plain = registered
    files = pictures(9)
    expected = probabilities(plain.classify(files))
    answers = TrialServer("screws", tmp_path / "server.log").answers(model.uri, files)
    assert parity_gate(answers, expected, 1e-4) <= 1e-4


PROGRAM = """
import json, sys
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
answers = model.predict(pandas.DataFrame({"image": json.load(sys.stdin)}))
print(json.dumps([answers.label.tolist(), answers.error.tolist(), "torch" in sys.modules]))
"""


def test_pytorch_is_neither_loaded_nor_asked_for(registered, tmp_path):
    engine, workspace, model, plain = registered
    files = [*pictures(3), b"broken"]
    folder = download(workspace, "screws", model.version, tmp_path / "model")
    pins = [line.partition("==")[0] for line in (folder / "requirements.txt").read_text().splitlines()]
    assert engine in pins and not {"torch", "torchvision", "safetensors"} & set(pins)
    text = json.dumps([b64encode(data).decode() for data in files])
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True, cwd=tmp_path)
    labels, errors, loaded = json.loads(done.stdout.splitlines()[-1])
    expected = plain.classify(files)
    assert labels == expected.label.tolist() and errors == expected.error.tolist() and not loaded


def test_no_process_of_the_server_loads_pytorch(registered):
    _, workspace, model, plain = registered
    files = [*pictures(5), b"broken"]
    promote(workspace, "screws", model.version)
    with ModelServer(workspace, "screws", workers=2) as server:
        answers = pd.DataFrame(PredictionClient(server.url).predict(files), dtype=object)
        wishes = {"overlay": True, "top_k": 2, "accept_confidence": 0.1}
        body = json.dumps({**request_body(files), "params": wishes}).encode()
        request = Request(f"{server.url}/invocations", body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=60) as response:
            wished = json.load(response)["predictions"]
        assert not has_torch(server.process.pid)
    expected = plain.classify(files)
    assert answers.label.tolist() == expected.label.tolist() == [row["label"] for row in wished]
    assert [row["overlay"] for row in wished] == [None] * 6  # A heat map needs gradients
    found, right = probabilities(answers[:5]), probabilities(expected[:5])
    assert np.abs(found - right).max() < 1e-4


def test_any_number_of_pictures_and_none(registered):
    engine, workspace, model, plain = registered
    classifier = load_classifier(workspace.runs / model.run_id / "model")
    assert isinstance(classifier.network, ExportedNetwork) and classifier.network.engine == engine
    assert len(classifier.classify([])) == 0
    for count in (1, 2, 64, 65):
        found, expected = (c.classify(pictures(count)) for c in (classifier, plain))
        assert np.abs(probabilities(found) - probabilities(expected)).max() < 1e-4
        assert found.label.tolist() == expected.label.tolist()
        again = classifier.classify(pictures(count))
        assert again.probabilities.tolist() == found.probabilities.tolist()


def test_two_exports_are_equal_and_say_nothing_about_this_machine(exported, tmp_path):
    params, one = served_by("onnxruntime"), (exported / EXPORTED).read_bytes()
    export_network(load_network(exported, params, len(LABELS)), params, tmp_path / EXPORTED)
    assert (tmp_path / EXPORTED).read_bytes() == one
    for word in ("site-packages", ".py", str(Path.home()), str(Path(__file__).parents[1])):
        assert word.encode() not in one


@pytest.mark.parametrize(
    "sections",
    [
        {
            "image": {"size_px": 32, "channels": 1},
            "preprocess": [{"step": "patches", "rows": 2, "columns": 2}],
            "model": {"architecture": "resnet18", "stem": "small", "bag": "max", "dropout": 0.3},
        },
        {
            "image": {"size_px": 32, "channels": 3},
            "model": {"architecture": "timm/test_convnext"},
            "trainer": {"channels_last": True},
        },
        {"image": {"size_px": 32, "channels": 1}, "model": {"architecture": "timm/test_vit"}},
    ],
    ids=["patches of grey", "timm, channels last", "transformer"],
)
def test_every_kind_of_network_comes_along(sections, tmp_path):
    params = served_by("onnxruntime", **sections)
    network = network_of(params, 4).eval()
    export_network(network, params, tmp_path / EXPORTED)
    for engine in ENGINES:
        exported = ExportedNetwork(tmp_path / EXPORTED, engine)
        for count in (1, 2, 9):
            bags = example_bags(params, count)
            expected = network(torch.from_numpy(bags)).detach().numpy()
            assert np.abs(exported(bags) - expected).max() < 1e-5, (engine, count)


def test_a_network_that_decides_is_refused_before_training():
    @architecture
    def moody(classes, channels):
        from torch import nn

        class Moody(nn.Sequential):
            def forward(self, images):
                return super().forward(images) * (2 if images.mean() > 0 else 1)

        return Moody(nn.Flatten(), nn.Linear(channels * 16 * 16, classes))

    try:
        plain = {"image": {"size_px": 16}, "model": {"architecture": "moody"}}
        refuse_unknown_names(parse_params(plain), [])
        for engine in ENGINES:
            with pytest.raises(UserError, match=r"moody cannot be run by .* use engine: torch") as caught:
                refuse_unknown_names(served_by(engine, **plain), [])
            assert "\n" not in str(caught.value)
    finally:
        del ARCHITECTURES["moody"]


@pytest.mark.parametrize(
    ("engine", "package", "exporting", "extra"),
    [
        ("openvino", "openvino", False, "openvino"),
        ("onnxruntime", "onnxruntime", False, "onnx"),
        ("openvino", "onnxscript", True, "openvino"),
    ],
)
def test_a_missing_package_is_one_line_with_the_remedy(monkeypatch, engine, package, exporting, extra):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(UserError) as caught:
        refuse_missing_engine(engine, exporting)
    text = f"needs the package {package}; pip install 'classification_mlops[{extra}]', or use engine: torch"
    assert text in str(caught.value)
    refuse_missing_engine("torch", exporting)


def test_a_whole_training_ends_in_a_version_that_the_engine_runs(tmp_path):
    workspace = sample_workspace(tmp_path)
    quick = ["trainer.max_epochs=1", "model.architecture=timm/test_resnet"]
    ran = run_training(workspace, "digits", ["serving.engine=onnxruntime", *quick])
    metrics = use_tracking(workspace).get_run(ran.run_id).data.metrics
    assert ran.status == "FINISHED" and ran.model_version == 1
    assert metrics["parity_pictures"] > 3 and 0 <= metrics["parity_difference"] <= 1e-4
    folder = download(workspace, "digits", 1, tmp_path / "downloaded")
    (packaged,) = folder.rglob(EXPORTED)
    network = load_classifier(packaged.parent).network
    assert isinstance(network, ExportedNetwork) and network.engine == "onnxruntime"


def test_what_is_only_exporting_is_not_needed_for_answering(monkeypatch):
    for package in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, package, None)
    for engine in ENGINES:
        refuse_missing_engine(engine)


def test_threads_and_hash(monkeypatch):
    for value, threads in (("3", 3), ("0", 1), ("", 0), ("many", 0)):
        monkeypatch.setenv("CMLOPS_THREADS", value)
        assert asked_threads() == threads
    hashes = {params_hash(served_by(engine), []) for engine in ("torch", *ENGINES)}
    assert len(hashes) == 3 and params_hash(parse_params(SMALL), []) in hashes


THREADS = """
import os, sys
import numpy
from classification_mlops.model.engines import ExportedNetwork
network = ExportedNetwork(sys.argv[1], sys.argv[2])
network(numpy.zeros((1, 1, 32, 32, 3), numpy.uint8))
print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux does")
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_takes_no_more_threads_than_it_may(engine, exported):
    counts = [
        int(
            subprocess.run(
                [sys.executable, "-c", THREADS, str(exported / EXPORTED), engine],
                env=os.environ | {"CMLOPS_THREADS": threads},
                capture_output=True,
                check=True,
            ).stdout
        )
        for threads in ("1", "6")
    ]
    assert counts[0] < counts[1]
