"""The whole path on Fashion-MNIST, ending in the proof that what was trained is what is served."""
