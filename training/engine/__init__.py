"""Trains a network: the loop, the optimizer, precision, distributed processes."""
