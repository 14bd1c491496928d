"""Bytes on disk: find, encode, verify, list and read videos."""

__version__ = "0.1.0"
