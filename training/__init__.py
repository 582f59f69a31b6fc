"""Trains convolutional networks on batched images and writes checkpoints."""
