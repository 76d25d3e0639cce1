"Architectures, losses and calibration over their whole range."

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from classification_mlops.config import LossParams, OptimizerParams, Params, SchedulerParams
from classification_mlops.model.calibration import (
    accept_confidence,
    conformal_threshold,
    expected_calibration_error,
    fit_temperature,
    label_sets,
    softmax,
)
from classification_mlops.model.classifier import build_optimizer, build_scheduler, training_loss
from classification_mlops.model.mixing import build_mixing
from classification_mlops.model.network import network_of
from classification_mlops.model.zoo import build_network, last_layer
from classification_mlops.text import UsageError, UserError

SMALL = [
    "resnet18",
    "squeezenet1_1",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "efficientnet_b0",
    "densenet121",
]
LARGE = ["alexnet", "googlenet", "inception_v3", "vit_b_16", "swin_t", "convnext_tiny", "regnet_y_400mf"]


@pytest.mark.parametrize("name", [*SMALL, "timm/resnet10t", "timm/vit_tiny_patch16_224"])
@pytest.mark.parametrize("channels", [1, 3])
def test_architectures_take_small_pictures(name, channels):
    network = build_network(name, classes=4, channels=channels, dropout=0.3, size_px=32, seed=1).eval()
    with torch.inference_mode():
        assert network(torch.rand(2, channels, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize("name", LARGE)
def test_architectures_take_large_grey_pictures(name):
    network = build_network(name, classes=4, channels=1, size_px=96, seed=1).eval()
    with torch.inference_mode():
        assert network(torch.rand(1, 1, 96, 96)).shape == (1, 4)


@pytest.mark.parametrize("name", [*SMALL, "timm/resnet10t"])
def test_small_stem_sees_more(name):
    def first_features(stem):
        sizes = []
        network = build_network(name, classes=3, channels=3, stem=stem).eval()
        convolutions = [part for part in network.modules() if isinstance(part, nn.Conv2d)]
        convolutions[-1].register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
        with torch.inference_mode():
            network(torch.rand(1, 3, 64, 64))
        return max(sizes)

    assert first_features("small") >= first_features("standard")


def test_dropout_acts_only_while_learning():
    network = build_network("resnet18", classes=3, channels=1, dropout=0.5, seed=0)
    layer = last_layer(network)[1]
    features = torch.ones(4, layer.in_features)
    assert torch.equal(layer.eval()(features), layer(features))
    assert not torch.equal(layer.train()(features), layer(features))


def test_weights_come_from_their_own_seed():
    params = Params(image={"size_px": 32, "channels": 1})
    first = network_of(params, 3).state_dict()
    torch.manual_seed(5)
    torch.rand(100)
    state = torch.get_rng_state()
    second = network_of(params, 3).state_dict()
    assert torch.equal(state, torch.get_rng_state()), "building must not draw from the global stream"
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = network_of(Params(seed=1, image={"size_px": 32, "channels": 1}), 3).state_dict()
    assert not torch.equal(other["backbone.conv1.weight"], first["backbone.conv1.weight"])


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        ({"architecture": "resnet_18"}, UsageError, "resnet18"),
        ({"architecture": "timm/nothing_at_all"}, UsageError, "there is no architecture"),
        ({"architecture": "vit_b_16", "stem": "small"}, UsageError, "patches"),
        ({"architecture": "vit_b_32"}, UsageError, "vit_b_32 cannot be built"),
        ({"architecture": "alexnet"}, UsageError, "alexnet takes no"),
        ({"architecture": "resnet18", "weights": "IMAGENET"}, UsageError, "IMAGENET1K_V1"),
        ({"architecture": "timm/resnet10t", "weights": "IMAGENET1K_V1"}, UsageError, "has no weights"),
        ({"architecture": "resnet18", "weights": "absent.safetensors"}, UserError, "cannot be read"),
    ],
)
def test_refusals_of_the_zoo(model, kind, words):
    with pytest.raises(kind, match=words):
        network_of(Params(model=model, image={"size_px": 48, "channels": 3}), 3)


def test_torn_weights_are_refused(tmp_path):
    path = tmp_path / "torn.safetensors"
    path.write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(UserError, match="cannot be read"):
        build_network("resnet18", 3, 3, weights=str(path))


def test_weights_that_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="cannot be had"):
        build_network("resnet18", 3, 3, weights="DEFAULT")
    assert not list(tmp_path.rglob("*.pth"))


class Canary:
    "Its pickle would write a file."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_state_dict_of_torch_is_read_and_a_program_is_not(tmp_path):
    teacher = build_network("resnet18", 5, 3, seed=1)
    for number, wrapped in enumerate(
        [
            teacher.state_dict(),
            {"state_dict": {f"module.{name}": value for name, value in teacher.state_dict().items()}},
            {"state_dict": {f"network.backbone.{name}": v for name, v in teacher.state_dict().items()}},
            {"model": teacher.state_dict(), "epoch": 3},
        ]
    ):
        path = tmp_path / f"teacher-{number}.pth"
        torch.save(wrapped, path)
        pupil = build_network("resnet18", 3, 1, weights=str(path))
        assert torch.equal(pupil.layer1[0].conv1.weight, teacher.layer1[0].conv1.weight)
        assert torch.allclose(pupil.conv1.weight, teacher.conv1.weight.sum(1, keepdim=True))
        assert pupil.fc.weight.shape == (3, 512)
    torch.save(
        {"state_dict": teacher.state_dict(), "more": Canary(tmp_path / "canary")}, tmp_path / "bad.pth"
    )
    with pytest.raises(UserError, match="more than tensors"):
        build_network("resnet18", 3, 3, weights=str(tmp_path / "bad.pth"))
    assert not (tmp_path / "canary").exists()
    (tmp_path / "torn.pt").write_bytes((tmp_path / "teacher-0.pth").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cannot be read|more than tensors"):
        build_network("resnet18", 3, 3, weights=str(tmp_path / "torn.pt"))


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
@pytest.mark.parametrize("bag", [1, 3])
def test_mixtures_follow_the_seed_and_keep_the_total(mix, bag):
    images = torch.randint(0, 256, (6, bag, 8, 8, 3)).byte()
    targets = torch.tensor([0, 1, 2, 0, 1, 2])
    mixing = build_mixing(LossParams(mix=mix, mix_alpha=1.0), 3)
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(mixing(images, targets))
    (mixed, shares), (again, _) = results
    assert torch.equal(mixed, again) and mixed.shape == images.shape
    assert torch.allclose(shares.sum(1), torch.ones(6)) and not torch.equal(mixed, images.float())
    assert torch.allclose(mixed.sum(0), images.float().sum(0), atol=0.1)  # each picture is used whole
    for loss in (LossParams(), LossParams(name="focal"), LossParams(label_smoothing=0.1)):
        assert torch.isfinite(training_loss(torch.rand(6, 3), shares, loss, torch.tensor([1.0, 2.0, 3.0])))


def test_focal_has_two_names():
    scores, targets = torch.randn(8, 3), torch.arange(8) % 3
    two = [
        training_loss(scores, targets, LossParams(**one))
        for one in ({"name": "focal"}, {"imbalance": "focal"})
    ]
    assert torch.equal(*two)
    strict = training_loss(scores, targets, LossParams(name="focal", gamma=5.0))
    assert strict < two[0] < training_loss(scores, targets, LossParams())


@pytest.mark.parametrize("name", ["one_cycle", "cosine"])
def test_warm_up_rises_to_the_peak_of_each_group(name):
    network = build_network("resnet18", 3, 1)
    optimizer = build_optimizer(network, OptimizerParams(learning_rate=0.1, backbone_multiplier=0.1))
    course = SchedulerParams(name=name, warmup_epochs=2.0)
    scheduler = build_scheduler(optimizer, course, steps=50, epochs=10)["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(49):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    head, backbone = np.array(rates).T
    assert abs(head.argmax() - 10) <= 1 and head.max() == pytest.approx(0.1) and head[0] < 0.02
    assert np.allclose(backbone, head * 0.1) and head[-1] < 0.002


@pytest.mark.parametrize("imbalance", ["none", "weights", "sampler", "focal"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_fall_when_scores_improve(imbalance, smoothing):
    loss, targets = LossParams(imbalance=imbalance, label_smoothing=smoothing), torch.tensor([0, 1, 2])
    weights = torch.tensor([1.0, 2.0, 0.5]) if imbalance == "weights" else None
    values = [training_loss(scale * torch.eye(3), targets, loss, weights) for scale in (-1.0, 0.0, 1.0, 2.0)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("name", ["one_cycle", "cosine", "step", "plateau", "none"])
@pytest.mark.parametrize("steps", [1, 2, 3, 40])
def test_schedules_of_any_length(name, steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    found = build_scheduler(optimizer, SchedulerParams(name=name), steps, epochs=1).get("lr_scheduler")
    for _ in range(steps - 1 if found and found.get("interval") == "step" else 1):
        optimizer.step()
        if found:
            found["scheduler"].step(*([1.0] if name == "plateau" else []))
    assert 0 <= optimizer.param_groups[0]["lr"] <= 0.1


logits = st.integers(1, 40).flatmap(
    lambda n: st.lists(st.lists(st.floats(-50, 50), min_size=3, max_size=3), min_size=n, max_size=n)
)


@settings(max_examples=100, deadline=None)
@given(logits, st.integers(0, 2**32 - 1), st.floats(0.05, 0.99))
def test_calibration_of_anything(rows, seed, coverage):
    scores = np.array(rows)
    targets = np.random.default_rng(seed).integers(0, 3, len(scores))
    temperature = fit_temperature(scores, targets)
    assert 0.05 <= temperature <= 20
    probabilities = softmax(scores, temperature)
    assert np.allclose(probabilities.sum(1), 1)
    threshold = conformal_threshold(probabilities, targets, coverage)
    sets = label_sets(probabilities, threshold)
    assert all(names and names[0] == row.argmax() for names, row in zip(sets, probabilities, strict=True))
    covered = [target in names for target, names in zip(targets, sets, strict=True)]
    assert np.mean(covered) >= min(coverage, 1) - 1e-9
    assert 0 <= expected_calibration_error(probabilities, targets) <= 1
    limit = accept_confidence(probabilities, targets, 0.9)
    accepted = probabilities.max(1) >= limit
    if accepted.any():
        assert (probabilities.argmax(1) == targets)[accepted].mean() >= 0.9
