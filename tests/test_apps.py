"The notebooks that people open, in a real JupyterLab: the screens of the browser, and the keys reach them."

import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from browser import chromium, free_port
from playwright.sync_api import TimeoutError
from sqlalchemy import select

from classification_mlops.db.labels import set_label
from classification_mlops.db.schema import Label, TrainData
from classification_mlops.db.session import open_engine, reading, upgrade_database, writing
from classification_mlops.demo import sample_workspace, start_repository, write_digits
from classification_mlops.registry.registration import find_version
from classification_mlops.serving.running import running_servers, stop_server
from classification_mlops.workspace import init_folders

APPS = Path(__file__).parents[1] / "nbs" / "apps"
ROOTS = {
    "label": ".label",
    "configure": ".config",
    "train": ".run",
    "compare": ".history",
    "predict": ".inference",
}
TOKEN, START_S, OPEN_MS = "of-the-tests", 60, 90_000
TURNS, TURN_MS, CLICK_MS = 12, 8_000, 5_000


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    found = sample_workspace(tmp_path_factory.mktemp("lab") / "workspace")
    for path in APPS.glob("*.ipynb"):
        shutil.copy(path, found.root)
    return found


@contextmanager
def jupyter(workspace, language: str = "en"):
    "The address of a JupyterLab in a workspace."
    port = free_port()
    options = ["--no-browser", "--allow-root", f"--port={port}", f"--IdentityProvider.token={TOKEN}"]
    options += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={workspace.root}"]
    variables = os.environ | {"CMLOPS_WORKSPACE": str(workspace.root), "CMLOPS_USER": "ann"}
    variables |= {"JUPYTER_CONFIG_DIR": str(workspace.root / "jupyter"), "CMLOPS_LANG": language}
    with (workspace.root / "lab.log").open("wb") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + START_S
    try:
        while time.monotonic() < end and server.poll() is None:
            try:
                if httpx.get(f"{url}/api", params={"token": TOKEN}).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def lab(workspace):
    with jupyter(workspace) as url:
        yield url


def run_cell(page, text: str):
    "Run the cell that holds a text, as Shift and Enter do."
    cell = page.locator(".jp-CodeCell", has=page.locator(f'.cm-content:has-text("{text}")')).first
    done = cell.locator(".jp-InputPrompt").filter(has_text=re.compile("[0-9]"))
    for _ in range(TURNS):  # JupyterLab forgets what it is told before its kernel is there
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
        page.keyboard.press("Escape")
        try:
            cell.locator(".cm-content").click(timeout=CLICK_MS)
            page.keyboard.press("Shift+Enter")
            return done.wait_for(timeout=TURN_MS)
        except TimeoutError:
            continue
    raise AssertionError(f"{text} does not run: {page.inner_text('.jp-Notebook')[-2000:]}")


def open_app(browser, url: str, name: str):
    "A tab with an app notebook."
    page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    page.set_default_timeout(OPEN_MS)
    page.goto(f"{url}/lab/tree/{name}.ipynb?token={TOKEN}&reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
    return page


def run_app(browser, url: str, name: str):
    "A tab with an app notebook that shows its screen."
    page = open_app(browser, url, name)
    for _ in range(TURNS):  # JupyterLab forgets what it is told before its kernel is there
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=OPEN_MS)
        page.keyboard.press("Escape")
        try:
            page.click('.lm-MenuBar-itemLabel:text-is("Run")', timeout=CLICK_MS)
            page.click('.lm-Menu-itemLabel:text-is("Run All Cells")', timeout=CLICK_MS)
            page.wait_for_selector(f".jp-OutputArea-output {ROOTS[name]}", timeout=TURN_MS)
            break
        except TimeoutError:
            continue
    else:
        raise AssertionError(f"{name} shows nothing: {page.inner_text('.jp-Notebook')[-2000:]}")
    page.wait_for_selector(f"{ROOTS[name]}[data-ready]", timeout=OPEN_MS)
    assert page.locator('.jp-OutputArea-output[data-mime-type*="error"]').count() == 0
    return page


@pytest.mark.slow
def test_keys_label_in_a_notebook(lab, workspace):
    engine = open_engine(workspace.database_url)
    with writing(engine) as session:
        set_label(session, list(session.scalars(select(TrainData.id))), None, "x")
    with chromium() as browser:
        page = run_app(browser, lab, "label")
        cells = page.locator(".jp-Cell").count()
        page.click(".label .cell >> nth=0")
        for key in ("1", "2", "a", "3"):  # "a" means something else to JupyterLab
            page.keyboard.press(key)
        page.wait_for_selector('.label[data-saved="3"]')
        page.wait_for_function(
            "[...document.querySelectorAll('.label .cell img')].every((one) => one.src.startsWith('blob:'))"
        )
        assert page.locator(".jp-Cell").count() == cells
        page.context.close()
    query = select(Label.label_name, TrainData.labeled_by).join(TrainData, TrainData.label_id == Label.id)
    with reading(engine) as session:
        found = session.execute(query.order_by(TrainData.id)).all()
    engine.dispose()
    assert found == [("0", "ann"), ("1", "ann"), ("2", "ann")]


@pytest.fixture
def empty(tmp_path):
    "A workspace without a theme; its notebooks are about digits."
    found = init_folders(tmp_path / "workspace")
    engine = open_engine(found.database_url)
    upgrade_database(engine)
    engine.dispose()
    start_repository(found.root)
    for path in APPS.glob("*.ipynb"):
        shutil.copy(path, found.root)
    yield found
    for server in running_servers(found, "digits"):
        stop_server(found, "digits", server["name"])


def collect(browser, url, folder):
    "The first notebook: a theme, its pictures, their labels, their splits."
    page = open_app(browser, url, "label")
    for text in ("import LabelScreen", "begin_theme(", "UploadScreen("):
        run_cell(page, text)
    page.wait_for_selector(".upload[data-ready]")
    page.select_option(".upload [name=label]", "folder")
    page.set_input_files(".upload [name=folder]", folder)
    page.wait_for_selector('.upload[data-done="1"]')
    run_cell(page, "LabelScreen(")
    page.wait_for_selector(".label[data-ready]")
    page.click(".label .cell >> nth=0")
    page.keyboard.press("1" if "0" not in page.inner_text(".label .cell >> nth=0") else "2")
    page.wait_for_selector('.label[data-saved="1"]')
    run_cell(page, "SplitScreen(")
    page.wait_for_selector('.split[data-fresh="90"]')
    assert "学習" in page.inner_text(".split")
    page.click("[data-act=split]")
    page.wait_for_selector('.split[data-split="90"]')
    page.context.close()


def configure(browser, url):
    page = run_app(browser, url, "configure")
    for name, value in {"trainer.max_epochs": "2", "image.size_px": "32", "data.batch_size": "16"}.items():
        page.fill(f'[data-field="{name}"] .control', value)
    page.wait_for_selector('[data-changes="3"]')
    page.click("[data-act=save]")
    page.wait_for_selector('.config[data-saved="1"]')
    page.context.close()


def train_twice(browser, url):
    page = run_app(browser, url, "train")
    for number, epochs in ((1, ""), (2, "3")):
        page.fill("[name=epochs]", epochs)
        page.click("[data-act=begin]")
        page.wait_for_selector(f'.job[data-job="{number}"] [data-status=finished]', timeout=2 * OPEN_MS)
    page.context.close()


def compare_and_promote(browser, url):
    page = run_app(browser, url, "compare")
    for number in (0, 1):
        page.locator("[data-run] input[type=checkbox]").nth(number).check()
    page.click("[data-compare]")
    page.wait_for_selector("[data-pair]")
    assert "trainer.max_epochs" in page.inner_text(".jp-Notebook")
    page.click("[data-promote]")
    page.click("[data-go]:enabled")
    page.wait_for_selector("[data-promote]:disabled")
    page.context.close()


def predict(browser, url, folder) -> str:
    page = run_app(browser, url, "predict")
    page.set_input_files("[data-files]", sorted(map(str, folder.glob("1/*.png")))[:3])
    page.click("[data-start]")
    page.wait_for_selector('.inference[data-answered="3"][data-waiting="0"]', timeout=2 * OPEN_MS)
    said = page.inner_text(".inference")
    page.context.close()
    return said


@pytest.mark.slow
def test_notebooks_lead_from_nothing_to_a_prediction(empty, tmp_path):
    assert sorted(path.stem for path in APPS.glob("*.ipynb")) == sorted(ROOTS)
    folder = write_digits(tmp_path / "source", limit=30, digits=3)
    with jupyter(empty, "ja") as url, chromium() as browser:
        collect(browser, url, folder)
        configure(browser, url)
        train_twice(browser, url)
        compare_and_promote(browser, url)
        assert find_version(empty, "digits", "champion").version == 2
        assert "バージョン 2 が応答中" in predict(browser, url, folder)
    engine = open_engine(empty.database_url)
    query = select(Label.label_name).join(TrainData, TrainData.label_id == Label.id)
    with reading(engine) as session:
        labels = list(session.scalars(query))
        actors = set(session.scalars(select(TrainData.labeled_by)))
    engine.dispose()
    assert sorted(labels.count(name) for name in set(labels)) == [29, 30, 31]
    assert actors == {"ann"}
