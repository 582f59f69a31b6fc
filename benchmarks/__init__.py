"""Measurements that back the figures in the docs, each with a command that repeats it."""
