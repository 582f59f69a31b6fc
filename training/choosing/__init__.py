"""Lists and compares runs, and searches for good settings by training many."""
