"""Carries out the commands that read a repository or call a server."""
