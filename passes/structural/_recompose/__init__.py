"""The patterns of `recompose`, one family of operators per module."""
