"""Trains, exports and serves on Fashion-MNIST, and proves that the served network is the trained one."""
