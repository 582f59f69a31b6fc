"""Compares the settings that the rule for folders chooses with settings tried by hand, on small data sets."""
