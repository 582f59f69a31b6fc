"""Names the gRPC services, as in a method's path."""

from __future__ import annotations

INFERENCE_SERVICE = "inference.GRPCInferenceService"
CLASSIFIER_SERVICE = "foldserve.v1.Classifier"
