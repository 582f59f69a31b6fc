"""Augments and mixes batches of training images at random."""
