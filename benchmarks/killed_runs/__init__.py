"""Kills training at random moments, and compares what it ends with."""
