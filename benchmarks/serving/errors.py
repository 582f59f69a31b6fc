"""What can keep a measurement from being made; every message is one line for the person at the terminal."""


class BenchError(Exception):
    """The benchmark cannot run, or what it measured is wrong."""


class ContestantMissingError(BenchError):
    """One of the servers is not there to be measured: its rows are left out, the others are not."""
