"""Turns protocol messages into arrays, and arrays into messages."""
