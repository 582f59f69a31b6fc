"""Loads the sources of an export: training runs, the user's own networks, and ONNX files."""
