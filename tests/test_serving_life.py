"A model server under load: exchanged, killed, stopped, mistreated, and counted."

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from base64 import b64encode
from contextlib import contextmanager

import psutil
import pytest
from packaged import pictures, register_small, workspace_with_model
from waiting import until

from classification_mlops.db.session import open_engine, upgrade_database, writing
from classification_mlops.db.themes import create_theme
from classification_mlops.registry.registration import promote
from classification_mlops.serving.server import ModelServer, refresh

PROGRAM = [sys.executable, "-c", "import sys; from classification_mlops.cli import main; sys.exit(main())"]
HEAD = "POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
TEXT = [b64encode(data).decode() for data in pictures(4)]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    "Two workers that write a log, serving version 1 of three; the weights of version 3 are torn."
    root = tmp_path_factory.mktemp("life")
    workspace, *_ = workspace_with_model(root / "workspace", "screws")
    register_small(workspace, "screws", alias=None)
    torn, _ = register_small(workspace, "screws", alias=None)
    for path in (workspace.mlflow_dir / "artifacts" / "models").rglob("weights.safetensors"):
        if torn.uri.removeprefix("models:/") in str(path):
            path.write_bytes(path.read_bytes()[:1000])
    with ModelServer(
        workspace, "screws", workers=2, log=str(root / "log"), sample=1, pictures=True
    ) as server:
        yield workspace, server, root / "log"


def ask(server, content, timeout=60):
    "Predictions for a request."
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/invocations", json.dumps(content).encode(), kind)
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return json.load(response)["predictions"]


def get(server, path) -> str:
    with urllib.request.urlopen(f"{server.url}{path}", timeout=10) as response:
        return response.read().decode()


@contextmanager
def load(server, clients=4):
    "Clients that ask all the time; the versions that answered, and what went wrong."
    versions, failures, done = [], [], threading.Event()

    def run(n):
        while not done.is_set():
            try:
                versions.append(ask(server, {"instances": [TEXT[n % 4]]})[0]["model_version"])
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=run, args=[n]) for n in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield versions, failures
    finally:
        done.set()
        for thread in threads:
            thread.join()


def workers(server):
    return psutil.Process(server.process.pid).children()


def test_a_new_champion_takes_over_without_a_lost_request(served):
    workspace, server, _ = served
    with load(server) as (versions, failures):
        until(lambda: len(versions) > 20)
        promote(workspace, "screws", 2)
        assert refresh(server)
        until(lambda: versions[-20:] == [2] * 20)
    assert failures == [] and set(versions) == {1, 2}


def test_people_exchange_the_champion_and_take_it_back_under_load(served):
    workspace, server, _ = served
    engine = open_engine(workspace.database_url)
    upgrade_database(engine)
    with writing(engine) as session:
        create_theme(session, "screws")
    engine.dispose()
    promote(workspace, "screws", 1)
    refresh(server)
    until(lambda: ask(server, {"instances": TEXT[:1]})[0]["model_version"] == 1)

    def models(*arguments):
        variables = os.environ | {"CMLOPS_WORKSPACE": str(workspace.root), "CMLOPS_USER": "ann"}
        done = subprocess.run([*PROGRAM, "models", *arguments], env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    with load(server) as (versions, failures):
        models("promote", "screws", "2", "--force", "--reason", "tried on line 3")
        assert refresh(server)  # As `cmlops serve` looks every few seconds
        until(lambda: versions[-20:] == [2] * 20)
        models("rollback", "screws", "--reason", "line 3 stopped")
        assert refresh(server)
        until(lambda: versions[-20:] == [1] * 20)
        promote(workspace, "screws", 2)
        assert refresh(server)
        until(lambda: versions[-20:] == [2] * 20)
    assert failures == []


def test_a_broken_champion_changes_nothing_but_the_ready_page(served):
    workspace, server, _ = served
    with load(server) as (versions, failures):
        promote(workspace, "screws", 3)
        refresh(server)
        until(lambda: "refused" in get(server, "/ready"))
        seen = len(versions)
        until(lambda: len(versions) > seen + 40 and versions[-20:] == [2] * 20)
    state = json.loads(get(server, "/ready"))
    assert failures == [] and 3 not in versions
    assert (state["version"], state["refused"]["version"]) == (2, 3)
    assert str(workspace.root) not in json.dumps(state) and "/tmp" not in json.dumps(state)


def test_a_killed_worker_is_replaced_within_five_seconds(served):
    _, server, _ = served
    with load(server) as (versions, failures):
        until(lambda: len(versions) > 20)
        before = {one.pid for one in workers(server)}
        victim, start = workers(server)[0], time.monotonic()
        victim.kill()
        until(lambda: len({one.pid for one in workers(server)} - before) == 1, limit_s=5)
        seen = len(versions)
        until(lambda: len(versions) > seen + 20)
        assert time.monotonic() - start < 10
    assert len(failures) <= 4  # what the four clients had in work
    assert len(set(versions)) == 1


FORMS = [
    {"dataframe_split": {"columns": ["image"], "data": [[text] for text in TEXT[:3]]}},
    {"dataframe_records": [{"image": text} for text in TEXT[:3]]},
    {"inputs": {"image": TEXT[:3]}},
    {"inputs": [*TEXT[:2], "no base64!", "", "/etc/passwd", "file:///etc/passwd"]},
    {"instances": [{"image": text} for text in TEXT[:3]]},
    {"instances": TEXT[:1]},
]
WISHES = [
    {},
    {"top_k": 2},
    {"accept_confidence": 0},
    {"accept_confidence": 0.4, "top_k": 1},
    {"accept_confidence": 1.01},
    {"accept_confidence": -3, "top_k": -3},
    {"top_k": 99},
]


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("content", FORMS)
def test_the_short_way_answers_byte_for_byte_as_mlflow(served, content, wish):
    _, server, _ = served
    answers = []
    body = json.dumps(content | ({"params": wish} if wish else {})).encode()
    for kind in ("application/json", "application/json; charset=utf-8"):  # The longer one is left to MLflow
        request = urllib.request.Request(f"{server.url}/invocations", body, {"Content-Type": kind})
        answers.append(urllib.request.urlopen(request).read())
    assert answers[0] == answers[1]


def test_a_request_may_wish(served):
    _, server, _ = served
    wishes = {"top_k": 1, "accept_confidence": 1.01, "overlay": True}
    (row,) = ask(server, {"instances": TEXT[:1], "params": wishes})
    assert len(row["probabilities"]) == 1 and row["decision"] == "unsure"
    assert row["overlay"].startswith("iVBOR")


def test_an_unmodified_mlflow_client_is_answered(served):
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient
    from pandas import DataFrame

    _, server, _ = served
    client = ScoringServerClient("127.0.0.1", server.port)
    client.wait_server_ready(timeout=10)
    answers = client.invoke(DataFrame({"image": TEXT})).get_predictions()
    assert list(answers["error"].isna()) == [True] * 4


def test_the_numbers_of_both_workers_are_one(served):
    _, server, _ = served

    def count():
        name = 'cmlops_requests_total{status="200"}'
        return next(float(x.split()[1]) for x in get(server, "/metrics").splitlines() if x.startswith(name))

    before = count()
    for _ in range(30):
        ask(server, {"instances": TEXT[:1]})
    assert count() == before + 30
    numbers = get(server, "/metrics")
    for name in (
        "request_seconds_bucket",
        "answers_total",
        "queue_pictures",
        "model_version",
        "memory_bytes",
    ):
        assert f"cmlops_{name}" in numbers


def test_the_log_tells_what_was_answered(served):
    _, server, log = served
    ask(server, {"instances": TEXT[:2]})
    path = log / "requests.jsonl"
    until(lambda: len(path.read_text().splitlines()) >= 2)
    record = json.loads(path.read_text().splitlines()[-1])
    assert set(record) >= {"time", "version", "sha256", "label", "confidence", "decision", "latency_ms"}
    assert any(one.name == record["sha256"] for one in (log / "requests.jsonl.pictures").iterdir())


def test_half_open_headers_do_not_disturb_and_are_closed(served):
    _, server, _ = served
    slow = [socket.create_connection((server.host, server.port)) for _ in range(400)]
    for one in slow:
        one.sendall(b"POST /invocations HTTP/1.1\r\nHost: a\r\nX-Slow: ")
    start = time.monotonic()
    assert json.loads(get(server, "/health"))["alive"] and time.monotonic() - start < 1
    for one in slow:
        one.settimeout(60)
        assert one.recv(100).startswith(b"HTTP/1.1 408")
        one.close()
    assert time.monotonic() - start < 60


def test_bodies_that_come_slowly_do_not_disturb_and_are_closed(served):
    _, server, _ = served
    head = f"{HEAD}Content-Length: 100000\r\n\r\n".encode()
    slow = [socket.create_connection((server.host, server.port)) for _ in range(800)]
    start = time.monotonic()
    for one in slow:
        one.sendall(head + b'{"instances": ["')
    asked = time.monotonic()
    assert json.loads(get(server, "/health"))["alive"] and time.monotonic() - asked < 1
    assert ask(server, {"instances": TEXT[:1]})[0]["label"]
    for one in slow:
        one.settimeout(70)
        assert one.recv(100)[:12] in (b"", b"HTTP/1.1 408", b"HTTP/1.1 503")
        one.close()
    assert time.monotonic() - start < 70


def test_interrupted_clients_leave_nothing(served):
    _, server, _ = served
    ask(server, {"instances": TEXT})

    def held():
        return sum(one.num_fds() for one in workers(server)), sum(
            one.num_threads() for one in workers(server)
        )

    before = held()
    head = f"{HEAD}Content-Length: 1000\r\n\r\n".encode()
    for _ in range(500):
        with socket.create_connection((server.host, server.port)) as connection:
            connection.sendall(head + b"{")
    until(lambda: held()[0] <= before[0] + 4)
    assert held()[1] <= before[1] + 8  # threads that the event loop keeps for later


def test_many_at_once_are_answered_or_told_to_come_back(served):
    _, server, _ = served
    body = json.dumps({"instances": TEXT * 16}).encode()
    head = f"{HEAD}Content-Length: {len(body)}\r\n"
    connections = [socket.create_connection((server.host, server.port), timeout=60) for _ in range(200)]
    for one in connections:
        one.sendall(f"{head}Connection: close\r\n\r\n".encode() + body)
    answers = [one.makefile("rb").read() for one in connections]
    kinds = {answer.split()[1] for answer in answers}
    assert kinds <= {b"200", b"503"} and b"200" in kinds
    assert all(b"retry-after" in answer.lower() for answer in answers if answer.split()[1] == b"503")
    assert ask(server, {"instances": TEXT[:1]})[0]["label"]


def test_who_is_being_answered_is_answered_before_the_end(tmp_path):
    workspace, *_ = workspace_with_model(tmp_path, "screws")
    with ModelServer(workspace, "screws") as server:
        got = []
        thread = threading.Thread(target=lambda: got.extend(ask(server, {"instances": TEXT * 100})))
        thread.start()
        until(lambda: float(get(server, "/metrics").split("cmlops_queue_pictures ")[-1].split()[0]) > 0)
        start = time.monotonic()
        os.kill(server.process.pid, signal.SIGTERM)
        thread.join()
        server.process.wait(10)
        assert len(got) == 400 and time.monotonic() - start < 10


def test_workers_do_not_outlive_their_supervisor(tmp_path):
    workspace, *_ = workspace_with_model(tmp_path / "workspace", "screws")
    with ModelServer(workspace, "screws") as server:
        left = psutil.Process(server.process.pid).children()
        assert left
        server.process.kill()
        _, alive = psutil.wait_procs(left, timeout=15)
        assert not alive
