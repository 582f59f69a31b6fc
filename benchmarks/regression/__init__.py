"""Fails if a request costs the server a tenth more CPU time than the stored baseline, beside a bare loop."""
