"""ONNX files made elsewhere: read, and brought into our form without changing an answer."""
