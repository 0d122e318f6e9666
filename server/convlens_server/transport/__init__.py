"""Transports: they move bytes, and know nothing of what the bytes mean.

`base` holds the contract, `completion_queue` and `aio` implement it, `choose` picks one.
"""
