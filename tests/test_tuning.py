"Searches that are begun, shared, killed, gone on with and refused."

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest
import torch
from optuna.trial import TrialState
from waiting import until

from classification_mlops.config import load_params, parse_study, save_yaml
from classification_mlops.db.ingest import import_folder
from classification_mlops.db.jobs import ask_job, get_job, list_jobs
from classification_mlops.db.session import open_engine, reading, upgrade_database, writing
from classification_mlops.db.snapshot import read_snapshot
from classification_mlops.db.themes import create_theme
from classification_mlops.demo import sample_workspace, write_digits
from classification_mlops.registry.registration import use_tracking
from classification_mlops.text import UsageError, UserError
from classification_mlops.training.asked import Cancelled, Paused
from classification_mlops.training.fit import fit
from classification_mlops.training.material import load_data, split_new
from classification_mlops.training.queue import cancel_job, control_job, read_log, resume_job, run_job
from classification_mlops.training.run import end_run, plan_run, register_run
from classification_mlops.tuning.entry import enter, plan_tuning
from classification_mlops.tuning.outcome import begin_search, run_tuning, train_best, tuning_outcome
from classification_mlops.tuning.space import files_of, grid, refuse_bad_space
from classification_mlops.tuning.study import (
    claim,
    counted,
    existing_study,
    give_back,
    is_enough,
    open_study,
    study_lock,
)
from classification_mlops.tuning.trial import STEERING, folder_of
from classification_mlops.tuning.workers import join, start_helper, work, work_together
from classification_mlops.workspace import Workspace

RATES = {"optimizer.learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}}
QUICK = ("trainer.max_epochs=2", "data.batch_size=16", "trainer.threads=1")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A workspace with 120 labeled digits, for studies with names of their own."
    return sample_workspace(tmp_path_factory.mktemp("tuning"))


@pytest.fixture
def search_for(place):
    "Makes a search that is ready to be worked on, and ends its job."
    begun = []

    def make(study: str, space: dict, overrides=QUICK, **settings):
        save_yaml({"study": settings, "space": space}, place.study_file, "")
        asked = dict(files={}, overrides=overrides, budget={})
        begun.append(begin_search("digits", place, asked, study))
        return begun[-1]

    yield make
    for search in begun:
        end_run(search.run, "KILLED")


def states(search) -> list[str]:
    return [trial.state.name for trial in search.study.get_trials(deepcopy=False)]


def children_of(search) -> list:
    from mlflow import MlflowClient

    client = MlflowClient(search.run.workspace.tracking_uri)
    experiments = [item.experiment_id for item in client.search_experiments()]
    return client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{search.run.run_id}'")


# What a trial is -------------------------------------------------------------------------------------


def test_trials_are_nested_runs_with_their_files_and_no_test_picture(search_for, tmp_path):
    search = search_for("plain", RATES, trials=2, pruner="none")
    work_together(search)
    assert states(search) == ["COMPLETE"] * 2
    runs = children_of(search)
    assert [run.info.status for run in runs] == ["FINISHED"] * 2
    history = [run.data.metrics for run in runs]
    assert all({"valid_accuracy", "study_valid_accuracy"} <= set(metrics) for metrics in history)
    assert not [name for metrics in history for name in metrics if name.startswith("test")]
    seen = {row.split for row in read_snapshot(search.run.folder / STEERING)}
    assert (
        seen == {"train", "valid"} and {row.split for row in read_snapshot(search.run.snapshot_path)} > seen
    )
    for run in runs:
        from mlflow.artifacts import download_artifacts

        kept = download_artifacts(run_id=run.info.run_id, artifact_path="params.yaml", dst_path=str(tmp_path))
        rate = load_params(kept).optimizer.learning_rate
        trial = search.study.trials[int(run.data.tags["trial"])]
        assert (
            rate
            == trial.params["optimizer.learning_rate"]
            == float(run.data.params["optimizer.learning_rate"])
        )
        assert trial.value == run.data.metrics["study_valid_accuracy"]


def test_the_first_trial_is_params_yaml_and_its_files_alone_give_its_result(search_for, place):
    search = search_for("alone", RATES, trials=3, pruner="none")
    work_together(search)
    first, best = search.study.trials[0], search.study.best_trial
    assert first.params["optimizer.learning_rate"] == load_params(place.params_file).optimizer.learning_rate
    folder = folder_of(search, best)
    kept = [
        trial.number for trial in search.study.trials if (folder_of(search, trial) / "checkpoints").exists()
    ]
    assert kept == [best.number]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # the file says how many, whatever the process had
    run = register_run(plan_run(place, "digits", folder / "params.yaml", folder / "auguments.yaml"))
    split_new(run)
    fitted = fit(run, load_data(run))
    torch.set_num_threads(threads)
    weights = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name, value in fitted.network.state_dict().items():
        assert torch.equal(value, weights[f"network.{name}"]), name
    assert fitted.rows[fitted.best_epoch - 1]["valid_accuracy"] == best.value
    end_run(run, "KILLED")


def test_hopeless_trials_are_pruned(search_for):
    rates = {"optimizer.learning_rate": {"choices": [0.003, 1e-7]}}
    pruner = {"name": "median", "n_startup_trials": 1}
    search = search_for("pruned", rates, ("trainer.max_epochs=4", *QUICK[1:]), sampler="grid", pruner=pruner)
    work_together(search)
    assert states(search) == ["COMPLETE", "PRUNED"]
    assert len(search.study.trials[1].intermediate_values) < 4
    assert sorted(run.info.status for run in children_of(search)) == ["FINISHED", "KILLED"]


def test_several_metrics_have_a_front(search_for):
    space = {"model.architecture": {"choices": ["timm/test_resnet", "timm/test_vit"]}}
    settings = dict(metric=["valid_accuracy", "size_mb", "latency_ms"], pruner="none", sampler="grid")
    search = search_for("front", space, **settings)
    work_together(search)
    assert [len(trial.values) for trial in search.study.trials] == [3, 3]
    assert len({trial.values[1] for trial in search.study.trials}) == 2
    found = tuning_outcome(search)
    assert found.values["valid_accuracy"] == max(trial.values[0] for trial in search.study.best_trials)


# Many workers, and deaths ------------------------------------------------------------------------------


def test_a_killed_worker_loses_one_trial_which_is_done_again(search_for):
    search = search_for("killed", RATES, ("trainer.max_epochs=60", *QUICK[1:]), trials=2, pruner="none")
    helper = start_helper(search, 1, None)
    try:
        until(lambda: [t for t in search.study.trials if t.intermediate_values])
    finally:
        os.kill(helper.pid, signal.SIGKILL)
        helper.wait()
    lost = search.study.trials[0]
    assert lost.state == TrialState.RUNNING
    begun = search.plan.study.trials
    short = search.plan.model_copy(update={"study": search.plan.study.model_copy(update={"trials": 1})})
    search.base["trainer"]["max_epochs"] = 2
    work(replace(search, plan=short), patient=True)
    assert states(search)[0] == "FAIL" and states(search).count("COMPLETE") == 1 < begun
    done = next(trial for trial in search.study.trials if trial.state == TrialState.COMPLETE)
    assert done.params == lost.params and done.user_attrs["retry_of"] == 0
    assert sorted(run.info.status for run in children_of(search)) == ["FAILED", "FINISHED"]


def test_workers_share_a_study_without_losing_or_doubling_a_trial(search_for):
    search = search_for("shared", RATES, trials=7, pruner="none")
    work_together(search, workers=2)
    assert states(search) == ["COMPLETE"] * 7
    assert len({trial.params["optimizer.learning_rate"] for trial in search.study.trials}) == 7
    assert len(children_of(search)) == 7


def test_a_cancelled_search_can_go_on(search_for):
    search = search_for("cancelled", RATES, ("trainer.max_epochs=200", *QUICK[1:]), trials=1)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(cancel_when_learning, search)
        with pytest.raises(Cancelled):
            work_together(search)
        asked.result()
    assert states(search) == ["FAIL", "WAITING"]
    assert [run.info.status for run in children_of(search)] == ["KILLED"]
    assert not is_enough(search.study, search.plan.study)


def cancel_when_learning(search) -> None:
    study = existing_study(search.run.workspace, search.name)
    until(lambda: [trial for trial in study.trials if trial.intermediate_values])
    with writing(search.run.engine) as session:
        assert ask_job(session, search.run.job_id, "cancel")


def test_who_comes_second_helps(search_for, place):
    search = search_for("busy", RATES, trials=1)
    run, plan = plan_tuning(place, "digits", overrides=QUICK)
    assert not enter(run, plan, "busy")
    assert (run.run_id, run.job_id != search.run.job_id) == (search.run.run_id, True)
    with pytest.raises(UsageError, match="worked on by another process"):
        begin_search("digits", place, dict(files={}, overrides=QUICK, budget={}), "busy")
    with reading(search.run.engine) as session:
        assert get_job(session, run.job_id).kind == "tune"
    end_run(replace(run, run_id="-"), "KILLED")


# Pause, resume, cancel ---------------------------------------------------------------------------------


@pytest.fixture
def own_place(place, tmp_path):
    "A workspace of its own, with the same pictures."
    root = shutil.copytree(
        place.root, tmp_path / "workspace", ignore=shutil.ignore_patterns("artifacts", "*.db-*")
    )
    workspace = Workspace(root)
    for name in ("runs", "preprocessed", "mlflow"):
        (workspace.artifacts / name).mkdir(parents=True)
    return workspace


def started(workspace, *arguments, **settings) -> subprocess.Popen:
    "A command in a process of its own, which says what came of it as JSON."
    code = "import sys; from classification_mlops.cli import main; sys.exit(main())"
    environment = os.environ | {"CMLOPS_WORKSPACE": str(workspace.root), "CMLOPS_LANG": "en"} | settings
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=workspace.root)
    line = [sys.executable, "-c", code, arguments[0], "--json", *arguments[1:]]
    return subprocess.Popen(line, env=environment, **pipes)


def answer_of(process: subprocess.Popen):
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return json.loads(out)


def learning_trial(workspace, process: subprocess.Popen, name: str = "digits", after: int = -1):
    "A trial with a higher number, when it has learnt for an epoch."

    def found():
        assert process.poll() is None, process.communicate()
        try:
            trials = existing_study(workspace, name).get_trials(states=[TrialState.RUNNING])
        except UsageError:
            return None
        return next((one for one in trials if one.number > after and one.intermediate_values), None)

    return until(found)


def status_of(engine, number: int) -> str:
    with reading(engine) as session:
        return get_job(session, number).status


def test_a_search_is_paused_queued_killed_and_taken_over(own_place):
    rates = {"optimizer.learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}}
    save_yaml({"study": {"trials": 3, "pruner": "none"}, "space": rates}, own_place.study_file, "")
    engine = open_engine(own_place.database_url)
    settings = [f"--set={text}" for text in ("trainer.max_epochs=8", *QUICK[1:])]
    searching = started(own_place, "tune", "digits", "--workers=2", *settings)
    learning_trial(own_place, searching)
    with reading(engine) as session:
        [job] = list_jobs(session)
    family = psutil.Process(searching.pid).children(recursive=True)
    assert control_job(engine, job.id, "pause") == "asked"
    found = answer_of(searching)
    assert found["status"] == status_of(engine, job.id) == "paused" and found["model_version"] is None
    assert not psutil.wait_procs(family, timeout=20)[1]
    study, client = existing_study(own_place, "digits"), use_tracking(own_place)
    kinds = [trial.state.name for trial in study.trials]
    assert "RUNNING" not in kinds and kinds.count("FAIL") == kinds.count("WAITING") >= 1
    stopped = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert client.get_run(found["run_id"]).info.status == "SCHEDULED"

    assert resume_job(own_place, engine, job.id, queued=True) == "queued"
    worker = started(own_place, "worker", "--once")
    learning_trial(own_place, worker, after=len(study.trials) - 1 - kinds.count("WAITING"))
    family = psutil.Process(worker.pid).children(recursive=True)
    worker.kill()
    worker.communicate()
    assert not psutil.wait_procs(family, timeout=20)[1]
    done = answer_of(started(own_place, "worker", "--once"))
    assert [row["status"] for row in done] == ["finished"] and status_of(engine, job.id) == "finished"

    trials = existing_study(own_place, "digits").trials
    assert [trial.state.name for trial in trials].count("COMPLETE") == 3
    assert {"RUNNING", "WAITING"}.isdisjoint(trial.state.name for trial in trials)
    complete = [trial.params for trial in trials if trial.state == TrialState.COMPLETE]
    assert all(trial.params in complete for trial in stopped)
    assert len({params["optimizer.learning_rate"] for params in complete}) == 3
    assert [int(one.version) for one in client.search_model_versions("name='digits'")] == [1]
    runs = client.search_runs([client.get_run(found["run_id"]).info.experiment_id])
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED", "FAILED"}
    assert client.get_run(found["run_id"]).info.status == "FINISHED"
    log = read_log(own_place, job)
    assert "trial 3 of 3" in log


def test_a_search_paused_while_its_model_is_made_makes_it_once(own_place):
    save_yaml({"study": {"trials": 1, "pruner": "none"}, "space": RATES}, own_place.study_file, "")
    search = begin_search("digits", own_place, dict(files={}, overrides=QUICK, budget={}))
    work_together(search)
    assert control_job(search.run.engine, search.run.job_id, "pause") == "asked"
    until(lambda: search.run.wish == "pause")
    with pytest.raises(Paused):
        train_best(search)
    end_run(search.run, "PAUSED")
    model = search.study.user_attrs["model"]
    assert status_of(search.run.engine, model["job"]) == "paused"
    assert resume_job(own_place, search.run.engine, search.run.job_id, queued=True) == "queued"
    assert run_job(own_place, search.run.job_id).model_version == 1
    assert existing_study(own_place, "digits").user_attrs["model"] == model | {"version": 1}
    assert status_of(search.run.engine, model["job"]) == "finished"
    assert len(use_tracking(own_place).search_model_versions("name='digits'")) == 1


def test_the_same_command_takes_the_place_of_a_search_that_waits(search_for, place):
    search = search_for("waiting", RATES, trials=1)
    end_run(search.run, "PAUSED")
    again = search_for("waiting", RATES, trials=1)
    assert again.run.run_id == search.run.run_id
    with reading(search.run.engine) as session:
        job = get_job(session, search.run.job_id)
    assert (job.status, job.error) == ("cancelled", f"job {again.run.job_id} goes on with its study")
    end_run(again.run, "PAUSED")
    assert cancel_job(place, again.run.engine, again.run.job_id) == "cancelled"
    run = use_tracking(place).get_run(again.run.run_id)
    assert run.info.status == "KILLED"


def test_a_paused_helper_gives_its_trial_back_and_does_not_lead(search_for, place):
    search = search_for("helped", RATES, ("trainer.max_epochs=200", *QUICK[1:]), trials=1)
    run, plan = plan_tuning(place, "digits", overrides=("trainer.max_epochs=200", *QUICK[1:]))
    assert not enter(run, plan, "helped")
    with ThreadPoolExecutor(1) as pool:
        helping = pool.submit(join, run, plan, "helped")
        study = existing_study(place, "helped")
        until(lambda: [trial for trial in study.trials if trial.intermediate_values])
        assert control_job(run.engine, run.job_id, "pause") == "asked"
        with pytest.raises(Paused):
            helping.result()
    assert states(search) == ["FAIL", "WAITING"] and status_of(run.engine, run.job_id) == "paused"
    with pytest.raises(UsageError, match=f"job {search.run.job_id} works on the same study"):
        resume_job(place, run.engine, run.job_id)
    end_run(search.run, "KILLED")
    assert resume_job(place, run.engine, run.job_id, queued=True) == "queued"
    assert cancel_job(place, run.engine, run.job_id) == "cancelled"


def test_pausing_again_and_again_costs_no_trial(tmp_path):
    plan = parse_study({"study": {"trials": 2}, "space": RATES})
    study = open_study(Workspace(tmp_path), "patient", "digits", plan, BASE)
    for _ in range(5):
        trial, _ = claim(study, plan, BASE, {})
        give_back(study, trial, wanted=True)
    ended = [trial.params for trial in study.trials if trial.state == TrialState.FAIL]
    assert not counted(study) and ended == ended[:1] * 5
    for _ in range(4):
        give_back(study, claim(study, plan, BASE, {})[0])
    assert len(counted(study)) == 1  # Dying costs one in the end


# The budget ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgres"])
def shared_place(request, tmp_path, monkeypatch):
    "A workspace whose studies lie in a journal, or in the PostgreSQL of the team."
    if request.param == "postgres":
        monkeypatch.setenv("CMLOPS_DATABASE_URL", request.getfixturevalue("postgres_url"))
    workspace = Workspace(tmp_path)
    upgrade_database(open_engine(workspace.database_url))
    return workspace


BASE = {
    "optimizer": {"learning_rate": 0.002},
    "trainer": {"threads": 1},
    "preprocess": [],
    "augmentations": [],
}


def test_twenty_workers_do_not_exceed_the_budget(shared_place):
    plan = parse_study({"study": {"trials": 9}, "space": RATES})
    with study_lock(shared_place, "many"):
        open_study(shared_place, "many", "digits", plan, BASE)

    def one_worker(number: int) -> list[int]:
        study, mine = existing_study(shared_place, "many"), []
        while True:
            with study_lock(shared_place, "many"):
                if is_enough(study, plan.study):
                    return mine
                trial, settings = claim(study, plan, BASE, {"worker": number})
            study.tell(trial, settings["optimizer"]["learning_rate"])
            mine.append(trial.number)

    with ThreadPoolExecutor(8) as pool:
        done = [number for numbers in pool.map(one_worker, range(20)) for number in numbers]
    assert sorted(done) == list(range(9))
    drawn = {trial.params["optimizer.learning_rate"] for trial in existing_study(shared_place, "many").trials}
    assert len(drawn) == 9
    upgrade_database(open_engine(shared_place.database_url))  # Optuna's tables are not in our way


def test_a_study_that_was_interrupted_draws_what_it_would_have_drawn(tmp_path):
    plan = parse_study(
        {"study": {"trials": 8, "sampler": {"name": "tpe", "n_startup_trials": 3}}, "space": RATES}
    )

    def drawn(name: str, reopened: bool) -> list[float]:
        workspace = Workspace(tmp_path)
        study = open_study(workspace, name, "digits", plan, BASE)
        for _ in range(8):
            study = existing_study(workspace, name) if reopened else study
            trial, settings = claim(study, plan, BASE, {})
            study.tell(trial, -abs(settings["optimizer"]["learning_rate"] - 0.004))
        return [trial.params["optimizer.learning_rate"] for trial in study.trials]

    assert drawn("one", False) == drawn("other", True)


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "cmaes", "gp", "nsgaii"])
def test_every_sampler_draws_every_kind_of_parameter(tmp_path, sampler):
    space = {
        "optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "model.dropout": {"low": 0.0, "high": 0.5, "step": 0.25},
        "data.batch_size": {"low": 8, "high": 32, "step": 8},
        "loss.name": {"choices": ["cross_entropy", "focal"]},
        "loss.gamma": {"low": 1, "high": 3, "when": {"loss.name": "focal"}},
        "preprocess.0": {"choices": [None, {"step": "clahe"}]},
    }
    plan = parse_study({"study": {"sampler": sampler}, "space": space})
    base = json.loads(json.dumps(BASE | {"preprocess": [{"step": "gamma", "gamma": 1.1}]}))
    base |= {
        "loss": {"name": "cross_entropy", "gamma": 2},
        "model": {"dropout": 0.1},
        "data": {"batch_size": 16},
    }
    base["trainer"] = {"tune": "none"}
    study = open_study(Workspace(tmp_path), sampler, "digits", plan, base)
    for _ in range(14):
        trial, settings = claim(study, plan, base, {})
        params, _ = files_of(settings)
        assert params.data.batch_size % 8 == 0 and params.model.dropout in (0.0, 0.1, 0.25, 0.5)
        assert ("loss.gamma" in trial.params) == (params.loss.name == "focal")
        study.tell(trial, params.optimizer.learning_rate)
    assert not is_enough(study, plan.study) and len(counted(study)) == 14


def test_a_search_ends_when_nothing_improves(tmp_path):
    plan = parse_study({"study": {"trials": 100, "patience": 4}, "space": RATES})
    study, values = (
        open_study(Workspace(tmp_path), "still", "digits", plan, BASE),
        iter([1, 3, 2, 2, 2, 2, 9]),
    )
    while not is_enough(study, plan.study):
        study.tell(claim(study, plan, BASE, {})[0], next(values))
    assert [trial.value for trial in counted(study)] == [1, 3, 2, 2, 2, 2]


def test_a_deadline_begins_no_trial(tmp_path):
    plan = parse_study({"space": RATES})
    study = open_study(Workspace(tmp_path), "late", "digits", plan, BASE)
    assert is_enough(study, plan.study, time.time() - 1) and not is_enough(
        study, plan.study, time.time() + 60
    )


def test_a_grid_is_walked_once_whatever_the_budget(tmp_path):
    space = {"data.batch_size": {"low": 8, "high": 24, "step": 8}, "model.dropout": {"choices": [0.0, 0.1]}}
    plan = parse_study({"study": {"trials": 50, "sampler": "grid"}, "space": space})
    base = BASE | {"data": {"batch_size": 16}, "model": {"dropout": 0.1}}
    assert len(list(grid(plan.space, base))) == 6
    study = open_study(Workspace(tmp_path), "grid", "digits", plan, base)
    while not is_enough(study, plan.study):
        study.tell(claim(study, plan, base, {})[0], 1.0)
    points = {tuple(sorted(trial.params.items())) for trial in study.trials}
    assert len(points) == len(study.trials) == 6
    assert study.trials[0].params == {"data.batch_size": 16, "model.dropout": 0.1}


# Refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"preprocess.0": {"choices": [{"step": "clhae"}]}}, "did you mean clahe?"),
        ({"preprocess.7.gamma": {"low": 1.0, "high": 2.0}}, "the list has no item 7"),
        ({"preprocess.0.gama": {"low": 1.0, "high": 2.0}}, "did you mean gamma?"),
        ({"augmentations.0.p": {"low": 0.0, "high": 7.0}}, "space.augmentations.0.p"),
        ({"model.architecture": {"choices": ["resnet81"]}}, "did you mean resnet"),
        ({"model.dropout": {"choices": [0.1], "when": {"model.arch": "x"}}}, "unknown parameter model.arch"),
        ({"model.dropout": {"choices": [0.1], "when": {"loss.name": "focal"}}}, "loss.name never is focal"),
        ({"split.train": {"choices": [0.7]}}, "no trial would differ"),
        (
            {"preprocess": {"choices": [[]]}, "preprocess.0": {"choices": [None]}},
            "preprocess is searched as a whole",
        ),
    ],
)
def test_refused_spaces(place, space, words):
    save_yaml([{"transform": "HorizontalFlip", "p": 0.5}], place.augmentations_file, "")
    save_yaml({"space": space}, place.study_file, "")
    overrides = ["preprocess=[{step: gamma, gamma: 1.2}]"]
    before = sorted(place.runs.iterdir())
    with pytest.raises(UsageError) as caught:
        plan_tuning(place, "digits", overrides=overrides)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(place.runs.iterdir()) == before


def test_settings_that_change_by_themselves_are_refused(place):
    run_settings = load_params(place.params_file, ["trainer.tune=auto"]).model_dump(mode="json")
    with pytest.raises(UsageError, match=r"trainer.tune"):
        refuse_bad_space({}, run_settings | {"augmentations": []})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sampler": {"name": "tpe", "n_startup": 3}}, "did you mean n_startup_trials?"),
        ({"pruner": {"name": "hyperband", "reduction_factor": "x"}}, "reduction_factor cannot be x"),
        (
            {"sampler": "cmaes", "metric": ["valid_loss", "size_mb"], "pruner": "none"},
            "cmaes follows one metric",
        ),
        ({"start_from": ["neverland"]}, "study neverland does not exist"),
    ],
)
def test_refused_settings(search_for, settings, words):
    with pytest.raises(UsageError, match=r"^[^\n]*$") as caught:
        search_for("refused", RATES, **settings)
    assert words in str(caught.value)


def test_a_study_goes_on_as_what_it_was_begun_as(search_for):
    search = search_for("same", RATES, trials=1)
    end_run(search.run, "KILLED")
    with pytest.raises(UsageError, match=r"optimizer.learning_rate.*--study NAME"):
        search_for("same", {"optimizer.learning_rate": {"low": 1e-3, "high": 1e-1}})
    with pytest.raises(UsageError, match=r"other settings .trainer"):
        search_for("same", RATES, ("trainer.max_epochs=3", *QUICK[1:]))
    later = search_for("same", RATES, trials=5, sampler="random")
    assert later.run.run_id == search.run.run_id and later.plan.study.trials == 5


def test_a_search_in_which_nothing_works_ends_early(search_for):
    search = search_for("hopeless", RATES, (*QUICK, "data.cache=false"), trials=50)
    row = next(row for row in read_snapshot(search.run.snapshot_path) if row.split == "train")
    picture = search.run.workspace.root / row.image_path
    picture.rename(picture.with_suffix(".away"))  # while the search is about to begin
    try:
        with pytest.raises(UserError, match=r"the first 3 trials have failed; the last: .*picture"):
            work_together(search)
    finally:
        picture.with_suffix(".away").rename(picture)
    assert states(search) == ["FAIL"] * 3
    assert [run.info.status for run in children_of(search)] == ["FAILED"] * 3
    with pytest.raises(UserError, match="no trial of study hopeless"):
        tuning_outcome(search)


# From the terminal ---------------------------------------------------------------------------------


def test_the_command_tunes_registers_and_goes_on(own_place):
    workspace = own_place
    save_yaml({"study": {"trials": 2, "pruner": "none"}, "space": RATES}, workspace.study_file, "")
    found = answer_of(started(workspace, "tune", "digits", *(f"--set={text}" for text in QUICK)))
    assert found["states"] == {"complete": 2} and found["model_version"] == 1
    assert found["values"]["valid_accuracy"] >= found["default_values"]["valid_accuracy"]
    client = use_tracking(workspace)
    version = client.get_model_version("digits", "1")
    model = client.get_run(version.run_id)
    assert model.data.tags["mlflow.parentRunId"] == found["run_id"]
    assert model.data.metrics["test_accuracy"] == found["test_accuracy"]
    best = existing_study(workspace, "digits").best_trial
    kept = load_params(found["params_file"])
    assert kept == load_params(workspace.runs / best.user_attrs["run"] / "params.yaml")
    search = begin_search("digits", workspace, dict(files={}, overrides=QUICK, budget={}))
    work_together(search)
    assert train_best(search).model_version == 1  # nothing is left to do, and nothing is done twice
    end_run(search.run, "FINISHED")
    assert len(client.search_model_versions("name='digits'")) == 1


def test_two_workers_tune_on_postgres(tmp_path, postgres_url, monkeypatch):
    workspace = sample_workspace(tmp_path / "workspace")
    monkeypatch.setenv("CMLOPS_DATABASE_URL", postgres_url)
    engine = open_engine(workspace.database_url)
    upgrade_database(engine)
    with writing(engine) as session:
        create_theme(session, "digits")
    folder = write_digits(tmp_path / "source", limit=30, digits=3)
    import_folder(engine, workspace, "digits", folder, create_labels=True, actor="x")
    engine.dispose()
    save_yaml({"study": {"trials": 6, "pruner": "none"}, "space": RATES}, workspace.study_file, "")
    found = run_tuning(workspace, "digits", overrides=(*QUICK, "trainer.max_epochs=12"), workers=2)
    study = existing_study(workspace, "digits")
    assert found.states == {"complete": 6} and not [*workspace.artifacts.rglob("journal.log")]
    assert len({trial.params["optimizer.learning_rate"] for trial in study.trials}) == 6
    workers = {trial.user_attrs["worker"] for trial in study.trials}
    assert len(workers) == 2, "both have worked"
    client = use_tracking(workspace)
    assert client.get_model_version("digits", "1").run_id and found.model_version == 1
    assert found.values == {"valid_accuracy": study.best_value}
