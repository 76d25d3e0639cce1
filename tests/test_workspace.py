"Workspaces: places, git states of every kind, secrets, walls."

import os
import sqlite3
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classification_mlops.config import EXAMPLE_FILES
from classification_mlops.text import UserError
from classification_mlops.workspace import (
    LONGEST_DIFF,
    Workspace,
    find_workspace,
    git_state,
    init_folders,
    masked_url,
    within,
)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("CMLOPS_", "GIT_")) or name == "MLFLOW_TRACKING_URI":
            monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.invalid", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def repository(tmp_path):
    init_folders(tmp_path / "ねじ 検査 #1 %20")
    root = tmp_path / "ねじ 検査 #1 %20"
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "start")
    return root


def test_places_follow_the_environment(monkeypatch, tmp_path):
    workspace = Workspace(tmp_path)
    assert workspace.tracking_uri == f"sqlite:///{tmp_path}/artifacts/mlflow/mlflow.db"
    assert workspace.artifact_root.startswith("file:///") and workspace.artifact_root.endswith(
        "mlflow/artifacts"
    )
    monkeypatch.setenv("CMLOPS_DATABASE_URL", "postgresql+psycopg://x")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking")
    monkeypatch.setenv("CMLOPS_IMAGE_ROOTS", f"{tmp_path}/a:s3://bucket/x:/b")
    assert (workspace.database_url, workspace.tracking_uri) == ("postgresql+psycopg://x", "http://tracking")
    assert [str(root) for root in workspace.allowed_roots] == [f"{tmp_path}/images", f"{tmp_path}/a", "/b"]
    assert workspace.allowed_uris == ("s3://bucket/x",)


def test_strange_folder_names_make_working_urls(repository):
    from sqlalchemy import create_engine, text

    with create_engine(Workspace(repository).database_url).begin() as connection:
        connection.execute(text("create table t (x int)"))
    assert sqlite3.connect(repository / "database.db").execute("select count(*) from t").fetchone() == (0,)


def test_finding(monkeypatch, tmp_path, repository):
    inside = repository / "images" / "3"
    inside.mkdir()
    assert find_workspace(inside).root == repository
    monkeypatch.chdir(inside)
    assert find_workspace().root == repository
    (tmp_path / "git-only" / ".git").mkdir(parents=True)
    assert find_workspace(tmp_path / "git-only").root == tmp_path / "git-only"
    monkeypatch.setenv("CMLOPS_WORKSPACE", str(tmp_path / "git-only"))
    assert find_workspace().root == tmp_path / "git-only"
    assert find_workspace(inside).root == repository
    monkeypatch.setenv("CMLOPS_WORKSPACE", str(tmp_path / "absent"))
    with pytest.raises(UserError, match="cmlops init"):
        find_workspace()


def test_init_keeps_what_is_there(tmp_path):
    (tmp_path / ".gitignore").write_bytes(b"*.log")
    (tmp_path / "params.yaml").write_text("seed: 1\n")
    first = init_folders(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert init_folders(tmp_path) == first
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert (tmp_path / "params.yaml").read_text() == "seed: 1\n"
    assert (tmp_path / "auguments.yaml").read_text() == EXAMPLE_FILES["auguments.yaml"]
    assert (tmp_path / ".gitignore").read_text().splitlines() == [
        "*.log",
        "/images/",
        "/artifacts/",
        "database.db*",
    ]


def test_init_refuses_a_file_as_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot become a workspace"):
        init_folders(tmp_path / "file")


def test_the_repository_itself_gains_nothing(repository):
    git(repository, "status", "--porcelain")
    (repository / "database.db").write_text("x")
    (repository / "images" / "a.png").write_text("x")
    assert git(repository, "status", "--porcelain") == ""


def test_pipelines_of_the_team_come_first(repository):
    own = repository / "nbs" / "pipelines"
    own.mkdir(parents=True)
    (own / "train.ipynb").write_text("{}")
    assert Workspace(repository).pipeline("train") == own / "train.ipynb"
    with pytest.raises(UserError, match="did you mean train"):
        Workspace(repository).pipeline("trian")
    with pytest.raises(UserError, match="does not exist"):
        Workspace(repository).pipeline("../../../etc/passwd")


def test_clean_state(repository):
    state = git_state(repository)
    assert state.commit == git(repository, "rev-parse", "HEAD").strip()
    assert (state.branch, state.dirty, state.diff) == ("main", False, "")
    assert git_state(repository / "images") == state


def test_the_patch_makes_the_same_files(repository, tmp_path):
    (repository / "params.yaml").write_text("seed: 3  # 種\n")
    (repository / "auguments.yaml").unlink()
    (repository / "binary.bin").write_bytes(bytes(range(256)))
    git(repository, "add", "binary.bin")
    (repository / "new\nname.txt").write_text("untracked")
    state = git_state(repository)
    assert state.dirty and r"new\nname.txt" in state.diff
    copy = tmp_path / "copy"
    git(tmp_path, "clone", "-q", str(repository), "copy")
    (tmp_path / "diff.patch").write_text(state.diff, encoding="utf-8")
    git(copy, "apply", str(tmp_path / "diff.patch"))
    assert (copy / "params.yaml").read_text() == "seed: 3  # 種\n"
    assert not (copy / "auguments.yaml").exists() and (copy / "binary.bin").read_bytes() == bytes(range(256))


def test_many_untracked_files_and_a_huge_patch(repository):
    for number in range(150):
        (repository / f"new{number}").write_text("")
    (repository / "params.yaml").write_bytes(b"x" * 100 + b"\n" + os.urandom(8).hex().encode() * 500_000)
    state = git_state(repository)
    assert "and 50 more" in state.diff and "cut here" in state.diff
    assert len(state.diff) < LONGEST_DIFF + 20_000


def test_detached_head_and_linked_worktree(repository, tmp_path):
    git(repository, "worktree", "add", "-q", "--detach", str(tmp_path / "tree"))
    state = git_state(tmp_path / "tree")
    assert (state.branch, state.dirty) == (None, False) and state.commit == git_state(repository).commit


def test_a_hostile_configuration_of_git_runs_nothing(repository, tmp_path):
    canary = tmp_path / "canary"
    git(repository, "config", "diff.external", f"touch {canary};")
    git(repository, "config", "diff.evil.textconv", f"touch {canary};")
    git(repository, "config", "color.ui", "always")
    (repository / ".gitattributes").write_text("*.yaml diff=evil\n")
    (repository / "params.yaml").write_text("seed: 4\n")
    assert "+seed: 4" in git_state(repository).diff and not canary.exists()


def test_no_repository_no_commit_corrupt(repository, tmp_path):
    with pytest.raises(UserError, match="git init"):
        git_state(tmp_path)
    with pytest.raises(UserError, match="git init"):
        git_state(tmp_path / "absent")
    git(tmp_path, "init", "-q", "empty")
    with pytest.raises(UserError, match="no commit yet"):
        git_state(tmp_path / "empty")
    for path in (repository / ".git" / "objects").rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            path.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        git_state(repository)
    assert "\n" not in str(caught.value)


def test_git_missing(monkeypatch, repository):
    code = f"from classification_mlops.workspace import git_state; git_state({str(repository)!r})"
    import sys

    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PATH": ""}, capture_output=True, text=True
    )
    assert "install git" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://ann:S3cret@db/x",
        "postgresql://ann:S3cret@x@db/x",
        "postgresql://ann:a/S3cret@db/x",
        "postgresql://:S3cret@db/x",
        "postgresql://db/x?user=ann&password=S3cret",
        "https://S3cret@host/a.git",
        "https://x-access-token:S3cret@host/a.git",
        "s3://bucket/key?AWS_SECRET_ACCESS_KEY=S3cret&b=1",
        "https://host/a?X-Amz-Signature=S3cret",
        "failed: could not connect to postgresql://a:S3cret@db/x, nor http://b:S3cret@c/",
    ],
)
def test_secrets_are_masked(url):
    masked = masked_url(url)
    assert "S3cret" not in masked and "***" in masked


@pytest.mark.parametrize(
    "url", ["sqlite:////srv/ws/database.db", "http://127.0.0.1:5000/#/models", "postgresql://db/x", "/srv/a"]
)
def test_harmless_addresses_stay(url):
    assert masked_url(url) == url


@pytest.fixture(scope="module")
def walls(tmp_path_factory):
    base = tmp_path_factory.mktemp("walls")
    for name in ("images", "images-old", "camera"):
        (base / name).mkdir()
    (base / "images" / "door").symlink_to(base / "images-old")
    (base / "images" / "loop").symlink_to(base / "images" / "loop")
    (base / "images" / "etc").symlink_to("/etc")
    return base


@pytest.mark.parametrize(
    "path",
    ["images/a.png", "images/1/../b.png", "camera/c.png", "images-old/../images/d.png", "images/…\u202e"],
)
def test_inside(walls, path):
    real = within(walls / path, [walls / "images", walls / "camera"])
    assert real == (walls / path).resolve()


@pytest.mark.parametrize(
    "path",
    ["images-old/a.png", "images/../a.png", "images/door/a.png", "images/etc/passwd", "a\0b", "x" * 5000, ""],
)
def test_outside(walls, path):
    with pytest.raises(UserError, match="outside") as caught:
        within(f"{walls}/{path}", [walls / "images", walls / "camera"])
    assert "\n" not in str(caught.value)


def test_no_roots_means_nowhere(walls):
    for path in ("/etc/passwd", "file:///etc/passwd", "s3://bucket/x", "http://169.254.169.254/"):
        with pytest.raises(UserError):
            within(path, [])
        with pytest.raises(UserError):
            within(path, [walls / "images"])


@given(parts=st.lists(st.sampled_from(["..", ".", "door", "a", "etc", "…"]), max_size=8))
def test_whatever_is_let_in_really_is_inside(walls, parts):
    root = os.path.realpath(walls / "images")
    try:
        real = within(os.path.join(root, *parts), [root])
    except UserError:
        return
    assert real.is_relative_to(root)


def test_new_code_is_part_of_the_patch(repository):
    (repository / "own").mkdir()
    (repository / "own" / "step [1].py").write_text("strength = 3\n")
    (repository / "password.yaml").write_text("canary: 1\n")
    (repository / "big.py").write_text("x" * 1_000_001)
    before = git(repository, "status", "--porcelain")
    state = git_state(repository)
    assert "+strength = 3" in state.diff and "canary" not in state.diff
    assert "# untracked: 'password.yaml'" in state.diff and "# untracked: 'big.py'" in state.diff
    assert "# untracked: 'own" not in state.diff
    assert git(repository, "status", "--porcelain") == before
