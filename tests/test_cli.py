"The command line as a user meets it: real processes, a real workspace, every refusal one line."

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from classification_mlops.demo import sample_workspace, write_digits

PROGRAM = [sys.executable, "-c", "import sys; from classification_mlops.cli import main; sys.exit(main())"]


def cmlops(workspace: Path, *arguments, **environment) -> subprocess.CompletedProcess:
    "Run one command in a workspace."
    variables = os.environ | {"CMLOPS_WORKSPACE": str(workspace), "CMLOPS_LANG": "en"} | environment
    line = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(line, cwd=workspace, env=variables, capture_output=True, text=True, timeout=300)


def refused(result: subprocess.CompletedProcess, *words: str, status: int | None = None):
    "One line on standard error that contains `words`, nothing on standard output, the right exit status."
    lines = result.stderr.strip().splitlines()
    assert result.returncode in ((1, 2) if status is None else (status,)), result.stderr
    assert len(lines) == 1 and lines[0].startswith("cmlops: "), result.stderr
    assert result.stdout == ""
    for word in words:
        assert word in lines[0], lines[0]


def answer(result: subprocess.CompletedProcess):
    "What a command printed as JSON."
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def imported(workspace: Path, theme: str, source: Path, *options):
    "The report of a new theme with the pictures of a folder."
    assert cmlops(workspace, "theme", "create", theme).returncode == 0
    return answer(cmlops(workspace, "data", "import", theme, source, "--create-labels", *options, "--json"))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    "The sample workspace: a git repository with a theme `digits` of a few classes."
    return sample_workspace(tmp_path_factory.mktemp("workspace")).root


@pytest.fixture
def fresh(tmp_path) -> Path:
    "An initialised workspace without a theme, in a git repository with one commit."
    commands = (
        "git init -q . && git add -A && git -c user.name=t -c user.email=t@example.invalid commit -qm start"
    )
    assert cmlops(tmp_path, "init", tmp_path).returncode == 0
    subprocess.run(commands, shell=True, cwd=tmp_path, check=True)
    return tmp_path


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    "Class folders 0 … 9 with twelve real digits each."
    folder = tmp_path_factory.mktemp("pictures") / "digits"
    write_digits(folder, limit=12)
    return folder


def some_classes(digits: Path, target: Path, names: str) -> Path:
    "A copy of some of the class folders."
    for name in names:
        shutil.copytree(digits / name, target / name)
    return target


def test_a_life_from_the_terminal(fresh, digits, tmp_path_factory):
    assert answer(cmlops(fresh, "theme", "create", "numbers", "--json"))["theme"] == "numbers"
    report = answer(cmlops(fresh, "data", "import", "numbers", digits, "--create-labels", "--json"))
    again = answer(cmlops(fresh, "data", "import", "numbers", digits, "--json"))
    assert (report["added"], again["added"], again["already_there"]) == (120, 0, 120)
    counts = answer(cmlops(fresh, "split", "numbers", "--json"))["counts"]
    assert sum(counts.values()) == 120 and counts["train"] == 80
    assert answer(cmlops(fresh, "split", "numbers", "--json"))["new"] == 0
    assert answer(cmlops(fresh, "stats", "numbers", "--json"))["pictures"] == 120
    per_class = len(list((digits / "9").iterdir()))
    assert (
        answer(cmlops(fresh, "label", "merge", "numbers", "9", "8", "--yes", "--json"))["moved"] == per_class
    )
    assert "8" in cmlops(fresh, "label", "list", "numbers").stdout
    page = answer(cmlops(fresh, "data", "list", "numbers", "--label", "8", "--limit", "500", "--json"))
    assert len(page) == per_class + len(list((digits / "8").iterdir()))
    target = tmp_path_factory.mktemp("out") / "exported"
    assert answer(cmlops(fresh, "data", "export", "numbers", target, "--json"))["exported"] == 120
    assert len(list(target.rglob("*.png"))) == 120
    assert cmlops(fresh, "data", "check", "numbers").returncode == 0
    next((fresh / "images").rglob("*.png")).unlink()
    assert cmlops(fresh, "data", "check", "numbers").returncode == 1
    assert answer(cmlops(fresh, "theme", "rename", "numbers", "digits of ours", "--json"))
    assert answer(cmlops(fresh, "theme", "delete", "digits of ours", "--yes", "--json"))
    assert answer(cmlops(fresh, "theme", "list", "--json")) == []


def test_a_csv(fresh, digits):
    "Columns in any order; the group and the labeler are kept."
    table = digits.parent / "parts.csv"
    rows = [
        f"lot-{i % 3},{path},{path.parent.name},ann" for i, path in enumerate(sorted(digits.rglob("*.png")))
    ]
    table.write_text("\n".join(["group,path,label,labeled_by", *rows]), encoding="utf-8-sig")
    report = imported(fresh, "parts", table)
    assert report["added"] == 120
    page = answer(cmlops(fresh, "data", "list", "parts", "--limit", "3", "--json"))
    assert {row["group_key"] for row in page} == {"lot-0", "lot-1", "lot-2"}
    assert {row["labeled_by"] for row in page} == {"ann"}


def test_japanese(workspace):
    result = cmlops(workspace, "stats", "nowhere", CMLOPS_LANG="ja")
    assert result.returncode == 2 and "テーマ" in result.stderr
    assert "テーマ" in cmlops(workspace, "--help", CMLOPS_LANG="ja").stdout


def test_misuse(workspace):
    refused(cmlops(workspace, "stats", "digts"), "digts", "digits", status=2)
    refused(cmlops(workspace, "trian"), "trian", status=2)
    refused(cmlops(workspace, "split", "digits", "--ratios", "70/20/20"), "1", status=2)
    refused(cmlops(workspace, "split", "digits", "--ratios", "lots"), "70/15/15", status=2)
    refused(cmlops(workspace, "data", "import", "digits", "nowhere"), "nowhere", status=2)
    refused(cmlops(workspace, "theme", "create", "digits"), "digits")
    refused(cmlops(workspace, "theme", "create", "a/b"), "a/b", status=2)
    refused(cmlops(workspace, "label", "delete", "digits", "0"), "merge")
    refused(cmlops(workspace, "theme", "delete", "digits"), "--yes", status=1)
    refused(cmlops(workspace, "train", "digits", "--set", "trainer.max_epoch=3"), "max_epochs", status=2)


def test_no_workspace(tmp_path):
    refused(cmlops(tmp_path, "stats", "digits", GIT_CEILING_DIRECTORIES=str(tmp_path.parent)), "cmlops init")


BAD_FILES = [
    ("params.yaml", "traner: {max_epochs: 3}", ("params.yaml", "traner", "trainer")),
    ("params.yaml", "trainer: {max_epochs: many}", ("params.yaml", "trainer.max_epochs", "many")),
    ("params.yaml", "split: {train: 0.7, valid: 0.2, test: 0.2}", ("split", "1")),
    ("params.yaml", "seed: !!python/object/apply:os.system ['touch canary']", ("params.yaml", "tag")),
    ("params.yaml", "a: &a [x, x]\nb: *a", ("params.yaml",)),
    ("params.yaml", "model: {architecture: resnet81}", ("resnet81", "resnet18")),
    ("params.yaml", "preprocess: [{step: gama, gamma: 1.2}]", ("gama", "gamma")),
    ("params.yaml", "model: {weights: NO_SUCH_WEIGHTS}", ("NO_SUCH_WEIGHTS",)),
    ("auguments.yaml", "- {transform: Afine}", ("Afine", "Affine")),
    ("auguments.yaml", "- {transfrm: Affine}", ("auguments.yaml", "transform")),
]


@pytest.mark.parametrize("file, text, words", BAD_FILES)
def test_bad_files(workspace, file, text, words):
    "A run with a bad file is refused, and the registry has not changed."
    kept = (workspace / file).read_text()
    try:
        (workspace / file).write_text(text)
        refused(cmlops(workspace, "train", "digits"), *words)
    finally:
        (workspace / file).write_text(kept)
    assert not list(workspace.glob("canary"))
    assert answer(cmlops(workspace, "models", "list", "digits", "--json")) == []


def test_refusals_of_training(fresh, digits, tmp_path_factory):
    "What cannot work is refused before anything is split."
    imported(fresh, "two", some_classes(digits, tmp_path_factory.mktemp("two"), "01"))
    refused(cmlops(fresh, "train", "two"), "2", "3", status=1)
    rare = some_classes(digits, tmp_path_factory.mktemp("rare"), "0123")
    for picture in sorted((rare / "3").iterdir())[2:]:
        picture.unlink()
    imported(fresh, "rare", rare)
    refused(cmlops(fresh, "train", "rare"), "3", "2", status=1)
    imported(fresh, "unlabeled", rare, "--label-from", "none")
    refused(cmlops(fresh, "train", "unlabeled"), "label", status=1)
    for theme in ("two", "rare", "unlabeled"):
        counts = answer(cmlops(fresh, "stats", theme, "--json"))
        assert all(not row.get(split) for row in counts["classes"] for split in ("train", "valid", "test"))


def test_a_picture_that_vanished(fresh, digits):
    imported(fresh, "numbers", digits)
    victim = sorted((fresh / "images").rglob("*.png"))[0]
    victim.unlink()
    refused(cmlops(fresh, "train", "numbers"), victim.stem[:12], status=1)


def test_bad_pictures(fresh, digits, tmp_path_factory):
    "Every bad file is named with its reason; the rest is imported."
    mixed = some_classes(digits, tmp_path_factory.mktemp("mixed"), "0") / "0"
    good = sorted(mixed.iterdir())
    data = good[0].read_bytes()
    (mixed / "empty.png").write_bytes(b"")
    (mixed / "truncated.png").write_bytes(data[: len(data) // 2])
    (mixed / "text.jpg").write_text("not a picture")
    (mixed / "misnamed.jpg").write_bytes(good[1].read_bytes() + b"\0")
    (mixed / "copy.png").write_bytes(data)
    report = imported(fresh, "mixed", mixed.parent)
    reasons = {Path(item["name"]).name: item["reason"] for item in report["rejected"]}
    assert reasons == {"empty.png": "empty", "truncated.png": "truncated", "text.jpg": "not_an_image"}
    assert (report["added"], report["already_there"]) == (len(good) + 1, 1)


def test_not_a_repository(tmp_path, digits):
    alone = {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    assert cmlops(tmp_path, "init", tmp_path, **alone).returncode == 0
    imported(tmp_path, "numbers", digits)
    refused(cmlops(tmp_path, "train", "numbers", **alone), "git init", status=1)


def test_newer_database(fresh):
    with sqlite3.connect(fresh / "database.db") as connection:
        connection.execute("UPDATE schema_version SET version_num = 'from_the_future'")
    refused(cmlops(fresh, "stats", "digits"), "newer", status=1)
    refused(cmlops(fresh, "init", fresh), "newer", status=1)


def test_serving_nothing_and_a_busy_port(workspace):
    refused(cmlops(workspace, "serve", "digits", "--port", "0"), "cmlops train")
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        refused(cmlops(workspace, "serve", "digits", "--port", port), str(port), status=1)


def test_doctor(workspace):
    found = {check["name"]: check["status"] for check in answer(cmlops(workspace, "doctor", "--json"))}
    assert {"git", "files", "database", "pipeline", "accelerator"} <= found.keys()
    assert "fail" not in found.values()
