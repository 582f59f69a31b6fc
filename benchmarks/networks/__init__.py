"""Exports networks that others wrote, and judges the files beside those of PyTorch's exporter."""
