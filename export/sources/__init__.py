"""Where an export begins: a training run, a network of one's own, or an ONNX file made elsewhere."""
