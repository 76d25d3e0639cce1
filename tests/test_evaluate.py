"What an examination claims: intervals, costs, leaks, patches and heat, up to the served model."

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classification_mlops.config import Params, load_params, params_dict, params_hash, parse_params
from classification_mlops.db.schema import TrainData
from classification_mlops.db.session import open_engine, reading, writing
from classification_mlops.demo import sample_workspace
from classification_mlops.model.averages import overall_scores
from classification_mlops.model.calibration import (
    expected_calibration_error,
    softmax,
    trusted_temperature,
)
from classification_mlops.model.decision import (
    cheapest_threshold,
    cost_per_picture,
    cost_thresholds,
    mistake_counts,
    rejected,
)
from classification_mlops.text import UsageError, UserError
from classification_mlops.training.evaluate import Evaluation
from classification_mlops.training.jobs import run_training
from classification_mlops.training.scores import class_rows, metric_names, score_metrics

PATCHES = "preprocess=[{step: patches, rows: 2, columns: 2}]"
DECISION = "decision={defect_labels: ['2', '3'], miss_cost: 10, overkill_cost: 1}"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return sample_workspace(tmp_path_factory.mktemp("sample"))


def read_pictures(engine):
    with reading(engine) as session:
        rows = session.query(TrainData).order_by(TrainData.id).all()
        return {row.id: (row.label_id, row.split, row.sha256) for row in rows}


@pytest.fixture(scope="module")
def trained(template, tmp_path_factory):
    "Four patches a picture, the maximum over them, two labels that are defects, and one leak."
    root = tmp_path_factory.mktemp("trained") / "workspace"
    shutil.copytree(template.root, root)
    workspace = type(template)(root)
    engine = open_engine(workspace.database_url)
    with writing(engine) as session:
        rows = session.query(TrainData).order_by(TrainData.id).limit(2).all()
        for row, split in zip(rows, ("train", "test"), strict=True):
            row.group_key, row.split = "lot 1", split
    return workspace, run_training(
        workspace, "digits", [PATCHES, "model.bag=max", DECISION, "trainer.max_epochs=2"]
    )


def drawn(seed, pictures=60, classes=4, sharpness=2.0):
    "Random targets and probabilities that know something of them."
    random = np.random.default_rng(seed)
    targets = random.integers(0, classes, pictures)
    logits = random.normal(size=(pictures, classes)) + sharpness * np.eye(classes)[targets]
    return targets, softmax(logits)


def evaluation_of(seed, **sizes):
    targets, probabilities = drawn(seed, **sizes)
    labels = [f"label {n}" for n in range(probabilities.shape[1])]
    return Evaluation(labels, targets, probabilities, np.arange(len(targets)))


# Scores -----------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 80), st.integers(2, 6))
def test_averages_agree_with_scikit_learn_and_lie_in_their_intervals(seed, pictures, classes):
    from sklearn.metrics import precision_recall_fscore_support

    found = evaluation_of(seed, pictures=pictures, classes=classes)
    scores, present = overall_scores(found.confusion), np.unique(found.targets)
    for average in ("macro", "weighted"):
        expected = precision_recall_fscore_support(
            found.targets, found.answers, labels=present, average=average, zero_division=0
        )[:3]
        for name, value in zip(("precision", "recall", "f1"), expected, strict=True):
            assert scores[f"{average}_{name}"][0] == pytest.approx(value)
    assert all(0 <= low <= value <= high <= 1 for value, low, high in scores.values())
    for row in class_rows(found):
        for name in ("precision", "recall", "f1"):
            known = row[name] is not None
            assert not known or row[f"{name}_low"] <= row[name] + 1e-12
            assert not known or row[name] <= row[f"{name}_high"] + 1e-12
    assert all(np.isfinite(value) for value in score_metrics(found).values())


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    "Draw tests from one world of known macro F1: about 95 of 100 intervals contain it."
    world = overall_scores(evaluation_of(0, pictures=200_000).confusion)["macro_f1"][0]
    inside = [
        low <= world <= high
        for _, low, high in (
            overall_scores(evaluation_of(n, pictures=150).confusion)["macro_f1"] for n in range(1, 121)
        )
    ]
    assert 0.88 <= np.mean(inside) <= 1


def test_names_of_metrics_are_accepted_and_different():
    from mlflow.utils.validation import _validate_metric_name

    names = metric_names(["../up", "a/b", "a.b", "傷 A", "", "x" * 300, "50 %"])
    assert len(set(names)) == len(names)
    for name in names:
        _validate_metric_name(f"test_recall.{name}_low")


# Calibration and costs ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_an_honest_network_keeps_its_words(seed):
    "Where confidence is right already, a temperature must not spoil it on other pictures."
    random = np.random.default_rng(seed)
    logits = random.normal(size=(4000, 4)) * 2
    targets = (softmax(logits).cumsum(axis=1) > random.random((4000, 1))).argmax(axis=1)
    temperature = trusted_temperature(logits[:200], targets[:200])
    errors = [expected_calibration_error(softmax(logits[200:], t), targets[200:]) for t in (1.0, temperature)]
    assert errors[1] <= errors[0] + 0.03


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), max_size=12), st.floats(0.01, 0.99))
def test_no_threshold_is_cheaper_than_the_cheapest(pairs, start):
    scores = np.array([score / 8 for score, _ in pairs])
    gain = np.where(np.array([bad for _, bad in pairs], bool), 5.0, -1.0)
    found = cheapest_threshold(scores, gain, start)
    saved = [gain[scores >= limit].sum() for limit in np.linspace(1e-6, 1.01, 200)]
    assert gain[scores >= found].sum() >= max(saved) - 1e-9 and 0 <= found <= 1.02


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 100))
def test_thresholds_are_never_dearer_than_where_they_begin(seed, miss_cost):
    targets, probabilities = drawn(seed)
    labels, defects = ["a", "b", "c", "d"], ["b", "d"]
    defective = np.isin(targets, [1, 3])

    def cost(limits):
        counts = mistake_counts(rejected(probabilities, labels, limits), defective)
        return cost_per_picture(counts, miss_cost, 1.0)

    found = cost_thresholds(probabilities, targets, labels, defects, miss_cost, 1.0)
    assert cost(found) <= cost(dict.fromkeys(defects, 1 / (1 + miss_cost))) + 1e-9
    assert set(found) == set(defects)


def test_parameters_of_before_keep_their_hash():
    names = params_dict(Params())
    assert names["decision"] is None and names["model"]["bag"] == "mean"
    assert params_hash(Params(), []) == "c1d7fa2684b27b54e22a1c2d36a1ca93e5f5dd2f6a1e363ed8bc79cd4ddcf9cb"
    changed = [parse_params({"model": {"bag": "max"}}), parse_params({"decision": {"defect_labels": ["a"]}})]
    assert len({params_hash(params, []) for params in (Params(), *changed)}) == 3


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("['2', '33']", "there is no label 33 with pictures; did you mean 3?"),
        ("['0', '1', '2', '3']", "every label is a defect"),
        ("['2', '2']", "names 2 twice"),
    ],
)
def test_defects_that_cannot_be_are_refused_before_anything_is_written(template, labels, words):
    with pytest.raises((UserError, UsageError), match=words.replace("?", r"\?")):
        run_training(template, "digits", [f"decision={{defect_labels: {labels}}}"])
    assert not list(template.runs.iterdir())


# A whole run --------------------------------------------------------------------------------------


def test_everything_that_was_examined_is_kept_with_the_run(trained):
    from mlflow import MlflowClient

    workspace, run = trained
    client = MlflowClient(workspace.tracking_uri)
    kept = {item.path for item in client.list_artifacts(run.run_id, "evaluation")}
    files = {"metrics.json", "class_scores.csv", "predictions.parquet", "charts", "heat"}
    files |= {"learning.json", "reliability.json", "explained.json"}
    assert kept == {f"evaluation/{name}" for name in files}
    charts = {item.path.split("/")[-1] for item in client.list_artifacts(run.run_id, "evaluation/charts")}
    assert {"confusion.png", "costs.png", "patches.png", "heat.png", "coverage.png"} <= charts
    metrics = client.get_run(run.run_id).data.metrics
    written = json.loads((workspace.runs / run.run_id / "evaluation" / "metrics.json").read_text())
    assert all(metrics[name] == pytest.approx(value) for name, value in written.items())
    names = ("test_macro_recall_low", "test_f1.3_high", "test_miss_rate", "test_coverage", "test_leak_score")
    assert set(names) <= set(written)


def test_every_picture_not_learnt_from_has_all_its_probabilities(trained):
    workspace, run = trained
    folder = workspace.runs / run.run_id
    table = pd.read_parquet(folder / "evaluation" / "predictions.parquet")
    columns = [f"probability of {label}" for label in "0123"]
    np.testing.assert_allclose(table[columns].sum(axis=1), 1, atol=1e-5)
    assert set(table.split) == {"valid", "test"} and set(table.decision) <= {"accept", "reject"}
    assert list(table.sha256) == list(pd.read_csv(folder / "predictions.csv").sha256)


def test_a_leaking_picture_does_not_count_as_clean(trained):
    workspace, run = trained
    written = json.loads((workspace.runs / run.run_id / "evaluation" / "metrics.json").read_text())
    pictures = read_pictures(open_engine(workspace.database_url)).values()
    tested = sum(split == "test" for _, split, _ in pictures)
    assert written["test_leak_score"] == pytest.approx(1 / tested)
    assert written["test_clean_pictures"] == tested - 1


def test_the_served_model_decides_as_the_report_says(trained):
    "The packaged model, asked about files, gives the probabilities and decisions that were examined."
    import mlflow

    from classification_mlops.registry.registration import find_version, use_tracking

    workspace, run = trained
    folder = workspace.runs / run.run_id
    assert load_params(folder / "model" / "params.yaml").model.bag == "max"
    limits = json.loads((folder / "model" / "calibration.json").read_text())["thresholds"]
    assert set(limits) == {"2", "3"}
    use_tracking(workspace)
    model = mlflow.pyfunc.load_model(find_version(workspace, "digits", 1).uri)
    table = pd.read_parquet(folder / "evaluation" / "predictions.parquet").query("split == 'test'")
    files = [(workspace.root / path).read_bytes() for path in table.image_path]
    answers = model.predict(pd.DataFrame({"image": files}))
    assert list(answers.decision) == list(table.decision)
    for label in "0123":
        served = [row[label] for row in answers.probabilities]
        np.testing.assert_allclose(served, table[f"probability of {label}"], atol=1e-5)


@pytest.mark.parametrize("architecture", ["timm/test_resnet", "timm/test_vit"])
def test_heat_and_deciding_patch_of_any_network(architecture, tmp_path):
    "A transformer has no heat, but its patches decide as those of others do."
    import torch

    from classification_mlops.model.gradcam import deciding_pieces, heat_maps
    from classification_mlops.model.network import network_of
    from classification_mlops.model.overlay import mosaic
    from classification_mlops.training.charts import heat_sheet, patch_sheet
    from classification_mlops.training.explain import Explanation, write_explanations

    params = parse_params(
        {
            "model": {"architecture": architecture, "bag": "max"},
            "image": {"size_px": 160},
            "preprocess": [{"step": "patches"}],
        }
    )
    network, images = network_of(params, 3).eval(), torch.zeros(2, 4, 160, 160, 3, dtype=torch.uint8)
    images[0, 3] = torch.randint(0, 255, (160, 160, 3), generator=torch.Generator().manual_seed(0))
    before, answers = network(images).detach(), torch.tensor([0, 2])
    heat, pieces = heat_maps(network, images, answers), deciding_pieces(network, images, answers)
    assert (heat is None) == (architecture == "timm/test_vit")
    assert torch.equal(network(images), before) and not any(p.grad is not None for p in network.parameters())
    assert before[0, 0] == network.piece_scores(images)[0, pieces[0], 0]
    shown = None if heat is None else mosaic(heat[0].numpy(), (2, 2))
    pixels = mosaic(images[0].numpy(), (2, 2))
    item = Explanation(pixels, shown, (2, 2), int(pieces[0]), "傷", "dent", 0.9)
    write_explanations(tmp_path, [item])
    assert (tmp_path / "heat" / "00_wrong.png").exists()
    assert len(patch_sheet([item]).data) < 50_000 and len(heat_sheet([item]).data) < 50_000
