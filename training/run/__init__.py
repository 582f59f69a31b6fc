"""Carries out `foldserve train`: the run's steps, its folder and its report."""
