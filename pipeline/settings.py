"""Settings: where and how a run happens. They are never hashed, so they never re-run a stage."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

if TYPE_CHECKING:
    from storage.store.artifacts import ArtifactStore


class Settings(BaseSettings):
    """Where and how to run; every field can come from the environment (`PHIVISION_STORE=…`).

    A variable that is empty counts as unset.
    """

    model_config = SettingsConfigDict(
        env_prefix="PHIVISION_", env_ignore_empty=True, frozen=True, extra="forbid"
    )

    store: str = Field(
        default=".phivision",
        pattern=r"\S",  # a blank path would be the current folder
        description="Path or fsspec URL of the artifact store.",
    )
    workdir: Path | None = Field(
        default=None, description="Local folder for workspaces and the read cache."
    )
    cache_bytes: int = Field(
        default=50 * 2**30, ge=0, description="Largest size of the read cache, in bytes."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Device of the encoder and of training."
    )
    devices: int = Field(default=1, ge=1, description="Processes or GPUs used for training.")
    launcher: str = Field(
        default="",
        description="torchrun command that starts the training processes on several machines; "
        "empty: `devices` processes on this machine.",
    )
    strategy: str = Field(default="auto", description="Lightning's strategy, e.g. ddp or fsdp.")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; null: all cores.")
    task_runner: str = Field(
        default="threads",
        pattern=r"^(threads|dask:[1-9]\d*|(tcp|tls|ucx)://\S+)$",
        description="What embeds images: threads of this process, dask:N for N local processes, or "
        "the address of a Dask scheduler, tcp://host:8786.",
    )
    wandb: Literal["offline", "online", "disabled"] = Field(
        default="offline", description="Mode of Weights & Biases."
    )
    judge: bool = Field(
        default=True,
        description="Apply the gate to a finished run and publish it if it passes; not `compare`.",
    )
    publish_anyway: bool = Field(
        default=False, description="Publish even if the gate refuses; this is recorded."
    )
    wandb_project: str = Field(default="phivision", description="Project in Weights & Biases.")

    @field_validator("workdir", mode="before")
    @classmethod
    def _blank_is_none(cls, value: object) -> object:
        return None if value == "" else value  # Path("") would be the current folder

    @property
    def is_local(self) -> bool:
        """Whether the store is a folder of this machine."""
        return "://" not in self.store or self.store.startswith(("file://", "local://"))

    @property
    def work(self) -> Path:
        """The local folder of workspaces, locks and the read cache of this store."""
        if self.workdir is not None:
            return self.workdir.expanduser()
        if self.is_local:
            return Path(self.store.split("://", 1)[-1]).expanduser() / "work"
        name = hashlib.sha256(self.store.encode()).hexdigest()[:16]
        return Path.home() / ".cache" / "phivision" / name

    def open_store(self) -> "ArtifactStore":
        """Return the artifact store, with its read cache below the work folder.

        Raises:
            StorageError: The store's address is not valid.
        """
        from storage.store.artifacts import ArtifactStore

        return ArtifactStore(self.store, self.work / "cache", self.cache_bytes)
