"""Passes that change the type in which a model computes, or the opset it is written in."""
