"""Calls the server with NVIDIA's client: `python examples/infer_with_tritonclient.py MODEL`.

Needs `pip install 'tritonclient[grpc]'`. Nothing of foldserve is imported: any client of the Open Inference
Protocol v2 works the same way.
"""

from __future__ import annotations

import argparse

import numpy as np
import tritonclient.grpc as triton


def main() -> None:
    """Send one random image and print the probability of each class."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--server", default="127.0.0.1:8001")
    options = parser.parse_args()
    with triton.InferenceServerClient(options.server) as client:
        (declared,) = client.get_model_metadata(options.model).inputs  # uint8 [-1, C, H, W]
        images = np.random.default_rng(0).integers(0, 256, (1, *declared.shape[1:]), dtype=np.uint8)
        request = triton.InferInput(declared.name, images.shape, declared.datatype)
        request.set_data_from_numpy(images)
        response = client.infer(options.model, [request])
    for index, probability in enumerate(response.as_numpy("probabilities")[0]):
        print(f"class {index}: {probability:.4f}")


if __name__ == "__main__":
    main()
