"""Serves a page on which people try the models of a running server: `foldserve ui`.

The page talks to the server over gRPC, through `foldserve.serving.client` alone. `layout`, `handlers` and
`web` know Gradio; everything else works, and is tested, without it.
"""
