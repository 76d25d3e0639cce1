"The BentoML service of benchmarks/serving_peers.py; BentoML wants a module to import."

import os

import bentoml
import torch

from classification_mlops.registry.pyfunc import load_classifier


@bentoml.service(workers=len(os.sched_getaffinity(0)), traffic={"timeout": 600, "max_concurrency": 2000})
class Service:
    def __init__(self):
        torch.set_num_threads(1)
        self.classifier = load_classifier(os.environ["CMLOPS_BENCHMARK_MODEL"])

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=60_000, route="/predict")
    def predict(self, image: list[str]) -> list[dict]:
        return self.classifier.classify(image)[["label", "confidence"]].to_dict("records")
