"""Draws the documentation's figures as SVG, from the code that they are about where there is such code."""
