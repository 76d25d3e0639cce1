"A real MLflow model server, spoken to as clients do, and mistreated."

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import psutil
import pytest
from packaged import LABELS, PARAMS, has_torch, pictures, small_network, workspace_with_model
from waiting import until

from classification_mlops.registry.pyfunc import Wishes, answer_wishes, load_classifier, write_model_folder
from classification_mlops.registry.registration import (
    download,
    promote,
    register_model,
    theme_experiment,
    use_tracking,
)
from classification_mlops.serving.client import PredictionClient, request_body
from classification_mlops.serving.server import ModelServer, open_port
from classification_mlops.text import UsageError, UserError

COLUMNS = {"label", "confidence", "probabilities", "labels", "decision", "error", "model_version"}
FILES = pictures(4)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    "A running server with a request limit of 2 MB, and the model folder it serves."
    workspace, _, folder = workspace_with_model(tmp_path_factory.mktemp("serving") / "ねじ 検査")
    os.environ["CMLOPS_MAX_REQUEST_MB"] = "2"
    try:
        with ModelServer(workspace, "ねじ") as server:
            yield workspace, server, load_classifier(folder)
    finally:
        del os.environ["CMLOPS_MAX_REQUEST_MB"]


def post(url: str, body: bytes, content_type: str | None = "application/json", **headers):
    "Status and text of the answer; urllib would add a content type of its own, so the headers are ours."
    request = urllib.request.Request(f"{url}/invocations", body, method="POST")
    request.add_header("Content-type", content_type or "")
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def gone(processes, within_s: float = 20) -> bool:
    "Whether all these processes end within that time."
    return not psutil.wait_procs(processes, timeout=within_s)[1]


def family(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def memory(server) -> int:  # bytes
    "Resident memory of the process that answers."
    return sum(one.memory_info().rss for one in psutil.Process(server.process.pid).children())


# Answers


def test_raw_files_are_answered_as_by_the_training_path(served):
    _, server, classifier = served
    rows = list(PredictionClient(server.url).predict(FILES))
    expected = classifier.classify(FILES)
    assert all(set(row) == COLUMNS for row in rows)
    assert [row["label"] for row in rows] == expected.label.tolist()
    for row, probabilities in zip(rows, expected.probabilities, strict=True):
        assert list(row["probabilities"]) == LABELS
        assert row["probabilities"] == pytest.approx(probabilities, abs=1e-6)


def test_a_client_of_mlflow_is_answered(served):
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    _, server, classifier = served
    client = ScoringServerClient("127.0.0.1", server.port)
    client.wait_server_ready(timeout=10)
    frame = pd.DataFrame({"image": [b64encode(data).decode() for data in FILES]})
    for given in (None, {"top_k": 1}):
        rows = client.invoke(frame, params=given).get_predictions()
        assert rows["label"].tolist() == classifier.classify(FILES).label.tolist()


TEXT = [b64encode(data).decode() for data in FILES[:3]]


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["image"], "data": [[text] for text in TEXT]}},
        {"dataframe_split": {"columns": ["image"], "index": [7, 8, 9], "data": [[text] for text in TEXT]}},
        {"dataframe_records": [{"image": text} for text in TEXT]},
        {"dataframe_records": [{"image": text, "camera": 7} for text in TEXT]},
        {"inputs": {"image": TEXT}},
        {"inputs": [{"image": text} for text in TEXT]},
        {"inputs": TEXT},
        {"instances": [{"image": text} for text in TEXT]},
        {"instances": TEXT},
    ],
)
def test_every_form_of_json_means_the_same(served, body):
    _, server, classifier = served
    status, text = post(server.url, json.dumps(body).encode())
    assert status == 200, text
    answers = json.loads(text)["predictions"]
    assert [row["label"] for row in answers] == classifier.classify(FILES[:3]).label.tolist()
    assert [row["error"] for row in answers] == [None] * 3


def test_csv_is_understood_too(served):
    _, server, classifier = served
    status, text = post(server.url, "\n".join(["image", *TEXT]).encode(), "text/csv")
    assert status == 200
    assert [row["label"] for row in json.loads(text)["predictions"]] == classifier.classify(
        FILES[:3]
    ).label.tolist()


@pytest.mark.parametrize("form", ["split", "records", "instances", "inputs"])
@pytest.mark.parametrize("position", [0, 1, 3])
def test_bad_rows_are_answered_one_by_one(served, position, form):
    _, server, classifier = served
    good = classifier.classify(FILES[:3]).label.tolist()
    bad = ["", "!!!", "PGh0bWw+", b64encode(FILES[0][:70]).decode(), "/etc/passwd", "file:///etc/passwd"]
    bad += [None, 7, True] if form in ("split", "records") else []
    for value in bad:
        values = [*TEXT[:position], value, *TEXT[position:]]
        records = [{"image": text} for text in values]
        body = {
            "split": {"dataframe_split": {"columns": ["image"], "data": [[text] for text in values]}},
            "records": {"dataframe_records": records},
            "instances": {"instances": records},
            "inputs": {"inputs": {"image": values}},
        }[form]
        status, text = post(server.url, json.dumps(body).encode())
        assert status == 200, (value, text)
        rows = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["predictions"]
        assert rows[position]["error"] and rows[position]["label"] is None, value
        assert [row["label"] for i, row in enumerate(rows) if i != position] == good, value


def test_a_batch_of_many_keeps_its_order(served, tmp_path):
    _, server, classifier = served
    files = [tmp_path / f"{i:03}.png" for i in range(30)]
    for i, path in enumerate(files):
        path.write_bytes(FILES[i % 4] if i % 7 else b"broken")
    rows = list(PredictionClient(server.url).predict([*files, tmp_path / "missing.png"], batch_size=8))
    labels = classifier.classify(FILES).label.tolist()
    assert [row["label"] for row in rows] == [labels[i % 4] if i % 7 else None for i in range(30)] + [None]
    assert rows[-1]["error"] == "vanished"


SLOW = [b64encode(cv2.imencode(".png", np.full((4000, 4000), n, np.uint8))[1]).decode() for n in range(20)]


def number(server, name: str) -> float:
    "One of the numbers of the server."
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def test_requests_with_different_wishes_share_passes_through_the_network(served):
    _, server, classifier = served
    wishes = [{"top_k": n % 4} if n % 2 else {"accept_confidence": n / 16} for n in range(16)]

    def asked(images, **more):
        status, text = post(server.url, json.dumps({"instances": images, **more}).encode())
        assert status == 200
        return json.loads(text)["predictions"]

    def batches():
        return np.array([number(server, f"cmlops_batch_pictures_{what}") for what in ("count", "sum")])

    before = batches()
    with ThreadPoolExecutor(17) as pool:
        slow = pool.submit(asked, SLOW)  # Those who come meanwhile go together
        until(lambda: number(server, "cmlops_queue_pictures") >= len(SLOW))
        answers = [row for (row,) in pool.map(lambda wish: asked(TEXT[:1], params=wish), wishes)]
        assert len(slow.result()) == len(SLOW)
    count, asked_about = batches() - before
    assert asked_about == len(SLOW) + len(wishes) and count <= 8
    for answer, wish in zip(answers, wishes, strict=True):
        (expected,) = answer_wishes(classifier, TEXT[:1], Wishes(**wish)).to_dict("records")
        assert answer["decision"] == expected["decision"] and answer["label"] == expected["label"]
        assert list(answer["probabilities"]) == list(expected["probabilities"])


# Mistreatment

MALFORMED = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"7",
    "no known key": b'{"picture": 1}',
    "two keys": b'{"inputs": [1], "instances": [1]}',
    "no rows": b'{"dataframe_records": []}',
    "another column": b'{"dataframe_records": [{"img": "x"}]}',
    "wrong shape": b'{"dataframe_split": 7}',
    "ragged": b'{"dataframe_split": {"columns": ["image"], "data": [["a", "b"]]}}',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep inside": b'{"inputs": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "long number": b'{"inputs": ' + b"9" * 5_000 + b"}",
    "not UTF-8": b'{"inputs": "\xff\xfe"}',
    "NUL": b'{"inputs": "\x00"}',
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("content_type", ["application/json", "text/csv", "application/vnd.apache.parquet"])
def test_malformed_requests_are_refused_without_a_word_too_many(served, body, content_type):
    _, server, _ = served
    status, text = post(server.url, body, content_type)
    assert status in (200, 400), text[:500]
    if status == 200:  # CSV and Parquet readers find a table in surprising places
        assert all(row["error"] for row in json.loads(text)["predictions"])
    assert len(text) < 2_000
    for word in ("Traceback", "File ", "site-packages", ".py", str(Path.home())):
        assert word not in text


@pytest.mark.parametrize(
    "content_type", [None, "image/png", "text/html; charset=latin-1", "application/json; a=b"]
)
def test_other_content_types_are_refused(served, content_type):
    _, server, _ = served
    status, text = post(server.url, json.dumps(request_body(FILES[:1])).encode(), content_type)
    assert status == 415 and "application/json" in json.loads(text)["message"]


# What some programs call JSON and the standard (RFC 8259) does not.
NO_JSON = r"""
1.e3 .5 +1 01 -01 0x1 1e 1eE2 -.1 Inf 'a' "a "\x00" "\u00A" "\uD8" "\a" "\" [1,] [,1] [1 {"a":1,} {a:1}
{'a':1} {"a":1,,} {"a":"b"}} {1:1} {"a":} {"a"1} tru nul TRUE // /**/1 1/**/ [1]x "a"x 1# [1;2] (1) <1>
"""
NO_JSON = [*NO_JSON.split(), '"\ttab"', '"a\nb"', "\ufeff1", "[1 1]", '{"a" 1}', "\xa01"]
# What is JSON, however strange, or what Python takes for it; anything may come of it but a fault.
JSON = r"""
[] {} null true -0 1e308 1E+400 -1e400 1e-999 123456789012345678901234567890 0.1e1 "" "\u0000" "\uD800" "\/"
"\uDFFF\uD800" "\uD83D\uDE00" {"":0} {"a":1,"a":2} {"__proto__":1} [[]] [[[]],{}] [null,1,"1",{}] {"a":[1,{}]}
"""
JSON = [*JSON.split(), '"\U0010ffff"', '"\u2028"', '"\x7f"', "NaN", "-Infinity"]
PLACES = (
    "{}",
    '{{"instances": [{}]}}',
    '{{"inputs": {}}}',
    '{{"dataframe_records": [{{"image": {}}}]}}',
    '{{"instances": ["x"], "params": {}}}',
)


@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_json_is_refused_and_all_json_is_answered(served, place):
    _, server, _ = served
    for text in NO_JSON:
        status, said = post(server.url, place.format(text).encode("utf-8", "surrogatepass"))
        assert status == 400 and len(said) < 2_000, (text, said[:300])
    for text in JSON:
        status, said = post(server.url, place.format(text).encode())
        assert status in (200, 400), (text, said[:300])
        assert "Traceback" not in said and "site-packages" not in said
        json.loads(said)


def test_a_body_that_would_swell_is_not_unpacked(served):
    _, server, _ = served
    before = memory(server)
    bomb = gzip.compress(b'{"instances": ["' + b"A" * 400_000_000 + b'"]}', 9)
    assert len(bomb) < 2**20
    status, said = post(server.url, bomb, Content_Encoding="gzip")
    assert status in (400, 415) and len(said) < 2_000
    assert memory(server) - before < 100 * 2**20


ELSEWHERE = r"""
/etc/passwd /etc/nothing-there /proc/self/environ file:///etc/passwd ../../etc/passwd images/1/a.png
~/.ssh/id_rsa http://169.254.169.254/ http://127.0.0.1:1/ http://[::1]/ http://2130706433/ https://localhost/
ftp://127.0.0.1/a gopher://127.0.0.1/ data:text/plain,a s3://bucket/a \\server\share jar:file:/a
dict://127.0.0.1/ %2fetc%2fpasswd
""".split()


def test_addresses_are_never_followed(served):
    _, server, _ = served
    status, said = post(server.url, json.dumps({"instances": ELSEWHERE}).encode())
    rows = json.loads(said)["predictions"]
    assert status == 200 and len(rows) == len(ELSEWHERE)
    assert all(row["error"] and row["label"] is None for row in rows)
    there, missing = (row["error"] for row in rows[:2])
    assert there == missing, "an answer may not tell whether a file exists"
    assert "root:" not in said and "PATH=" not in said


def test_large_requests_are_refused_early(served):
    _, server, _ = served
    before = memory(server)
    with socket.create_connection((server.host, server.port), timeout=30) as connection:
        connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Content-Length: 314572800\r\n\r\n" + b"x" * 1000)
        assert b" 413 " in connection.recv(200).splitlines()[0]
    with socket.create_connection((server.host, server.port), timeout=30) as connection:
        connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(5):
            connection.sendall(b"80000\r\n" + b"x" * 0x80000 + b"\r\n")
        assert b" 413 " in connection.recv(200).splitlines()[0]
    assert memory(server) - before < 100 * 2**20


def test_the_client_sends_less_when_the_server_wants_less(served):
    _, server, classifier = served
    large = FILES[0] + b"\0" * 1_200_000  # trailing bytes are no part of the picture
    enormous = FILES[0] + b"\0" * 2_500_000
    rows = list(PredictionClient(server.url).predict([large, FILES[1], enormous, large]))
    labels = classifier.classify(FILES[:2]).label.tolist()
    assert [row["label"] for row in rows] == [labels[0], labels[1], None, labels[0]]
    assert rows[2]["error"] == "too_many_bytes"


def test_the_client_asks_again_on_a_connection_that_was_closed(served):
    _, server, _ = served
    client = PredictionClient(server.url)
    assert next(client.predict(FILES[:1]))["label"]
    for connection in client.connections:
        if connection.connection:
            connection.connection.sock.shutdown(socket.SHUT_RDWR)
    assert next(client.predict(FILES[:1]))["label"]


def test_the_server_is_still_well(served):
    _, server, _ = served
    assert len(list(PredictionClient(server.url).predict(FILES))) == 4
    assert server.process.poll() is None


# Life and death


def test_pytorch_is_there_before_the_first_worker_is(served):
    assert has_torch(served[1].process.pid)


def test_a_port_in_use_is_said_at_once(served):
    workspace, server, _ = served
    children = set(psutil.Process().children())
    start = time.monotonic()
    message = f"port {server.port} of 127.0.0.1 cannot be opened"
    with pytest.raises(UserError, match=message), ModelServer(workspace, "ねじ", port=server.port):
        pass
    assert time.monotonic() - start < 2
    assert set(psutil.Process().children()) == children
    with pytest.raises(UserError, match="not an address"), open_port("no.such.host.invalid"):
        pass


def test_an_unknown_model_leaves_nothing_behind(served):
    workspace, *_ = served
    children = set(psutil.Process().children())
    with pytest.raises(UsageError, match="it has: 1, champion"), ModelServer(workspace, "ねじ", alias="9"):
        pass
    assert set(psutil.Process().children()) == children


def test_two_workers_answer_and_leave_nothing(served):
    workspace, _, classifier = served
    with ModelServer(workspace, "ねじ", workers=2) as server:
        processes = family(server.process.pid)
        assert len(processes) >= 3
        rows = list(PredictionClient(server.url).predict(FILES))
        assert [row["label"] for row in rows] == classifier.classify(FILES).label.tolist()
        port, folder = server.port, server.folder
    assert gone(processes, within_s=1) and not folder.exists()
    open_port("127.0.0.1", port).close()


def test_a_broken_model_says_why_and_leaves_nothing(served, tmp_path):
    workspace, *_ = served
    client = use_tracking(workspace)
    run_id = client.create_run(theme_experiment(workspace, "broken")).info.run_id
    folder = write_model_folder(workspace.runs / run_id / "model", small_network(), PARAMS, [], LABELS)
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])  # before it is registered: its hash is right
    promote(workspace, "broken", register_model(workspace, "broken", run_id, folder).version)
    children = set(psutil.Process().children())
    with pytest.raises(UserError, match="did not start") as caught, ModelServer(workspace, "broken"):
        pass
    assert "afetensor" in str(caught.value) and "\n" not in str(caught.value)
    assert set(psutil.Process().children()) == children


SERVE = """
import sys
from classification_mlops.serving.server import serve_forever
from classification_mlops.workspace import find_workspace
serve_forever(find_workspace(sys.argv[1]), "ねじ", port=0)
"""


def foreground(workspace):
    "A process like `cmlops serve`, and everything it has started, when it answers."
    command = [sys.executable, "-c", SERVE, str(workspace.root)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    line = process.stderr.readline()
    assert "http://127.0.0.1:" in line, line + process.stderr.read()
    return process, family(process.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_foreground_server_ends_well(served, number):
    process, processes = foreground(served[0])
    process.send_signal(number)
    assert process.wait(timeout=30) == 0
    assert process.stderr.read() == "" and gone(processes)


def test_a_server_does_not_outlive_its_killed_parent(served):
    process, processes = foreground(served[0])
    process.kill()
    assert process.wait() == -signal.SIGKILL and len(processes) >= 2
    assert gone(processes[1:])


def test_mlflow_itself_can_serve_the_model(served, tmp_path):
    workspace, *_ = served
    folder = download(workspace, "ねじ", "champion", tmp_path / "model")
    with open_port("127.0.0.1") as free:
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        folder,
        "-p",
        str(port),
        "--env-manager",
        "local",
    ]
    environment = os.environ | {
        "PYTHONPATH": "",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, env=environment)
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            try:
                rows = list(PredictionClient(f"127.0.0.1:{port}").predict(FILES))
                break
            except UserError:
                time.sleep(0.2)
        assert [row["error"] for row in rows] == [None] * 4
    finally:
        processes = family(process.pid)
        for one in processes:
            one.terminate()
        assert gone(processes)
