"The labeling screen in a real browser: keys become rows, whatever happens to the server and the network."

import pytest
from browser import add_people, chromium, free_port, opened, served, signed_in
from sqlalchemy import select

from classification_mlops.db.labels import set_label
from classification_mlops.db.schema import Label, LabelEvent, ReviewItem, TrainData
from classification_mlops.db.session import open_engine, reading, writing
from classification_mlops.db.users import set_role
from classification_mlops.demo import sample_workspace

PAGE = "/theme/1/"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    found = sample_workspace(tmp_path_factory.mktemp("workspace"))
    add_people(found, ann="admin", bob="annotator", vic="viewer")
    return found


@pytest.fixture(scope="module")
def url(workspace):
    with served(workspace, workers=2) as address:
        yield address


@pytest.fixture
def engine(workspace):
    found = open_engine(workspace.database_url)
    with writing(found) as session:  # Each test begins without labels
        set_label(
            session,
            list(session.scalars(select(TrainData.id).where(TrainData.deleted_at.is_(None)))),
            None,
            "x",
        )
    yield found
    found.dispose()


def labels_of(engine) -> dict[int, str]:
    "Labels by number of the picture."
    query = select(TrainData.id, Label.label_name).join(Label, Label.id == TrainData.label_id)
    with reading(engine) as session:
        return dict(session.execute(query.where(TrainData.deleted_at.is_(None))).all())


def label_page(browser, url, name="ann", language="en"):
    page = opened(signed_in(browser, url, name, language), url + PAGE)
    page.wait_for_selector(".label[data-ready]")
    return page


def numbers_on(page) -> list[int]:
    return page.eval_on_selector_all(".cell", "cells => cells.map(cell => Number(cell.dataset.id))")


def test_keys_become_rows(browser, url, engine):
    page = label_page(browser, url)
    first, second, third, *_ = numbers_on(page)
    for key in ("1", "Numpad2", "Digit3"):
        page.keyboard.press(key)
    page.wait_for_selector('.label[data-saved="3"]')
    assert labels_of(engine) == {first: "0", second: "1", third: "2"}
    page.wait_for_selector('.label .tiles:has-text("Labeled3")')
    page.keyboard.press("Control+z")
    page.wait_for_selector(f'.cell[data-id="{third}"][data-label=""]')
    assert labels_of(engine) == {first: "0", second: "1"}
    page.keyboard.press("Control+y")
    page.wait_for_selector(f'.cell[data-id="{third}"][data-label="2"]')
    page.keyboard.press("Home")
    page.keyboard.press("0")
    page.wait_for_selector('.label[data-saved="4"]')
    assert labels_of(engine) == {second: "1", third: "2"}
    assert page.problems == []
    page.context.close()


def test_ranges_filters_and_everything(browser, url, engine):
    page = label_page(browser, url)
    numbers = numbers_on(page)
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("4")
    page.wait_for_selector('.label[data-saved="1"]')
    assert labels_of(engine) == dict.fromkeys(numbers[:3], "3")
    page.select_option("[name=kind]", "unlabeled")
    page.wait_for_selector('.label[data-ready="2"]')
    assert numbers_on(page)[0] == numbers[3]
    page.keyboard.press("Escape")
    page.click(".cell >> nth=0")
    page.keyboard.press("Control+a")
    page.click('button:has-text("Choose all")')
    page.on("dialog", lambda dialog: dialog.accept())
    page.keyboard.press("1")
    page.wait_for_selector('.label[data-ready="3"]')
    assert set(labels_of(engine).values()) == {"0", "3"} and len(labels_of(engine)) == 120
    page.select_option("[name=kind]", "labeled")
    page.wait_for_selector('.label[data-ready="4"]')
    page.select_option(".filters [name=label]", "3")
    page.wait_for_selector('.label[data-ready="5"]')
    assert numbers_on(page) == numbers[:3]
    page.context.close()


def test_pages_details_and_one_picture(browser, url, engine):
    page = label_page(browser, url)
    seen = numbers_on(page)
    page.keyboard.press("PageDown")
    page.wait_for_selector('.label[data-ready="2"]')
    assert numbers_on(page)[0] > seen[-1]
    page.click('button[title="Last page"]')
    page.wait_for_selector('.label[data-ready="3"]')
    page.keyboard.press("PageUp")
    page.wait_for_selector('.label[data-ready="4"]')
    page.keyboard.press("i")
    page.wait_for_selector(".detail[data-id]")
    assert "SHA-256" in page.inner_text(".detail")
    page.keyboard.press("Enter")
    page.wait_for_selector(".large[data-shown]")
    before = page.get_attribute(".detail", "data-id")
    page.keyboard.press("2")
    page.wait_for_selector('.label[data-saved="1"]')
    assert labels_of(engine) == {int(before): "1"}
    page.wait_for_selector(f'.detail:not([data-id="{before}"])')
    assert page.problems == []
    page.context.close()


def test_new_labels_and_doubts(browser, url, engine):
    page = label_page(browser, url)
    first, second, *_ = numbers_on(page)
    page.keyboard.press("u")
    page.wait_for_selector("[name=reason] option[value=unsure]", state="attached")
    with reading(engine) as session:
        assert session.scalars(select(ReviewItem.train_data_id).where(ReviewItem.status == "open")).all() == [
            first
        ]
    page.keyboard.press("/")
    page.keyboard.type("blurred")
    page.keyboard.press("Enter")
    page.wait_for_selector('.choice:has-text("blurred")')
    page.keyboard.press("5")
    page.wait_for_selector('.label[data-saved="1"]')
    assert labels_of(engine) == {second: "blurred"}
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("1")
    page.wait_for_selector('.label[data-saved="2"]')
    with reading(engine) as session:
        decided = session.execute(select(ReviewItem.status, ReviewItem.decided_by)).all()
    assert decided == [("decided", "ann")]
    page.context.close()


def test_two_people_see_each_other(browser, url, engine):
    ann, bob = label_page(browser, url), label_page(browser, url, "bob")
    first = numbers_on(ann)[0]
    ann.keyboard.press("1")
    bob.wait_for_selector(f'.cell[data-id="{first}"][data-label="0"]', timeout=2000)
    bob.keyboard.press("2")
    ann.wait_for_selector(f'.cell[data-id="{first}"][data-label="1"]', timeout=2000)
    assert labels_of(engine) == {first: "1"}
    with reading(engine) as session:
        newest = session.scalars(select(LabelEvent.actor).order_by(LabelEvent.id.desc()).limit(2)).all()
    assert newest == ["bob", "ann"]
    assert not bob.is_enabled('button[title="Delete"]') and ann.is_enabled('button[title="Delete"]')
    ann.context.close()
    bob.context.close()


def test_what_is_deleted_comes_back(browser, url, engine):
    page = label_page(browser, url)
    first = numbers_on(page)[0]
    page.on("dialog", lambda dialog: dialog.accept())
    page.keyboard.press("Delete")
    page.wait_for_selector(f'.cell[data-id="{first}"]', state="detached")
    page.keyboard.press("Control+z")
    page.wait_for_selector(f'.cell[data-id="{first}"]')
    page.context.close()


def test_viewers_look(browser, url, engine):
    page = label_page(browser, url, "vic")
    page.keyboard.press("1")
    assert not page.is_enabled(".choice >> nth=0")
    assert page.get_attribute(".label", "data-saved") is None and labels_of(engine) == {}
    page.context.close()


def test_open_pages_end_with_the_session_and_with_the_role(browser, url, engine):
    page = label_page(browser, url, "bob")
    with writing(engine) as session:
        set_role(session, "bob", "viewer")
    page.wait_for_selector(".choice[disabled]", timeout=20_000)  # It was opened again, as a viewer's
    with writing(engine) as session:
        set_role(session, "bob", "annotator")
    other = page.context.new_page()
    other.goto(url)
    other.click('button:has-text("Log out")')
    page.wait_for_url("**/login/**", timeout=20_000)
    page.context.close()


def test_it_speaks_japanese(browser, url, engine):
    page = label_page(browser, url, language="ja-JP")
    said = page.inner_text(".label")
    assert "未ラベル" in said and "元に戻す" in said and "Undo" not in said
    page.context.close()


def test_nothing_is_lost_when_the_server_restarts(browser, workspace, engine):
    port = free_port()
    with served(workspace, port=port) as url:
        page = label_page(browser, url)
        numbers = numbers_on(page)
        page.keyboard.press("1")
        page.wait_for_selector('.label[data-saved="1"]')
    page.wait_for_selector("html[data-connection=lost]")
    for key in ("2", "3", "4"):
        page.keyboard.press(key)
    page.wait_for_selector('.status[data-unsaved="3"]')
    assert labels_of(engine) == {numbers[0]: "0"}
    with served(workspace, port=port):
        page.wait_for_selector('.status[data-unsaved="0"]', timeout=30_000)
        assert labels_of(engine) == dict(zip(numbers, "0123", strict=False))
        page.keyboard.press("1")
        page.wait_for_selector('.label[data-saved="5"]')
    page.wait_for_selector("html[data-connection=lost]")
    page.keyboard.press("2")
    page.wait_for_selector('.status[data-unsaved="1"]')
    with served(workspace, port=port):  # And a reload of the page does not forget it
        page.reload()
        page.wait_for_selector(".label[data-ready]")
        assert labels_of(engine)[numbers[5]] == "1"
    page.context.close()
