"""Imports ONNX files made elsewhere, without changing their outputs."""
