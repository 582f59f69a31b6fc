"""Turns a checkpoint into a folded, verified ONNX model artifact."""
