"""``foldserve inspect``: what a network is made of, layer by layer, with the figures of the textbook."""
