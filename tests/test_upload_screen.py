"Pictures that are dropped into a real browser, and a split that is seen before it is made."

import base64
import zipfile
from io import BytesIO

import numpy as np
import pytest
from browser import add_people, chromium, free_port, opened, served, signed_in
from PIL import Image
from sqlalchemy import select

from classification_mlops.db.schema import Label, TrainData
from classification_mlops.db.session import open_engine, reading, upgrade_database, writing
from classification_mlops.db.themes import create_theme
from classification_mlops.workspace import init_folders

PAGE = "/theme/1/"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def workspace(tmp_path):
    found = init_folders(tmp_path / "workspace")
    engine = open_engine(found.database_url)
    upgrade_database(engine)
    with writing(engine) as session:
        create_theme(session, "screws")
    engine.dispose()
    add_people(found, ann="admin", bob="annotator", vic="viewer")
    return found


def png(number: int) -> bytes:
    "A picture of its own."
    buffer = BytesIO()
    noise = np.random.default_rng(number).integers(0, 255, (24, 24), np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def pictures_of(workspace) -> dict[str, str | None]:
    "Labels by name of the file."
    engine = open_engine(workspace.database_url)
    query = select(TrainData.original_name, Label.label_name).join(
        Label, Label.id == TrainData.label_id, isouter=True
    )
    with reading(engine) as session:
        found = dict(session.execute(query).all())
    engine.dispose()
    return found


def theme_page(browser, url, name="bob", language="en"):
    page = opened(signed_in(browser, url, name, language), url + PAGE)
    page.wait_for_selector(".upload[data-ready]", state="attached")
    return page


DROP = """([zone, files]) => {
  const given = new DataTransfer();
  for (const [name, text] of files)
    given.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
  for (const kind of ["dragenter", "dragover", "drop"]) {
    const options = { dataTransfer: given, bubbles: true, cancelable: true };
    zone.dispatchEvent(new DragEvent(kind, options));
  }
}"""


def drop(page, files: dict[str, bytes]):
    zone = page.query_selector(".upload .zone")
    page.evaluate(DROP, [zone, [[name, base64.b64encode(data).decode()] for name, data in files.items()]])


def test_what_is_dropped_arrives(browser, workspace):
    with served(workspace) as url:
        page = theme_page(browser, url)
        assert page.is_visible(".upload .zone"), "an empty theme asks for pictures"
        drop(page, {"1.png": png(1), "2.png": png(2), "same.png": png(1), "notes.jpg": b"text"})
        page.wait_for_selector('.upload[data-done="1"]')
        said = page.inner_text(".upload")
        assert pictures_of(workspace) == {"1.png": None, "2.png": None}
        assert "notes.jpg" in said and "Traceback" not in said
        page.wait_for_selector(".cell >> nth=1")
        archive = BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            for number in range(3, 6):
                file.writestr(f"bent/{number}.png", png(number))
        drop(page, {"all.zip": archive.getvalue()})
        page.wait_for_selector('.upload[data-done="2"]')
        assert [label for label in pictures_of(workspace).values() if label] == ["bent"] * 3
        assert page.problems == []
        page.context.close()


def test_folders_name_labels_and_a_split_is_seen_first(browser, workspace, tmp_path):
    for number in range(12):
        path = tmp_path / "source" / ("good" if number % 2 else "曲がり") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    with served(workspace) as url:
        page = theme_page(browser, url)
        page.select_option(".upload [name=label]", "folder")
        page.set_input_files(".upload [name=folder]", tmp_path / "source")
        page.wait_for_selector('.upload[data-done="1"]')
        assert sorted(set(pictures_of(workspace).values())) == ["good", "曲がり"]
        page.click('summary:has-text("Split the pictures")')
        page.reload()
        page.click('summary:has-text("Split the pictures")')
        page.wait_for_selector('.split[data-fresh="12"]')
        page.fill(".split [name=train]", "60")
        page.wait_for_selector(".split .error:not([hidden])")
        page.fill(".split [name=valid]", "25")
        page.wait_for_selector(".split .error", state="hidden")
        page.click("[data-act=split]")
        page.wait_for_selector('.split[data-split="12"]')
        page.wait_for_selector('.label .tiles:has-text("unsplit0")')
        engine = open_engine(workspace.database_url)
        with reading(engine) as session:
            assert None not in set(session.scalars(select(TrainData.split)))
        engine.dispose()
        assert page.problems == []
        page.context.close()


def test_a_server_that_restarts_loses_nothing(browser, workspace):
    port, files = free_port(), {f"{number}.png": png(number) for number in range(250)}
    with served(workspace, port=port) as url:
        page = theme_page(browser, url)
    drop(page, files)
    page.wait_for_selector(".upload[data-waiting]")
    with served(workspace, port=port):
        page.wait_for_selector('.upload[data-done="1"]', timeout=60_000)
        assert set(pictures_of(workspace)) == set(files)
        drop(page, files)
        page.wait_for_selector('.upload[data-done="2"]', timeout=60_000)
        assert "already there\n250" in page.inner_text(".upload .tiles")
    page.context.close()


def test_viewers_add_nothing_and_it_speaks_japanese(browser, workspace):
    with served(workspace) as url:
        page = theme_page(browser, url, "vic", "ja-JP")
        drop(page, {"1.png": png(1)})
        assert page.is_disabled(".upload [data-act=files]") and pictures_of(workspace) == {}
        said = page.inner_text(".upload")
        assert "ここに画像" in said and "Drop" not in said
        page.context.close()
