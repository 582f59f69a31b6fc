"""Measures encoded pictures against decoding alone, and tensor traffic beside them."""
