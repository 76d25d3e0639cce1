"A real server and a real browser, for the tests of screens."

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import Browser, Page, sync_playwright

from classification_mlops.db.session import open_engine, writing
from classification_mlops.db.users import add_user
from classification_mlops.workspace import Workspace

PASSWORD = "tea kettle orbit"
PROGRAM = [sys.executable, "-c", "import sys; from classification_mlops.cli import main; sys.exit(main())"]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
START_S = 60


def add_people(workspace: Workspace, **roles: str):
    "Users by name and role, all with one password."
    engine = open_engine(workspace.database_url)
    with writing(engine) as session:
        for name, role in roles.items():
            add_user(session, name, PASSWORD, role)
    engine.dispose()


def free_port() -> int:
    "A port that nobody listens on."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def web_process(
    workspace: Workspace, workers: int = 1, port: int | None = None, **variables: str
) -> Iterator[tuple[subprocess.Popen, str]]:
    "A server of the screens and its address, as long as it is needed."
    port, log = port or free_port(), workspace.root / "server.log"
    variables = os.environ | {"CMLOPS_WORKSPACE": str(workspace.root)} | variables
    command = [*PROGRAM, "web", "--port", str(port), "--workers", str(workers)]
    with log.open("ab") as file:
        server = subprocess.Popen(command, cwd=workspace.root, env=variables, stdout=file, stderr=file)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(server, url, log)
        yield server, url
    finally:
        server.terminate()
        server.wait(30)


@contextmanager
def served(
    workspace: Workspace, workers: int = 1, port: int | None = None, **variables: str
) -> Iterator[str]:
    "The address of such a server."
    with web_process(workspace, workers, port, **variables) as (_, url):
        yield url


def wait_until_ready(server: subprocess.Popen, url: str, log: Path):
    "Until the server answers."
    end = time.monotonic() + START_S
    while time.monotonic() < end and server.poll() is None:
        try:
            if httpx.get(f"{url}/healthz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError(f"the server did not start: {log.read_text()[-2000:]}")


@contextmanager
def chromium() -> Iterator[Browser]:
    "A browser without a window."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield browser
        browser.close()


def signed_in(browser: Browser, url: str, name: str, language: str = "en", **options) -> Page:
    "A tab in which somebody has signed in; errors of its programs are collected in `page.problems`."
    size = {"width": 1280, "height": 800}
    context = browser.new_context(locale=language, viewport=size, bypass_csp=False, **options)
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda said: page.problems.append(said.text) if said.type == "error" else None)
    page.goto(f"{url}/login/")
    page.fill("[name=username]", name)
    page.fill("[name=password]", PASSWORD)
    page.click("button.main")
    page.wait_for_url(f"{url}/")
    return page


def opened(page: Page, address: str) -> Page:
    "The same tab on another page, once its screen is alive."
    page.goto(address)
    page.wait_for_selector("html[data-connection=live]")
    return page
