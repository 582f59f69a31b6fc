"""Runs `foldserve train`: trains, resumes, writes the run folder and the report."""
