"""Runs ONNX files on a device. The only importer of onnxruntime."""
