"""Trials of deploy/ on the engines themselves, each started by a make target."""
