"A training from its refusals to its last status, and what a second one repeats."

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from waiting import until

from classification_mlops.db.jobs import list_jobs
from classification_mlops.db.schema import TrainData
from classification_mlops.db.session import open_engine, reading, writing
from classification_mlops.demo import sample_workspace
from classification_mlops.text import UsageError, UserError
from classification_mlops.training.evaluate import (
    Predictions,
    class_scores,
    evaluate,
    metrics,
    wilson_interval,
)
from classification_mlops.training.jobs import execute, run_training
from classification_mlops.training.run import Heart, refuse_empty_splits, refuse_unfit


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return sample_workspace(tmp_path_factory.mktemp("sample"))


@pytest.fixture
def workspace(template, tmp_path):
    "A sample workspace of its own for each test."
    shutil.copytree(template.root, tmp_path / "workspace")
    return type(template)(tmp_path / "workspace")


@pytest.fixture(scope="module")
def trained(template, tmp_path_factory):
    "A workspace in which two trainings ran on unchanged data, and what came of them."
    root = tmp_path_factory.mktemp("trained") / "workspace"
    shutil.copytree(template.root, root)
    workspace, heard = type(template)(root), []
    first = run_training(workspace, "digits", progress=heard.append)
    return workspace, first, run_training(workspace, "digits"), heard


def client_of(workspace):
    from mlflow import MlflowClient

    return MlflowClient(workspace.tracking_uri)


def runs_of(workspace) -> list:
    if not (workspace.mlflow_dir / "mlflow.db").exists():
        return []
    client = client_of(workspace)
    return client.search_runs([item.experiment_id for item in client.search_experiments()])


def jobs_of(workspace) -> list:
    with reading(open_engine(workspace.database_url)) as session:
        return list_jobs(session)


def change_rows(workspace, change):
    "Let `change` edit the rows of the pictures."
    with writing(open_engine(workspace.database_url)) as session:
        change(session.query(TrainData).order_by(TrainData.id).all())


def notebook_with(path: Path, *cells: str) -> Path:
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    nb = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    parameters = (
        "theme = workspace = params_file = augmentations_file = run_id = ''\njob_id = 0\noverrides = []"
    )
    parameters = parameters.replace(" = workspace = params_file = augmentations_file = run_id", "")
    names = ("workspace", "params_file", "augmentations_file", "run_id")
    parameters = "\n".join([parameters, *(f"{name} = ''" for name in names)])
    nb.cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    nb.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(nb, path)
    return path


OPEN = """
from classification_mlops.workspace import find_workspace
from classification_mlops.training.run import open_run
where = find_workspace(workspace)
run = open_run(theme, params_file, augmentations_file, overrides, where, run_id, job_id)
"""


# A whole training ------------------------------------------------------------------------------------


def test_a_training_ends_with_a_model_a_report_and_a_job(trained):
    workspace, first, _, heard = trained
    assert first.status == "FINISHED" and first.model_version == 1
    assert first.metrics["test_accuracy"] > 0.5
    job = jobs_of(workspace)[-1]
    assert (job.id, job.status, job.mlflow_run_id) == (first.job_id, "finished", first.run_id)
    assert job.owner and job.progress["epoch"] >= 1 and job.error is None
    run = client_of(workspace).get_run(first.run_id)
    assert run.info.status == "FINISHED" and run.data.tags["git_commit"]
    kept = {item.path for item in client_of(workspace).list_artifacts(first.run_id, "report")}
    assert kept == {"report/train.ipynb", "report/train.html"}
    assert {"predictions.csv", "params.yaml"} <= {
        i.path for i in client_of(workspace).list_artifacts(first.run_id)
    }
    assert heard[-1]["epoch"] >= 1 and heard[-1]["time_left_s"] == 0


def test_the_card_and_the_hashes_of_a_version_stay_with_it(trained):
    workspace, first, *_ = trained
    version = client_of(workspace).get_model_version("digits", "1")
    assert "Handwritten digits" in version.description and "| test\\_accuracy |" in version.description
    hashes = json.loads(version.tags["file_hashes"])
    run = client_of(workspace).get_run(first.run_id)
    assert hashes["artifacts/model/weights.safetensors"] == run.data.tags["weights_sha256"]
    assert {"MLmodel", "artifacts/model/params.yaml", "artifacts/model/labels.json"} <= hashes.keys()
    assert "model_card.md" in {item.path for item in client_of(workspace).list_artifacts(first.run_id)}


def test_the_report_is_small_and_shows_every_picture(trained):
    _, first, *_ = trained
    nb = nbformat.read(first.notebook, as_version=4)
    outputs = [output for cell in nb.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type in ("stream", "error")]
    pictures = [v for o in outputs for kind, v in o.get("data", {}).items() if kind.startswith("image/")]
    assert len(pictures) == 9 and all(len(picture) * 3 / 4 < 50_000 for picture in pictures)
    page = first.notebook.with_suffix(".html").read_text()
    assert 'src="http' not in page and first.run_id in page


def test_nothing_is_left_that_only_training_needed(trained):
    _, first, *_ = trained
    names = {path.name for path in first.notebook.parent.iterdir()}
    assert "checkpoints" not in names and not [name for name in names if name.endswith(".tmp")]


def test_a_second_training_repeats_the_first_bit_by_bit(trained):
    workspace, first, second, _ = trained
    folders = [workspace.runs / outcome.run_id for outcome in (first, second)]
    for name in ("snapshot.csv", "model/weights.safetensors", "model/calibration.json", "predictions.csv"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    tags = [client_of(workspace).get_run(outcome.run_id).data.tags for outcome in (first, second)]
    assert tags[0]["snapshot_hash"] == tags[1]["snapshot_hash"]
    assert second.model_version == 2 and first.metrics == second.metrics


def test_every_picture_of_the_snapshot_belongs_to_the_model(trained):
    from classification_mlops.db.models import images_of_model, models_of_theme
    from classification_mlops.db.themes import get_theme

    workspace, *_ = trained
    with reading(open_engine(workspace.database_url)) as session:
        models = models_of_theme(session, get_theme(session, "digits"))
        assert [len(list(images_of_model(session, model))) for model in models] == [120, 120]


# Refusals: before anything is written -------------------------------------------------------------


def keep_labels(count):
    def change(rows):
        labels = sorted({row.label_id for row in rows})
        for row in rows:
            row.label_id = row.label_id if row.label_id in labels[:count] else None

    return change


def thin_out(rows):
    last = max(row.label_id for row in rows)
    for row in [row for row in rows if row.label_id == last][2:]:
        row.label_id = None


def all_in_test(rows):
    last = max(row.label_id for row in rows)
    for row in rows:
        row.split = "test" if row.label_id == last else None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (keep_labels(0), "no labeled pictures"),
        (keep_labels(2), "only 2 classes (0, 1)"),
        (thin_out, "class 3 of theme digits has too few pictures (2)"),
        (all_in_test, "class 3 of theme digits has no picture to learn from"),
    ],
)
def test_data_that_cannot_be_learnt_is_refused(workspace, change, words):
    change_rows(workspace, change)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        run_training(workspace, "digits")
    assert "\n" not in str(caught.value)
    assert not jobs_of(workspace) and not runs_of(workspace) and not list(workspace.runs.iterdir())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["preprocess=[{step: gama}]"], "did you mean gamma"),
        (["trainer.max_epoch=3"], "did you mean"),
        (["split.train=0.5"], "sum to"),
    ],
)
def test_parameters_that_cannot_be_are_refused(workspace, overrides, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        run_training(workspace, "digits", overrides)
    assert not jobs_of(workspace) and not runs_of(workspace)


def test_an_unknown_architecture_fails_in_one_line(workspace):
    with pytest.raises(UsageError, match="did you mean resnet1") as caught:
        run_training(workspace, "digits", ["model.architecture=resnet19"])
    assert "\n" not in str(caught.value) and [job.status for job in jobs_of(workspace)] == ["failed"]


def test_an_unknown_theme_is_refused(workspace):
    with pytest.raises(UsageError, match="did you mean digits"):
        run_training(workspace, "digit")


def test_a_picture_that_has_vanished_is_named(workspace):
    paths = []
    change_rows(workspace, lambda rows: paths.append(rows[50].image_path))
    (workspace.root / paths[0]).unlink()
    with pytest.raises(UserError, match=re.escape(paths[0])):
        run_training(workspace, "digits")
    assert not jobs_of(workspace)


def test_a_workspace_without_git_is_refused(workspace):
    shutil.rmtree(workspace.root / ".git")
    with pytest.raises(UserError, match="git init"):
        run_training(workspace, "digits")
    assert not jobs_of(workspace)


@given(
    st.dictionaries(
        st.text("abcdef", min_size=1, max_size=3),
        st.fixed_dictionaries({name: st.integers(0, 4) for name in ("train", "valid", "test", "unsplit")}),
        max_size=6,
    )
)
def test_what_is_not_refused_can_be_learnt(counts):
    try:
        refuse_unfit("theme", counts)
    except UserError as error:
        assert "\n" not in str(error)
        return
    used = [splits for splits in counts.values() if sum(splits.values())]
    assert len(used) >= 3
    assert all(sum(splits.values()) >= 3 and splits["train"] + splits["unsplit"] for splits in used)


def test_empty_splits_are_refused():
    counts = {name: {"train": 3, "valid": 1, "test": 0} for name in "abc"}
    with pytest.raises(UserError, match="no picture in test"):
        refuse_empty_splits("theme", counts)


# Failing --------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_fails_the_run(workspace):
    wild = [
        "optimizer.name=sgd",
        "optimizer.learning_rate=10",
        "optimizer.weight_decay=1",
        "scheduler.name=none",
    ]
    with pytest.raises(UserError, match=r"loss became (nan|inf).* at step \d+ with learning rate") as caught:
        run_training(workspace, "digits", wild)
    [run] = runs_of(workspace)
    assert run.info.status == "FAILED" and "learning rate" in run.data.tags["error"]
    assert re.fullmatch(r"In \[\d+\]", run.data.tags["error_cell"])
    [job] = jobs_of(workspace)
    assert job.status == "failed" and "learning rate" in job.error and "\n" not in str(caught.value)
    assert (workspace.runs / run.info.run_id / "train.html").exists()
    assert not client_of(workspace).search_model_versions()


def test_a_dead_process_fails_the_run(workspace, tmp_path):
    dying = notebook_with(tmp_path / "dying.ipynb", OPEN, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(UserError, match="died"):
        run_training(workspace, "digits", notebook=dying)
    assert [run.info.status for run in runs_of(workspace)] == ["FAILED"]
    assert [job.status for job in jobs_of(workspace)] == ["failed"]


def test_a_notebook_that_cannot_begin_fails_the_run(workspace, tmp_path):
    broken = notebook_with(tmp_path / "broken.ipynb", "def broken(:")
    with pytest.raises(UserError, match="SyntaxError"):
        run_training(workspace, "digits", notebook=broken)
    assert [job.status for job in jobs_of(workspace)] == ["failed"]


def test_papermill_itself_ends_the_run_as_failed(workspace, tmp_path):
    "Without our runner: the notebook makes its run, and ends it when a cell fails."
    import papermill

    notebook = notebook_with(tmp_path / "direct.ipynb", OPEN, "raise RuntimeError('boom')", "print('never')")
    parameters = dict(theme="digits", workspace=str(workspace.root))
    with pytest.raises(papermill.PapermillExecutionError):
        papermill.execute_notebook(notebook, tmp_path / "out.ipynb", parameters, progress_bar=False)
    [run], [job] = runs_of(workspace), jobs_of(workspace)
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", "RuntimeError: boom")
    assert run.data.tags["error_cell"].startswith("In [") and job.status == "failed"


def test_papermill_itself_refuses_before_anything_is_written(workspace, tmp_path):
    import papermill

    change_rows(workspace, keep_labels(2))
    notebook = notebook_with(tmp_path / "direct.ipynb", OPEN)
    parameters = dict(theme="digits", workspace=str(workspace.root))
    with pytest.raises(papermill.PapermillExecutionError, match="only 2 classes"):
        papermill.execute_notebook(notebook, tmp_path / "out.ipynb", parameters, progress_bar=False)
    assert not jobs_of(workspace) and not runs_of(workspace)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_training_is_killed(workspace, tmp_path, number):
    "Ctrl-C and a polite kill: the run ends as KILLED, and no process is left."
    import psutil

    mark = tmp_path / "waiting"
    waiting = (
        f"import os, pathlib, time; pathlib.Path({str(mark)!r}).write_text(str(os.getpid())); time.sleep(300)"
    )
    notebook = notebook_with(tmp_path / "slow.ipynb", OPEN, waiting)
    code = (
        "import sys; from pathlib import Path; from classification_mlops.workspace import Workspace;"
        "from classification_mlops.training.jobs import run_training;"
        "run_training(Workspace(Path(sys.argv[1])), 'digits', notebook=Path(sys.argv[2]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, workspace.root, notebook], stderr=subprocess.PIPE, text=True
    )
    until(lambda: (mark.exists() and mark.read_text()) or process.poll() is not None)
    assert process.poll() is None, process.stderr.read()
    kernel = int(mark.read_text())
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "KeyboardInterrupt" in errors
    assert [run.info.status for run in runs_of(workspace)] == ["KILLED"]
    assert [job.status for job in jobs_of(workspace)] == ["cancelled"]
    assert not psutil.pid_exists(kernel)


# Mechanics ------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=20), min_size=3, max_size=6))
def test_any_text_arrives_as_it_was(tmp_path, texts):
    texts += ['"""', "'''\\", "\n\r\t\0", "{theme}", "日本語", "a=1; import os"]
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    nb = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    arrived = tmp_path / "arrived.json"
    write = f"import json, pathlib; pathlib.Path({str(arrived)!r}).write_text(json.dumps(texts))"
    nb.cells = [
        nbformat.v4.new_code_cell("texts = []", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(write),
    ]
    nbformat.write(nb, tmp_path / "echo.ipynb")
    execute(tmp_path / "echo.ipynb", tmp_path / "out.ipynb", {"texts": texts})
    assert json.loads(arrived.read_text()) == texts


def test_a_heart_survives_a_database_that_is_away():
    beats = []

    def beat(progress):
        beats.append(progress)
        if len(beats) < 3:
            raise UserError("the database is busy")

    heart = Heart(beat, every_s=0.01, idle_s=0.01)
    heart.start()
    until(lambda: len(beats) >= 5, limit_s=10)
    heart.stop()
    assert not heart.is_alive()


@given(st.integers(2, 6), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_scores_agree_with_scikit_learn(classes, pictures, seed):
    from sklearn.metrics import precision_recall_fscore_support

    random = np.random.default_rng(seed)
    targets, logits = random.integers(0, classes, pictures), random.normal(size=(pictures, classes))
    found = evaluate(Predictions(logits, targets, np.arange(pictures)), [str(n) for n in range(classes)])
    expected = precision_recall_fscore_support(
        targets, logits.argmax(1), labels=range(classes), zero_division=np.nan
    )
    for name, column in zip(("precision", "recall", "f1"), expected[:3], strict=True):
        ours = [np.nan if row[name] is None else row[name] for row in class_scores(found)]
        np.testing.assert_allclose(ours, column, equal_nan=True)
    assert all(np.isfinite(value) for value in metrics(found, "test").values())
    low, high = wilson_interval(found.right, pictures)
    assert 0 <= low <= found.accuracy <= high <= 1


def test_training_writes_its_checkpoints_beside_their_place(tmp_path, monkeypatch):
    "Whatever the temporary folder is, no checkpoint passes through it."
    import torch

    from classification_mlops.training.callbacks import WholeCheckpoints

    monkeypatch.setenv("TMPDIR", "/nowhere")
    WholeCheckpoints().save_checkpoint({"weights": torch.ones(3)}, tmp_path / "new" / "best.ckpt")
    assert torch.load(tmp_path / "new" / "best.ckpt", weights_only=True)["weights"].sum() == 3
    assert os.listdir(tmp_path / "new") == ["best.ckpt"]
