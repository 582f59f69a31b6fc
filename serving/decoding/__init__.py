"""Decodes pictures in processes of their own: neither the interpreter's lock nor a crash there stops answers.

`process_main` runs in those processes, `own_process` in the server; both decode by `turn`.
"""
