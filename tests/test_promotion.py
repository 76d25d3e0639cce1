"Which version is served: compared on the same pictures, refused for a reason, forced, taken back."

import hashlib
import json
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaged import LABELS, PARAMS, pictures, small_network
from sqlalchemy import select

from classification_mlops.cli import main
from classification_mlops.config import SplitRatios
from classification_mlops.db.golden import lock_golden
from classification_mlops.db.labels import add_label, rename_label, set_label
from classification_mlops.db.models import (
    exam_of_model,
    find_picture,
    learnt_tests,
    model_of_run,
    models_of_picture,
    record_model,
)
from classification_mlops.db.schema import Model, ModelTrainData, TrainData
from classification_mlops.db.session import open_engine, reading, upgrade_database, writing
from classification_mlops.db.snapshot import read_snapshot, take_snapshot
from classification_mlops.db.split import resplit_theme, split_theme
from classification_mlops.db.themes import create_theme, get_theme
from classification_mlops.images.store import store_image
from classification_mlops.registry.card import model_card
from classification_mlops.registry.contest import asked_answers, contest_of, gain_interval, mcnemar
from classification_mlops.registry.integrity import file_hash
from classification_mlops.registry.promotion import (
    Decision,
    delete_version,
    family,
    make_champion,
    previous_champion,
    roll_back,
)
from classification_mlops.registry.pyfunc import load_classifier, write_model_folder
from classification_mlops.registry.registration import (
    download,
    find_version,
    history,
    list_versions,
    promote,
    read_card,
    register_model,
    theme_experiment,
    use_tracking,
)
from classification_mlops.serving.parity import ask_version
from classification_mlops.serving.server import ModelServer
from classification_mlops.text import UsageError, UserError
from classification_mlops.training.rivals import contest_page
from classification_mlops.workspace import Workspace, init_folders

THEME = "ねじ 検査"
FILES = pictures(60)


def add_pictures(session, theme, workspace=None):
    "Sixty real files in three labels, split; a snapshot beside them."
    labels = [add_label(session, theme, name) for name in LABELS]
    for n, data in enumerate(FILES):
        path = f"{n}.png"
        if workspace:
            sha256 = hashlib.sha256(data).hexdigest()
            path = store_image(workspace, theme.id, data, sha256, ".png")
        else:
            sha256 = f"{n:064x}"
        facts = dict(image_path=path, sha256=sha256, original_name=f"{n}.png")
        session.add(TrainData(theme_id=theme.id, label_id=labels[n % 3].id, **facts))
    session.flush()
    split_theme(session, theme, SplitRatios(), seed=1, actor="ann")


def train(
    workspace: Workspace, wrong: int = 0, weights: Path | None = None, keep: bool = True
) -> SimpleNamespace:
    "What a training leaves behind: a version that errs on so many test pictures, and its rows."
    engine, client = open_engine(workspace.database_url), use_tracking(workspace)
    run = client.create_run(theme_experiment(workspace, THEME)).info.run_id
    folder = write_model_folder(workspace.runs / run / "model", small_network(), PARAMS, [], LABELS)
    client.set_tag(run, "weights_sha256", file_hash(folder / "weights.safetensors"))
    if weights:
        client.set_tag(run, "initial_weights_sha256", file_hash(weights))
    model = register_model(workspace, THEME, run, folder, "# card")
    with writing(engine) as session:
        theme, snapshot = get_theme(session, THEME), workspace.runs / run / "snapshot.csv"
        take_snapshot(session, theme, snapshot)
        rows = [row for row in read_snapshot(snapshot) if row.split == "test"]
        lines = ["sha256,label,predicted"]
        for n, row in enumerate(rows):
            other = LABELS[(LABELS.index(row.label) + 1) % 3] if row.label in LABELS else LABELS[0]
            lines.append(f"{row.sha256},{row.label},{other if n < wrong else row.label}")
        if keep:
            client.log_text(run, "\n".join(lines), "predictions.csv")
        record_model(session, theme, run, snapshot)
    return SimpleNamespace(
        run=run, version=model.version, model=model, weights=folder / "weights.safetensors"
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Workspace:
    workspace = init_folders(tmp_path_factory.mktemp("template") / "work space")
    engine = open_engine(workspace.database_url)
    upgrade_database(engine)
    with writing(engine) as session:
        add_pictures(session, create_theme(session, THEME), workspace)
    engine.dispose()
    use_tracking(workspace).search_experiments()
    return workspace


@pytest.fixture
def workspace(template, tmp_path, monkeypatch) -> Workspace:
    shutil.copytree(template.root, tmp_path / "work space")
    monkeypatch.setenv("CMLOPS_WORKSPACE", str(tmp_path / "work space"))
    monkeypatch.setenv("CMLOPS_USER", "bob")
    return Workspace(tmp_path / "work space")


def crown(workspace: Workspace, version: int, **options):
    with reading(open_engine(workspace.database_url)) as session:
        return make_champion(workspace, session, THEME, version, Decision("ann", **options), ask_version)


def edit(workspace: Workspace, act) -> None:
    "Change something in the theme."
    with writing(open_engine(workspace.database_url)) as session:
        act(session, get_theme(session, THEME))


def ask(capsys, *arguments) -> tuple[int, str, str]:
    status = main([*map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out, said.err


# Numbers


@given(st.integers(0, 60), st.integers(0, 60))
@settings(deadline=None)
def test_the_exact_test_is_even_handed_and_the_interval_holds_the_gain(lost, won):
    p = mcnemar(lost, won)
    assert 0 < p <= 1 and p == mcnemar(won, lost)
    assert p >= mcnemar(lost, won + 1) or won < lost + 1
    gain, low, high = gain_interval(lost, won, 200)
    assert low <= gain + 1e-12 and gain <= high + 1e-12 and gain == (won - lost) / 200


# The same pictures, by the labels of today


def test_only_pictures_that_both_were_tested_with_count(workspace):
    first = train(workspace, wrong=1)

    def grow(session, theme):
        for n, data in enumerate(pictures(30, seed=7)):
            sha256 = hashlib.sha256(data).hexdigest()
            path = store_image(workspace, theme.id, data, sha256, ".png")
            label = session.scalars(select(TrainData.label_id).where(TrainData.id == 1 + n % 3)).one()
            facts = dict(image_path=path, sha256=sha256, original_name=f"new {n}.png")
            session.add(TrainData(theme_id=theme.id, label_id=label, **facts))
        session.flush()
        split_theme(session, theme, SplitRatios(), seed=1, actor="ann")

    edit(workspace, grow)
    second = train(workspace, wrong=2)
    with reading(open_engine(workspace.database_url)) as session:
        tests = [exam_of_model(session, model_of_run(session, one.run)) for one in (first, second)]
        contest = contest_of(workspace, session, first.model, second.model, ask_version)
    assert len(tests[0]) < len(tests[1])
    assert {one.sha256 for one in contest.pictures} == tests[0].keys() & tests[1].keys() == tests[0].keys()


def test_corrected_and_renamed_labels_are_those_of_today(workspace):
    first, second = train(workspace), train(workspace, wrong=2)
    with reading(open_engine(workspace.database_url)) as session:
        contest = contest_of(workspace, session, first.model, second.model, ask_version)
        lost = [contest.pictures[n] for n in contest.lost]
        called = [contest.answers[1][n] for n in contest.lost]
    assert len(lost) == 2 and not contest.won

    def correct(session, theme):
        label = next(one for one in theme_labels(session, theme) if one.label_name == called[0])
        set_label(session, [lost[0].train_data_id], label, actor="ann")
        rename_label(session, theme, "ok", "flawless")

    edit(workspace, correct)
    with reading(open_engine(workspace.database_url)) as session:
        contest = contest_of(workspace, session, first.model, second.model, ask_version)
    assert (len(contest.lost), len(contest.won)) == (1, 1)
    assert "ok" not in {*contest.answers[0], *(one.label for one in contest.pictures)}
    assert "flawless" in contest.answers[0]


def theme_labels(session, theme):
    from classification_mlops.db.schema import Label

    return session.scalars(select(Label).where(Label.theme_id == theme.id))


def test_what_was_not_stored_is_asked_of_the_packaged_model(workspace):
    kept = train(workspace, keep=False)
    with reading(open_engine(workspace.database_url)) as session:
        tests = list(exam_of_model(session, model_of_run(session, kept.run)).values())
    answers = asked_answers(workspace, kept.model, tests, ask_version)
    files = [(workspace.root / one.image_path).read_bytes() for one in tests]
    expected = load_classifier(kept.weights.parent).classify(files).label.tolist()
    assert [answers[one.sha256] for one in tests] == expected


# Refusals


def test_worse_versions_are_refused_unless_somebody_answers_for_them(workspace):
    for wrong in (1, 3, 1):
        train(workspace, wrong)
    assert crown(workspace, 1).contest is None
    with pytest.raises(UserError, match=r"it knows 6 of 9 test pictures, version 1 knows 8 \(p = 0.5\)"):
        crown(workspace, 2)
    for reason in ("", "   "):
        with pytest.raises(UsageError, match="needs a reason"):
            crown(workspace, 2, force=True, reason=reason)
    assert find_version(workspace, THEME).version == 1 and len(history(workspace, THEME)) == 1
    crown(workspace, 2, force=True, reason='belt 3\nstands; "why" | 傷')
    move = history(workspace, THEME)[-1]
    assert (move["version"], move["before"], move["actor"], move["forced"]) == (2, 1, "ann", True)
    assert move["reason"] == 'belt 3\nstands; "why" | 傷' and "6 of 9" in move["against"]
    tags = use_tracking(workspace).get_model_version(THEME, "2").tags
    assert tags["promotion.reason"] == move["reason"] and tags["promotion.forced"] == "True"
    assert crown(workspace, 3).contest.versions == (2, 3)
    assert not history(workspace, THEME)[-1]["forced"]


def test_equal_versions_may_follow_each_other(workspace):
    train(workspace, 2), train(workspace, 2)
    crown(workspace, 1)
    assert crown(workspace, 2).contest.p_value == 1.0


def test_a_label_that_loses_much_is_an_objection_though_others_win_more(workspace):
    from classification_mlops.db.models import ExamPicture
    from classification_mlops.registry.contest import Contest
    from classification_mlops.registry.promotion import contest_objections

    exam = [ExamPicture(n, f"{n:064x}", f"{n}.png", "", "ok" if n < 20 else "傷", "") for n in range(60)]
    before, after = ["ok"] * 60, ["傷"] * 60
    (said,) = contest_objections(Contest(THEME, (1, 2), exam, (before, after)))
    assert said == "it is worse for ok"


def test_golden_pictures_must_be_known(workspace):
    def lock(session, theme):
        lock_golden(session, theme, "ann", TrainData.split == "test")

    edit(workspace, lock)
    train(workspace, 1)
    with pytest.raises(UserError, match=r"golden picture \d+ \(\d+\.png\) is called"):
        crown(workspace, 1)
    train(workspace)
    assert crown(workspace, 2).failed == []


def test_whoever_inherits_weights_inherits_what_they_have_seen(workspace):
    grandmother = train(workspace)
    edit(
        workspace, lambda session, theme: resplit_theme(session, theme, SplitRatios(), 8, "ann", confirm=True)
    )
    mother = train(workspace, weights=grandmother.weights)
    child = train(workspace, weights=mother.weights)
    stranger = train(workspace)
    assert family(workspace, child.run) == [child.run, mother.run, grandmother.run]
    for one in (mother, child):
        with pytest.raises(UserError, match="of its test pictures were learnt from, such as"):
            crown(workspace, one.version)
    delete_version(workspace, THEME, grandmother.version, actor="ann")
    with pytest.raises(UserError, match="were learnt from"):
        crown(workspace, child.version)
    assert crown(workspace, stranger.version).learnt == []


def test_near_duplicates_in_train_are_told(workspace):
    one = train(workspace)

    def bind(session, theme):
        for split in ("train", "test"):
            row = session.scalars(select(TrainData).where(TrainData.split == split).limit(1)).one()
            row.cluster_id = 1

    edit(workspace, bind)
    assert len(crown(workspace, one.version).near) == 1


def test_a_version_whose_pictures_are_unknown_here_is_refused(workspace):
    one = train(workspace)
    edit(workspace, lambda session, theme: session.delete(model_of_run(session, one.run)))
    with pytest.raises(UserError, match="does not know which pictures it has seen"):
        crown(workspace, one.version)


# One decision at a time


def test_of_two_who_decide_at_once_one_is_told_to_look_again(workspace):
    for _ in range(3):
        train(workspace)
    promote(workspace, THEME, 1)

    def decide(n: int) -> str:
        try:
            promote(workspace, THEME, 2 + n % 2, expected=1)
        except UserError as error:
            return str(error)
        return "done"

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(decide, range(8)))
    assert said.count("done") == 1 and sum("look again" in one for one in said) == 7
    assert [move["version"] for move in history(workspace, THEME)][1:] == [
        find_version(workspace, THEME).version
    ]


def test_an_alias_that_points_nowhere_is_named_and_can_be_mended(workspace):
    import sqlite3

    train(workspace)
    crown(workspace, 1)
    with sqlite3.connect(workspace.mlflow_dir / "mlflow.db") as database:
        assert database.execute("update registered_model_aliases set version = 77").rowcount == 1
    with pytest.raises(UserError, match="means version 77, which is gone; choose one of 1 with"):
        find_version(workspace, THEME)
    crown(workspace, 1)
    assert find_version(workspace, THEME).version == 1


# Back, and gone


def test_rollbacks_retrace_the_steps(workspace):
    for _ in range(3):
        train(workspace)
    for version in (1, 2, 3):
        crown(workspace, version)
    assert roll_back(workspace, THEME, "ann") == (3, 2)
    crown(workspace, 3)
    crown(workspace, 3)
    assert [roll_back(workspace, THEME, "ann") for _ in range(2)] == [(3, 2), (2, 1)]
    with pytest.raises(UsageError, match="no champion before this one"):
        roll_back(workspace, THEME, "ann")
    assert [move.get("rollback", False) for move in history(workspace, THEME)] == [
        False, False, False, True, False, False, True, True,
    ]  # fmt: skip


def test_deleting_spares_what_is_needed_and_what_was_seen(workspace):
    runs = [train(workspace).run for _ in range(4)]
    for version in (1, 2, 3):
        crown(workspace, version)
    promote(workspace, THEME, 4, alias="challenger")
    for version, why in ((3, "champion"), (2, "rollback leads"), (4, "challenger")):
        with pytest.raises(UserError, match=why):
            delete_version(workspace, THEME, version, "ann")
    assert delete_version(workspace, THEME, 2, "ann", force=True) == 2
    assert previous_champion(workspace, THEME) == 1
    with reading(open_engine(workspace.database_url)) as session:
        picture = find_picture(session, get_theme(session, THEME), 1)
        assert [one.mlflow_run_id for one in models_of_picture(session, picture)] == runs[::-1]
    assert history(workspace, THEME)[-1]["deleted"] == 2
    delete_version(workspace, THEME, 4, "ann", force=True)
    assert train(workspace).version == 5, "the number of a deleted version is not given again"


# Files


@pytest.mark.parametrize("change", ["changed", "removed", "added"])
def test_a_model_whose_files_were_touched_is_neither_fetched_nor_served_nor_promoted(
    workspace, tmp_path, change
):
    one = train(workspace)
    stored = next(workspace.mlflow_dir.rglob("weights.safetensors"))
    if change == "changed":
        stored.write_bytes(stored.read_bytes()[:-1] + b"!")
    elif change == "removed":
        stored = stored.with_name("calibration.json")
        stored.unlink()
    else:
        stored = stored.with_name("sitecustomize.py")
        stored.write_text("")
    acts = (
        lambda: download(workspace, THEME, 1, tmp_path / "copy"),
        lambda: crown(workspace, one.version, force=True, reason="all the same"),
        lambda: ModelServer(workspace, THEME, 1).__enter__(),
    )
    for act in acts:
        with pytest.raises(UserError, match=rf"{stored.name} of .*/1 was {change} since it was registered"):
            act()
    assert not (tmp_path / "copy").exists() and not history(workspace, THEME)


def test_compiled_code_in_the_store_is_never_fetched(workspace, tmp_path):
    train(workspace)
    place = next(workspace.mlflow_dir.rglob("code/classification_mlops")) / "__pycache__"
    place.mkdir(exist_ok=True)
    (place / "text.cpython-311.pyc").write_bytes(b"evil")
    assert not list(download(workspace, THEME, 1, tmp_path / "copy").rglob("__pycache__"))


# The card


def test_a_card_of_any_length_is_kept_whole_and_shown_in_part(workspace):
    labels = [f"label {n} | <b>`x`</b>" for n in range(300)]
    counts = {label: {"train": 9, "valid": 2, "test": 2} for label in labels}
    tags = {
        "theme": THEME,
        "git_commit": "c0" * 20,
        "snapshot_hash": "5e" * 32,
        "initial_weights_sha256": "ab" * 32,
    }
    scores = [{"label": label, "recall": 0.5, "f1": n / 300} for n, label in enumerate(labels)]
    metrics = {
        "test_accuracy": 0.9,
        "test_accuracy_low": 0.8,
        "test_accuracy_high": 0.95,
        "test_leak_score": 0.1,
    }
    card = model_card(
        tags, counts, metrics, scores, {"temperature": 1.5}, "Finds | <script>bent</script> screws"
    )
    client = use_tracking(workspace)
    run = client.create_run(theme_experiment(workspace, THEME)).info.run_id
    folder = write_model_folder(workspace.runs / run / "model", small_network(), PARAMS, [], LABELS)
    register_model(workspace, THEME, run, folder, card)
    shown = client.get_model_version(THEME, "1").description
    assert read_card(workspace, THEME, 1) == card and len(card) > 20_000
    assert len(shown) <= 5000 and shown[:1000] == card[:1000] and "model_card.md" in shown
    for fact in (
        "0.8",
        "0.95",
        "1.5",
        "c0" * 20,
        "5e" * 32,
        "ab" * 32,
        "10.0%",
        "a picture of anything else",
    ):
        assert fact in shown, fact
    assert "<script>" not in card and "<b>" not in card


# Both databases


def test_lineage_is_followed_both_ways(engine, tmp_path):
    with writing(engine) as session:
        theme = create_theme(session, "screws")
        add_pictures(session, theme)
        take_snapshot(session, theme, tmp_path / "snapshot.csv")
        first, second = (
            record_model(session, theme, run, tmp_path / "snapshot.csv") for run in ("f00d", "beef")
        )
        tests = exam_of_model(session, first)
        assert len(tests) == 9 and tests == exam_of_model(session, second)
        assert learnt_tests(session, list(tests.values()), ["f00d", "beef"]) == ([], [])
        some = next(iter(tests.values()))
        picture = find_picture(session, theme, some.sha256)
        assert find_picture(session, theme, some.train_data_id) is picture
        assert [one[::2] for one in models_of_picture(session, picture)] == [
            ("beef", "test"),
            ("f00d", "test"),
        ]
        row = session.get(ModelTrainData, (second.id, picture.id))
        row.split = "train"
        picture.cluster_id = 1
        other = session.get(TrainData, list(tests.values())[1].train_data_id)
        other.cluster_id = 1
        session.flush()
        learnt, near = learnt_tests(session, list(tests.values()), ["f00d", "beef"])
        assert [one.train_data_id for one in learnt] == [picture.id]
        assert [one.train_data_id for one in near] == [other.id]
        for nothing in ("99999", "0000", "zz", "%", "", "-1", "9" * 40):
            with pytest.raises(UsageError, match="has no picture"):
                find_picture(session, theme, nothing)
        assert session.scalar(select(Model.id).where(Model.mlflow_run_id == "f00d")) == first.id


# As people use it


def test_the_command_line_compares_promotes_rolls_back_and_deletes(workspace, capsys, tmp_path):
    train(workspace, 1), train(workspace, 4)
    page = tmp_path / "page.html"
    status, out, _ = ask(capsys, "models", "compare", THEME, 1, 2, "--html", page)
    assert status == 0 and "it knows 5 of 9 test pictures, version 1 knows 8" in out and "p = 0.25" in out
    text = page.read_text(encoding="utf-8")
    assert text.count("<figure") == 3 == text.count("data:image/webp") and "http" not in text
    facts = json.loads(ask(capsys, "models", "compare", THEME, 1, 2, "--json")[1])
    assert facts["contest"]["right"] == [8, 5] and len(facts["contest"]["right_to_wrong"]) == 3
    assert ask(capsys, "models", "promote", THEME, 1)[0] == 0
    status, out, error = ask(capsys, "models", "promote", THEME, 2)
    assert (status, out) == (1, "") and error.count("\n") == 1 and "--force --reason" in error
    assert ask(capsys, "models", "promote", THEME, 2, "--force")[0] == 2
    told = ask(capsys, "models", "promote", THEME, 2, "--force", "--reason", "a trial", "--json")
    assert json.loads(told[1])["version"] == 2
    assert json.loads(ask(capsys, "models", "history", THEME, "--json")[1])[-1]["actor"] == "bob"
    assert json.loads(ask(capsys, "models", "rollback", THEME, "--json")[1])["version"] == 1
    assert ask(capsys, "models", "delete", THEME, 1, "--yes")[0] == 1
    assert ask(capsys, "models", "delete", THEME, 2, "--yes")[0] == 0
    seen = json.loads(ask(capsys, "data", "show", THEME, 1, "--json")[1])
    assert [one["version"] for one in seen["models"]] == ["–", 1]
    assert len(json.loads(ask(capsys, "models", "list", THEME, "--picture", 1, "--json")[1])) == 1
    assert (
        len(json.loads(ask(capsys, "models", "show", THEME, 1, "--pictures", "--limit", 5, "--json")[1])) == 5
    )
    assert ask(capsys, "models", "show", THEME, 1, "--card")[1].startswith("# card")
    assert ask(capsys, "models", "list", "--picture", 1)[0] == 2


def test_a_page_shows_names_as_they_are_and_does_without_lost_files(workspace):
    first, second = train(workspace), train(workspace, 2)

    def spoil(session, theme):
        for row in session.scalars(select(TrainData).where(TrainData.split == "test")):
            row.original_name = '"><script>alert(1)</script>'
            (workspace.root / row.image_path).unlink()

    edit(workspace, spoil)
    with reading(open_engine(workspace.database_url)) as session:
        page = contest_page(workspace, contest_of(workspace, session, first.model, second.model, ask_version))
    assert "<script" not in page and page.count("<figure") == 2


def test_a_registry_behind_a_server_works_alike(workspace, monkeypatch, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--backend-store-uri", f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination", str(tmp_path / "store"),
        "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = subprocess.Popen([sys.executable, "-m", "mlflow", "server", *options], **quiet)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        train(workspace), train(workspace, 3)
        crown(workspace, 1)
        with pytest.raises(UserError, match="6 of 9"):
            crown(workspace, 2)
        crown(workspace, 2, force=True, reason="a trial")
        assert roll_back(workspace, THEME, "ann") == (2, 1)
        assert [row["aliases"] for row in list_versions(workspace, THEME)] == [[], ["champion"]]
        stored = next((tmp_path / "store").rglob("labels.json"))
        stored.write_text("[]")
        with pytest.raises(UserError, match=r"labels.json of .* was changed"):
            [download(workspace, THEME, n, tmp_path / f"copy {n}") for n in (1, 2)]
    finally:
        server.terminate()
        server.wait(30)
    with pytest.raises(UserError, match="does not answer: start it, or correct MLFLOW_TRACKING_URI"):
        crown(workspace, 1)


def wait_for(address: str, server: subprocess.Popen, patience_s: float = 60) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        assert server.poll() is None, "the server has ended"
        try:
            return urlopen(address).close()
        except OSError:
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)
