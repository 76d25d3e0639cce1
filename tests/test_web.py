"The screens and the API as browsers, machines and attackers meet them: a real server with two processes."

import os
import re
import socket
import statistics
import subprocess
import sys
import time
import zipfile
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from sqlalchemy import delete, select, update
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from classification_mlops.db.labels import add_label, list_labels
from classification_mlops.db.roles import MAY
from classification_mlops.db.schema import Job, LabelEvent, SignInFailure, TrainData, UserSession, utc_now
from classification_mlops.db.session import open_engine, reading, upgrade_database, writing
from classification_mlops.db.signin import IDLE, LONGEST_SESSION, make_token, secret_key
from classification_mlops.db.themes import create_theme, get_theme
from classification_mlops.db.users import add_user, disable_user, set_password, set_role
from classification_mlops.demo import sample_workspace
from classification_mlops.web.app import create_app
from classification_mlops.web.guard import COOKIE, HEADERS
from classification_mlops.web.permissions import TABLE, names_of
from classification_mlops.workspace import Workspace, init_folders

PASSWORD = "tea kettle orbit"
PEOPLE = {"ann": "admin", "bob": "annotator", "vic": "viewer", "dan": "admin"}  # dan is disabled
PROGRAM = [sys.executable, "-c", "import sys; from classification_mlops.cli import main; sys.exit(main())"]
START_S = 60
UNSAFE = [name for name in TABLE if name.split()[0] in ("POST", "PUT", "DELETE")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "A workspace with two themes, a server of two processes, and a token for each person."
    workspace = sample_workspace(tmp_path_factory.mktemp("workspace"))
    engine, secret = open_engine(workspace.database_url), secret_key(workspace)
    with writing(engine) as session:
        for name, role in PEOPLE.items():
            add_user(session, name, PASSWORD, role)
        tokens = {name: make_token(session, name, "test", secret) for name in PEOPLE}
        disable_user(session, "dan")
        other = create_theme(session, "other")
        add_label(session, other, "theirs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("log") / "server.log").open("wb")
    variables = os.environ | {"CMLOPS_WORKSPACE": str(workspace.root), "CMLOPS_LANG": "en"}
    command = [*PROGRAM, "web", "--port", str(port), "--workers", "2"]
    server = subprocess.Popen(command, cwd=workspace.root, env=variables, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(server, url, Path(log.name))
        yield SimpleNamespace(
            workspace=workspace, engine=engine, url=url, tokens=tokens, log=Path(log.name), secret=secret
        )
    finally:
        server.terminate()
        server.wait(START_S)
        engine.dispose()


def wait_for(server, url: str, log: Path):
    "Return when the server answers."
    deadline = time.monotonic() + START_S
    while True:
        assert server.poll() is None, log.read_text()
        try:
            return httpx.get(f"{url}/healthz").raise_for_status()
        except httpx.TransportError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)


@pytest.fixture(autouse=True)
def forgiven(site):
    "No test is slowed down by what another one has typed."
    with writing(site.engine) as session:
        session.execute(delete(SignInFailure))


def machine(site, name: str | None) -> httpx.Client:
    "A client that brings a person's token."
    headers = {"authorization": f"Bearer {site.tokens[name]}"} if name else {}
    return httpx.Client(base_url=site.url, headers=headers, timeout=60)


def browser(site, name: str | None = None, password: str = PASSWORD) -> httpx.Client:
    "A client that sends what browsers send, signed in if a name is given."
    headers = {"origin": site.url, "accept": "text/html"}
    cookies = {}
    if name:
        facts = {"username": name, "password": password}
        answer = httpx.post(f"{site.url}/login/", data=facts, headers=headers)
        assert answer.status_code == 303, answer.text
        cookies = {COOKIE: answer.cookies[COOKIE]}
    return httpx.Client(base_url=site.url, headers=headers, cookies=cookies, timeout=60)


def numbers(site, theme: str) -> tuple[int, list[int], list[int]]:
    "A theme's number, those of its labels, and those of its pictures."
    with reading(site.engine) as session:
        found = get_theme(session, theme)
        mine = TrainData.theme_id == found.id, TrainData.deleted_at.is_(None)
        images = session.scalars(select(TrainData.id).where(*mine)).all()
        return found.id, [label.id for label in list_labels(session, found)], list(images)


def filled(name: str) -> tuple[str, str]:
    "Method and address of a route, for things that do not exist."
    method, path = name.split()
    path = path.replace("{run_id}", "0" * 32).replace("{page}", "label")
    return {"MOUNT": "GET", "WEBSOCKET": "GET"}.get(method, method), re.sub(r"{\w+}", "2000000000", path)


def test_the_table_is_the_application(site):
    assert set(names_of(create_app(site.workspace).app.routes)) == TABLE.keys()


@pytest.mark.parametrize("name", [None, *PEOPLE])
def test_every_route_for_every_role(site, name):
    "Anonymous and disabled people get nothing, others exactly what the table gives them."
    role = "anonymous" if name in (None, "dan") else PEOPLE[name]
    with machine(site, name) as client:
        for route, permission in TABLE.items():
            if route.startswith("WEBSOCKET") or (name is None and route in UNSAFE):
                continue  # See the tests of the websocket and of origins
            method, path = filled(route)
            path = (
                f"{path}/site.css" if route == "MOUNT /static" else f"{path}/" if path == "/admin" else path
            )
            status = client.request(method, path, json={} if method in ("POST", "PUT") else None).status_code
            if role in MAY[permission]:
                assert status not in (401, 403), (route, status)
            else:
                assert status == (401 if role == "anonymous" else 403), (route, status)


def test_a_change_needs_a_page_of_ours(site):
    "With a cookie, every route that changes something refuses other sites, and requests that say nothing."
    with browser(site, "ann") as client:
        for route in UNSAFE:
            method, path = filled(route)
            for headers in (
                {"origin": "http://evil.example"},
                {"origin": "null"},
                {"origin": site.url.replace("127.0.0.1", "127.0.0.2")},
                {"origin": site.url, "sec-fetch-site": "cross-site"},
            ):
                assert client.request(method, path, headers=headers).status_code == 403, (route, headers)
            del client.headers["origin"]
            assert client.request(method, path).status_code == 403, route
            client.headers["origin"] = site.url
        assert client.get("/admin/user/action/x").status_code != 403
        del client.headers["origin"]
        assert client.get("/admin/user/action/x").status_code == 403
        assert client.get("/").status_code == 200


def test_guessing_is_slowed_down_for_the_guesser_only(site):
    "In two server processes alike; the owner signs in from elsewhere; who is not there is not told."
    with browser(site) as client:
        for name in ("bob", "nobody"):
            said = [client.post("/login/", data={"username": name, "password": "a guess"}) for _ in range(7)]
            assert [answer.status_code for answer in said] == [401] * 5 + [429] * 2
            assert all("name or password is wrong" in answer.text for answer in said[:5])
        refused = client.post("/login/", data={"username": "bob", "password": PASSWORD})
        assert refused.status_code == 429
        assert client.post("/login/", data={"username": "vic", "password": PASSWORD}).status_code == 303
    with reading(site.engine) as session:
        rows = session.execute(select(SignInFailure.username, SignInFailure.address)).all()
    assert len(rows) == 10 and {address for _, address in rows} == {"127.0.0.1"}
    with writing(site.engine) as session:
        past = utc_now() - timedelta(minutes=2)
        session.execute(update(SignInFailure).values(created_at=past))
    browser(site, "bob").close()


def test_time_does_not_tell_who_exists(site):
    took = {"bob": [], "nobody": []}
    with browser(site) as client:
        for _ in range(5):
            for name, times in took.items():
                began = time.perf_counter()
                client.post("/login/", data={"username": name, "password": "a guess"})
                times.append(time.perf_counter() - began)
    bob, nobody = (statistics.median(times) for times in took.values())
    assert 0.4 < nobody / bob < 2.5, (bob, nobody)


def test_a_session_ends_when_it_should(site):
    "A prepared key is not taken over; signing out, a new password, time and a tampered cookie end it."
    with browser(site) as client:
        client.cookies[COOKIE] = "prepared"
        client.post("/login/", data={"username": "bob", "password": PASSWORD})
        old = client.cookies.get(COOKIE, domain="127.0.0.1")
        assert old and old != "prepared" and len(old) >= 43

    def works(key: str) -> bool:
        return httpx.get(f"{site.url}/help/", cookies={COOKIE: key}).status_code == 200

    assert works(old) and not works(old[:-1] + ("a" if old[-1] != "a" else "b")) and not works("")
    with browser(site, "bob") as client:
        client.post("/logout/")
    assert works(old), "signing out in one browser leaves the other one alone"
    with writing(site.engine) as session:
        set_password(session, "bob", "another kettle orbit")
    assert not works(old)
    with writing(site.engine) as session:
        set_password(session, "bob", PASSWORD)
    for column, age in ((UserSession.seen_at, IDLE), (UserSession.created_at, LONGEST_SESSION)):
        with browser(site, "bob") as client:
            assert client.get("/help/").status_code == 200
            with writing(site.engine) as session:
                moment = utc_now() - age - timedelta(seconds=5)
                session.execute(update(UserSession).values({column.key: moment}))
            assert client.get("/help/").status_code == 303


def test_a_role_counts_from_the_next_request_on(site):
    with browser(site, "bob") as client:
        assert client.get("/theme/create/").status_code == 200
        with writing(site.engine) as session:
            set_role(session, "bob", "viewer")
        assert client.get("/theme/create/").status_code == 403
        with writing(site.engine) as session:
            set_role(session, "bob", "annotator")
            disable_user(session, "bob")
        assert client.get("/").status_code == 303
        with writing(site.engine) as session:
            disable_user(session, "bob", False)
        assert client.get("/").status_code == 303, "the old session stays ended"


def test_a_home_without_themes_leads_to_the_first_one(tmp_path):
    workspace = init_folders(tmp_path / "workspace")
    engine = open_engine(workspace.database_url)
    upgrade_database(engine)
    with writing(engine) as session:
        for name, role in PEOPLE.items():
            add_user(session, name, PASSWORD, role)
    engine.dispose()
    for name, leads in (("bob", 2), ("vic", 0)):
        client = TestClient(
            create_app(workspace), base_url="http://localhost", headers={"origin": "http://localhost"}
        )
        client.post("/login/", data={"username": name, "password": PASSWORD})
        assert client.get("/").text.count('href="/theme/create/"') == leads
        assert "No theme fits." in client.get("/?q=screws").text


def test_headers_and_cookie(site):
    with browser(site) as client:
        said = client.post("/login/", data={"username": "ann", "password": PASSWORD})
        cookie = said.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=lax" in cookie and "secure" not in cookie
        paths = (
            "/",
            "/login/",
            "/nowhere/",
            "/static/site.css",
            "/admin/",
            "/healthz",
            "/api/theme/1/statistics/",
        )
        for path in paths:
            headers = client.get(path).headers
            for name in HEADERS:
                assert name in headers, (path, name)
            assert "server" not in headers and "access-control-allow-origin" not in headers
        assert "unsafe-inline" not in client.get("/").headers["content-security-policy"].split("style-src")[0]
        assert client.get("/").headers["cache-control"] == "no-store"
    app = TestClient(
        create_app(site.workspace), base_url="https://localhost", headers={"origin": "https://localhost"}
    )
    said = app.post("/login/", data={"username": "ann", "password": PASSWORD}, follow_redirects=False)
    assert "secure" in said.headers["set-cookie"].lower() and "strict-transport-security" in said.headers


@pytest.mark.parametrize(
    "wish", ["//evil.example", "/\\evil.example", "https:evil.example", "/\t/evil.example", "x"]
)
def test_redirects_stay_here(site, wish):
    with browser(site) as client:
        said = client.post("/login/", data={"username": "ann", "password": PASSWORD, "next": wish})
        assert said.headers["location"] == "/"
        assert client.get("/login/", params={"next": wish}).headers["location"] == "/"
        assert client.post("/language/", data={"code": "en", "next": wish}).headers["location"] == "/"


def test_other_names_of_this_server_are_not_believed(site):
    with machine(site, "ann") as client:
        assert client.get("/help/", headers={"host": "evil.example"}).json()["code"] == "unknown_host"
        forged = {"x-forwarded-for": "10.9.9.9", "x-forwarded-host": "evil.example", "origin": site.url}
        said = client.get("/nowhere/", headers=forged | {"accept": "text/html"})
        assert "evil.example" not in said.text + str(said.headers)
    with httpx.Client(base_url=site.url) as client:
        client.post("/login/", data={"username": "x", "password": "y"}, headers=forged)
    with reading(site.engine) as session:
        assert session.scalars(select(SignInFailure.address)).all() == ["127.0.0.1"]


def test_names_are_text_and_nothing_else(site):
    name, about = "<img src=x onerror=alert(1)>", "\"'><script>alert(2)<\\script>{{7*7}}"
    with machine(site, "ann") as api, browser(site, "ann") as client:
        body = {"name": name, "description": about, "labels": ["<b>bold<b>", "\"onfocus='x'", "=cmd|' !A1"]}
        made = api.post("/api/theme/create/", json=body).json()
        theme = f"/theme/{made['id']}/"
        pages = [
            client.get(path).text
            for path in ("/", theme, f"{theme}settings/", "/?q=<svg onload=x>", "/admin/theme/list")
        ]
        assert all(
            bad not in text
            for text in pages
            for bad in ("<img src=x", "<script>alert", "<b>bold", "<svg onload")
        )
        assert "&lt;img src=x onerror=alert(1)&gt;" in pages[0] and "{{7*7}}" in pages[0]
        for bad in ("two\r\nlines", "\x1b[31mred", "", "x" * 101, "a/b"):
            assert api.post("/api/theme/create/", json={"name": bad}).status_code == 400


def test_only_what_is_asked_for_is_taken(site):
    with machine(site, "bob") as api:
        said = api.post("/api/theme/create/", json={"name": "mine", "owner_id": 1}).json()
        assert (said["code"], said["field"]) == ("invalid", "owner_id")
        for path in (
            "training/history/?limit=1000000000",
            "training/history/?limit=0",
            "training/history/?limit=x",
        ):
            assert api.get(f"/api/theme/1/{path}").status_code == 422
        for number in ("0", "-1", "9" * 40, "1.5", "x"):
            assert api.get(f"/api/theme/{number}/statistics/").status_code == 422
        assert api.post("/api/theme/create/", content=b"{" * 100_000).status_code == 422
        assert api.post("/api/theme/create/", content=b"\xff\xfe").status_code in (400, 422)


def test_numbers_of_another_theme_open_nothing(site):
    theme, labels, images = numbers(site, "digits")
    other, theirs, _ = numbers(site, "other")
    with machine(site, "ann") as api:
        for method, path, body in (
            ("PUT", f"/api/theme/{other}/labels/{labels[0]}/", {"name": "stolen"}),
            ("DELETE", f"/api/theme/{other}/labels/{labels[0]}/", None),
            ("DELETE", f"/api/theme/{other}/images/{images[0]}/", None),
            ("POST", f"/api/theme/{other}/label/update/", {"image_ids": [images[0]], "label_id": theirs[0]}),
            ("POST", f"/api/theme/{other}/label/update/", {"image_ids": [images[0]], "label_id": None}),
            ("POST", f"/api/theme/{theme}/label/update/", {"image_ids": [images[0]], "label_id": theirs[0]}),
        ):
            assert api.request(method, path, json=body).status_code == 404, (method, path, body)
    assert numbers(site, "digits") == (theme, labels, images)


def test_a_machine_labels_in_its_own_name(site):
    theme, labels, images = numbers(site, "digits")
    with machine(site, "bob") as api, browser(site, "bob") as page:
        update = f"/api/theme/{theme}/label/update/"
        changed = [
            api.post(update, json={"image_ids": images[:3], "label_id": label}).json() for label in labels[:2]
        ]
        assert changed[1] == {"changed": 3}
        page.post(update, json={"image_ids": [images[0]], "label_id": labels[2]}).raise_for_status()
    with reading(site.engine) as session:
        last = select(LabelEvent).where(LabelEvent.actor == "bob").order_by(LabelEvent.id.desc()).limit(2)
        newest, before = session.scalars(last)
    assert (newest.source, newest.new_label_id) == ("human", labels[2])
    assert (before.source, before.new_label_id) == ("api", labels[1])


def test_a_theme_from_the_first_request_to_the_last(site, tmp_path):
    "Create, upload files and an archive with bad names among them, split, change, delete."
    with reading(site.engine) as session:
        paths = session.scalars(select(TrainData.image_path).order_by(TrainData.id).limit(12)).all()
    pictures = [(site.workspace.root / path).read_bytes() for path in paths]
    archive = tmp_path / "more.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for number, data in enumerate(pictures[6:]):
            file.writestr(f"{'ab'[number % 2]}/{number}.png", data)
        file.writestr("../../evil.png", pictures[0])
    with machine(site, "ann") as api:
        theme = api.post("/api/theme/create/", json={"name": "life", "labels": ["a", "b", "c"]}).json()
        base = f"/api/theme/{theme['id']}"
        files = [("files", (f"../..\\{number}.png", data)) for number, data in enumerate(pictures[:6])]
        files += [("files", ("notes\r\n.txt", b"no picture")), ("files", ("broken.zip", b"PK no archive"))]
        said = api.post(f"{base}/images/upload/", files=files, data={"label": "c"}).json()
        assert (said["added"], sorted(said["reasons"].values())) == (6, [1, 1])
        assert {"0.png", "broken.zip"} & {one["name"] for one in said["rejected"]} == {"broken.zip"}
        said = api.post(f"{base}/images/upload/", files={"files": ("more.zip", archive.read_bytes())}).json()
        assert said["added"] == 6 and said["reasons"] == {"unsafe_path": 1}, said
        assert api.post(f"{base}/split/", json={"ratios": "50/25/25", "seed": 1}).json()["new"] == 12
        assert api.get(f"{base}/statistics/").json()["pictures"] == 12
        number = numbers(site, "life")[2][0]
        small, whole = api.get(f"/media/thumb/{number}"), api.get(f"/media/image/{number}")
        assert small.headers["content-type"] == "image/webp" and whole.content in pictures
        assert (
            "immutable" in small.headers["cache-control"]
            and "sandbox" in whole.headers["content-security-policy"]
        )
        assert api.delete(f"{base}/images/{number}/").json() == {"deleted": 1}
        assert api.get(f"/media/thumb/{number}").status_code == 404
        refused = api.delete(f"{base}/labels/{theme['labels'][2]['id']}/").json()
        assert refused["code"] == "failed" and "merge it" in refused["message"]
        refused = api.post(f"{base}/training/start/", json={"overrides": ["trainer.max_epochs=-1"]}).json()
        assert refused["code"] == "misuse" and "max_epochs" in refused["message"]
    assert not list(site.workspace.artifacts.glob("upload-*")) and not list(
        site.workspace.root.parent.glob("**/evil.png")
    )


def test_what_is_no_upload_is_refused_and_leaves_nothing(site):
    theme = numbers(site, "other")[0]
    path, kind = f"/api/theme/{theme}/images/upload/", "multipart/form-data; boundary=x"
    many = "".join(
        f'--x\r\nContent-Disposition: form-data; name="files"; filename="{n}"\r\n\r\n\r\n'
        for n in range(10_001)
    )
    with machine(site, "bob") as api:
        assert api.post(path).status_code == 400
        assert api.post(path, data={"label": "x"}).status_code == 400
        assert (
            api.post(path, content=b"nothing of the kind", headers={"content-type": kind}).status_code == 400
        )
        assert api.post(path, content=many + "--x--", headers={"content-type": kind}).status_code == 400
        unnamed = b'--x\r\nContent-Disposition: form-data; name="files"; filename=""\r\n\r\nabc\r\n--x--\r\n'
        assert api.post(path, content=unnamed, headers={"content-type": kind}).status_code in (200, 400)
        assert api.post("/api/theme/create/", content=b" " * (2**20 + 1)).status_code == 413
        chunks = (b" " * 2**16 for _ in range(20))
        assert api.post("/api/theme/create/", content=chunks).status_code == 413
        huge = {"content-length": str(2**40), "content-type": kind}
        with socket.create_connection((httpx.URL(site.url).host, httpx.URL(site.url).port), 10) as raw:
            head = [f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {site.tokens['bob']}"]
            raw.sendall("\r\n".join([*head, *(f"{k}: {v}" for k, v in huge.items()), "", ""]).encode())
            assert b" 413 " in raw.recv(100)
    assert not list(site.workspace.artifacts.glob("upload-*")) and numbers(site, "other")[2] == []


def test_a_websocket_without_a_session_is_told_so(site):
    client = TestClient(create_app(site.workspace), base_url="http://localhost")
    ours = {"origin": "http://localhost", "host": "localhost"}

    def close_code(headers: dict) -> int:
        with (
            client.websocket_connect("/ws/label", headers=headers) as ws,
            pytest.raises(WebSocketDisconnect) as end,
        ):
            ws.receive_text()
        return end.value.code

    assert close_code(ours) == 4401
    said = client.post(
        "/login/", data={"username": "bob", "password": PASSWORD}, headers=ours, follow_redirects=False
    )
    ours["cookie"] = f"{COOKIE}={said.cookies[COOKIE]}"
    assert close_code(ours | {"origin": "http://evil.example"}) == 4403
    assert close_code(ours) == 4404, "a page without widgets"


def test_no_account_is_there_before_one_is_made(tmp_path):
    variables = os.environ | {"CMLOPS_WORKSPACE": str(tmp_path), "CMLOPS_LANG": "en"}

    def cmlops(*arguments, given=None):
        line = [*PROGRAM, *arguments]
        return subprocess.run(line, cwd=tmp_path, env=variables, input=given, capture_output=True, text=True)

    assert cmlops("init", str(tmp_path)).returncode == 0
    weak = cmlops("user", "add", "ann", "--role", "admin", "--password-stdin", given="admin12345\n")
    assert weak.returncode == 2 and "easy to guess" in weak.stderr
    assert cmlops("user", "list", "--json").stdout.strip() == "[]"
    app = TestClient(create_app(Workspace(tmp_path)), base_url="http://localhost")
    assert "Nobody can sign in yet" in app.get("/login/", headers={"accept": "text/html"}).text
    key = tmp_path / "artifacts" / "secret.key"
    assert key.stat().st_mode & 0o777 == 0o600
    key.write_text("")
    refused = cmlops("web", "--port", "0")
    assert (
        refused.returncode == 1 and "holds no secret" in refused.stderr and "Traceback" not in refused.stderr
    )
    taken = socket.create_server(("127.0.0.1", 0))
    busy = cmlops("web", "--port", str(taken.getsockname()[1]))
    assert busy.returncode == 1 and len(busy.stderr.strip().splitlines()) == 1
    taken.close()


def test_pages_never_load_what_trainings_need(site):
    code = """import sys
from pathlib import Path
from classification_mlops.web.app import create_app
from classification_mlops.workspace import Workspace, init_folders
create_app(Workspace(Path(sys.argv[1])))
print(*{'torch', 'mlflow', 'torchvision', 'pytorch_lightning', 'sklearn'} & set(sys.modules))"""
    done = subprocess.run(
        [sys.executable, "-c", code, site.workspace.root], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_pages_speak_the_language_of_who_looks(site):
    with browser(site) as client:
        assert "ログイン" in client.get("/login/", headers={"accept-language": "ja,en;q=0.5"}).text
        client.post("/login/", data={"username": "vic", "password": PASSWORD})
        assert 'lang="en"' in client.get("/", headers={"accept-language": "en"}).text
        client.post("/language/", data={"code": "ja"})
        said = client.get("/", headers={"accept-language": "en"}).text
        assert 'lang="ja"' in said and "テーマを検索" in said
        assert client.post("/language/", data={"code": "tlh"}).status_code == 400
        assert "このページはありません" in client.get("/nowhere/").text


def test_nothing_secret_is_written_down(site):
    "Neither keys nor passwords stand in the log, in the database or in answers."
    with browser(site, "ann") as client:
        key = client.cookies.get(COOKIE)
        shown = client.get("/admin/user/list").text + client.get("/admin/user/details/1").text
    kept = b"".join(path.read_bytes() for path in site.workspace.root.glob("database.db*"))
    log = site.log.read_bytes()
    for secret in (PASSWORD, key, site.tokens["ann"], site.secret.decode()):
        assert secret.encode() not in kept + log and secret not in shown
    assert "argon2" not in shown and b"Traceback" not in log, log.decode()


def test_a_training_is_begun_and_watched(site):
    "Begun by a process of its own, seen in history, hidden from other themes."
    theme = numbers(site, "digits")[0]
    with machine(site, "bob") as api:
        said = api.post(f"/api/theme/{theme}/training/start/", json={"queue": True})
        assert said.status_code == 202, said.text
        run = said.json()["run_id"]
        progress = api.get(f"/api/theme/{theme}/training/progress/{run}/").json()
        assert (progress["status"], progress["job_id"]) == ("queued", said.json()["job_id"])
        assert api.get(f"/api/theme/{theme}/training/history/").json()[0]["run_id"] == run
        assert api.get(f"/api/theme/{theme}/training/result/{run}/").json()["metrics"] == {}
        other = numbers(site, "other")[0]
        for what in ("progress", "result"):
            assert api.get(f"/api/theme/{other}/training/{what}/{run}/").status_code == 404
    with reading(site.engine) as session:
        assert session.scalar(select(Job.status).where(Job.mlflow_run_id == run)) == "queued"
