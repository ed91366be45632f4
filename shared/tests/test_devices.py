"""Where tensors live."""

import pytest

from latentlab_shared.devices import choose_device
from latentlab_shared.errors import UserError

torch = pytest.importorskip("torch", reason="torch is not installed")


def test_what_is_there_is_taken_and_what_is_not_is_refused(monkeypatch):
    assert choose_device("cpu") == "cpu" and choose_device("auto", ("cpu",)) == "cpu"
    assert torch.empty(1, device=choose_device("auto")).numel() == 1
    for name in ("gpu", "cuda:x", "", ":", "cpu:-1"):
        with pytest.raises(UserError, match="is no device"):
            choose_device(name)
    with pytest.raises(UserError, match="no such device"):
        choose_device("cpu:1")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no such device"):
            choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("auto") == "cuda:1" and choose_device("cuda:0") == "cuda:0"
    with pytest.raises(UserError, match="no such device"):
        choose_device("cuda:2")
