"Results and histories of real trainings, as people see them in a real browser."

import csv
import io
import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import pytest
from browser import PASSWORD, add_people, chromium, opened, served, signed_in
from sqlalchemy import select

from classification_mlops.db.jobs import change_status, create_job
from classification_mlops.db.schema import Label, LabelEvent, TrainData
from classification_mlops.db.session import open_engine, reading, writing
from classification_mlops.db.themes import create_theme, get_theme
from classification_mlops.demo import sample_workspace
from classification_mlops.training.jobs import run_training
from classification_mlops.training.versus import versus

GOOD = ("trainer.max_epochs=4", "data.batch_size=8")
POOR = ("trainer.max_epochs=1", "data.batch_size=16", "optimizer.learning_rate=0.0001")
HOSTILE = """<!doctype html><title>Report</title><body><h1>Report</h1>
<img src=x onerror="document.body.id='bad'"><script>
document.body.id='bad'; parent.document.title='bad'</script>
<meta http-equiv=refresh content="1;url=/theme/1/"><iframe src=/theme/1/></iframe>
<form action=/logout/ method=post><button>Go</button></form>"""
PEOPLE = {"ann": "admin", "bob": "annotator", "vic": "viewer"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "A good training and a poor one, a theme without any, a server and a browser."
    workspace = sample_workspace(tmp_path_factory.mktemp("results"))
    runs = [run_training(workspace, "digits", changes).run_id for changes in (GOOD, POOR)]
    engine = open_engine(workspace.database_url)
    with writing(engine) as session:
        theme, other = get_theme(session, "digits").id, create_theme(session, "empty").id
    add_people(workspace, **PEOPLE)
    with served(workspace) as url, chromium() as browser:
        facts = dict(workspace=workspace, engine=engine, url=url, browser=browser)
        yield SimpleNamespace(**facts, good=runs[0], poor=runs[1], theme=theme, other=other)
    engine.dispose()


@pytest.fixture
def tab(site):
    "Opens tabs for people, and closes them."
    tabs = []

    def open_tab(name: str, language: str = "en"):
        tabs.append(signed_in(site.browser, site.url, name, language))
        return tabs[-1]

    yield open_tab
    for page in tabs:
        page.context.close()


def result(site, page, run: str, part: str = ""):
    "The result of a run, one of its parts in front."
    opened(page, f"{site.url}/theme/{site.theme}/training/result/{run}/")
    page.wait_for_selector(".cm.result[data-ready=yes]")
    if part:
        page.click(f"[data-tab={part}]")
        page.wait_for_selector(f"[data-panel={part}]:not([hidden])")
    return page


def history(site, page, theme: int | None = None, more: str = ""):
    "The list of trainings."
    opened(page, f"{site.url}/theme/{theme or site.theme}/training/history/{more}")
    page.wait_for_selector(".cm.history[data-ready=yes]")
    return page


@contextmanager
def client(site, name: str) -> Iterator[httpx.Client]:
    "Somebody who asks without a browser."
    headers = {"origin": site.url, "accept": "text/html"}
    with httpx.Client(base_url=site.url, headers=headers, timeout=120) as one:
        one.post("/login/", data={"username": name, "password": PASSWORD})
        yield one


def metrics_of(site, run: str) -> dict[str, float]:
    path = site.workspace.runs / run / "evaluation" / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8"))


def answers_of(site, run: str) -> list[dict]:
    with (site.workspace.runs / run / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["split"] == "test"]


def number(text: str) -> float:
    return float(re.search(r"-?[\d.]+", text.replace(",", ""))[0])


def test_figures_are_those_of_the_files(site, tab):
    page, metrics = result(site, tab("vic"), site.poor), metrics_of(site, site.poor)
    for name in ("test_accuracy", "test_macro_f1", "test_accepted"):
        tile = page.locator(f"[data-metric={name}]")
        low, high = (100 * metrics[f"{name}_{end}"] for end in ("low", "high"))
        said = [float(text) for text in re.findall(r"[\d.]+", tile.locator(".range").inner_text())]
        assert number(tile.locator("dd").first.inner_text()) == pytest.approx(100 * metrics[name], abs=0.06)
        assert said == pytest.approx([low, high], abs=0.06)
    with (site.workspace.runs / site.poor / "evaluation" / "class_scores.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            shown = page.locator(f"[data-class='{row['label']}'] [data-value=recall]").inner_text()
            assert number(shown) == pytest.approx(100 * float(row["recall"]), abs=0.06)
    assert page.locator("[data-panel=overview] [data-series]").count() == 4
    page.click("[data-tab=data]")
    page.wait_for_selector("[data-part=data][data-ready=yes]")
    counts = json.loads((site.workspace.runs / site.poor / "counts.json").read_text())["counts"]
    for label, splits in counts.items():
        shown = page.locator(f"[data-counts='{label}'] [data-split]").all_inner_texts()
        assert [int(text) for text in shown] == [splits[name] for name in ("train", "valid", "test")]
    page.click("[data-changes]")
    page.wait_for_selector("[data-part=changes][data-ready=yes]")
    page.click("[data-tab=settings]")
    page.wait_for_selector("[data-part=settings][data-ready=yes]")
    changed = page.locator("[data-setting] code").all_inner_texts()
    assert {"trainer.max_epochs", "optimizer.learning_rate"} <= set(changed) and "seed" not in changed
    page.uncheck("[data-only]")
    assert page.locator("[data-setting='seed']").count() == 1
    page.click("[data-tab=confidence]")
    assert page.locator("[data-panel=confidence] circle").count() >= 2
    assert page.problems == []


def test_a_cell_opens_its_pictures_and_puts_a_label_right(site, tab):
    wrong = [row for row in answers_of(site, site.poor) if row["label"] != row["predicted"]]
    label, answer = wrong[0]["label"], wrong[0]["predicted"]
    same = {row["sha256"] for row in wrong if (row["label"], row["predicted"]) == (label, answer)}
    with reading(site.engine) as session:
        ids = set(session.scalars(select(TrainData.id).where(TrainData.sha256.in_(same))))
        new = session.scalar(select(Label).where(Label.theme_id == site.theme, Label.label_name == answer))
    page = result(site, tab("bob"), site.poor, "pictures")
    page.wait_for_selector(".pictures[data-ready=yes]")
    cell = page.locator(f"button[data-label='{label}'][data-answer='{answer}']")
    assert cell.inner_text() == str(len(same))
    cell.click()
    page.wait_for_selector(f".pictures[data-ready=yes] h2:has-text('{label}, taken for {answer}')")
    shown = {int(one.get_attribute("data-id")) for one in page.locator(".wall .picture").all()}
    assert shown == ids
    first = page.locator(".wall .picture").first
    number = int(first.get_attribute("data-id"))
    assert first.locator("img").evaluate("one => one.decode().then(() => one.naturalWidth)") > 0
    first.click()
    page.click(f"[data-palette='{new.id}']")
    page.wait_for_selector(f".wall [data-id='{number}'] .now")
    with reading(site.engine) as session:
        last = session.scalars(select(LabelEvent).order_by(LabelEvent.id.desc()).limit(1)).one()
        assert session.get(TrainData, number).label_id == new.id
        assert (last.train_data_id, last.actor, last.source) == (number, "bob", "human")
    page.click("[data-tab=data]")
    page.click("[data-changes]")
    page.wait_for_selector("[data-change=relabeled]")
    assert page.locator("[data-change=relabeled] dd").inner_text() == "1"
    page.click("[data-tab=pictures]")
    page.click("[data-undo]")
    page.wait_for_selector(".pictures:has-text('Taken back: 1')")
    with reading(site.engine) as session:
        assert session.get(TrainData, number).label_id != new.id
    page.wait_for_selector("[data-part=explanations][data-ready=yes] img")
    assert page.problems == []


def test_keys_are_enough(site, tab):
    "Tabs and cells are walked through, and a picture gets its label, without a mouse."
    page = result(site, tab("bob"), site.poor)
    page.focus("[data-tab=overview]")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("[data-panel=pictures] .pictures[data-ready=yes]")
    assert page.evaluate("document.activeElement.dataset.tab") == "pictures"
    cells = page.locator(".matrix td button")
    places = cells.evaluate_all("all => all.map(one => [one.dataset.label, one.dataset.answer])")
    label = places[0][0]
    below = next(place for place in places if place[1] == places[0][1] and place[0] > label)
    cells.first.focus()
    page.keyboard.press("ArrowDown")
    assert (
        page.evaluate("[document.activeElement.dataset.label, document.activeElement.dataset.answer]")
        == below
    )
    page.keyboard.press("Enter")
    page.wait_for_selector(f".pictures[data-ready=yes] h2:has-text('{below[0]}')")
    first = page.locator(".wall .picture").first
    number, digit = int(first.get_attribute("data-id")), page.locator("[data-palette]").count()
    with reading(site.engine) as session:
        before = session.get(TrainData, number).label_id
    key = digit if page.locator("[data-palette]").last.get_attribute("data-palette") != str(before) else 1
    first.focus()
    page.keyboard.press(str(key))
    page.wait_for_selector(f".wall [data-id='{number}'] .now")
    assert page.evaluate("document.activeElement.dataset.id") == str(number)
    page.click("[data-undo]")
    page.wait_for_selector(".pictures:has-text('Taken back: 1')")
    with reading(site.engine) as session:
        assert session.get(TrainData, number).label_id == before
    assert page.problems == []


def test_two_runs_side_by_side(site, tab):
    page = history(site, tab("vic"))
    assert page.locator("tr[data-run]").count() == 2
    page.fill("[data-filter=text]", "learning_rate=0.0001")
    assert page.locator("tr[data-run]").evaluate_all("rows => rows.map(row => row.dataset.run)") == [
        site.poor
    ]
    page.click("[data-clear]")
    page.click("[data-sort=test_accuracy]")
    order = page.locator("tr[data-run]").evaluate_all("rows => rows.map(row => row.dataset.run)")
    assert order == sorted(order, key=lambda run: -metrics_of(site, run)["test_accuracy"])
    for run in (site.good, site.poor):
        page.check(f"tr[data-run='{run}'] input")
    page.click("[data-compare]")
    page.wait_for_selector("[data-pair]")
    folders = [site.workspace.runs / run for run in (site.good, site.poor)]
    facts = versus(*(folder / "predictions.csv" for folder in folders))
    for n, run in enumerate((site.good, site.poor)):
        shown = page.locator(f"[data-metric=test_accuracy][data-n='{n}']").inner_text()
        assert number(shown) == pytest.approx(100 * metrics_of(site, run)["test_accuracy"], abs=0.06)
    settings = page.locator("[data-setting] code").all_inner_texts()
    assert {"trainer.max_epochs", "data.batch_size", "optimizer.learning_rate"} == set(settings)
    assert facts.lost, "the poor training knows everything that the good one knows"
    assert page.locator("[data-flips=lost-1]").inner_text() == str(len(facts.lost))
    page.click("[data-flips=lost-1]")
    page.wait_for_selector(".wall[data-ready=yes] [data-flip]")
    assert page.locator("[data-flip]").count() == len(facts.lost)
    page.reload()
    page.wait_for_selector("[data-pair]")
    assert page.problems == []


def test_a_hostile_report_does_nothing(site, tab):
    report = site.workspace.runs / site.poor / "train.html"
    kept = report.read_bytes()
    report.write_text(HOSTILE)
    try:
        page = result(site, tab("ann"), site.poor, "report")
        control = page.context.new_page()
        control.set_content(HOSTILE)
        control.wait_for_selector("body#bad", state="attached")
        frame = page.frame_locator("iframe.notebook")
        assert frame.locator("h1").inner_text() == "Report"
        alone = page.context.new_page()
        alone.goto(f"{site.url}/theme/{site.theme}/training/result/{site.poor}/report/")
        for shown in (alone, page.frames[1]):
            assert shown.url.endswith("/report/") and shown.locator("h1").inner_text() == "Report"
            assert shown.locator("body#bad, script, form, iframe, button, [onerror]").count() == 0
        assert page.title() != "bad" and alone.evaluate("origin") == "null"
        page.reload()
        page.wait_for_selector(".cm.result[data-ready=yes]")
    finally:
        report.write_bytes(kept)


def test_files_are_for_who_may_have_them(site):
    base = f"/theme/{site.theme}/training/result/{site.good}"
    with client(site, "vic") as viewer:
        page = viewer.get(f"{base}/report/")
        policy = page.headers["content-security-policy"]
        assert page.status_code == 200 and policy.startswith("sandbox;") and "allow-" not in policy
        table = viewer.get(f"{base}/files/predictions")
        assert table.headers["content-disposition"].startswith("attachment") and "sandbox" in str(
            table.headers
        )
        assert viewer.get(f"{base}/files/..%2Fparams.yaml").status_code in (404, 422)
        assert viewer.get(f"{base}/model/").status_code == 403
        assert viewer.get(base.replace(site.good, "0" * 32) + "/").status_code == 404
        assert viewer.get(base.replace(site.good, "x") + "/").status_code == 404
        for part in ("", "/report", "/files/notebook"):
            other = base.replace(f"/theme/{site.theme}/", f"/theme/{site.other}/")
            assert viewer.get(f"{other}{part}{'' if 'files' in part else '/'}").status_code == 404
    with client(site, "bob") as worker:
        answer = worker.get(f"{base}/model/")
        assert answer.status_code == 200, answer.text
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            names = {name.split("/")[-1] for name in archive.namelist()}
        assert {"MLmodel", "weights.safetensors", "labels.json"} <= names
    assert not list(site.workspace.artifacts.glob("download-*"))


def test_a_viewer_looks_and_an_admin_promotes(site, tab):
    page = result(site, tab("vic"), site.poor, "pictures")
    page.wait_for_selector(".pictures[data-ready=yes] .picture")
    assert page.locator("[data-promote], [data-download=model], [data-palette]:visible").count() == 0
    page = result(site, tab("ann"), site.good)
    page.click("[data-promote]")
    page.wait_for_selector("[data-free]", timeout=60_000)
    page.click("[data-go]")
    page.wait_for_selector("[data-champion]", timeout=60_000)
    result(site, page, site.poor)
    page.click("[data-promote]")
    page.wait_for_selector("[data-against]", timeout=60_000)
    assert "it knows" in page.inner_text("[data-against]") and page.is_disabled("[data-go]")
    page.fill("dialog textarea", "the camera was changed")
    page.click("[data-go]")
    page.wait_for_selector("[data-champion]", timeout=60_000)
    assert page.is_disabled("[data-promote]")
    history(site, page)
    assert "champion" in page.locator(f"tr[data-run='{site.poor}']").inner_text()
    from mlflow import MlflowClient

    known = MlflowClient(site.workspace.tracking_uri)
    version = known.get_model_version_by_alias("digits", "champion")
    assert (version.run_id, version.tags["promotion.reason"]) == (site.poor, "the camera was changed")
    assert (version.tags["promotion.actor"], version.tags["promotion.forced"]) == ("ann", "True")


def test_a_failed_training_says_why_and_others_start_are_seen(site, tab):
    page = history(site, tab("vic"))
    with writing(site.engine) as session:
        job = create_job(session, "train", get_theme(session, "digits"), {"overrides": ["seed=7"]})
        job.mlflow_run_id = "f" * 32
        session.flush()
        change_status(session, job.id, "queued", "failed", error="class 3 has too few pictures")
    row = page.wait_for_selector(f"tr[data-run='{'f' * 32}']")
    assert "class 3 has too few pictures" in row.inner_text() and "seed=7" in row.inner_text()
    assert page.is_disabled(f"tr[data-run='{'f' * 32}'] input")
    result(site, page, "f" * 32)
    assert page.inner_text("[data-error]") == "class 3 has too few pictures"
    assert page.locator("[data-tab=pictures], [data-promote]").count() == 0
    assert page.problems == []


def test_in_japanese_and_before_the_first_training(site, tab):
    page = result(site, tab("bob", "ja-JP"), site.good)
    assert "正解率" in page.inner_text("[data-metric=test_accuracy]")
    history(site, page, site.other)
    assert "まだ学習していません" in page.inner_text("[data-empty]")
    assert page.get_attribute("[data-empty] a", "href") == f"/theme/{site.other}/training/run/"
    assert page.problems == []
