"""Load and faults of the real server: processes, sockets, signals."""

import pytest

from refrag.bench.serve import bench_serve


@pytest.mark.slow
@pytest.mark.timeout(900)  # three processes load torch, however busy the machine is
def test_streams_are_held_and_faults_are_told():
    """What ``refrag bench serve`` demands: 50 streams whole, a client that leaves, a cancel, a killed worker."""
    rows = {row["name"]: row for row in bench_serve(streams=50, tokens=8)}
    assert [name for name, row in rows.items() if not row.get("ok", True)] == [], rows
    assert rows["streams open at once"]["value"] == 50 and rows["texts equal to the whole answers"]["value"] == 50
    assert rows["a killed worker's stream ends with"]["value"] == "error"
