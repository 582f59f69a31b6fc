"""Turns a network into the folded bytes of `model.onnx`."""
