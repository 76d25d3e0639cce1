"Properties of preprocessing and augmentation that the notebooks only illustrate."

import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classification_mlops.text import UsageError, UserError
from classification_mlops.vision.augment import (
    Augmentation,
    albumentations_transforms,
    build_augmentation,
    torchvision_transforms,
    try_augmentation,
)
from classification_mlops.vision.preprocess import build_preprocessing

STEPS = [
    {"step": "pad_to_square", "fill": 7},
    {"step": "gamma", "gamma": 1.7},
    {"step": "equalize_histogram"},
    {"step": "clahe", "tiles": 3},
    {"step": "resize", "size_px": 20},
]


def random_pixels(height, width, channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    channels=st.sampled_from([1, 3]),
    steps=st.permutations(STEPS).flatmap(lambda steps: st.integers(0, 5).map(lambda n: steps[:n])),
    grid=st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_any_picture_through_any_order_of_steps(height, width, channels, steps, grid):
    last = [{"step": "patches", "rows": grid[0], "columns": grid[1]}] if grid else []
    preprocess = build_preprocessing([*steps, *last], {"size_px": 16, "channels": channels})
    pixels = random_pixels(height, width, channels)
    kept = pixels.copy()
    bag = preprocess(pixels)
    assert bag.shape == (preprocess.bag, 16, 16, channels)
    assert bag.dtype == np.uint8
    assert np.array_equal(pixels, kept), "a step must not change its input"
    assert np.array_equal(bag, pickle.loads(pickle.dumps(preprocess))(pixels))


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([{"step": "gama"}], "gamma"),
        ([{}], "there is no step"),
        ([{"step": "gamma", "gama": 1}], "gamma"),
        ([{"step": "gamma", "gamma": "1"}], "not a number"),
        ([{"step": "gamma", "gamma": True}], "not a number"),
        ([{"step": "gamma", "gamma": float("inf")}], "not a number"),
        ([{"step": "resize"}], "needs size_px"),
        ([{"step": "resize", "size_px": 32.0}], "whole number"),
        ([{"step": "patches", "rows": 0}], "whole number from 1"),
        ([{"step": "normalize"}, {"step": "gamma"}], "last"),
        ([{"step": "normalize"}, {"step": "normalize"}], "once"),
        ([{"step": "normalize", "mean": [0.1, 0.2]}], "3 of them"),
        ([{"step": "normalize", "std": [0.1, 0.2, 0]}], "above 0"),
        ([{"step": "normalize", "std": "x"}], "not one number"),
        ([{"step": "patches"}, {"step": "gamma"}], "follow patches"),
    ],
)
def test_refusals_of_preprocessing(steps, words):
    with pytest.raises(UsageError, match=words):
        build_preprocessing(steps, {"size_px": 16, "channels": 3})


def test_key_follows_pixels_only():
    def key(steps, size_px=16, channels=3):
        return build_preprocessing(steps, {"size_px": size_px, "channels": channels}).key

    assert key([{"step": "gamma"}, {"step": "normalize", "mean": 0.2}]) == key([{"step": "gamma"}])
    others = [
        key([]),
        key([{"step": "gamma", "gamma": 2}]),
        key([], 17),
        key([], 16, 1),
        key(STEPS),
        key(STEPS[::-1]),
    ]
    assert len({*others, key([{"step": "gamma"}])}) == 7


def test_preprocessing_stays_light():
    heavy = [
        "torch",
        "torchvision",
        "pytorch_lightning",
        "mlflow",
        "albumentations",
        "PIL",
        "sklearn",
        "pandas",
    ]
    code = f"import sys, classification_mlops.vision.preprocess; print(*set({heavy}) & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


OPTIONS = {
    "CenterCrop": dict(height=20, width=20),
    "RandomCrop": dict(height=20, width=20),
    "RandomSizedCrop": dict(min_max_height=[10, 30], size=[24, 24]),
    "RandomResizedCrop": dict(size=[32, 32]),
    "Resize": dict(height=20, width=20),
    "Crop": dict(x_max=20, y_max=20),
    "CropAndPad": dict(percent=0.1),
    "LongestMaxSize": dict(max_size=20),
    "SmallestMaxSize": dict(max_size=20),
    "PadIfNeeded": dict(min_height=40, min_width=40),
    "GridElasticDeform": dict(num_grid_xy=[3, 3], magnitude=4),
    "TimeMasking": dict(time_mask_param=10),
    "XYMasking": dict(mask_x_length=4, mask_y_length=4),
    "FrequencyMasking": dict(freq_mask_param=10),
    "torchvision.RandomCrop": dict(size=20),
    "torchvision.RandomResizedCrop": dict(size=32),
    "torchvision.RandomResize": dict(min_size=20, max_size=40),
    "torchvision.ScaleJitter": dict(target_size=[32, 32]),
    "torchvision.RandomAffine": dict(degrees=20),
    "torchvision.RandomRotation": dict(degrees=20),
    "torchvision.RandomPosterize": dict(bits=3),
    "torchvision.RandomSolarize": dict(threshold=100),
    "torchvision.RandomAdjustSharpness": dict(sharpness_factor=2),
    "torchvision.JPEG": dict(quality=[20, 80]),
}
GROUPS = {"OneOf", "SomeOf", "Sequential", "RandomOrder"}
NAMES = sorted({*albumentations_transforms(), *torchvision_transforms()} - GROUPS)


@pytest.mark.parametrize("name", NAMES)
def test_every_transform_is_a_function_of_its_key(name):
    item = {"transform": name, **OPTIONS.get(name, {})}
    augmentation, pixels = build_augmentation([item]), random_pixels(32, 32, 3)
    try_augmentation(augmentation, pixels)
    first = [augmentation(pixels, 1, epoch, "a") for epoch in range(4)]
    for number in range(5):
        augmentation(pixels, number, 0, "another")
    np.random.seed(0)
    fresh = Augmentation([item])
    for epoch in reversed(range(4)):
        again = fresh(pixels, 1, epoch, "a")
        assert again.shape == pixels.shape and again.dtype == np.uint8
        assert np.array_equal(again, first[epoch]), f"{name} has a random source of its own"
    assert np.array_equal(pixels, random_pixels(32, 32, 3)), f"{name} changes its input"


def test_torchvision_leaves_the_global_stream_alone():
    torch = pytest.importorskip("torch")
    augmentation = build_augmentation([{"transform": "torchvision.ColorJitter", "brightness": 0.5}])
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    augmentation(random_pixels(16, 16, 3), 1, 1, "a")
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"transform": "HorizontalFlop"}, "HorizontalFlip"),
        ({}, "there is no transform"),
        ({"transform": "torchvision.RandomErase"}, "torchvision.RandomErasing"),
        ({"transform": "torchvision.Lambda", "lambd": "print"}, "there is no transform"),
        ({"transform": "Lambda"}, "there is no transform"),
        ({"transform": "core.composition.Compose"}, "there is no transform"),
        ({"transform": "HorizontalFlip", "probability": 1}, "no argument probability"),
        ({"transform": "HorizontalFlip", "p": 2}, "refuses its arguments"),
        ({"transform": "HorizontalFlip", "p": float("nan")}, "finite"),
        ({"transform": "Rotate", "limit": "far"}, "refuses its arguments"),
        ({"transform": "RandomCrop"}, "refuses its arguments"),
        ({"transform": "OneOf", "transforms": []}, "list"),
        ({"transform": "OneOf", "transforms": 3}, "list"),
        ({"transform": "OneOf", "transforms": ["HorizontalFlip"]}, "list"),
        ({"transform": "OneOf", "transforms": [{"transform": "Blurr"}]}, "Blur"),
        ({"transform": "SomeOf", "transforms": [{"transform": "torchvision.JPEG", "quality": 5}]}, "group"),
    ],
)
def test_refusals_of_augmentation(item, words):
    with pytest.raises(UsageError, match=words):
        build_augmentation([item])


@pytest.mark.parametrize("name", ["torchvision.RandomCrop", "Crop"])
def test_what_does_not_fit_the_picture_is_said_before_training(name):
    options = {"size": 64} if name.startswith("torch") else {"x_max": 64, "y_max": 64}
    augmentation = build_augmentation([{"transform": name, **options}])
    with pytest.raises(UserError, match=f"{name} cannot work on 32 × 32 pixels"):
        try_augmentation(augmentation, random_pixels(32, 32, 3))
