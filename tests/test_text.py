"Sentences: one line whatever is in them, and a Japanese translation for each."

import contextvars
import os
import pickle
import subprocess
import sys
import threading
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classification_mlops import text
from classification_mlops.text import UsageError, UserError, language, nearest, one_line, say, set_language

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import catalogue


@pytest.fixture(autouse=True)
def english(monkeypatch):
    for name in ("CMLOPS_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    set_language(None)
    yield
    set_language(None)


def test_every_sentence_can_be_collected():
    assert catalogue.problems_of_calls() == []


@pytest.mark.parametrize("path", sorted((catalogue.PACKAGE / "locale").glob("*.po")), ids=lambda p: p.stem)
def test_every_sentence_is_translated_with_the_same_fields(path):
    translated = {m.id: m.string for m in catalogue.catalogue(path) if m.id and not m.fuzzy}
    sentences = catalogue.sentences()
    assert [s for s in sentences if not translated.get(s)] == []
    different = {s for s in sentences if catalogue.fields_of(s) != catalogue.fields_of(translated[s])}
    assert different == set()
    assert [s for s in translated if s not in sentences] == []


def test_the_extractor_sees_what_it_must(tmp_path):
    source = """
class Unreadable(UserError):
    def __init__(self, name):
        super().__init__("{name} is bad", name=name)
class Missing(UsageError): pass
class Gone(Missing): pass
say("a {x}", x=1); text.say("b"); to_say("c {y}"); UserError("d {z}"); Gone("e"); Unreadable("not a sentence")
UserError(f"f"); Field(description="g", json_schema_extra={"unit": "h"})
message = "i {k}"
UserError(message, k=1)
"""
    tree = catalogue.ast.parse(source)
    errors = catalogue.error_classes([tree])
    found = list(catalogue.spoken(tree, errors))
    said = {template for _, template, _ in found}
    assert said == {"{name} is bad", "a {x}", "b", "c {y}", "d {z}", "e", "g", "h", "i {k}", None}
    lacking = {t for _, t, values in found if t and values is not None and catalogue.fields_of(t) - values}
    assert lacking == {"d {z}"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "LC_MESSAGES": "C"}, "en"),
        ({"LC_ALL": "ja", "LC_MESSAGES": "C"}, "ja"),
        ({"CMLOPS_LANG": "en", "LC_ALL": "ja_JP"}, "en"),
        ({"CMLOPS_LANG": "JA", "LC_ALL": "C"}, "ja"),
        ({"CMLOPS_LANG": "", "LC_ALL": "", "LANG": "ja_JP"}, "ja"),
        ({"CMLOPS_LANG": "fr"}, "en"),
    ],
)
def test_language_of_environment(monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert language() == expected


def test_the_choice_belongs_to_the_context():
    set_language("ja")
    heard = []
    thread = threading.Thread(target=lambda: heard.append(language()))
    thread.start()
    thread.join()
    contextvars.copy_context().run(set_language, "en")
    assert (heard, language()) == (["en"], "ja")


def test_an_error_speaks_the_language_of_its_reader():
    error = UsageError("language {code} is not known; choose from: {known}", code="fr", known="en, ja")
    outer = UserError("{file} cannot be read: {reason}", file="a.yaml", reason=error)
    assert str(outer) == "a.yaml cannot be read: language fr is not known; choose from: en, ja"
    set_language("ja")
    assert "対応していません" in str(outer) and "読めません" in str(outer)


def test_an_untranslated_sentence_is_said_in_english():
    set_language("ja")
    assert say("no such sentence {x}", x=1) == "no such sentence 1"


class Strange(UserError):
    def __init__(self, name, reason):
        super().__init__("{name}: {reason}", name=name, reason=reason)
        self.name, self.reason = name, reason


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(Strange("a\n.png", "empty")))
    assert (str(error), error.name, error.reason, error.exit_status) == (
        r"a\n.png: empty",
        "a\n.png",
        "empty",
        1,
    )
    assert UsageError("x").exit_status == 2 and isinstance(UsageError("x"), ValueError)


@given(st.text(st.characters()))
def test_no_value_leaves_its_line(value):
    said = say("{value}", value=value)
    assert len(said.splitlines()) <= 1 and len(said) <= 10 * text.LONGEST_VALUE
    assert all(unicodedata.category(c) not in text.UNSAFE or c in text.JOINERS for c in said)
    said.encode()


def test_values_are_shown_not_obeyed():
    assert one_line("a\x1b[31m\u202eb\udcff\u2028") == "a\\x1b[31m\\u202eb\\udcff\\u2028"
    assert one_line("家族👨‍👩‍👧\u3000ok") == "家族👨‍👩‍👧\u3000ok"
    assert say("{x}", x="{y} {0}") == "{y} {0}"
    assert len(one_line("x" * 10**6)) == text.LONGEST_VALUE
    assert say("{rate:.1%} {path}", rate=0.5, path=Path("a\tb")) == r"50.0% a\tb"


def test_nearest():
    assert nearest("Adam W", ["adamw", "sgd"]) == "adamw"
    assert nearest("", ["a"]) == "" and nearest("x" * 10**6, ["x"]) == "" and nearest(3, ["30", "x"]) == "30"


def test_import_is_quick_and_light():
    code = (
        "import time; start = time.process_time(); import classification_mlops.workspace, sys;"
        "print(time.process_time() - start, *{'babel', 'git', 'ruamel', 'torch', 'numpy'} & set(sys.modules))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
        )
        for _ in range(3)
    ]
    seconds = [float(run.stdout.split()[0]) for run in runs]
    assert all(len(run.stdout.split()) == 1 for run in runs)
    assert min(seconds) < 0.5  # a quarter of this on an idle machine
