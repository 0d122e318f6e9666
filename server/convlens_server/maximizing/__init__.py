"""Finds the images of a dataset that activate a layer's channels most."""
