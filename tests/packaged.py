"A small registered model for the tests of registry and serving."

import cv2
import numpy as np
import psutil
import torch

from classification_mlops.config import parse_params
from classification_mlops.model.network import network_of
from classification_mlops.registry.pyfunc import write_model_folder
from classification_mlops.registry.registration import promote, register_model, theme_experiment, use_tracking
from classification_mlops.workspace import init_folders

LABELS = ["ok", "傷", "bent"]
PARAMS = parse_params(
    {
        "image": {"size_px": 32, "channels": 3},
        "preprocess": [{"step": "gamma", "gamma": 1.2}, {"step": "normalize", "mean": 0.4, "std": 0.3}],
        "model": {"architecture": "shufflenet_v2_x0_5"},
    }
)
CALIBRATION = {"temperature": 0.05, "conformal_threshold": 0.3, "accept_confidence": 0.5}


def pictures(count: int, seed: int = 0) -> list[bytes]:
    "Files of noise, each its own."
    noise = np.random.default_rng(seed).integers(0, 256, (count, 48, 40, 3), dtype=np.uint8)
    return [cv2.imencode(".png", pixels)[1].tobytes() for pixels in noise]


def small_network():
    "A network with settled statistics, so that its answers differ from picture to picture."
    network = network_of(PARAMS, len(LABELS))
    with torch.no_grad():
        for _ in range(3):
            network(torch.randint(0, 256, (16, 1, 32, 32, 3), dtype=torch.uint8))
    return network.eval()


def register_small(workspace, theme: str, network=None, alias: str | None = "champion"):
    "Register a small network for `theme`; its run, its folder, its version."
    client = use_tracking(workspace)
    run_id = client.create_run(theme_experiment(workspace, theme)).info.run_id
    folder = workspace.runs / run_id / "model"
    write_model_folder(folder, network or small_network(), PARAMS, [], LABELS, CALIBRATION)
    model = register_model(workspace, theme, run_id, folder)
    if alias:
        promote(workspace, theme, model.version, alias)
    return model, folder


def workspace_with_model(root, theme: str = "ねじ"):
    "A workspace whose theme has a champion."
    workspace = init_folders(root)
    model, folder = register_small(workspace, theme)
    return workspace, model, folder


def libraries_of(process: psutil.Process) -> list[str]:
    "What a process has loaded; nothing once it has ended."
    try:
        return [part.path for part in process.memory_maps()]
    except psutil.NoSuchProcess:
        return []


def has_torch(pid: int) -> bool:
    "Whether a process or one of its children has loaded PyTorch's libraries."
    server = psutil.Process(pid)
    paths = [part.path for part in server.memory_maps()]
    paths += [path for child in server.children(recursive=True) for path in libraries_of(child)]
    return any("libtorch" in path for path in paths)
