"""Follows the model repository on disk, and decides which versions are served."""
