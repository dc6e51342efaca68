"""Windowed aggregates per event, in event time: the tile kernel that streams, backfill and training share.

Nothing is imported here, because `spec`, `watermark` and `merge` are used by processes that must not pay for numba.
"""
