"Every page in narrow and in magnified windows, in both languages: nothing is wider than the window."

import pytest
from browser import add_people, chromium, served, signed_in

from classification_mlops.db.session import open_engine, writing
from classification_mlops.db.themes import create_theme
from classification_mlops.demo import sample_workspace

LONG_NAME = "とても長い名前のテーマ：自動車部品の外観検査（左ドアパネル・塗装後・夜勤ライン）"
SIZES = [(820, 1180), (640, 400)]  # A tablet; a window of 1280 x 800 that is magnified twice
PAGES = ["/", "/help/", "/theme/create/", "/admin/", "/admin/user/list", "/theme/1/settings/"]
SCREENS = ["", "training/config/", "training/run/", "training/history/", "inference/"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    workspace = sample_workspace(tmp_path_factory.mktemp("layout"))
    add_people(workspace, ann="admin")
    engine = open_engine(workspace.database_url)
    with writing(engine) as session:
        create_theme(session, LONG_NAME)
    engine.dispose()
    with served(workspace) as url, chromium() as browser:
        yield url, browser


@pytest.mark.parametrize("language", ["en", "ja-JP"])
@pytest.mark.parametrize("size", SIZES)
def test_no_page_is_wider_than_its_window(site, language, size):
    url, browser = site
    page = signed_in(browser, url, "ann", language)
    page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
    addresses = PAGES + [f"/theme/{theme}/{screen}" for theme in (1, 2) for screen in SCREENS]
    for address in addresses:
        page.goto(url + address)
        if "/theme/" in address and not address.endswith(("settings/", "create/")):
            page.wait_for_selector("html[data-connection=live]")
            page.wait_for_selector("section[data-widget=screen] .cm :is(button, a):visible")
        wide = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert wide[0] <= wide[1], f"{address} is {wide[0]} px wide"
        links = page.locator(".bar nav > *")
        heights = links.evaluate_all("all => all.map((one) => one.offsetHeight)")
        assert all(height < 40 for height in heights), f"{address} breaks its navigation"
    assert page.problems == []
    page.context.close()
