"""Settings of every process, from the environment (``PRIVCODE_*``). Built once at process entry and passed down."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """``volume`` is shared by all workers and the API: artifacts, models, work folders."""

    model_config = SettingsConfigDict(env_prefix="PRIVCODE_", frozen=True)

    database_url: str
    broker_url: str
    volume: Path
    sandbox_socket: Path
    threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    lease_seconds: float = Field(default=60.0, gt=0)
    heartbeat_seconds: float = Field(default=1.0, gt=0)
    reconcile_seconds: float = Field(default=5.0, gt=0)
    wake_again_seconds: float = Field(default=60.0, ge=0)
    max_attempts: int = Field(default=3, ge=1)
    max_upload_bytes: int = Field(default=2 * 1024**3, ge=1)
    default_budget_epsilon: float = Field(default=8.0, gt=0)
    default_budget_delta: float = Field(default=1e-5, gt=0, lt=1)

    @property
    def models_dir(self) -> Path:
        return self.volume / "models"

    @property
    def work_dir(self) -> Path:
        return self.volume / "work"

    @property
    def artifacts_dir(self) -> Path:
        return self.volume / "artifacts"
