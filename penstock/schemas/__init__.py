"""Avro schemas by subject, version and id: the committed lock, a registry by URL, and what may change between
versions.
"""
