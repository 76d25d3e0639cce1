"The notebooks that people open, in a real JupyterLab: the screens of the browser, and the keys reach them."

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from browser import chromium, free_port
from playwright.sync_api import TimeoutError
from sqlalchemy import select

from classification_mlops.db.labels import set_label
from classification_mlops.db.schema import Label, TrainData
from classification_mlops.db.session import open_engine, reading, writing
from classification_mlops.demo import sample_workspace

APPS = Path(__file__).parents[1] / "nbs" / "apps"
ROOTS = {
    "label": ".label",
    "configure": ".config",
    "train": ".run",
    "compare": ".history",
    "predict": ".inference",
}
TOKEN, START_S, OPEN_MS = "of-the-tests", 60, 90_000
TURNS, TURN_MS, CLICK_MS = 8, 20_000, 5_000


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    found = sample_workspace(tmp_path_factory.mktemp("lab") / "workspace")
    for path in APPS.glob("*.ipynb"):
        shutil.copy(path, found.root)
    return found


@pytest.fixture(scope="module")
def lab(workspace):
    "The address of a JupyterLab."
    port = free_port()
    options = ["--no-browser", "--allow-root", f"--port={port}", f"--IdentityProvider.token={TOKEN}"]
    options += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={workspace.root}"]
    variables = os.environ | {"CMLOPS_WORKSPACE": str(workspace.root), "CMLOPS_USER": "ann"}
    variables |= {"JUPYTER_CONFIG_DIR": str(workspace.root / "jupyter"), "CMLOPS_LANG": "en"}
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


def run_app(browser, url: str, name: str):
    "A tab with an app notebook that shows its screen."
    page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    page.goto(f"{url}/lab/tree/{name}.ipynb?token={TOKEN}&reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=OPEN_MS)
    for _ in range(TURNS):  # JupyterLab forgets what it is told before its kernel is there
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=OPEN_MS)
        page.keyboard.press("Escape")
        try:
            page.click('.lm-MenuBar-itemLabel:text-is("Run")', timeout=CLICK_MS)
            page.click('.lm-Menu-itemLabel:text-is("Run All Cells")', timeout=CLICK_MS)
            page.wait_for_selector(f".jp-OutputArea-output {ROOTS[name]}", timeout=TURN_MS)
            return page
        except TimeoutError:
            continue
    raise AssertionError(f"{name} shows nothing: {page.inner_text('.jp-Notebook')[-2000:]}")


@pytest.mark.slow
def test_every_app_shows_its_screen(lab):
    assert sorted(path.stem for path in APPS.glob("*.ipynb")) == sorted(ROOTS)
    with chromium() as browser:
        for name, root in ROOTS.items():
            page = run_app(browser, lab, name)
            page.wait_for_selector(f"{root} h2, {root} .tiles, {root} .empty", timeout=OPEN_MS)
            assert page.locator('.jp-OutputArea-output[data-mime-type*="error"]').count() == 0
            page.context.close()


@pytest.mark.slow
def test_keys_label_in_a_notebook(lab, workspace):
    engine = open_engine(workspace.database_url)
    with writing(engine) as session:
        set_label(session, list(session.scalars(select(TrainData.id))), None, "x")
    with chromium() as browser:
        page = run_app(browser, lab, "label")
        page.wait_for_selector(".label[data-ready]", timeout=OPEN_MS)
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
