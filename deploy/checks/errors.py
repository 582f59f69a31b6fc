"""Defines the error of the trials; its message is one line for the user."""


class CheckError(Exception):
    """The trial failed, or cannot be made here."""
