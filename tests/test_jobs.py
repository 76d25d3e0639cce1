"Trainings that are paused, killed, cancelled and taken over, and what comes out of them."

import hashlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import psutil
import pytest
from waiting import until

from classification_mlops.db.jobs import create_job, get_job, list_jobs
from classification_mlops.db.owners import mark_interrupted, process_name, take_job, take_next
from classification_mlops.db.session import open_engine, reading, writing
from classification_mlops.demo import sample_workspace
from classification_mlops.text import UserError
from classification_mlops.training.asked import Cancelled, Paused
from classification_mlops.training.jobs import run_training
from classification_mlops.training.queue import (
    cancel_job,
    control_job,
    joined_run,
    queue_training,
    read_log,
    start_detached,
)
from classification_mlops.training.run import end_run, open_run
from classification_mlops.ui.programs import begin_training

QUICK = ("trainer.max_epochs=3", "data.batch_size=8", "model.dropout=0.2", "scheduler.name=plateau")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return sample_workspace(tmp_path_factory.mktemp("jobs"))


def job_of(run):
    with reading(run.engine) as session:
        return get_job(session, run.job_id)


def mlflow_status(run) -> str:
    from mlflow import MlflowClient

    return MlflowClient(run.workspace.tracking_uri).get_run(run.run_id).info.status


def weights_hash(network) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def learn_here(run, callbacks=(), examining=lambda run: None) -> tuple[str, list]:
    "What the cells of the pipeline do until the network is examined; its weights and its curves."
    from classification_mlops.training import fit, material

    with writing(run.engine) as session:
        assert take_job(session, run.job_id, process_name())
    folder = run.folder
    run = open_run(
        run.theme,
        folder / "params.yaml",
        folder / "auguments.yaml",
        (),
        run.workspace,
        run.run_id,
        run.job_id,
    )
    try:
        material.split_new(run)
        data = material.load_data(run)
        fitted = fit.fit(run, data, [make(run) for make in callbacks])
        for _ in run.heeding([*data.val_dataloader(), None]):
            examining(run)
    except Paused:
        end_run(run, "PAUSED")
        raise
    run.heart.stop()
    return weights_hash(fitted.network), fitted.rows


@pytest.fixture(scope="module")
def uninterrupted(workspace):
    "The weights and the curves of a training that nobody disturbed."
    run = queue_training(workspace, "digits", QUICK)
    found = learn_here(run)
    end_run(joined_run(workspace, run.job_id), "FINISHED")
    return found


def at_step(number: int, act):
    "A callback that does something after a step, once in its life."
    from pytorch_lightning import Callback

    class Act(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == number:
                act()

    return Act()


# Asked twice ------------------------------------------------------------------------------------------


def test_whoever_asks_twice_at_once_gets_one_training(workspace):
    runs = {path.name for path in workspace.runs.iterdir()} if workspace.runs.exists() else set()

    def ask(key: str, queue: bool = True) -> dict:
        return begin_training(workspace, "ann", "digits", list(QUICK), queue, key)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(ask, ["once", "once"])
    assert first == second
    assert {path.name for path in workspace.runs.iterdir()} - runs == {first["run_id"]}
    other = ask("another")
    assert other["job_id"] != first["job_id"]
    assert ask("once", queue=False) == first  # Cut short before its process began: now it begins
    run = joined_run(workspace, first["job_id"])
    until(lambda: job_of(run).status == "running")
    assert ask("once", queue=False) == first and job_of(run).status == "running"
    for number in (first["job_id"], other["job_id"]):
        cancel_job(workspace, run.engine, number)
    until(lambda: job_of(run).status == "cancelled")


# Going on ---------------------------------------------------------------------------------------------


def pause_now(run):
    control_job(run.engine, run.job_id, "pause")
    until(lambda: run.wish == "pause")


@pytest.mark.parametrize("steps", [(4, 15), (10,)])
def test_a_paused_training_ends_with_the_same_weights(workspace, uninterrupted, steps):
    "In the middle of an epoch, twice; and at the end of one."
    run = queue_training(workspace, "digits", QUICK)
    for step in steps:

        def pause(run, step=step):
            return at_step(step, lambda: pause_now(run))

        with pytest.raises(Paused):
            learn_here(run, [pause])
        job = job_of(run)
        assert (job.status, job.control, job.error) == ("paused", None, None)
        assert mlflow_status(run) == "SCHEDULED"
    weights, rows = learn_here(run)
    assert (weights, rows) == uninterrupted


def test_a_training_paused_while_it_is_examined_learns_nothing_twice(workspace, uninterrupted):
    run = queue_training(workspace, "digits", QUICK)
    with pytest.raises(Paused):
        learn_here(run, examining=pause_now)
    assert job_of(run).status == "paused"

    def never(run):
        return at_step(1, lambda: pytest.fail("it learns again"))

    assert learn_here(run, [never]) == uninterrupted


# A notebook that stops at a step, in a process that somebody detached
AT_STEP = """
import os, signal
from pathlib import Path
from pytorch_lightning import Callback
from classification_mlops.training import fit, material
from classification_mlops.training.run import open_run
from classification_mlops.workspace import find_workspace

run = open_run(theme, params_file, augmentations_file, overrides, find_workspace(workspace), run_id, job_id)

class Stay(Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 15:
            (run.folder / "kernel").write_text(str(os.getpid()))
            while run.wish is None:
                run.heart.join(0.02)

material.split_new(run)
fit.fit(run, material.load_data(run), [Stay()])
"""


def pipeline_with(path: Path, cell: str) -> Path:
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    nb = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    names = ("theme", "workspace", "params_file", "augmentations_file", "run_id")
    parameters = "\n".join([*(f"{name} = ''" for name in names), "overrides = []", "job_id = 0"])
    nb.cells = [
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("print('so far')"),
        nbformat.v4.new_code_cell(cell),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)
    return path


@pytest.fixture
def staying(workspace):
    "A detached training that waits in its step 15: the run, its runner and its kernel."
    place = pipeline_with(workspace.root / "nbs" / "pipelines" / "train.ipynb", AT_STEP)
    run = queue_training(workspace, "digits", QUICK)
    runner = psutil.Process(start_detached(run))
    mark = run.folder / "kernel"
    until(lambda: (mark.exists() and mark.read_text()) or not runner.is_running())
    assert mark.exists(), read_log(workspace, job_of(run))
    kernel = psutil.Process(int(mark.read_text()))
    yield run, runner, kernel
    place.unlink()
    for process in (runner, kernel):
        if process.is_running():
            process.kill()


def gone(process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_killed_training_leaves_nobody_and_ends_with_the_same_weights(workspace, uninterrupted, staying):
    "`kill -9` of the process that owns the job."
    run, runner, kernel = staying
    assert os.getpgid(kernel.pid) == kernel.pid != os.getpgid(runner.pid) != os.getpgid(0)
    runner.kill()
    until(lambda: gone(runner) and gone(kernel), 30)
    assert job_of(run).status == "running"
    assert run.job_id in mark_interrupted(run.engine)
    assert learn_here(run) == uninterrupted


def test_a_killed_notebook_is_interrupted_when_there_is_something_to_go_on_from(workspace, tmp_path):
    opened = AT_STEP.partition("class Stay")[0]
    dying = "run.checkpoints.mkdir(); (run.checkpoints / 'last.ckpt').touch(); os.kill(os.getpid(), 9)"
    with pytest.raises(UserError, match=r"was interrupted: .* died.*jobs resume"):
        run_training(
            workspace, "digits", QUICK, notebook=pipeline_with(tmp_path / "dying.ipynb", opened + dying)
        )
    with reading(open_engine(workspace.database_url)) as session:
        job = list_jobs(session)[0]
    assert job.status == "interrupted" and "died" in job.error


def test_a_cancelled_training_leaves_no_process(workspace, staying):
    run, runner, kernel = staying
    assert cancel_job(workspace, run.engine, run.job_id) == "asked"
    until(lambda: gone(runner) and gone(kernel), 30)
    assert job_of(run).status == "cancelled" and mlflow_status(run) == "KILLED"
    page = (run.folder / "train.html").read_text()
    assert "so far" in page and "stopped by a person" in page
    assert cancel_job(workspace, run.engine, run.job_id) == "cancelled"
    with pytest.raises(UserError, match="is cancelled"):
        control_job(run.engine, run.job_id, "pause")


def test_a_cancelled_training_stops_at_its_step(workspace):
    run, done = queue_training(workspace, "digits", QUICK), []

    def cancel(run):
        def act():
            done.append(control_job(run.engine, run.job_id, "cancel"))
            until(lambda: run.wish == "cancel")

        return at_step(5, act)

    def count(run):
        return at_step(7, lambda: done.append("too late"))

    with pytest.raises(Cancelled):
        learn_here(run, [cancel, count])
    assert done == ["asked"]


# Checkpoints ------------------------------------------------------------------------------------------


def test_a_malicious_checkpoint_is_passed_over(tmp_path):
    import pickle

    from classification_mlops.training.checkpoints import usable_checkpoint

    canary = tmp_path / "canary"

    class Bad:
        def __reduce__(self):
            return os.mkdir, (str(canary),)

    (tmp_path / "last.ckpt").write_bytes(pickle.dumps({"callbacks": Bad()}, protocol=2))
    (tmp_path / "previous.ckpt").write_bytes(b"")
    heard = []
    assert usable_checkpoint(tmp_path, {}, heard.append) is None
    assert len(heard) == 2 and not canary.exists()


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path):
    import torch

    from classification_mlops.training.callbacks import WholeCheckpoints

    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"weights": torch.ones(3)}, path)
    (tmp_path / ".last.ckpt.tmp").symlink_to("/dev/full")  # every write to it finds the disk full
    with pytest.raises(UserError, match="is the disk full"):
        WholeCheckpoints().save_checkpoint({"weights": torch.ones(30_000)}, path)
    assert torch.load(path, weights_only=True)["weights"].sum() == 3
    assert os.listdir(tmp_path) == ["last.ckpt"]


# Workers ----------------------------------------------------------------------------------------------


def test_no_job_is_taken_twice(engine):
    "Eight workers, forty jobs."
    with writing(engine) as session:
        made = [create_job(session, "train", None, {}).id for _ in range(40)]

    def worker(_) -> list[int]:
        taken = []
        while (job_id := take_next(engine, process_name())) is not None:
            taken.append(job_id)
        return taken

    with ThreadPoolExecutor(8) as pool:
        taken = [job_id for found in pool.map(worker, range(8)) for job_id in found]
    assert sorted(taken) == made


def test_a_job_that_dies_again_and_again_is_left_alone(engine):
    with writing(engine) as session:
        job = create_job(session, "train", None, {})
    tries = 0
    while take_next(engine, "localhost-that-is-not:1:1") is not None:
        tries += 1
        with writing(engine) as session:
            get_job(session, job.id).status = "interrupted"
    assert tries == 4  # once, and three times again


# The tracking server ----------------------------------------------------------------------------------


def start_server(folder: Path, port: int) -> subprocess.Popen:
    store = f"sqlite:///{folder}/mlflow.db"
    options = ["--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts")]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *options],
        env={**os.environ, **quiet},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def stop_server(server: subprocess.Popen) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def test_a_server_that_stops_loses_no_number(tmp_path, monkeypatch):
    import socket
    from urllib.request import urlopen

    from mlflow import MlflowClient

    from classification_mlops.training.callbacks import RunLogger, read_spool

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri, spool = f"http://127.0.0.1:{port}", tmp_path / "metrics.jsonl"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

    def answers() -> bool:
        try:
            return urlopen(f"{uri}/health").status == 200
        except OSError:
            return False

    server = start_server(tmp_path, port)
    try:
        until(answers)
        client = MlflowClient(uri)
        run_id = client.create_run("0").info.run_id
        logger = RunLogger(run_id, uri, spool)
        logger.log_metrics({"train_loss": 3.0, "epoch": 0})
        logger.finalize(wait_s=60)
        assert not spool.exists()
        stop_server(server)
        began = time.monotonic()
        for epoch in (1, 2):
            logger.log_metrics({"train_loss": 2.0 - epoch, "epoch": epoch})
        logger.finalize()
        assert time.monotonic() - began < 5 + 1 and len(read_spool(spool)) == 2
        server = start_server(tmp_path, port)
        until(answers)
        assert RunLogger(run_id, uri, spool).send()
        history = client.get_metric_history(run_id, "train_loss")
        assert [(item.step, item.value) for item in history] == [(1, 3.0), (2, 1.0), (3, 0.0)]
        assert not spool.exists()
    finally:
        stop_server(server)
