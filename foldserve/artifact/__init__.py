"""Reads, writes and checks a model version: `model.onnx`, `golden.npz` and `manifest.json`."""
