"""Decides who may call: certificates, tokens, permissions."""
