"Settings of a theme in a real browser: judged as they are typed, kept in versions, and used by trainings."

import pytest
from browser import add_people, chromium, opened, served, signed_in

from classification_mlops.config import load_params
from classification_mlops.db.session import open_engine
from classification_mlops.db.themes import theme_files
from classification_mlops.demo import sample_workspace
from classification_mlops.settings import load_settings, save_settings
from classification_mlops.training.run import plan_run

PAGE, LONG_S = "/theme/1/training/config/", 90_000


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
    with served(workspace) as address:
        yield address


def config_page(browser, url, name="bob", language="en"):
    page = opened(signed_in(browser, url, name, language), url + PAGE)
    page.wait_for_selector(".config[data-ready]")
    return page


def test_what_is_typed_is_judged_saved_and_used(browser, url, workspace):
    page = config_page(browser, url)
    page.fill('[data-field="optimizer.learning_rate"] .control', "-1")
    page.wait_for_selector('[data-field="optimizer.learning_rate"].wrong')
    assert "above 0" in page.inner_text('[data-field="optimizer.learning_rate"] .problem')
    assert not page.is_enabled("[data-act=save]")
    page.fill('[data-field="optimizer.learning_rate"] .control', "0.02")
    page.fill('[data-field="trainer.max_epochs"] .control', "3")
    page.wait_for_selector('[data-changes="2"]')
    page.click("[data-act=save]")
    page.wait_for_selector('.config[data-saved="1"]')
    now = load_settings(workspace, 1)
    assert (now.version, now.params.optimizer.learning_rate, now.params.trainer.max_epochs) == (1, 0.02, 3)
    assert load_params(workspace.params_file).optimizer.learning_rate != 0.02
    assert (
        plan_run(workspace, "digits").params == now.params
    )  # What `cmlops train` and every button begin with
    engine = open_engine(workspace.database_url)
    assert theme_files(engine, workspace, "digits")[0].parent.name == "00001"
    engine.dispose()
    assert page.problems == []
    page.context.close()


def test_nobody_overwrites_what_others_saved(browser, url, workspace):
    page = config_page(browser, url)
    page.fill("[data-field=seed] .control", "8")
    page.wait_for_selector('[data-changes="1"]')
    now = load_settings(workspace, 1)
    other = now.params.model_copy(update={"seed": 9})
    saved = save_settings(workspace, 1, other, now.augmentations, "ann", now.version)
    page.click("[data-act=save]")
    page.wait_for_selector(".config > .error:not([hidden])")
    assert "meanwhile" in page.inner_text(".config > .error")
    assert load_settings(workspace, 1).params.seed == 9 and load_settings(workspace, 1).version == saved
    page.reload()
    page.wait_for_selector(".config[data-ready]")
    page.click("[data-tab=history]")
    page.click('[data-open="0"]')
    page.wait_for_selector('[data-version="0"]')
    assert "seed" in page.inner_text('[data-version="0"]')
    page.click('button:has-text("Take this version")')
    page.wait_for_selector("[data-changes]:not([data-changes='0'])")
    page.click("[data-act=save]")
    page.wait_for_selector(f'.config[data-saved="{saved + 1}"]')
    assert load_settings(workspace, 1).params == load_params(workspace.params_file)
    page.context.close()


@pytest.mark.slow
def test_steps_are_seen_before_they_are_used(browser, url, workspace):
    page = config_page(browser, url)
    page.click("[data-tab=preprocess]")
    page.wait_for_selector(".stage[data-state=shown]", timeout=LONG_S)
    before = page.get_attribute(".draws img >> nth=1", "src")
    page.select_option('select[aria-label="Add a step"]', "gamma")
    page.fill('[data-step=gamma] input[type="number"]', "9")
    page.wait_for_selector(f'.draws >> nth=0 >> img:not([src="{before}"]) >> nth=1', timeout=LONG_S)
    page.fill('[data-step=gamma] input[type="number"]', "99")
    page.wait_for_selector(".stage[data-state=failed]", timeout=LONG_S)
    assert "gamma" in page.inner_text(".stage")
    page.click('[data-step=gamma] button[title="Remove"]')
    page.click("[data-tab=augment]")
    assert page.input_value('[data-step=Affine] label:has(span:text-is("rotate")) input') == "[-8,8]"
    page.select_option('select[aria-label="Add a step"]', "VerticalFlip")
    page.wait_for_selector(".stage[data-state=shown] .draws", timeout=LONG_S)
    page.wait_for_selector("[data-changes='1']")
    assert page.problems == []
    page.context.close()


@pytest.mark.slow
def test_networks_are_found_with_their_size_and_speed(browser, url):
    page = config_page(browser, url)
    page.click('summary:has-text("Find a network")')
    page.fill('input[aria-label="Find a network"]', "squeezenet1_1")
    page.keyboard.press("Enter")
    row = page.locator(".networks tr", has_text="squeezenet1_1").first
    row.wait_for(timeout=LONG_S)
    assert "1.2" in row.inner_text(), "million weights"
    row.locator('button:has-text("How long?")').click()
    row.locator("[data-seconds]:not([data-seconds=''])").wait_for(timeout=LONG_S)
    row.locator('button:has-text("Take")').click()
    assert page.input_value('[data-field="model.architecture"] .control') == "squeezenet1_1"
    assert page.problems == []
    page.context.close()


def test_files_come_and_go(browser, url, workspace, tmp_path):
    page = config_page(browser, url)
    page.click("[data-tab=history]")
    (tmp_path / "broken.yaml").write_text("optimizer: {learning_rate: fast}\n")
    page.set_input_files("input[type=file]", tmp_path / "broken.yaml")
    page.wait_for_selector(".config > .error:not([hidden])")
    assert "learning_rate" in page.inner_text(".config > .error")
    (tmp_path / "params.yaml").write_text("seed: 77\n")
    page.set_input_files("input[type=file]", tmp_path / "params.yaml")
    page.wait_for_selector(".config > .done:not([hidden])")
    page.click("[data-tab=basic]")
    assert page.input_value("[data-field=seed] .control") == "77"
    page.context.close()


def test_viewers_look_and_it_speaks_japanese(browser, url):
    page = config_page(browser, url, "vic", "ja-JP")
    assert page.is_disabled("[data-field=seed] .control") and page.is_disabled("[data-act=save]")
    said = page.inner_text(".config")
    assert "すべての設定" in said and "Save" not in said
    page.context.close()
