"""Measures training, export and serving on a GPU; without one, rehearses the same steps on the CPU."""
