"""A character-level GPT that writes like Shakespeare, and the alphabet it reads."""

from __future__ import annotations

import numpy as np

ALPHABET = "\n !&',-.:;?[]ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""Every character the network knows; its token is its place in here."""


def encode(text: str) -> np.ndarray:
    """Return the tokens of `text`, int64 [characters].

    Raises:
        ValueError: the text holds a character outside `ALPHABET`.
    """
    return np.array([ALPHABET.index(character) for character in text], np.int64)


def decode(tokens: np.ndarray) -> str:
    """Return the text of `tokens`, int [characters]."""
    return "".join(ALPHABET[token] for token in tokens)
