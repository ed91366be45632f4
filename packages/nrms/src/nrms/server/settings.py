"""What a server process is told."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from nrms.server.sync import Search

TOKEN = "NRMS_TOKEN"


@dataclass(frozen=True)
class Settings:
    """One server.

    Attributes:
        database: an address that `Store` understands.
        search: "exact", "usearch" or "database".
        poll: seconds between two looks at the database.
        device: of the models.
        threads: answers computed at the same time, per process.
        patience: seconds for which a request waits for a database that is away.
        max_body: bytes of a request.
        token: what a write must bring; "" lets everyone write. From the environment, so that no process list shows it.
    """

    database: str
    search: Search = "exact"
    poll: float = 2.0
    device: str = "cpu"
    threads: int = 2
    patience: float = 10.0
    max_body: int = 2**20
    token: str = field(default_factory=lambda: os.environ.get(TOKEN, ""), repr=False)
