"""Passes that change what a model is called, takes in and gives out."""
