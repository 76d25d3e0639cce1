"The three files: hostile YAML, wrong values, saving with comments, hashes, schema."

import json
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classification_mlops import config, yaml
from classification_mlops.config import (
    EXAMPLE_FILES,
    Params,
    flat_params,
    load_augmentations,
    load_params,
    load_study,
    params_dict,
    params_hash,
    params_schema,
    parse_augmentations,
    parse_params,
    parse_ratios,
    parse_study,
    read_yaml,
    save_augmentations,
    save_params,
    write_atomically,
)
from classification_mlops.text import UsageError, UserError, set_language

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def english():
    set_language("en")
    yield
    set_language(None)


def refusal(act, *arguments) -> str:
    "What the error says, which must be one line."
    with pytest.raises(UserError) as caught:
        act(*arguments)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 2000
    return str(caught.value)


# Examples


@pytest.mark.parametrize("name", EXAMPLE_FILES)
def test_committed_files_are_the_examples(name):
    assert (ROOT / name).read_text(encoding="utf-8") == EXAMPLE_FILES[name]


def test_examples_load_and_agree_with_the_defaults(tmp_path):
    for name, text in EXAMPLE_FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    params = load_params(tmp_path / "params.yaml")
    assert params_dict(params) | {"preprocess": []} == params_dict(Params())
    assert [step.step for step in params.preprocess] == ["gamma", "equalize_histogram"]
    assert "Flip" not in " ".join(item.transform for item in load_augmentations(tmp_path / "auguments.yaml"))
    assert load_study(tmp_path / "optuna_params.yaml").space["model.dropout"].step == 0.1


# YAML


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("a: 1e-3", {"a": 0.001}),
        ("a: -1.5E+3", {"a": -1500.0}),
        ("a: [.5, 1., 0x1F, 0o17, 012, +3]", {"a": [0.5, 1.0, 31, 15, 12, 3]}),
        (
            "a: [no, on, yes, off, 12:30, 2024-01-01, 1_000, =, <<]",
            {"a": ["no", "on", "yes", "off", "12:30", "2024-01-01", "1_000", "=", "<<"]},
        ),
        ("a: ['1', \"true\", 'null', '1e-3']", {"a": ["1", "true", "null", "1e-3"]}),
        ("a: [~, null, Null, '']\nb:", {"a": [None, None, None, ""], "b": None}),
        ("a: [true, False, TRUE, tRUE]", {"a": [True, False, True, "tRUE"]}),
        ("1: a\nno: b\n1.0: c\nnull: d", {"1": "a", "no": "b", "1.0": "c", "null": "d"}),
        ("\ufeffa: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
        ("%YAML 1.1\n---\na: no\n...\n", {"a": "no"}),
        ("a: |\n  x\n  y\n", {"a": "x\ny\n"}),
        ("# only\n- 日本語: ねじ", [{"日本語": "ねじ"}]),
        ("'quoted': {a: {}, b: []}", {"quoted": {"a": {}, "b": []}}),
    ],
)
def test_core_schema(text, data):
    assert read_yaml(text) == data and repr(read_yaml(text)) == repr(data)


def test_numbers_that_no_float_can_hold():
    assert read_yaml("a: " + "9" * 5000)["a"] == "9" * 5000
    assert math.isinf(read_yaml("a: 1e999")["a"]) and math.isnan(read_yaml("a: .nan")["a"])
    assert read_yaml("a: " + "9" * 400)["a"] == int("9" * 400)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB, "line 1: anchors and aliases"),
        ("a: &a [*a]", "line 1: anchors"),
        ("a: 1\nb: !!python/object/apply:os.system ['touch canary']", "line 2: tags"),
        ("a: !!python/tuple [1]", "tags"),
        ("a: !!int 3", "tags"),
        ("a: !mine 3", "tags"),
        ("! a", "tags"),
        ("a: 1\nb: 2\n'a': 3", "line 3: the key a is there twice"),
        ("a: {b: 1, b: 2}", "the key b is there twice"),
        ("a: 1\n---\nb: 2", "a second document"),
        ("", "is empty"),
        ("# comment\n", "is empty"),
        ("---\n...\n---\na: 1", "second document"),
        ("[" * 3000, "deeper than 50"),
        ("- " * 3000, "deeper than 50"),
        ("? " * 3000, "must be a single word"),
        ("{a: " * 3000, "deeper than 50"),
        ("a:\n\t- b", "not YAML"),
        ("a: 'x", "not YAML"),
        ("a: [1, 2", "not YAML"),
        ("a: b: c", "not YAML"),
        ("a: \x00", "not YAML"),
        ('a: "\\0"', "character"),
        ('a: "\\ud800"', "character"),
        ("? {a: b}\n: c", "a key must be"),
        ("? [a]\n: c", "a key must be"),
        ("- 1\n" * 20000, "more than 10,000 values"),
        ("%FOO\n---\na: 1\n--- b", "second document"),
        ("@a", "not YAML"),
        ('a: "\\UFFFFFFFF"', "not YAML"),
        ('a: "\\U00110000"', "not YAML"),
        ("%YAML " + "9" * 5000 + ".1\n---\na", "not YAML"),
    ],
)
def test_refused_yaml(text, problem, tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(text, encoding="utf-8")
    start = time.process_time()
    said = refusal(read_yaml, file)
    assert problem in said and "params.yaml" in said
    assert time.process_time() - start < 3 and not Path("canary").exists()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\xff\xfea\0:\0 \x001\0", "not UTF-8"),
        ("名: 値".encode("cp932"), "not UTF-8"),
        ("a: é".encode("latin-1"), "not UTF-8"),
        (b"a: 1\0", "not YAML"),
        (b"a: 1\n" * 300_000, "longer than 1,048,576 bytes"),
    ],
)
def test_refused_bytes(data, problem, tmp_path):
    file = tmp_path / "params.yaml"
    file.write_bytes(data)
    assert problem in refusal(load_params, file)


def test_huge_file_is_refused_at_once(tmp_path):
    file = tmp_path / "params.yaml"
    with file.open("wb") as handle:
        handle.truncate(50_000_000)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert "longer than" in refusal(load_params, file)
    assert time.process_time() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_what_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    assert "cmlops init" in refusal(load_params, tmp_path / "absent.yaml")
    assert "not a regular file" in refusal(load_params, tmp_path / "pipe")
    assert "cannot be read" in refusal(load_params, tmp_path / "loop")
    assert "cannot be read" in refusal(load_params, f"{tmp_path}/a\0b")
    assert "cannot be read" in refusal(load_params, "x" * 5000)
    assert "not a regular file" in refusal(load_params, tmp_path)
    assert "not a regular file" in refusal(load_params, "/dev/zero")


@given(st.text(alphabet=st.sampled_from("ab01:-#&*!|>'\"%@`{}[],? \n\t.~=<\\\r\0é\u2028\ufeff"), max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_text_is_data_or_a_refusal(text):
    try:
        data = read_yaml(text)
    except UsageError as error:
        assert len(str(error).splitlines()) == 1
    else:
        json.dumps(data)


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_any_bytes_are_data_or_a_refusal(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(data)
    try:
        read_yaml(file)
    except UsageError as error:
        assert len(str(error).splitlines()) == 1


# Wrong values


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "seed: 1\noptimizer:\n  lerning_rate: 1",
            "params.yaml: optimizer.lerning_rate: unknown name; did you mean learning_rate? (line 3)",
        ),
        ("trainr: {}", "trainr: unknown name; did you mean trainer?"),
        ("zzz: 1", "zzz: unknown name; choose from: seed, split"),
        ("loss: {nam: x}", "loss.nam: unknown name; did you mean name?"),
        (
            "trainer: {max_epochs: x}",
            "trainer.max_epochs: 'x' is not a whole number from 1 to 10000 (line 1)",
        ),
        ("trainer: {max_epochs: -3}", "-3 is not a whole number from 1"),
        ("trainer: {max_epochs: '3'}", "'3' is not a whole number"),
        ("trainer: {max_epochs: 3.0}", "3.0 is not a whole number"),
        ("trainer: {max_epochs: true}", "true is not a whole number"),
        ("trainer: {max_epochs: null}", "null is not a whole number"),
        ("data: {batch_size: 0}", "data.batch_size: 0 is not a whole number from 1 to 65536"),
        ("seed: " + "9" * 5000, "is not a whole number from 0 to 4294967295"),
        ("seed: " + "9" * 400, "a number of about 400 digits is not a whole number"),
        ("seed: -1", "-1 is not"),
        ("optimizer: {learning_rate: .nan}", "nan is not a number above 0, at most 10"),
        ("optimizer: {learning_rate: .inf}", "inf is not a number above 0"),
        ("optimizer: {learning_rate: 1e999}", "inf is not a number above 0"),
        ("optimizer: {learning_rate: " + "9" * 390 + "}", "digits is not a number above 0"),
        ("optimizer: {learning_rate: 0}", "0 is not a number above 0"),
        ("optimizer: {name: adamW}", "did you mean adamw?"),
        ("trainer: {precision: 16}", "16 is not one of 32-true"),
        ("image: {channels: 2}", "2 is not one of 1, 3"),
        ("image: {channels: true}", "true is not one of 1, 3"),
        ("image: {size_px: 4}", "from 8 to 2048"),
        ("model: {weights: 3}", "3 is not a text of 1 to 500 characters or null"),
        ("model: {architecture: null}", "null is not a text"),
        ("model: {dropout: 1.0}", "from 0 to below 1"),
        ("data: {workers: many}", "'many' is not auto or a whole number from 0 to 64"),
        ("data: {workers: 1.5}", "1.5 is not auto or"),
        ("data: {cache: 1}", "1 is not auto or true or false"),
        ("trainer: {deterministic: no}", "'no' is not true or false"),
        ("split: {train: 0.7, valid: 0.2, test: 0.2}", "split: train, valid and test sum to 1.1, not to 1"),
        ("split: {train: 70, valid: 15, test: 15}", "split.train: 70 is not a number above 0, at most 1"),
        ("split: {train: 0, valid: 0.5, test: 0.5}", "split.train: 0 is not"),
        ("checkpoint: {monitor: valid_loss, mode: max}", "worst epoch by valid_loss"),
        ("early_stopping: {monitor: val_loss}", "did you mean valid_loss?"),
        ("preprocess: {step: gamma}", "is not a list"),
        ("preprocess: [gamma]", "preprocess.0: 'gamma' is not a mapping"),
        ("preprocess: [{gamma: 1}]", "preprocess.0.step: is missing"),
        (
            "preprocess:\n- {step: a}\n- {step: b, x: [{y: .nan}]}",
            "preprocess.1: x.y: nan is not plain data (line 3)",
        ),
        ("trainer:", "trainer: null is not a mapping"),
        ("[]", "params.yaml: [] is not a mapping"),
        ("just text", "'just text' is not a mapping"),
    ],
)
def test_wrong_values_are_named(text, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(text)
    assert problem in refusal(load_params, "params.yaml")


def test_all_problems_are_there_for_forms():
    with pytest.raises(UsageError) as caught:
        parse_params({"seed": -1, "image": {"size_px": "x", "chanels": 3}})
    assert str(caught.value).endswith("; and 2 more")
    assert {name: str(problem).split(";")[0] for name, problem in caught.value.problems.items()} == {
        "seed": "-1 is not a whole number from 0 to 4294967295",
        "image.size_px": "'x' is not a whole number from 8 to 2048",
        "image.chanels": "unknown name",
    }


@pytest.mark.parametrize(
    "data",
    [
        None,
        3,
        [],
        "x",
        {1: 2},
        {"preprocess": [{1: 2, "step": "x"}]},
        {"preprocess": [{"step": "x", "f": print}]},
        {"seed": 10**6000},
    ],
)
def test_plain_data_of_every_kind_is_refused_in_one_line(data):
    refusal(parse_params, data)


def test_nested_beyond_measure():
    deep = []
    for _ in range(900):
        deep = [deep]
    assert "deeper than 50" in refusal(parse_params, {"preprocess": [{"step": "x", "y": deep}]})
    refusal(parse_params, {"model": deep})
    refusal(parse_augmentations, deep)


leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
sections = st.sampled_from(list(Params.model_fields)) | st.text(max_size=5)
names = st.sampled_from([name.split(".")[-1] for name in flat_params(Params())]) | st.text(max_size=5)


@given(
    st.dictionaries(
        sections, leaf | st.dictionaries(names, leaf | st.lists(leaf, max_size=2), max_size=3), max_size=4
    )
)
@settings(max_examples=200, deadline=None)
def test_any_data_is_parameters_or_a_refusal(data):
    try:
        params = parse_params(data)
    except UsageError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert parse_params(params_dict(params)) == params


# Overrides


def test_overrides(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(EXAMPLE_FILES["params.yaml"])
    changes = [
        "trainer.max_epochs=3",
        "optimizer.learning_rate = 1e-4",
        "preprocess.0.gamma=2",
        "model.weights=a=b.safetensors",
    ]
    params = load_params(file, [*changes, "data.workers=2", "trainer.max_epochs=4"])
    assert (params.trainer.max_epochs, params.optimizer.learning_rate, params.data.workers) == (4, 0.0001, 2)
    assert (params.preprocess[0].arguments, params.model.weights) == ({"gamma": 2}, "a=b.safetensors")
    assert load_params(file, ["preprocess=[]"]).preprocess == []
    assert load_params(file).trainer.max_epochs == 10


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("trainer.max_epochs", "write name=value"),
        ("=3", "write name=value"),
        ("trainer..max_epochs=3", "write name=value"),
        ("trainer.max_epochs=x", "--set: trainer.max_epochs: 'x' is not a whole number from 1"),
        ("trainer.max_epochs=", "--set: trainer.max_epochs: null is not"),
        ("trainer.max_epoch=3", "--set: trainer.max_epoch: unknown name; did you mean max_epochs?"),
        ("split.train=0.9", "--set: split: train, valid and test sum to 1.2"),
        ("seed.x=3", "--set seed.x: there is nothing below 42"),
        ("preprocess.2.gamma=3", "the list has no item 2"),
        ("preprocess.-1.gamma=3", "the list has no item -1"),
        ("preprocess.²=3", "the list has no item"),
        ("model.weights=*a", "--set model.weights: line 1:"),
        ("model.weights=!!python/object:os.system x", "tags"),
        ("model.weights=[", "not YAML"),
        ("a\nb=\x1b[31m", "not YAML"),
    ],
)
def test_refused_overrides(override, problem):
    assert problem in refusal(parse_params, read_yaml(EXAMPLE_FILES["params.yaml"]), [override])


@pytest.mark.parametrize("text", ["70/15/15", "0.7/0.15/0.15", "70,15,15", "70% / 15% / 15%", "7e1/15/15"])
def test_ratios(text):
    assert parse_ratios(text) == Params().split


@pytest.mark.parametrize(
    "text",
    [
        "70/15",
        "a/b/c",
        "70/15/16",
        "",
        "100/-10/10",
        "true/0/0",
        ".nan/1/1",
        "9" * 5000 + "/1/1",
        "1e999/1/1",
    ],
)
def test_refused_ratios(text):
    refusal(parse_ratios, text)


# The study and the augmentation


@pytest.mark.parametrize(
    ("domain", "problem"),
    [
        ("{low: 1, high: 0.1}", "low 1 is above high 0.1"),
        ("{low: 0, high: 0.1, log: true}", "log range starts above 0"),
        ("{low: 0.1, high: 0.2, log: true, step: 0.1}", "has no step"),
        ("{low: 0.1, high: 0.2, step: 0}", "step 0 is not above 0"),
        ("{low: 0.1}", "needs low and high"),
        ("{}", "needs low and high"),
        ("{choices: []}", "choices is empty"),
        ("{choices: [0.1], low: 1}", "not both"),
        ("{choices: 3}", "3 is not a list or null"),
        ("{choices: [0.1, 99]}", "99 is not a number above 0, at most 10"),
        ("{low: 0, high: 0.1}", "0 is not a number above 0"),
        ("{low: .nan, high: 0.1}", "nan is not a number or null"),
        ("{low: a, high: b}", "'a' is not a number or null"),
        ("{lo: 0.1, high: 1}", "did you mean low?"),
        ("3", "3 is not a mapping"),
    ],
)
def test_refused_domains(domain, problem):
    said = refusal(parse_study, read_yaml(f"space: {{optimizer.learning_rate: {domain}}}"))
    assert problem in said and "space.optimizer.learning_rate" in said


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("space: {}", "space: {} is not a mapping"),
        ("study: {trials: 3}", "space: is missing"),
        ("space: {optimizer.lerning_rate: {low: 0.1, high: 1}}", "did you mean optimizer.learning_rate?"),
        ("space: {optimizer: {low: 0.1, high: 1}}", "unknown parameter"),
        ("space: {data.batch_size: {low: 0.5, high: 4}}", "0.5 is not a whole number from 1"),
        ("space: {model.architecture: {low: 1, high: 4}}", "1 is not a text"),
        ("space: {seed: {low: 1, high: 4}}\nstudy: {sampler: tpee}", "did you mean tpe?"),
        ("space: {seed: {low: 1, high: 4}}\nstudy: {pruner: x}", "x is not known; choose from: median"),
        (
            "space: {seed: {low: 1, high: 4}}\nstudy: {direction: minimize}",
            "search for the worst valid_accuracy",
        ),
        ("space: {seed: {low: 1, high: 4}}\nstudy: {trials: 0}", "from 1 to 100000"),
        ("space: {seed: {low: 1, high: 4}}\nstudy: {timeout_s: 0}", "or null"),
    ],
)
def test_refused_studies(text, problem):
    assert problem in refusal(parse_study, read_yaml(text))


def test_studies_search_lists_too():
    study = parse_study(
        read_yaml(
            "space: {preprocess.0.gamma: {low: 0.5, high: 2}, augmentations.0.p: {low: 0, high: 1},"
            " preprocess: {choices: [[], [{step: clahe}]]}}"
        )
    )
    assert study.space["preprocess"].ends == [[], [{"step": "clahe"}]]


def test_augmentations_are_a_list_of_transforms(tmp_path):
    file = tmp_path / "auguments.yaml"
    file.write_text("- {transform: OneOf, p: 0.5, transforms: [{transform: Blur, p: 1}]}\n- {p: 1}\n")
    assert "1.transform: is missing (line 2)" in refusal(load_augmentations, file)
    file.write_text("transform: Blur")
    assert "is not a list" in refusal(load_augmentations, file)
    file.write_text("[]")
    assert load_augmentations(file) == []
    items = parse_augmentations([{"transform": "OneOf", "transforms": [{"transform": "Blur", "p": 1}]}])
    save_augmentations(items, file)
    assert load_augmentations(file) == items


# Saving


def test_comments_stay(tmp_path):
    file = tmp_path / "params.yaml"
    mine = EXAMPLE_FILES["params.yaml"].replace("seed: 42", "seed: 42  # 会議で決めた") + "# end\n"
    file.write_text(mine)
    save_params(load_params(file), file)
    assert file.read_text() == mine
    save_params(load_params(file, ["seed=7", "preprocess.0.gamma=0.5", "model.weights=DEFAULT"]), file)
    changed = (
        mine.replace("seed: 42  #", "seed: 7   #")
        .replace("gamma: 1.2", "gamma: 0.5")
        .replace("resnet18, weights: null", "resnet18, weights: DEFAULT")
    )
    assert file.read_text().split() == changed.split()


@pytest.mark.parametrize(
    "old",
    [
        None,
        "",
        "[broken",
        "a: &x 1\nb: *x\n",
        "# lone comment\n",
        "seed: 1 # x\nseed: 2\n",
        "- 1\n",
        b"\xff\xfe",
    ],
)
def test_saving_over_anything(tmp_path, old):
    file = tmp_path / "params.yaml"
    if old is not None:
        file.write_bytes(old if isinstance(old, bytes) else old.encode())
    params = parse_params({"seed": 5, "preprocess": [{"step": "gamma", "gamma": 1.5}]})
    save_params(params, file)
    assert load_params(file) == params and os.listdir(tmp_path) == ["params.yaml"]


def test_a_file_of_crlf_and_tags_in_comments(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_bytes(b"seed: 1  # !!tag &a *b\r\ntrainer: {max_epochs: 2}\r\n")
    save_params(load_params(file, ["seed=2"]), file)
    assert load_params(file).seed == 2 and "!!tag &a *b" in file.read_text()


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(
    lambda s: s != "step"
)
tricky = st.sampled_from(
    [
        "no",
        "null",
        "012",
        "1e3",
        ".5e3",
        "1.",
        "0x1F",
        "~",
        "true",
        "12:30",
        "2024-01-01",
        "1_000",
        "- a",
        "a: b",
        "#",
        " x ",
        "'",
        '"',
        "&a",
        "*a",
        "!t",
        "%",
        "@",
        "`",
        "|",
        ">",
        "?",
        "=",
        "<<",
        "",
        "\u2028",
        "\x85",
        "\ufeff",
        "a\nb",
        "\t",
        "🙂",
    ]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | words
    | tricky
)
arguments = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | tricky, inner, max_size=3),
    max_leaves=6,
)
steps = st.lists(
    st.builds(
        lambda name, more: {**more, "step": name},
        st.sampled_from(["gamma", "clahe", "ねじ"]),
        st.dictionaries(words | tricky, arguments, max_size=3),
    ),
    max_size=3,
)


@given(first=steps, second=steps, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_whatever_is_saved_is_loaded(tmp_path_factory, first, second, seed):
    file = tmp_path_factory.getbasetemp() / "round.yaml"
    file.unlink(missing_ok=True)
    for data in (
        {"preprocess": first},
        {"preprocess": second, "seed": seed},
        {"preprocess": first, "seed": seed},
    ):
        params = parse_params(data)
        save_params(params, file)
        again = load_params(file)
        assert again == params and params_hash(again, []) == params_hash(params, [])


@given(arguments)
@settings(max_examples=100, deadline=None)
def test_rewriting_says_what_was_given(data):
    for text in ("", "a: 1 # x\n", "- 1 # x\n", "{a: 1}", EXAMPLE_FILES["params.yaml"]):
        wrapped = {"a": data} if not isinstance(data, list) else data
        assert read_yaml(yaml.rewritten(text, wrapped)) == wrapped


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    file.write_text("old")
    file.chmod(0o640)
    fired = []

    def full(handle):
        fired.append(handle)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in refusal(write_atomically, file, "new")
    assert fired and file.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
    monkeypatch.undo()
    write_atomically(file, b"\0new")
    assert file.read_bytes() == b"\0new" and file.stat().st_mode & 0o777 == 0o640


def test_writing_through_a_link_and_with_the_longest_name(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    write_atomically(tmp_path / ("x" * 255), "y")
    assert len(os.listdir(tmp_path)) == 3


def test_killed_while_writing(tmp_path):
    "Whenever the writer dies, the file is one of the versions that it wrote."
    code = (
        "import sys; from classification_mlops.yaml import write_atomically\n"
        "for n in range(10**6): write_atomically(sys.argv[1], f'{n}\\n' * 50_000); print(n, flush=True)"
    )
    file = tmp_path / "a.txt"
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", code, file], stdout=subprocess.PIPE) as process:
            for _ in range(3):
                process.stdout.readline()
            process.kill()
        lines = file.read_text().split("\n")
        assert len(lines) == 50_001 and len(set(lines[:-1])) == 1 and process.returncode == -9


# Handing on


def test_flat_names_suit_mlflow():
    params = parse_params(
        {
            "preprocess": [{"step": "normalize", "mean": [0.5, 0.5], "deep": {"a": [{"b": None}]}}],
            "data": {"cache": False},
        }
    )
    flat = flat_params(params)
    assert flat["preprocess.0.mean"] == "[0.5, 0.5]" and flat["preprocess.0.deep.a.0.b"] == "null"
    assert (flat["data.cache"], flat["model.weights"], flat["optimizer.learning_rate"]) == (
        "false",
        "null",
        0.001,
    )
    assert all(
        isinstance(value, str | int | float) and not isinstance(value, bool) for value in flat.values()
    )
    assert flat_params(Params())["preprocess"] == "[]"


def test_the_hash_is_of_what_is_said_not_of_how():
    text = EXAMPLE_FILES["params.yaml"]
    plain = "\n".join(line.partition("  #")[0] for line in text.splitlines() if not line.startswith("#"))
    one, other = (parse_params(read_yaml(t)) for t in (text, plain.replace("0.001", "1e-3")))
    items = parse_augmentations(read_yaml(EXAMPLE_FILES["auguments.yaml"]))
    assert params_hash(one, items) == params_hash(other, items) != params_hash(one, items[:1])
    assert params_hash(one, items) != params_hash(parse_params(read_yaml(text), ["seed=43"]), items)
    assert len(params_hash(one, [])) == 64


def test_schema_describes_every_field():
    schema = params_schema()
    json.dumps(schema)
    for section in [schema, *schema["$defs"].values()]:
        for name, field in section["properties"].items():
            assert field.get("description"), name
    assert schema["$defs"]["ImageParams"]["properties"]["size_px"]["unit"] == "px"
    set_language("ja")
    assert params_schema()["properties"]["seed"]["description"] == "乱数のシード"


def test_parameters_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        Params().seed = 3
    with pytest.raises(ValueError):
        config.Step(step="a", x=1).step = "b"
