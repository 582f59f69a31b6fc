"""Measures how long small requests wait beside large ones."""
