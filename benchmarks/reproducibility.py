"A second training on unchanged data: the same split, the same snapshot, the same weights, bit by bit."

from hashlib import sha256
from tempfile import TemporaryDirectory

from workspace import report

from classification_mlops.db.snapshot import read_snapshot
from classification_mlops.demo import SAMPLE_THEME, sample_workspace
from classification_mlops.training.jobs import run_training
from classification_mlops.workspace import Workspace


def facts(workspace: Workspace) -> dict:
    "What a training saw and made."
    from mlflow import MlflowClient

    outcome = run_training(workspace, SAMPLE_THEME)
    folder = workspace.runs / outcome.run_id
    return {
        "split": {row.sha256: row.split for row in read_snapshot(folder / "snapshot.csv")},
        "snapshot_hash": MlflowClient(workspace.tracking_uri)
        .get_run(outcome.run_id)
        .data.tags["snapshot_hash"],
        "weights": sha256((folder / "model" / "weights.safetensors").read_bytes()).hexdigest(),
        "metrics": outcome.metrics,
    }


def main():
    with TemporaryDirectory() as folder:
        workspace = sample_workspace(folder)
        first, second = facts(workspace), facts(workspace)
    equal = {name: first[name] == second[name] for name in first}
    figures = {"equal": equal, "weights_sha256": first["weights"], "snapshot_hash": first["snapshot_hash"]}
    report("reproducibility", figures | {"pictures": len(first["split"]), "to_reach": "everything is equal"})


if __name__ == "__main__":
    main()
