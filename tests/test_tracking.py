"What screens know of MLflow: the same from tables and from a server, and what they say of a silent one."

import base64
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
from browser import add_people, chromium, free_port, opened, served, signed_in
from packaged import register_small
from waiting import until

from classification_mlops.db.jobs import change_status, create_job
from classification_mlops.db.session import open_engine, writing
from classification_mlops.db.themes import get_theme
from classification_mlops.demo import sample_workspace
from classification_mlops.registry import rest, tracking
from classification_mlops.registry.registration import promote, use_tracking

START_S = 60
CURVES = {
    "train_loss": [1.5, 1.0, 0.5],
    "valid_loss": [1.6, float("nan"), 0.9],
    "valid_accuracy": [0.3, 0.5, 0.7],
}


@contextmanager
def mlflow_server(workspace, port: int):
    "MLflow's own server on the tables of a workspace."
    options = ["--backend-store-uri", f"sqlite:///{workspace.mlflow_dir}/mlflow.db", "--port", str(port)]
    options += ["--artifacts-destination", str(workspace.mlflow_dir / "artifacts"), "--workers", "1"]
    variables = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=variables)
    server = subprocess.Popen([sys.executable, "-m", "mlflow", "server", *options], **quiet)
    deadline = time.monotonic() + START_S
    try:
        while True:
            assert server.poll() is None, "MLflow's server has ended"
            try:
                urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except OSError:
                assert time.monotonic() < deadline, "MLflow's server does not answer"
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "Two versions of one model, one of another whose name needs quotes, and a run with curves."
    workspace = sample_workspace(tmp_path_factory.mktemp("tracking"))
    add_people(workspace, ann="admin")
    runs = [
        register_small(workspace, "digits", alias=alias)[0].run_id for alias in ("champion", "challenger")
    ]
    register_small(workspace, "it's", alias=None)
    promote(workspace, "digits", 1, "night-shift")
    client = use_tracking(workspace)
    for name, values in CURVES.items():
        for step, value in enumerate(values):
            client.log_metric(runs[0], name, value, step=step)
    client.log_metric(runs[0], "test_accuracy", 0.75)
    client.log_metric(runs[0], "odd", float("nan"))
    client.set_tag(runs[0], "git_commit", "abc")
    engine = open_engine(workspace.database_url)
    with writing(engine) as session:
        for run in runs:
            job = create_job(session, "train", get_theme(session, "digits"), {})
            job.mlflow_run_id = run
            session.flush()
            change_status(session, job.id, "queued", "failed")
    engine.dispose()
    return SimpleNamespace(workspace=workspace, runs=runs)


def all_answers(site) -> dict:
    workspace, run = site.workspace, site.runs[0]
    return {
        "champions": tracking.champions(workspace),
        "versions": [tracking.versions_of(workspace, theme) for theme in ("digits", "it's", "other")],
        "metrics": tracking.run_metrics(workspace, run),
        "tags": tracking.run_tags(workspace, run),
        "curves": tracking.run_curves(workspace, run),
        "nothing": (tracking.run_metrics(workspace, "0" * 32), tracking.run_curves(workspace, "0" * 32)),
    }


@pytest.fixture(scope="module")
def server(site):
    with mlflow_server(site.workspace, free_port()) as url:
        yield url


def test_a_server_says_what_its_tables_say(site, server, monkeypatch):
    known = all_answers(site)
    assert known["champions"] == {"digits": 1}
    assert known["versions"][0][site.runs[0]] == {"version": 1, "aliases": ["champion", "night-shift"]}
    assert len(known["versions"][0]) == 2 and len(known["versions"][1]) == 1 and known["versions"][2] == {}
    assert known["metrics"]["test_accuracy"] == 0.75 and "odd" not in known["metrics"]
    assert [row["epoch"] for row in known["curves"]] == [0, 1, 2] and "valid_loss" not in known["curves"][1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert all_answers(site) == known
    assert tracking.tracking_trouble(site.workspace) == ""


def test_long_answers_come_whole(site, server, monkeypatch):
    asked = dict(filter="name='digits'", max_results=1)
    rows = list(rest.ask_pages(server, "model-versions/search", "model_versions", **asked))
    assert sorted(row["version"] for row in rows) == ["1", "2"]


def test_screens_show_versions_and_aliases_of_a_server(site):
    port, web, page = free_port(), free_port(), None
    address = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    history, row = "/theme/1/training/history/", f"tr[data-run='{site.runs[0]}']"
    with chromium() as browser:
        with served(site.workspace, port=web, **address) as url:
            with mlflow_server(site.workspace, port):
                page = signed_in(browser, url, "ann")
                assert "champion: version 1" in page.inner_text(".cards")
                opened(page, url + history)
                shown = page.wait_for_selector(row).inner_text()
                assert "champion" in shown and "night-shift" in shown
                opened(page, f"{url}/theme/1/inference/")
                page.wait_for_selector(".inference[data-ready]")
                values = "all => all.map((one) => one.value)"
                shown = {*page.locator("[data-models] option").evaluate_all(values)}
                assert shown == {"champion", "challenger", "night-shift", "1", "2"}

            def troubled() -> int:  # An answer counts for a moment
                opened(page, url + history)
                page.wait_for_selector(row)
                return page.locator("[data-trouble]").count()

            until(troubled)  # What was known stands, and says that it may be old
            assert "champion" in page.inner_text(row)
            assert "does not answer" in page.inner_text("[data-trouble]")
        with served(site.workspace, port=web, **address) as url:
            opened(page, url + history)
            assert "champion" not in page.wait_for_selector(row).inner_text()
            assert f"MLflow at {address['MLFLOW_TRACKING_URI']} does not answer" in page.inner_text(
                "[data-trouble]"
            )
            opened(page, f"{url}/theme/1/inference/")
            assert "does not answer" in page.wait_for_selector(".inference .notice .error").inner_text()
            page.goto(url)
            assert "does not answer" in page.inner_text("[data-trouble]")
            with mlflow_server(site.workspace, port):
                deadline = time.monotonic() + START_S
                while page.goto(url) and page.locator("[data-trouble]").count():
                    assert time.monotonic() < deadline
                assert "champion: version 1" in page.inner_text(".cards")


def test_nobody_waits_long_for_a_server_that_says_nothing(monkeypatch):
    monkeypatch.setattr(rest, "WAIT_S", (0.3, 0.3))
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address, began = f"http://127.0.0.1:{mute.getsockname()[1]}", time.monotonic()
        assert rest.ask_mlflow(address, "runs/get", run_id="1") == {}
        assert time.monotonic() - began < 3 and "does not answer" in rest.silence(address)
        assert rest.ask_mlflow(address, "runs/get", run_id="2") == {}
        mute.settimeout(0.1)
        mute.accept()[0].close()  # The first question
        with pytest.raises(TimeoutError):  # There was no second
            mute.accept()


def test_a_server_is_told_who_asks(monkeypatch):
    seen = []

    class Door(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers["Authorization"])
            self.send_response(200 if seen[-1] else 401)
            self.end_headers()
            self.wfile.write(b"{}")

        log_message = lambda *_: None  # noqa: E731

    with HTTPServer(("127.0.0.1", 0), Door) as door:
        threading.Thread(target=door.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{door.server_port}"
        rest.ask_mlflow(address, "a")
        assert "refused: 401 Unauthorized" in rest.silence(address)
        rest.forget_answers()
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
        rest.ask_mlflow(address, "a")
        assert seen == [None, "Basic " + base64.b64encode(b"ann:secret").decode()] and not rest.silence(
            address
        )
        rest.forget_answers()
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token")
        rest.ask_mlflow(address, "a")
        assert seen[-1] == "Bearer token"
        door.shutdown()
