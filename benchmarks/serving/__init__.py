"""Compares foldserve with bare loops, mosec and raw ONNX Runtime, in one run."""
