"""Memory of the server of the screens, with 1 and with 50 labeling pages open.

python benchmarks/web_memory.py [--pages 50]

Each page is a WebSocket on which the widgets of a page live, as a browser opens it. The memory is the
proportional set size of the server's process (Linux), after its garbage is gone. That torch is not in it is
looked up in the libraries that the process has mapped.
"""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psutil
from websockets.sync.client import connect
from workspace import report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from browser import PASSWORD, add_people, served

from classification_mlops.demo import sample_workspace
from classification_mlops.web.guard import COOKIE
from classification_mlops.web.host import unpack

TO_REACH_MB = 40
HEAVY = ("torch", "mlflow", "lightning")


def session_key(url: str) -> str:
    "The cookie of somebody who has signed in."
    answer = httpx.post(
        f"{url}/login/", data={"username": "ann", "password": PASSWORD}, headers={"origin": url}
    )
    return answer.cookies[COOKIE]


def open_page(url: str, key: str, number: int, stack: ExitStack):
    "A page whose widgets are all there."
    address = f"{url.replace('http', 'ws')}/ws/label?theme=1&p=tab-{number}"
    page = stack.enter_context(connect(address, origin=url, additional_headers={"Cookie": f"{COOKIE}={key}"}))
    while unpack(page.recv(30))[0]["kind"] != "mount":
        pass


def memory_mb(server: psutil.Process) -> float:
    "Proportional set size."
    return server.memory_full_info().pss / 1e6


def server_of(workspace: Path) -> psutil.Process:
    "The process that serves a workspace."
    mine = psutil.Process().children(recursive=True)
    return next(one for one in mine if "web" in one.cmdline() and one.cwd() == str(workspace))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=50)
    arguments = parser.parse_args()
    with TemporaryDirectory() as place, ExitStack() as stack:
        workspace = sample_workspace(Path(place).resolve() / "workspace")
        add_people(workspace, ann="admin")
        url = stack.enter_context(served(workspace))
        server, key = server_of(workspace.root), session_key(url)
        start = memory_mb(server)
        open_page(url, key, 0, stack)
        one = memory_mb(server)
        for number in range(1, arguments.pages):
            open_page(url, key, number, stack)
        many = memory_mb(server)
        loaded = {heavy for heavy in HEAVY for map in server.memory_maps() if f"/{heavy}/" in map.path}
    figures = {
        "start_mb": start,
        "one_page_mb": one,
        f"{arguments.pages}_pages_mb": many,
        "more_mb": many - one,
    }
    figures = {name: round(value, 1) for name, value in figures.items()}
    report("web_memory", figures | {"to_reach_mb": TO_REACH_MB, "heavy_libraries": sorted(loaded)})
    return int(many - one > TO_REACH_MB or bool(loaded))


if __name__ == "__main__":
    sys.exit(main())
