"""The CSV log."""

import pytest

from clara_absa import LocalLogger
from latentlab_shared.errors import UserError


def test_rows_come_back_and_later_ones_can_be_dropped(tmp_path):
    log = LocalLogger(tmp_path / "research_logs")
    for epoch in (1, 2, 3):
        log.log(epoch=epoch, loss=1 / epoch)
    assert log.path.read_text().splitlines()[0] == "epoch,loss"
    log.rewind("epoch", 2)
    assert [row["epoch"] for row in log.rows()] == ["1", "2"]
    with pytest.raises(UserError, match="the columns are epoch, loss"):
        log.log(epoch=3, other=1)
