"""A small convolutional network for handwritten digits."""
