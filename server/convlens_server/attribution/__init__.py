"""Says where in an image a class's score comes from."""
