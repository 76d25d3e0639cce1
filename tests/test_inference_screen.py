"The screen that asks a model, in a real browser, with a real model server."

import csv
import hashlib
import io
import json
import re
from base64 import b64encode

import pytest
from browser import add_people, chromium, opened, served, signed_in
from packaged import pictures, register_small
from sqlalchemy import select

from classification_mlops.db.schema import ReviewItem, TrainData
from classification_mlops.db.session import open_engine, reading
from classification_mlops.demo import sample_workspace
from classification_mlops.serving.client import PredictionClient
from classification_mlops.serving.running import (
    hold,
    is_held,
    notes_folder,
    running_servers,
    start_log,
    start_logs,
    stop_server,
)

PAGE = "/theme/1/inference/"
SLOW = 90_000  # ms: a model server loads torch


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    found = sample_workspace(tmp_path_factory.mktemp("workspace"))
    add_people(found, ann="admin", bob="annotator", vic="viewer")
    register_small(found, "digits")
    register_small(found, "digits", alias="challenger")
    yield found
    for server in running_servers(found, "digits"):
        stop_server(found, "digits", server["name"])


@pytest.fixture(scope="module")
def url(workspace):
    with served(workspace, workers=2) as address:
        yield address


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "Twenty pictures of noise, one that needs two messages, and a text that says it is a picture."
    folder = tmp_path_factory.mktemp("pictures")
    for number, content in enumerate(pictures(20, seed=5)):
        (folder / f"{number:02}.png").write_bytes(content)
    (folder / "large.png").write_bytes(pictures(1, seed=6)[0] + bytes(4_000_000))
    (folder / "text.jpg").write_text("no picture at all")
    return folder


def inference_page(browser, url, name="ann", language="en"):
    page = opened(signed_in(browser, url, name, language), url + PAGE)
    page.wait_for_selector(".inference[data-ready]")
    return page


def give(page, *paths):
    page.set_input_files("[data-files]", [str(path) for path in paths])


def answered(page, count):
    page.wait_for_selector(f'.inference[data-answered="{count}"][data-waiting="0"]')


def table_of(page) -> list[dict]:
    "The table that somebody downloads."
    with page.expect_download() as waiting:
        page.click("[data-csv]")
    with open(waiting.value.path(), encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(io.StringIO(file.read())))


def forged(page, question, **given) -> str:
    "What comes back when a program in the browser asks for something by itself."
    return page.evaluate(
        """async ([ask, given]) => {
          const models = await Promise.all([...widgets.comms.keys()].map((id) => widgets.get_model(id)));
          const model = models.find((one) => one.get("texts"));
          return new Promise((resolve) => {
            model.on("msg:custom", (said) => said.number === 999 && resolve(said.error?.message ?? "done"));
            model.send({ number: 999, ask, given });
            setTimeout(() => resolve("late"), 10000);
          });
        }""",
        [question, given],
    )


def test_nobody_answers_until_an_admin_starts_a_server(browser, url, workspace, files):
    page = inference_page(browser, url)
    assert page.text_content("[data-advice]") == "cmlops serve digits --alias champion --port 0"
    give(page, files / "00.png")
    page.wait_for_selector('.inference[data-waiting="1"]')
    page.click("[data-start]")
    page.wait_for_selector(".inference[data-server=starting]")
    other = inference_page(browser, url)  # Whoever looks from elsewhere, or again, sees it, too
    assert other.get_attribute(".inference", "data-server") == "starting"
    other.reload()
    other.wait_for_selector(".inference[data-ready]")
    assert other.get_attribute(".inference", "data-server") == "starting"
    assert "is being loaded" in other.text_content(".advice") and other.is_disabled("[data-start]")
    assert forged(other, "start", wanted="champion") == "done"  # Asked for again, it is still one server
    page.wait_for_selector(".inference[data-server=ready]", timeout=SLOW)
    other.wait_for_selector(".inference[data-server=ready]")
    assert forged(other, "start", wanted="1") == "done"
    other.context.close()
    answered(page, 1)  # What was dropped before is asked as soon as somebody answers
    assert start_logs(workspace, 1) == {}
    (server,) = running_servers(workspace, "digits")
    assert (server["version"], server["alias"]) == (1, "champion")
    page.select_option("[data-models]", "challenger")
    assert "A server of version 1 runs, but you chose version 2" in page.text_content(".advice")
    page.click("[data-other]")
    page.wait_for_selector(".inference[data-server=ready]")
    assert page.problems == []
    page.context.close()


def test_answers_are_those_of_the_server_and_the_table_says_the_same(browser, url, workspace, files):
    page = inference_page(browser, url, "vic")
    names = sorted(path.name for path in files.iterdir())
    give(page, *(files / name for name in names))
    answered(page, 22)
    told = page.text_content('.answer-card[data-name="text.jpg"] .trouble')
    assert told == "text.jpg is not a picture: what counts is the content, not the ending of the name"
    rows = {row["file"]: row for row in table_of(page)}
    (server,) = running_servers(workspace, "digits")
    with PredictionClient(server["url"]) as client:
        direct = dict(zip(names, client.predict([files / name for name in names]), strict=True))
    assert rows.keys() == direct.keys()
    for name, answer in direct.items():
        row = rows[name]
        assert (row["label"], row["decision"], row["error"]) == (
            answer["label"] or "",
            answer["decision"],
            answer["error"] or "",
        )
        if answer["error"] is None:
            assert float(row["confidence"]) == pytest.approx(answer["confidence"], abs=1e-5)
            assert float(row["probability_傷"]) == pytest.approx(answer["probabilities"]["傷"], abs=1e-5)
            assert row["model_version"] == "1"
    assert page.problems == []
    page.context.close()


def test_cards_are_sorted_filtered_and_explained_by_keys(browser, url, files):
    page = inference_page(browser, url, "vic")
    give(page, *(files / f"{number:02}.png" for number in range(8)), files / "text.jpg")
    answered(page, 9)
    page.select_option("[data-sort]", "least")
    shares = page.eval_on_selector_all(
        ".sure span", "spans => spans.map(span => parseFloat(span.textContent))"
    )
    assert len(shares) == 8 and shares == sorted(shares)
    page.select_option("[data-filter]", "error")
    assert page.locator(".answer-card").count() == 1
    page.select_option("[data-filter]", "")
    page.focus(".answer-card >> nth=0")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.wait_for_selector(".answer-card.chosen:focus")
    page.keyboard.press("Enter")
    page.wait_for_selector(".answer-card.chosen [data-overlay]", timeout=SLOW)
    size = page.eval_on_selector(
        "[data-overlay]", "async image => { await image.decode(); return image.naturalWidth; }"
    )
    assert size >= 32
    assert len(table_of(page)) == 1  # Only what is chosen
    assert page.problems == []
    page.context.close()


def test_a_viewer_neither_starts_nor_stops_nor_sends(browser, url, files):
    page = inference_page(browser, url, "vic")
    give(page, files / "00.png")
    answered(page, 1)
    page.check(".answer-card input")
    assert page.locator("[data-start], [data-stop]").count() == 0
    assert page.locator("[data-send]").is_hidden()
    for question in ("start", "stop", "keep"):  # What the page does not offer is refused, too
        assert "your role does not allow this" in forged(page, question)
    page.context.close()


def test_chosen_pictures_wait_for_a_label_with_what_the_model_said(browser, url, workspace, files):
    page = inference_page(browser, url, "bob")
    give(page, files / "01.png", files / "large.png", files / "text.jpg")
    answered(page, 3)
    page.click("[data-all]")
    page.click("[data-send]")
    page.wait_for_selector('.inference[data-sent="2"]')
    assert "2 pictures are new in this theme" in page.text_content(".notice")
    hashes = {hashlib.sha256((files / name).read_bytes()).hexdigest() for name in ("01.png", "large.png")}
    engine = open_engine(workspace.database_url)
    with reading(engine) as session:
        found = list(session.scalars(select(TrainData).where(TrainData.sha256.in_(hashes))))
        items = list(session.scalars(select(ReviewItem).where(ReviewItem.status == "open")))
    engine.dispose()
    assert {one.original_name for one in found} == {"01.png", "large.png"}
    assert all(one.label_id is None for one in found)
    assert {item.train_data_id for item in items} == {one.id for one in found}
    assert {item.reason for item in items} == {"unsure"} and all(0 < item.score < 1 for item in items)
    kept = [json.loads(path.read_text()) for path in (workspace.artifacts / "suggestions").rglob("*.json")]
    assert len(kept) == 2 and {said["model_version"] for said in kept} == {1}
    page.click("[data-all]")  # Once more: nothing comes twice
    page.click("[data-send]")
    page.wait_for_selector('.notice:has-text("2 were there already")')
    assert page.problems == []
    page.context.close()


def test_in_japanese_a_folder_is_asked_and_the_server_is_stopped(browser, url, workspace, files):
    page = inference_page(browser, url, "ann", "ja")
    page.set_input_files("[data-folder]", str(files))
    answered(page, 22)
    text = page.inner_text(".inference")
    assert "バージョン 1" in text and "要確認" in text
    words = {*re.findall(r"[A-Za-z]{4,}", text)} - {"Ctrl", "okpictures", "pictures", "large", "text", "bent"}
    assert words == set()
    page.click("[data-stop]")
    page.wait_for_selector(".inference[data-server=none]")
    page.wait_for_selector("[data-start]:enabled")
    assert not list(notes_folder(workspace).glob("*.json"))
    give(page, files / "00.png")
    page.wait_for_selector('.inference[data-waiting="1"]')
    assert page.problems == []
    page.context.close()


DROP = """([names, contents]) => {
  const carried = new DataTransfer();
  contents.forEach((content, at) => {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    carried.items.add(new File([bytes], names[at], { type: "image/png" }));
  });
  for (const name of ["dragenter", "dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(name, { dataTransfer: carried, bubbles: true }));
}"""
COPY = """async (content) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const picture = new Blob([bytes], { type: "image/png" });
  await navigator.clipboard.write([new ClipboardItem({ "image/png": picture })]);
}"""


def test_pictures_are_dropped_and_pasted(browser, url, files):
    page = inference_page(browser, url, "vic")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
    names = ["00.png", "01.png"]
    page.evaluate(DROP, [names, [b64encode((files / name).read_bytes()).decode() for name in names]])
    page.wait_for_selector('.inference[data-waiting="2"]')
    assert page.locator(".answer-card").evaluate_all("cards => cards.map(card => card.dataset.name)") == names
    assert page.locator(".zone.over").count() == 0
    page.evaluate(COPY, b64encode((files / "02.png").read_bytes()).decode())
    page.keyboard.press("Control+V")  # Although nothing on the page was clicked
    page.wait_for_selector('.inference[data-waiting="3"]')
    sides = page.locator(".answer-card img").last.evaluate(
        "async image => { await image.decode(); return [image.naturalWidth, image.naturalHeight]; }"
    )
    assert sides == [40, 48]
    assert page.problems == []
    page.context.close()


def test_a_dropped_folder_is_walked(browser, url, tmp_path):
    "Chromium itself makes the event, as for a folder that a hand lets go."
    page = inference_page(browser, url, "vic")
    for name in ("a.png", "deeper/b.png", ".hidden.png", "notes.md"):
        (tmp_path / "lot" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lot" / name).write_bytes(pictures(1)[0])
    box, devices = page.locator(".zone").bounding_box(), page.context.new_cdp_session(page)
    place = {"x": box["x"] + 5, "y": box["y"] + 5}
    data = {"items": [], "files": [str(tmp_path / "lot")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        devices.send("Input.dispatchDragEvent", {"type": kind, "data": data, **place})
    page.wait_for_selector('.inference[data-waiting="2"]')
    found = page.locator(".answer-card").evaluate_all("cards => cards.map(card => card.dataset.name)")
    assert sorted(found) == ["lot/a.png", "lot/deeper/b.png"]
    page.context.close()


def test_a_server_that_cannot_start_says_why_and_what_helps(browser, url, workspace):
    model, _ = register_small(workspace, "digits", alias=None)
    newest = max(workspace.mlflow_dir.rglob("weights.safetensors"), key=lambda path: path.stat().st_mtime)
    newest.write_bytes(newest.read_bytes()[:-4] + b"1234")
    page = inference_page(browser, url)
    page.select_option("[data-models]", str(model.version))
    page.click("[data-start]")
    told = page.wait_for_selector("[data-failed]", timeout=SLOW).inner_text()
    assert "The server did not start: artifacts/model/weights.safetensors" in told
    assert "was changed since it was registered: use another version, or train again" in told
    assert page.is_enabled("[data-start]")
    page.reload()
    page.wait_for_selector(".inference[data-ready]")
    page.select_option("[data-models]", str(model.version))
    assert page.inner_text("[data-failed]") == told
    page.select_option("[data-models]", "champion")
    assert page.locator("[data-failed]").count() == 0
    viewer = inference_page(browser, url, "vic")
    viewer.select_option("[data-models]", str(model.version))
    assert viewer.locator("[data-failed]").count() == 0
    assert page.problems == []
    for one in (page, viewer):
        one.context.close()


def test_a_start_that_was_cut_short_is_not_in_the_way(browser, url, workspace):
    log = start_log(workspace, 1, 2)
    with hold(log):
        assert is_held(log)
    page = inference_page(browser, url)
    page.select_option("[data-models]", "challenger")
    assert page.get_attribute(".inference", "data-server") == "none"
    assert page.locator("[data-failed]").count() == 0 and page.is_enabled("[data-start]")
    page.context.close()
