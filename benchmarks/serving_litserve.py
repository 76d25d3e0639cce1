"The LitServe API of benchmarks/serving_peers.py; its workers import it."

import os

import litserve
import torch

from classification_mlops.registry.pyfunc import load_classifier


class Api(litserve.LitAPI):
    def setup(self, device):
        torch.set_num_threads(1)
        self.classifier = load_classifier(os.environ["CMLOPS_BENCHMARK_MODEL"])

    def decode_request(self, request):
        return request["image"]

    def batch(self, inputs):
        return list(inputs)

    def predict(self, images):
        return self.classifier.classify(images)[["label", "confidence"]].to_dict("records")

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return output
