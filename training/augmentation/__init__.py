"""Changes batches of images at random, so that a network sees more of them."""
