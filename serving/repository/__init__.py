"""Loads, replaces and unloads the models of a repository folder as it changes."""
