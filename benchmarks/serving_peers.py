"""Peers of benchmarks/serving.py: the same model behind LitServe, BentoML or a plain FastAPI route.

python benchmarks/serving_peers.py litserve|bentoml|fastapi MODEL_FOLDER PORT

Each takes {"image": base64} at POST /predict and answers with a label and its confidence, in batches
where the peer has them, with as many workers of one torch thread as there are cores.
"""

import os
import sys
from pathlib import Path

import torch

from classification_mlops.registry.pyfunc import load_classifier

CORES = len(os.sched_getaffinity(0))
torch.set_num_threads(1)


def answers(classifier, images: list) -> list[dict]:
    return classifier.classify(images)[["label", "confidence"]].to_dict("records")


def fastapi(folder: str, port: int) -> None:
    "The route that everybody writes first; Starlette runs it in its thread pool."
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Picture(BaseModel):
        image: str

    app, classifier = FastAPI(), load_classifier(folder)

    @app.post("/predict")
    def predict(picture: Picture) -> dict:
        return answers(classifier, [picture.image])[0]

    uvicorn.run(app, port=port, log_level="error")


def litserve(folder: str, port: int) -> None:
    "Batches of up to 64, which LitServe gathers for 5 ms."
    import litserve as ls
    from serving_litserve import Api

    os.environ["CMLOPS_BENCHMARK_MODEL"] = folder
    api = Api(max_batch_size=64, batch_timeout=0.005)
    ls.LitServer(api, accelerator="cpu", timeout=600, workers_per_device=CORES).run(
        port=port, host="127.0.0.1", generate_client_file=False, log_level="error"
    )


def bentoml(folder: str, port: int) -> None:
    "BentoML's adaptive batching; its workers import `serving_bento`."
    os.environ["CMLOPS_BENCHMARK_MODEL"] = folder
    os.chdir(Path(__file__).parent)
    place = ["--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", "serving_bento:Service", *place])


if __name__ == "__main__":
    {"fastapi": fastapi, "litserve": litserve, "bentoml": bentoml}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
