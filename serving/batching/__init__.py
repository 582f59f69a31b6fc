"""Queues requests and runs them in batches. Knows neither gRPC nor ONNX Runtime."""
