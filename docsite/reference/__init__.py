"""Writes the reference pages from the code that they describe, and tells which are out of date."""
