"""Compares exported files with the networks that they were made from."""
