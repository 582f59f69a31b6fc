"""Trains and evaluates a network: loop, optimizer, schedule, precision, distributed processes."""
