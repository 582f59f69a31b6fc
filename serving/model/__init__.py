"""Loads, verifies and runs one version of a model."""
