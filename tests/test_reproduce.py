"A run is trained again after its labels, splits and files have moved on, and what is missing is named."

import json
import shutil
import subprocess

import nbformat
import pytest

from classification_mlops.cli import main
from classification_mlops.db.jobs import list_jobs
from classification_mlops.db.schema import Label, TrainData
from classification_mlops.db.session import open_engine, reading, writing
from classification_mlops.db.snapshot import Tally, read_snapshot
from classification_mlops.demo import sample_workspace
from classification_mlops.text import UserError
from classification_mlops.training import material
from classification_mlops.training.jobs import run_training
from classification_mlops.training.run import check_plan, end_run, plan_run, register_run
from classification_mlops.workspace import pipeline_notebook

MEANWHILE = """
from classification_mlops.db.labels import merge_labels
from classification_mlops.db.session import writing
from classification_mlops.db.themes import get_theme, rename_theme

with writing(run.engine) as session:
    merge_labels(session, get_theme(session, run.theme), "3", "2", actor="somebody")
    rename_theme(session, run.theme, "numbers")
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A run that used a pipeline which git did not know, and whose theme lost a label and its name meanwhile."
    with pytest.MonkeyPatch.context() as patch:
        workspace = sample_workspace(tmp_path_factory.mktemp("reproduce") / "work space")
        patch.setenv("CMLOPS_WORKSPACE", str(workspace.root))
        own = workspace.root / "nbs" / "pipelines" / "train.ipynb"
        own.parent.mkdir(parents=True)
        nb = nbformat.read(pipeline_notebook(workspace.root, "train"), as_version=4)
        fitted = next(number for number, cell in enumerate(nb.cells) if "fit.fit(" in cell.source)
        nb.cells.insert(fitted, nbformat.v4.new_code_cell(MEANWHILE))
        nb.cells.insert(-1, nbformat.v4.new_code_cell("fit.log_metrics(run, {'night_shift': 7})"))
        nbformat.write(nb, own)
        outcome = run_training(workspace, "digits", ["trainer.max_epochs=2"])
        own.unlink()
        yield workspace, outcome


def answer(capsys, *arguments) -> tuple[int, str, str]:
    status = main(list(arguments))
    said = capsys.readouterr()
    return status, said.out, said.err


def worktrees(workspace) -> list[str]:
    command = ["git", "-C", str(workspace.root), "worktree", "list", "--porcelain"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if line.startswith("worktree ")]


def let_everything_move(workspace):
    "Other labels, other splits, other places; nothing that a run has seen is where it was."
    with writing(open_engine(workspace.database_url)) as session:
        rows = session.query(TrainData).order_by(TrainData.id).all()
        labels = [label.id for label in session.query(Label).order_by(Label.id)]
        for row in rows[:6]:
            row.label_id = labels[(labels.index(row.label_id) + 1) % len(labels)]
            row.split = "test" if row.split == "train" else "train"
        for label, position in zip(session.query(Label).order_by(Label.id), (3, 2, 1, 0), strict=True):
            label.position = position
        (workspace.images / "moved").mkdir()
        for row in rows[:3]:
            place = f"images/moved/{row.id}.png"
            (workspace.root / row.image_path).rename(workspace.root / place)
            row.image_path = place


def test_a_run_is_repeated_after_everything_has_moved(trained, capsys):
    from mlflow import MlflowClient

    workspace, outcome = trained
    client = MlflowClient(workspace.tracking_uri)
    assert len(client.get_run(outcome.run_id).data.tags["weights_sha256"]) == 64
    client.set_tag(outcome.run_id, "torch", "1.0")
    let_everything_move(workspace)
    status, out, errors = answer(capsys, "reproduce", "numbers/1", "--json")
    assert status == 0, errors
    result = json.loads(out)
    assert result["verdict"] == "identical" and result["weights"][0] == result["weights"][1]
    told = {reason["what"]: reason for reason in result["reasons"]}
    assert [what for what, reason in told.items() if not reason["same"]] == ["machine"]
    assert "torch 1.0 →" in told["machine"]["detail"]
    assert "relabeled" in told["snapshot"]["detail"]  # they were labeled and split as they had been
    assert "uncommitted changes" in told["code"]["detail"]
    repetition = client.get_run(result["repetition"])
    assert repetition.data.metrics["night_shift"] == 7  # the pipeline that only the patch knew
    tags = repetition.data.tags
    assert (tags["kind"], tags["reproduces"], tags["verdict"]) == ("reproduce", outcome.run_id, "identical")
    assert repetition.info.status == "FINISHED" and len(client.search_model_versions()) == 1
    assert {"report", "verdict.json"} <= {item.path for item in client.list_artifacts(result["repetition"])}
    with reading(open_engine(workspace.database_url)) as session:
        job = list_jobs(session)[0]
        assert (job.kind, job.status, job.mlflow_run_id) == ("reproduce", "finished", result["repetition"])
        assert job.progress["epoch"] >= 1
    assert len(worktrees(workspace)) == 1 and not list((workspace.artifacts / "reproduce").iterdir())
    status, _, errors = answer(capsys, "reproduce", result["repetition"][:12])
    assert status == 2 and f"cmlops reproduce {outcome.run_id}" in errors


def test_uncommitted_changes_can_be_refused(trained, capsys):
    workspace, outcome = trained
    status, _, errors = answer(capsys, "reproduce", outcome.run_id[:8], "--require-clean")
    assert status == 1 and "uncommitted changes" in errors and len(errors.splitlines()) == 1
    assert not list((workspace.artifacts / "reproduce").iterdir())


@pytest.fixture
def spoiled(trained):
    "Two pictures that are not as they were, until the test has ended."
    workspace, _ = trained
    with reading(open_engine(workspace.database_url)) as session:
        rows = session.query(TrainData).order_by(TrainData.id).all()
        paths = [workspace.root / row.image_path for row in rows[10:12]]
    before = [path.read_bytes() for path in paths]
    paths[0].write_bytes(b"another picture")
    paths[1].unlink()
    yield paths
    for path, data in zip(paths, before, strict=True):
        path.write_bytes(data)


def test_what_is_gone_is_named(trained, spoiled, capsys):
    workspace, outcome = trained
    with reading(open_engine(workspace.database_url)) as session:
        jobs = len(list_jobs(session))
    status, _, errors = answer(capsys, "reproduce", outcome.run_id)
    assert status == 1 and errors.startswith("cmlops: 2 pictures of the run are not as they were")
    assert all(path.name in errors for path in spoiled) and len(errors.splitlines()) == 1
    with reading(open_engine(workspace.database_url)) as session:
        assert len(list_jobs(session)) == jobs  # refused before anything was written
    assert len(worktrees(workspace)) == 1


@pytest.mark.parametrize("cache", ["auto", "false"])
def test_a_run_may_go_on_without_them(trained, spoiled, cache):
    from mlflow import MlflowClient

    workspace, _ = trained
    with pytest.raises(UserError, match="missing on disk"):
        check_plan(plan_run(workspace, "numbers"))
    shutil.rmtree(workspace.preprocessed)
    run = plan_run(workspace, "numbers", overrides=["data.on_missing=skip", f"data.cache={cache}"])
    check_plan(run)
    register_run(run)
    counts = material.split_new(run)
    kept = list(read_snapshot(run.snapshot_path))
    assert len(kept) == run.snapshot.count == 118 == sum(sum(splits.values()) for splits in counts.values())
    assert not {row.sha256 for row in kept} & set(run.skipped) and len(run.skipped) == 2
    tally = Tally(kept)
    assert list(tally) == kept and tally.hash == run.snapshot.hash
    [fact] = material.skip_facts(run).values()
    assert all(path.name in fact for path in spoiled)
    assert MlflowClient(workspace.tracking_uri).get_run(run.run_id).data.tags["pictures_skipped"] == "2"
    material.load_data(run)
    end_run(run, "KILLED")


@pytest.mark.parametrize("wanted", ["numbers/7", "nonsense", "f" * 32, ""])
def test_unknown_runs_are_misuse(trained, capsys, wanted):
    status, _, errors = answer(capsys, "reproduce", wanted)
    assert status == 2 and len(errors.splitlines()) == 1
