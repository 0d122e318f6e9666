"""Trains convolutional networks, exports them to ONNX, and publishes them into a model repository."""
