"""Defines the errors of the serving benchmark; each message is one line for the user."""


class BenchError(Exception):
    """The benchmark cannot run, or a server gave a wrong answer."""


class ContestantMissingError(BenchError):
    """One of the servers is not there to be measured: its rows are left out, the others are not."""
