"""Implements ``foldserve inspect``: the layers of a network, with their shapes and figures."""
