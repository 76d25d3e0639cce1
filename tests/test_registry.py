"Packaging, registering and tracing models."

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from packaged import (
    CALIBRATION,
    LABELS,
    PARAMS,
    pictures,
    register_small,
    small_network,
    workspace_with_model,
)
from safetensors.torch import load_file, save_file

from classification_mlops.config import load_params, parse_params
from classification_mlops.images.decode import decode
from classification_mlops.model.calibration import softmax
from classification_mlops.registry.card import model_card
from classification_mlops.registry.lineage import log_lineage
from classification_mlops.registry.pyfunc import (
    ANSWER_COLUMNS,
    copy_code,
    limit_threads,
    load_classifier,
    write_model_folder,
)
from classification_mlops.registry.registration import (
    create_tracking_database,
    describe_version,
    download,
    find_version,
    list_versions,
    parity_gate,
    promote,
    refuse_difference,
    register_model,
    theme_experiment,
    use_tracking,
)
from classification_mlops.serving.parity import TrialServer
from classification_mlops.text import UsageError, UserError
from classification_mlops.vision.preprocess import build_preprocessing
from classification_mlops.workspace import GitState, init_folders


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    return workspace_with_model(tmp_path_factory.mktemp("registry") / "ねじ 検査")


def run_python(code: str, *arguments, cwd, **environment):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)


# Packaging


def test_answers_are_those_of_the_training_path(tmp_path):
    network, files = small_network(), pictures(5)
    folder = write_model_folder(tmp_path / "model", network, PARAMS, [], LABELS, CALIBRATION)
    preprocess = build_preprocessing(PARAMS.preprocess, PARAMS.image)
    bags = torch.from_numpy(np.stack([preprocess(decode(data, channels=3)) for data in files]))
    with torch.inference_mode():
        expected = softmax(network(bags).numpy(), CALIBRATION["temperature"])
    answers = load_classifier(folder).classify(files)
    assert [list(row.values()) for row in answers.probabilities] == expected.tolist()
    assert [list(row) for row in answers.probabilities] == [LABELS] * 5
    assert answers.label.tolist() == [LABELS[i] for i in expected.argmax(axis=1)]


def test_weights_survive_bit_for_bit(tmp_path):
    network = small_network()
    restored = load_classifier(write_model_folder(tmp_path, network, PARAMS, [], LABELS)).network
    for name, value in network.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name]), name


def test_weights_that_training_began_with_are_not_needed_again(tmp_path):
    first = write_model_folder(tmp_path / "first", small_network(), PARAMS, [], LABELS)
    params = PARAMS.model_copy(
        update={"model": PARAMS.model.model_copy(update={"weights": str(first / "weights.safetensors")})}
    )
    second = write_model_folder(tmp_path / "second", small_network(), params, [], LABELS)
    (first / "weights.safetensors").unlink()
    assert load_classifier(second).classify(pictures(1)).error[0] is None


@pytest.mark.parametrize("position", [0, 2, 4])
def test_a_bad_row_does_not_harm_its_neighbours(registered, position):
    classifier, files = load_classifier(registered[2]), pictures(4)
    alone = classifier.classify(files).label.tolist()
    for bad in (b"", b"<html>", files[0][:60], None, 7, float("nan"), "!!!", "/etc/passwd", ["x"], {}):
        rows = [*files[:position], bad, *files[position:]]
        answers = classifier.classify(rows)
        assert answers.error[position] and answers.decision[position] == "unsure"
        assert answers.label.drop(index=position).tolist() == alone
        json.dumps(answers.to_dict("records"), allow_nan=False)


def test_no_rows_are_no_answers(registered):
    answers = load_classifier(registered[2]).classify([])
    assert answers.empty and tuple(answers.columns) == ANSWER_COLUMNS


def test_decisions_follow_the_calibration(registered):
    answers = load_classifier(registered[2]).classify(pictures(40))
    for row in answers.itertuples():
        plausible = {label for label, p in row.probabilities.items() if p >= 0.3} | {row.label}
        assert set(row.labels) == plausible
        assert (row.decision == "accept") == (row.confidence >= 0.5 and len(plausible) == 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_never_become_a_model(tmp_path, value):
    network = small_network()
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] = value
    with pytest.raises(UserError, match="not finite"):
        write_model_folder(tmp_path / "model", network, PARAMS, [], LABELS)
    assert not (tmp_path / "model" / "weights.safetensors").exists()


def test_threads_follow_the_variable(monkeypatch):
    before = torch.get_num_threads()
    for value, threads in (("2", 2), ("", 2), ("many", 2), ("0", 1)):
        monkeypatch.setenv("CMLOPS_THREADS", value)
        limit_threads()
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)


# The model in MLflow


def test_nothing_in_a_registered_model_is_a_pickle(registered, tmp_path):
    workspace, model, _ = registered
    folder = download(workspace, "ねじ", model.version, tmp_path / "model")
    files = [path for path in folder.rglob("*") if path.is_file()]
    suffixes = {path.suffix for path in files}
    assert suffixes <= {".py", ".yaml", ".json", ".txt", ".safetensors", ""}, suffixes
    for path in files:
        start = path.read_bytes()[:2]
        assert start not in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"), path
    assert "signature" in (folder / "MLmodel").read_text()


def test_the_model_brings_its_own_code_and_little_else(registered, tmp_path):
    workspace, model, _ = registered
    folder = download(workspace, "ねじ", model.version, tmp_path / "model")
    code = """
import sys, mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
model.predict(pandas.DataFrame({"image": [""]}))
import classification_mlops
heavy = {"pytorch_lightning", "albumentations", "papermill", "git", "typer", "torchmetrics", "timm"}
ours = {name.split(".")[1] for name in sys.modules if name.startswith("classification_mlops.")}
print(classification_mlops.__path__[0], sorted(heavy & set(sys.modules)), sorted(ours), sep="|")
"""
    done = run_python(code, folder, cwd=tmp_path, MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false")
    place, heavy, ours = done.stdout.strip().split("|")
    assert place == str(folder / "code" / "classification_mlops"), done.stderr
    assert heavy == "[]"
    assert not {"db", "training", "serving", "quality", "workspace", "cli"} & set(eval(ours))


def test_pyfunc_takes_bytes_and_text(registered):
    _, model, folder = registered
    files = pictures(2)
    text = pd.DataFrame({"image": [__import__("base64").b64encode(data).decode() for data in files]})
    packaged = mlflow.pyfunc.load_model(model.uri)
    expected = load_classifier(folder).classify(files)
    pd.testing.assert_frame_equal(packaged.predict(pd.DataFrame({"image": files})), expected)
    pd.testing.assert_frame_equal(packaged.predict(text), expected)


def test_a_run_has_one_version_however_many_register_it(registered, tmp_path):
    workspace = init_folders(tmp_path)
    client = use_tracking(workspace)
    run_id = client.create_run(theme_experiment(workspace, "bolts")).info.run_id
    folder = write_model_folder(workspace.runs / run_id / "model", small_network(), PARAMS, [], LABELS)
    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(lambda _: register_model(workspace, "bolts", run_id, folder), range(4)))
    assert [model.version for model in made] == [1]
    assert len(list_versions(workspace, "bolts")) == 1
    use_tracking(registered[0])


@pytest.mark.parametrize(
    "theme",
    [
        "it's",
        'a "b"',
        'it\'s "both"',
        "100 %",
        "a#b?c=d&e",
        "x@champion",
        "ねじ 検査 🔩",
        "n" * 100,
        "1",
        "-x",
        "a;b",
        "%s%20",
    ],
)
def test_themes_may_be_called_anything(registered, theme, tmp_path):
    workspace, *_ = registered
    model, _ = register_small(workspace, theme)
    assert find_version(workspace, theme) == model and model.name == theme
    assert [row["theme"] for row in list_versions(workspace, theme)] == [theme]
    assert (download(workspace, theme, "champion", tmp_path / "copy") / "MLmodel").is_file()


def test_aliases_move_and_refuse(registered):
    workspace, *_ = registered
    first, _ = register_small(workspace, "aliases")
    second, _ = register_small(workspace, "aliases", alias="challenger")
    assert find_version(workspace, "aliases") == first
    assert promote(workspace, "aliases", "challenger", expected=first.version) == second.version
    assert find_version(workspace, "aliases").version == second.version
    rows = list_versions(workspace, "aliases")
    assert [row["aliases"] for row in rows] == [["challenger", "champion"], []]
    for version, alias in ((9, "champion"), ("nobody", "champion")):
        with pytest.raises(UsageError, match="it has: 1, 2"):
            promote(workspace, "aliases", version, alias)
    for alias in ("v3", "latest", "", "a b/c"):
        with pytest.raises(UserError):
            promote(workspace, "aliases", 1, alias)


def test_unknown_things_are_one_line(registered, tmp_path):
    workspace, *_ = registered
    with pytest.raises(UsageError, match="has no model yet") as caught:
        describe_version(workspace, "nothing")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="refused") as caught:
        register_model(workspace, "ねじ", "no-such-run", registered[2])
    assert "\n" not in str(caught.value)


def test_registered_model_cannot_be_bent(registered, tmp_path):
    workspace, model, _ = registered
    folder = download(workspace, "ねじ", model.version, tmp_path / "model")
    files = pictures(3)
    expected = np.array(
        [list(row.values()) for row in load_classifier(registered[2]).classify(files).probabilities]
    )
    log = tmp_path / "server.log"
    assert parity_gate(TrialServer("ねじ", log).answers(model.uri, files), expected) <= 1e-5
    weights = load_file(folder / "artifacts" / "model" / "weights.safetensors")
    name = next(name for name in weights if name.endswith("fc.weight"))
    save_file({**weights, name: weights[name] * 1.01}, folder / "artifacts" / "model" / "weights.safetensors")
    answers = TrialServer("ねじ", log).answers(str(folder), files)
    with pytest.raises(UserError, match="parts from training at picture"):
        parity_gate(answers, expected)
    (folder / "code" / "classification_mlops" / "vision" / "preprocess.py").unlink()
    with pytest.raises(UserError, match=r"vision\.preprocess") as caught:
        TrialServer("ねじ", log).answers(str(folder), files)
    assert "\n" not in str(caught.value)


def test_the_parity_gate_says_where_answers_part():
    answer = {"error": None, "probabilities": {"ok": 0.2, "傷": 0.3, "bent": 0.5}}
    assert refuse_difference(answer, [0.2, 0.300009, 0.5], "a.png", 1e-5) < 1e-5
    message = r"at picture a\.png: 傷 has probability 0\.300000 instead of 0\.300011"
    with pytest.raises(UserError, match=message):
        refuse_difference(answer, [0.2, 0.300011, 0.5], "a.png", 1e-5)
    with pytest.raises(UserError, match=r"ok has probability 0\.200000 instead of nan"):
        refuse_difference(answer, [float("nan"), 0.3, 0.5], "a.png", 1e-5)
    with pytest.raises(UserError, match="knows 3 labels, training knew 2"):
        refuse_difference(answer, [0.2, 0.8], "a.png", 1e-5)


def test_a_refused_parity_registers_nothing(registered, tmp_path):
    workspace, _, folder = registered
    client, files = use_tracking(workspace), pictures(2)
    run_id = client.create_run(theme_experiment(workspace, "parted")).info.run_id
    wrong, server = np.full((2, 3), 1 / 3), TrialServer("parted", tmp_path / "server.log")
    with pytest.raises(UserError, match="parts from training at picture first"):
        register_model(
            workspace, "parted", run_id, folder,
            gate=lambda uri: parity_gate(server.answers(uri, files), wrong, names=["first", "second"]),
        )  # fmt: skip
    assert list_versions(workspace, "parted") == []


def test_the_copied_code_is_enough_for_other_architectures(tmp_path):
    "timm and registered architectures import late; their modules must be in the copy too."
    code = copy_code(tmp_path)
    names = {path.name for path in code.glob("*/*.py")}
    assert names >= {"decode.py", "preprocess.py", "zoo.py", "network.py", "pyfunc.py"}
    assert not (code / "db").exists() and not (code / "training").exists()


# Tracking


def test_mlflow_is_silent_and_leaves_the_current_folder_alone(tmp_path):
    code = """
import sys
from packaged import workspace_with_model
workspace_with_model(sys.argv[1] + "/a b")
"""
    (tmp_path / "here").mkdir()
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    done = run_python(code, tmp_path, cwd=tmp_path / "here", PYTHONPATH=path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list((tmp_path / "here").iterdir())
    assert list((tmp_path / "a b" / "artifacts" / "mlflow" / "artifacts" / "models").iterdir())


def test_two_workspaces_do_not_mix(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("a", "b", "a"):
        workspace = init_folders(tmp_path / name)
        place = (
            use_tracking(workspace).get_experiment(theme_experiment(workspace, "screws")).artifact_location
        )
        assert place == workspace.artifact_root and str(tmp_path / name) in place
    assert "MLFLOW_TRACKING_URI" not in os.environ


CREATE = """
import sys
from classification_mlops.registry.registration import use_tracking
from classification_mlops.workspace import Workspace
from pathlib import Path
print("ready", flush=True)
use_tracking(Workspace(Path(sys.argv[1]))).search_experiments()
"""


def test_many_may_create_the_tracking_database_at_once(tmp_path):
    processes = [
        subprocess.Popen([sys.executable, "-c", CREATE, tmp_path], stderr=subprocess.PIPE) for _ in range(3)
    ]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error.decode()
    assert [path.name for path in (tmp_path / "artifacts" / "mlflow").iterdir()] == ["mlflow.db"]


def test_killing_the_creation_leaves_no_half_database(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", CREATE, tmp_path], stdout=subprocess.PIPE)
    process.stdout.readline()
    folder, deadline = tmp_path / "artifacts" / "mlflow", time.monotonic() + 60
    while not (folder.is_dir() and any(folder.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was killed while it worked"
    assert not (folder / "mlflow.db").exists()
    assert create_tracking_database(f"sqlite:///{folder}/mlflow.db", folder.as_uri())


def test_a_server_that_is_down_does_not_hold_us_up(registered, monkeypatch):
    workspace, *_ = registered
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:s3cret@127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        list_versions(workspace)
    assert time.monotonic() - start < 10
    assert "127.0.0.1:9" in str(caught.value) and "s3cret" not in str(caught.value)
    monkeypatch.undo()
    use_tracking(workspace)


# Lineage


@pytest.mark.parametrize("dirty", [True, False])
def test_a_run_names_everything_it_was_made_of(registered, tmp_path, dirty):
    workspace, *_ = registered
    client = use_tracking(workspace)
    run_id = client.create_run(theme_experiment(workspace, "ねじ")).info.run_id
    (tmp_path / "snapshot.csv").write_text(
        "sha256,label,split,image_path,train_data_id\nab,傷,train,images/1/ab.png,1\n"
    )
    snapshot = SimpleNamespace(theme_name="ねじ", hash="ab" * 32, count=1)
    git = GitState("c0" * 20, None, dirty, "+url = postgresql://ann:c4nary@db/x\n" if dirty else "")
    params = parse_params({"preprocess": [{"step": "clahe", "clip_limit": 2 + i} for i in range(50)]})
    tags = log_lineage(run_id, workspace, git, params, [], snapshot, tmp_path / "snapshot.csv")
    run = client.get_run(run_id)
    assert len(run.data.params) > 100 and run.data.params["preprocess.49.step"] == "clahe"
    wanted = {
        "theme",
        "git_commit",
        "git_branch",
        "git_dirty",
        "snapshot_hash",
        "params_hash",
        "cmlops_version",
        "threads",
        "torch",
        "cpu",
    }
    assert wanted <= set(run.data.tags) and run.data.tags["git_dirty"] == str(dirty).lower()
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == snapshot.hash[:36] and json.loads(dataset.dataset.profile) == {
        "num_rows": 1
    }
    folder = tmp_path / "files"
    mlflow.artifacts.download_artifacts(run_id=run_id, dst_path=str(folder))
    assert (folder / "diff.patch").exists() == dirty
    assert load_params(folder / "params.yaml") == params
    assert "傷" in (folder / "snapshot.csv").read_text()
    assert not any(b"c4nary" in path.read_bytes() for path in folder.iterdir())
    assert "c0c0" in model_card(tags, {"傷": {"train": 1}}, {"test_accuracy": 1.0})


def test_lineage_can_be_logged_twice(registered, tmp_path):
    workspace, *_ = registered
    client = use_tracking(workspace)
    run_id = client.create_run(theme_experiment(workspace, "ねじ")).info.run_id
    (tmp_path / "snapshot.csv").write_text("sha256,label,split,image_path,train_data_id\n")
    snapshot = SimpleNamespace(theme_name="ねじ", hash="ab" * 32, count=0)
    git = GitState("c0" * 20, "main", False, "")
    facts = [
        log_lineage(run_id, workspace, git, PARAMS, [], snapshot, tmp_path / "snapshot.csv") for _ in range(2)
    ]
    assert facts[0] == facts[1] and len(client.get_run(run_id).inputs.dataset_inputs) == 1
