"What an executed notebook displays, once it is cleaned, in a browser that would let it do everything."

import base64

import cv2
import nbformat
import numpy as np
import pytest
from browser import chromium
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from classification_mlops.training import jobs
from classification_mlops.ui.report import harmless, harmless_page

ACT = "document.documentElement.dataset.bad = 1"
HTML = [
    f"<script>{ACT}</script>",
    f"<img src=x onerror='{ACT}'>",
    f"<svg onload='{ACT}'><script>{ACT}</script></svg>",
    f"<svg><style><![CDATA[</style><img src=x onerror='{ACT}'>]]></style></svg>",
    f"<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror={ACT}&gt;'>",
    f"<noscript><p title=\"</noscript><img src=x onerror='{ACT}'>\"></noscript>",
    f"<iframe srcdoc='<script>parent.{ACT}</script>'></iframe>",
    f"<iframe src='javascript:parent.{ACT}'></iframe>",
    f"<details open ontoggle='{ACT}'>more</details><a href='javascript:{ACT}' id=trap>here</a>",
    f"<a href='java\tscript:{ACT}'>here</a><a href=' &#106;avascript:{ACT}'>here</a>",
    "<style>@import url(http://127.0.0.1:9/a); body { background: url(http://127.0.0.1:9/b) }</style>",
    "<p style='color: red; background-image: url(http://127.0.0.1:9/c); position: fixed'>text</p>",
    "<link rel=stylesheet href=http://127.0.0.1:9/d><meta http-equiv=refresh content='0;url=/e'>",
    "<base href=http://127.0.0.1:9/><form action=/f><input autofocus onfocus=x()><button>Go</button></form>",
    "<object data=x></object><embed src=x><video src=x onerror=x()></video>",
]
TABLE = "<table><thead><tr><th colspan='2'>傷</th></tr></thead><tr><td>1</td><td>2</td></tr></table>"
WIDGETS = {"application/vnd.jupyter.widget-state+json": {"state": {f"</script><script>{ACT}</script>": {}}}}
SVG = (
    f"<svg xmlns='http://www.w3.org/2000/svg' width='20' height='10' onload='{ACT}'>"
    f"<script>{ACT}</script><rect width='20' height='10'/></svg>"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    "The page of a notebook whose outputs try everything, and show a table and two plots as well."
    picture = base64.b64encode(cv2.imencode(".png", np.zeros((8, 16), np.uint8))[1]).decode()
    shown = [{"text/html": html} for html in (*HTML, TABLE)]
    shown += [{"image/png": picture}, {"image/svg+xml": SVG}, {"application/javascript": ACT}]
    shown += [
        {"text/markdown": f"**bold** <script>{ACT}</script>"},
        {"text/latex": f"<script>{ACT}</script>"},
    ]
    outputs = [new_output("display_data", data) for data in shown]
    outputs += [new_output("stream", text=f"<script>{ACT}</script> said")]
    cells = [new_markdown_cell(f"# Report\n<script>{ACT}</script>"), new_code_cell("1 < 2", outputs=outputs)]
    notebook = new_notebook(cells=cells, metadata={"widgets": WIDGETS})
    path = tmp_path_factory.mktemp("report") / "train.ipynb"
    nbformat.write(notebook, path)
    return jobs.report_page(path, title="digits </title><script>")


@pytest.fixture(scope="module")
def tab():
    with chromium() as browser:
        tab = browser.new_page()
        tab.asked = []
        tab.on("request", lambda asked: tab.asked.append(asked.url))
        yield tab


def is_bad(tab, html: str) -> bool:
    "Whether something has acted; pictures are given the time to fail, and links are followed."
    tab.asked.clear()
    tab.goto("about:blank")
    tab.set_content(html, wait_until="load")
    if tab.locator("#trap").count():
        tab.evaluate("document.querySelector('#trap').click()")
    return tab.evaluate("'bad' in document.documentElement.dataset")


def test_nothing_of_a_hostile_notebook_acts_and_everything_to_look_at_stays(page, tab):
    assert is_bad(tab, page.replace("http-equiv=refresh", "")), "the trap does not work"
    assert not is_bad(tab, harmless_page(page))
    assert all(url.startswith("data:image/") for url in tab.asked if url != "about:blank"), tab.asked
    elements = (
        "script, iframe, form, input, button, svg, link, meta[http-equiv], base, object, embed, body style"
    )
    assert tab.locator(elements).count() == 0
    handlers = "[...document.querySelectorAll('*')].flatMap((one) => one.getAttributeNames())"
    assert not [name for name in tab.evaluate(handlers) if name.startswith("on")]
    assert tab.locator("th[colspan='2']:has-text('傷')").count() == 1 and tab.locator("td").count() == 2
    sizes = "all => all.map((image) => [image.naturalWidth, image.naturalHeight])"
    assert [size for size in tab.locator("img").evaluate_all(sizes) if size[0]] == [[16, 8], [20, 10]]
    assert (
        tab.locator("h1").inner_text().startswith("Report") and tab.locator("strong").inner_text() == "bold"
    )
    assert "said" in tab.inner_text("main") and "1 < 2" in tab.inner_text("main")
    assert tab.title() == "digits </title><script>"


@pytest.mark.parametrize("html", HTML)
def test_each_trick_alone(tab, html):
    assert not is_bad(tab, f"<body>{harmless(html)}")
    assert harmless(harmless(html)) == harmless(html)
