"""Follows 500 pictures from a folder to a served model."""
