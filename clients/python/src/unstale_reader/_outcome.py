from typing import Literal

Outcome = Literal["hit", "waited", "filled", "void", "absent", "crowded", "away", "unreadable", "kept"]
"""How a read went.

hit         cached
waited      another loaded it meanwhile
filled      loaded, and cached
void        loaded, and not cached: it was invalidated meanwhile, or the load outlasted its lease
absent      the loader gave None
crowded     another's load did not end in time: loaded, not cached
away        Redis is away or refuses: loaded, not cached
unreadable  something else stands at the key: loaded, not cached
kept        an early load failed, and the value that is still good was kept
"""
