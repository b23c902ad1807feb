"""Losses that are computed chunk by chunk over the rows: of linear layers, and of `TopK` targets."""
