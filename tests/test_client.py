"The client's side: many pictures, interrupted and repeated; servers that are busy, hung or away."

import asyncio
import csv
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import psutil
import pytest
from packaged import LABELS, pictures, workspace_with_model

from classification_mlops.registry.pyfunc import load_classifier
from classification_mlops.serving.answers import (
    AnswerColumns,
    AnswerFile,
    answer_file,
    finished_names,
    write_answers,
)
from classification_mlops.serving.client import AsyncPredictionClient, PredictionClient
from classification_mlops.serving.pictures import all_pictures, pictures_in
from classification_mlops.serving.server import ModelServer
from classification_mlops.text import UsageError, UserError

COUNT = 600
FILES = pictures(6)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    "A running server, and what it says about `FILES`."
    workspace, _, folder = workspace_with_model(tmp_path_factory.mktemp("client") / "work")
    with ModelServer(workspace, "ねじ") as server:
        yield workspace, server, load_classifier(folder).classify(FILES).label.tolist()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    "A folder of many files, of which every seventh is none."
    folder = tmp_path_factory.mktemp("many")
    for number in range(COUNT):
        data = FILES[number % 6] if number % 7 else b"no picture"
        (folder / f"{number:04}.png").write_bytes(data)
    return folder


def cmlops(workspace, *arguments, **options) -> subprocess.Popen:
    "A command in a process of its own."
    code = "import sys; from classification_mlops.cli import main; sys.exit(main())"
    variables = os.environ | {"CMLOPS_WORKSPACE": str(workspace.root), "CMLOPS_LANG": "en"}
    line = [sys.executable, "-c", code, *map(str, arguments)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(line, env=variables, **pipes, **options)


def rows_of(path) -> list[dict]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def expected_labels(labels: list[str]) -> list[str]:
    return [labels[number % 6] if number % 7 else "" for number in range(COUNT)]


def wait_for_lines(path, count: int, process: subprocess.Popen) -> None:
    "Return when so many answers are on disk."
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.005)


# Interrupted and repeated


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_what_was_interrupted_goes_on(served, many, tmp_path, number, ending):
    workspace, server, labels = served
    out = tmp_path / f"answers{ending}"
    line = ("predict", "ねじ", many, "--url", server.url, "--out", out, "--in-flight", "2", "--json")
    process = cmlops(workspace, *line)
    wait_for_lines(out, 70, process)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    there = len([line for line in out.read_bytes().splitlines(True) if line.endswith(b"\n")])
    there -= ending == ".csv"
    assert 60 < there < COUNT  # it was interrupted in the middle
    with out.open("ab") as file:
        file.write(b'"/torn')
    text, errors = cmlops(workspace, *line).communicate(timeout=60)
    answer = json.loads(text)
    assert (answer["kept"], answer["count"]) == (there, COUNT - there), errors
    rows = rows_of(out)
    assert [row["file"] for row in rows] == [str(many / f"{n:04}.png") for n in range(COUNT)]
    assert [row["label"] or "" for row in rows] == expected_labels(labels)
    assert {row["error"] or "" for row in rows[::7]} == {"not_an_image"}
    assert {row["theme"] for row in rows} == {"ねじ"}


def test_a_server_that_dies_is_one_line_and_nothing_is_lost(served, many, tmp_path):
    workspace, server, labels = served
    out = tmp_path / "answers.csv"
    with ModelServer(workspace, "ねじ") as mortal, PredictionClient(mortal.url, in_flight=2) as client:
        file = answer_file(out, client, "ねじ", "1", probabilities=True, top=2)

        def fatal(done):
            if done == 130:
                for worker in psutil.Process(mortal.process.pid).children():
                    worker.kill()
                mortal.process.kill()
                mortal.process.wait()

        with pytest.raises(UserError, match=r"are kept in .*repeat the command") as caught:
            write_answers(file, all_pictures([many]), client.predict, fatal)
    assert "no model server answers" in str(caught.value) and "\n" not in str(caught.value)
    there = len(rows_of(out))
    assert 130 <= there < COUNT
    with PredictionClient(server.url) as client:
        decisions, kept = write_answers(file, all_pictures([many]), client.predict)
    assert (kept, decisions.total()) == (there, COUNT - there)
    rows = rows_of(out)
    assert [row["label"] for row in rows] == expected_labels(labels)
    for row in rows[1:7]:
        chances = sorted((float(row[f"probability_{label}"]) for label in LABELS), reverse=True)
        assert [float(row["confidence"]), float(row["confidence_2"])] == chances[:2]
        assert abs(sum(chances) - 1) < 1e-6 and row["label_2"] != row["label"]


def test_ctrl_c_does_not_wait_for_a_server_that_hangs(served, many, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as hung:
        url = f"http://127.0.0.1:{hung.getsockname()[1]}"
        process = cmlops(served[0], "predict", "ねじ", many, "--url", url, "--out", tmp_path / "a.csv")
        hung.settimeout(60)
        with hung.accept()[0] as asked:
            assert asked.recv(4)
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 130 and time.monotonic() - start < 10
    assert "interrupted" in process.communicate()[1]


# Files that are not ours


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_other_files_are_never_touched(tmp_path, ending):
    path = tmp_path / f"answers{ending}"
    columns = AnswerColumns() if ending == ".csv" else None
    mine = AnswerFile(path, "screws", "1", columns)
    assert write_answers(mine, [], lambda files: iter(()))[1] == 0
    for content in (b"my,own\n1,2\n", b"no end", b"\xff\xfe", b'["file"]\n', b'{"file": 1}\n', b"\n"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="holds something else"):
            write_answers(mine, [], lambda files: iter(()))
        assert path.read_bytes() == content


def test_two_processes_do_not_write_one_file(tmp_path):
    file = AnswerFile(tmp_path / "answers.csv", "screws", "1", AnswerColumns())
    with (tmp_path / "answers.csv").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="cannot be written"):
            write_answers(file, [], lambda files: iter(()))
    with pytest.raises(UserError, match="cannot be written: No such file"):
        write_answers(AnswerFile(tmp_path / "no" / "a.csv", "screws"), [], lambda files: iter(()))


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_every_cut_of_a_file_is_healed(tmp_path, ending):
    columns = AnswerColumns(("ok", "a,b"), 2) if ending == ".csv" else None
    file = AnswerFile(tmp_path / f"answers{ending}", "=theme", "7", columns)
    found = list(pictures_in(empty_files(tmp_path / "pictures")))

    def predict(files):
        for _ in files:
            yield {"label": "=ok", "confidence": 0.5, "probabilities": {"ok": 0.5, "a,b": 0.5}}

    write_answers(file, found, predict)
    whole = file.path.read_bytes()
    for length in range(len(whole)):
        file.path.write_bytes(whole[:length])
        write_answers(file, found, predict)
        assert file.path.read_bytes() == whole, length
    with file.path.open("rb") as stream:
        assert finished_names(file, stream) == {picture.name for picture in found}


def empty_files(folder):
    "Files with names that nobody should choose."
    folder.mkdir()
    for name in (b"=a.png", "ね, じ😀.png".encode(), b'new\nline".png', b"\xff.png"):
        (folder / os.fsdecode(name)).touch()
    return folder


def test_answers_of_another_theme_or_version_are_not_mixed(served, tmp_path):
    workspace, server, _ = served
    out, picture = tmp_path / "answers.csv", tmp_path / "新 😀\n.png"
    picture.write_bytes(FILES[0])
    line = ("predict", "ねじ", picture, "--url", server.url, "--out", out)
    text, errors = cmlops(workspace, *line).communicate(timeout=60)
    assert "1 answers written" in text, errors
    mine = out.read_bytes()
    assert [row["file"] for row in rows_of(out)] == [str(picture).replace("\n", "\\n")]
    bolts = ("predict", "bolts", *line[2:])
    refused(cmlops(workspace, *bolts), "holds answers of ねじ version 1, not of bolts version 1", 2)
    assert out.read_bytes() == mine
    out.write_bytes(mine.replace("ねじ,1".encode(), "ねじ,7".encode()))
    assert out.read_bytes() != mine
    other = out.read_bytes()
    refused(cmlops(workspace, *line), "holds answers of ねじ version 7, not of ねじ version 1", 2)
    assert out.read_bytes() == other


def refused(process: subprocess.Popen, words: str, status: int) -> None:
    "One line that says so, nothing else, and that exit status."
    text, errors = process.communicate(timeout=60)
    assert (process.returncode, text, errors.count("\n")) == (status, "", 1), errors
    assert errors.startswith("cmlops: ") and words in errors


def test_what_cannot_be_asked_is_one_line(served, tmp_path):
    workspace, server, _ = served
    (tmp_path / "none").mkdir()
    (tmp_path / "list.csv").write_text("picture\na.png\n")
    (tmp_path / "a.png").write_bytes(FILES[0])
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = f"127.0.0.1:{gone.getsockname()[1]}"
    cases = [
        (["none"], server.url, "there is no picture in none", 2),
        (["absent"], server.url, "absent does not exist", 2),
        (["list.csv"], server.url, "has no column path", 2),
        (["a.png", "--out", "no/a.csv"], server.url, "no/a.csv cannot be written", 1),
        (["a.png", "--out", "a.xlsx"], server.url, ".csv, .jsonl", 2),
        (["a.png", "--out", "a.csv"], nobody, "no model server answers at " + nobody, 1),
    ]
    for arguments, url, words, status in cases:
        process = cmlops(workspace, "predict", "ねじ", *arguments, "--url", url, cwd=tmp_path)
        refused(process, words, status)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "list.csv", "none"]


# Where pictures come from


def test_tables_archives_and_strange_files(served, tmp_path):
    _, server, labels = served
    folder = empty_files(tmp_path / "new")
    (folder / "good.png").write_bytes(FILES[0])
    (folder / "link.png").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe.png")
    with PredictionClient(server.url) as client:
        names, files = zip(*pictures_in(folder), strict=True)
        rows = list(client.predict(files))
        errors = {name.rpartition("/")[2]: row["error"] for name, row in zip(names, rows, strict=True)}
        assert errors == {
            "=a.png": "empty",
            "ね, じ😀.png": "empty",
            'new\\nline".png': "empty",
            "\\xff.png": "empty",
            "good.png": None,
            "link.png": "not_regular_file",
            "pipe.png": "not_regular_file",
        }
        (folder / "list.csv").write_text("path\ngood.png\n/etc/passwd\ngone.png\n")
        found = list(pictures_in(folder / "list.csv"))
        assert [picture.name for picture in found] == ["good.png", "/etc/passwd", "gone.png"]
        rows = list(client.predict(picture.file for picture in found))
        assert [row["error"] for row in rows] == [None, "outside", "vanished"]
        shutil.make_archive(tmp_path / "some", "zip", folder, "good.png")
        (only,) = pictures_in(tmp_path / "some.zip")
        assert next(client.predict([only.file]))["label"] == labels[0]
    (folder / "list.csv").write_text("picture\ngood.png\n")
    with pytest.raises(UsageError, match="has no column path"):
        list(pictures_in(folder / "list.csv"))


def test_a_bucket_is_read_where_that_is_allowed(served, s3_uri, monkeypatch):
    import fsspec

    workspace, server, labels = served
    for number in range(5):
        fsspec.filesystem("s3").pipe_file(f"{s3_uri}/new/{number}.png", FILES[number])
    monkeypatch.setenv("CMLOPS_WORKSPACE", str(workspace.root))
    with pytest.raises(UsageError, match="CMLOPS_IMAGE_ROOTS"):
        all_pictures([f"{s3_uri}/new"])
    monkeypatch.setenv("CMLOPS_IMAGE_ROOTS", s3_uri)
    found = list(all_pictures([f"{s3_uri}/new/"]))
    assert [picture.name for picture in found] == [f"{s3_uri}/new/{number}.png" for number in range(5)]
    with PredictionClient(server.url) as client:
        assert [row["label"] for row in client.predict(p.file for p in found)] == labels[:5]


# Several at once


def test_an_asynchronous_program_goes_on_meanwhile(served):
    _, server, labels = served
    ticks = []

    async def tick():
        while True:
            ticks.append(None)
            await asyncio.sleep(0.001)

    async def main():
        beside = asyncio.create_task(tick())
        with AsyncPredictionClient(server.url, in_flight=2) as client:
            found = [row["label"] async for row in client.predict(FILES * 20, batch_size=8)]
        beside.cancel()
        return found

    assert asyncio.run(main()) == labels * 20
    assert len(ticks) > 20


class Busy(BaseHTTPRequestHandler):
    "A server that is busy for ever."

    asked = 0

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).asked += 1
        self.send_response(503)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *parts):
        pass


class BusyTwice(BaseHTTPRequestHandler):
    "A server that is busy twice and says for how long, and then answers."

    def do_POST(self):
        asked = self.server.asked
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked.append((time.monotonic(), sent))
        rows = [{"label": "ok"} for _ in sent["dataframe_split"]["data"]]
        body = json.dumps({"predictions": rows}).encode()
        self.send_response(503 if len(asked) < 3 else 200)
        self.send_header("Retry-After", "0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *parts):
        pass


def test_a_busy_server_is_asked_again_when_it_says():
    with ThreadingHTTPServer(("127.0.0.1", 0), BusyTwice) as busy:
        busy.asked = []
        threading.Thread(target=busy.serve_forever, daemon=True).start()
        with PredictionClient(f"127.0.0.1:{busy.server_port}") as client:
            assert [row["label"] for row in client.predict(FILES)] == ["ok"] * len(FILES)
        busy.shutdown()
    (first, sent), *again = busy.asked
    assert len(again) == 2 and all(body == sent for _, body in again)
    times = [first, *(moment for moment, _ in again)]
    assert all(0.4 <= later - earlier < 5 for earlier, later in pairwise(times))


def test_patience_ends():
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as busy:
        threading.Thread(target=busy.serve_forever, daemon=True).start()
        start = time.monotonic()
        url = f"127.0.0.1:{busy.server_port}"
        with PredictionClient(url, patience_s=0.5) as client, pytest.raises(UserError, match="status 503"):
            list(client.predict([b"x"]))
        busy.shutdown()
    assert 3 < Busy.asked < 20 and time.monotonic() - start < 10


# Other languages: what the README shows

CURL = """
curl -s http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' \\
  -d "{\\"dataframe_records\\": [{\\"image\\": \\"$(base64 < part.png | tr -d '\\n')\\"}]}"
"""
JAVASCRIPT = """
async function classify(files, url = "http://127.0.0.1:5001") {
  const base64 = async (file) => {
    const bytes = new Uint8Array(await file.arrayBuffer());
    return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  };
  const rows = await Promise.all(files.map(async (file) => ({ image: await base64(file) })));
  const response = await fetch(`${url}/invocations`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ dataframe_records: rows }),
  });
  if (!response.ok) throw new Error((await response.json()).message);
  return (await response.json()).predictions;
}
"""


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl(served, tmp_path):
    _, server, labels = served
    (tmp_path / "part.png").write_bytes(FILES[0])
    line = CURL.replace("http://127.0.0.1:5001", server.url)
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, check=True)
    assert json.loads(done.stdout)["predictions"][0]["label"] == labels[0]


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
def test_javascript(served, tmp_path):
    _, server, labels = served
    (tmp_path / "part.png").write_bytes(FILES[0])
    program = f"""{JAVASCRIPT}
    const fs = require("fs");
    const files = [new Blob([fs.readFileSync("part.png")]), new Blob(["no picture"])];
    classify(files, "{server.url}").then((rows) => console.log(JSON.stringify(rows)));
    classify([], "{server.url}").catch((error) => console.log(JSON.stringify(error.message)));
    """
    done = subprocess.run(["node", "-e", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    rows = next(answer for answer in answers if isinstance(answer, list) and answer)
    assert [row["label"] for row in rows] == [labels[0], None] and rows[1]["error"] == "not_an_image"
