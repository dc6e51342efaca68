"""Bytes on a topic ⇄ Arrow columns. Batches are decoded as a whole; only rows that turn out bad are looked at one by
one.
"""
