"""Checkpoints that lie elsewhere: fetched by byte range over HTTP, from a hub of models, or out of a bucket.

``location`` understands the URLs; ``folders`` shows a place as a folder of files; ``web``, ``hub`` and ``buckets`` list
and open them; ``session`` speaks HTTP to servers that may be hostile; ``pages`` hands out the bytes.
"""

from fingerprint.remote.location import Location, locate
from fingerprint.remote.options import RemoteOptions

__all__ = ["Location", "RemoteOptions", "locate"]
