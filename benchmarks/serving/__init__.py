"""`python -m benchmarks.serving`: foldserve against bare loops, mosec and raw ONNX Runtime, in one run."""
