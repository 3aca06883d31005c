from typing import Literal

Outcome = Literal["hit", "waited", "filled", "void", "absent", "crowded", "away", "unreadable", "kept"]
"""Outcome of a read.

hit         cached
waited      loaded by another reader in the meantime
filled      loaded and cached
void        loaded, not cached: invalidated during the load, or the load outlasted its lease
absent      the loader returned None
crowded     loaded, not cached: another reader's load did not end in time
away        loaded, not cached: Redis is away or refuses
unreadable  loaded, not cached: the key holds something else
kept        an early load failed, and the cached value is still valid
"""
