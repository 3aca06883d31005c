"""The scripts of the protocol, and their SHA-1, by which Redis knows them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Script:
    source: bytes
    sha1: str

    @classmethod
    def named(cls, name: str) -> Script:
        source = files(__package__).joinpath("lua", f"{name}.lua").read_bytes()
        return cls(source, hashlib.sha1(source, usedforsecurity=False).hexdigest())


READ = Script.named("read")
JOIN = Script.named("join")
FILL = Script.named("fill")
RELEASE = Script.named("release")
SEQUENCE = b"unstale:seq"
