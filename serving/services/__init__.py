"""Answers RPCs, knowing no gRPC: inference, management, decoding of pictures."""
