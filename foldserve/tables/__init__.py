"""Reads tables of images and labels, one row at a time: CSV, JSON lines and Parquet."""
