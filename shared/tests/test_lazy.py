"""Names that are imported on their first use."""

import sys

import pytest

from latentlab_shared.lazy import lazy_names


def test_a_name_is_imported_when_it_is_used(tmp_path, monkeypatch):
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "deep.py").write_text("VALUE = 3\n")
    (tmp_path / "pkg" / "__init__.py").write_text(
        "from latentlab_shared.lazy import lazy_names\n"
        '__getattr__, __dir__ = lazy_names(__name__, {"deep": ("VALUE", "ABSENT")})\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    import pkg

    assert "pkg.deep" not in sys.modules and dir(pkg) == ["ABSENT", "VALUE"]
    assert pkg.VALUE == 3 and "pkg.deep" in sys.modules
    with pytest.raises(AttributeError, match="'pkg' has no attribute 'OTHER'"):
        _ = pkg.OTHER
    with pytest.raises(AttributeError, match="ABSENT"):
        _ = pkg.ABSENT
    with pytest.raises(AttributeError):
        lazy_names("none", {})[0]("x")
