"""Serves verified model artifacts over gRPC with ONNX Runtime."""
