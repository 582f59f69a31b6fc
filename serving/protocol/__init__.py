"""Turns messages of the protocol into arrays, and arrays into messages."""
