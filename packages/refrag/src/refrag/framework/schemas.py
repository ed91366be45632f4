"""The types of every configuration group: a key that no group has, or a value of another type, is an error.

The files in ``conf/`` name these by their defaults lists (``local_env``, ``train_app`` …).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from latentlab_shared.errors import UserError


@dataclass
class LocalEnv:
    """This machine; more than one process are started by torchrun."""

    name: str = "local"
    nproc_per_node: int = 1
    dry_run: bool = False


@dataclass
class TorchrunEnv:
    """Processes of one machine or of several, which meet at ``master_addr:master_port``.

    With ``rdzv_backend`` "static" each node is told its rank; with "c10d" they agree on ranks, and ``node_rank`` only
    says who keeps the files of the run: 0 for one node, anything else for the others.
    """

    name: str = "torchrun"
    nproc_per_node: int = 2
    nnodes: int = 1
    node_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 29500
    rdzv_backend: str = "static"
    rdzv_id: str = "refrag"
    standalone: bool = True
    dry_run: bool = False


@dataclass
class DockerEnv:
    """A container; ``env_passthrough`` are names of variables, whose values are in no command line."""

    name: str = "docker"
    image: str = "refrag:cpu"
    gpus: str | None = None
    nproc_per_node: int = 1
    env_passthrough: list[str] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)
    dry_run: bool = False


@dataclass
class BatchEnv:
    """AWS Batch; ``overlay`` is a bucket for this checkout's files, ``results`` where the run's folder is copied."""

    name: str = "awsbatch"
    job_queue: str = "refrag-gpu-job-queue"
    job_definition: str = "refrag-gpu"
    job_name: str = "refrag"
    nproc_per_node: int = 1
    nnodes: int = 1
    overlay: str | None = None
    results: str | None = None
    dry_run: bool = False


@dataclass
class Driver:
    """How processes are started where the env does not say it."""

    name: str = "inline"
    nproc_per_node: int = 1


@dataclass
class Trainer:
    """How a stage is trained: see ``LoopSettings``."""

    epochs: int = 1
    steps_per_epoch: int = 100
    batch_size: int = 16
    learning_rate: float = 2e-4
    warmup: float = 0.04
    weight_decay: float = 0.01
    clip: float = 1.0
    beta2: float = 0.999
    checkpoint_every: int = 100
    training_model: str = "ped"


@dataclass
class ModelNames:
    """Encoder and decoder of a new model, and its k."""

    name: str = "tiny"
    encoder: str = "tiny"
    decoder: str = "tiny"
    compression: int = 8


@dataclass
class Dataset:
    """A file of texts or questions; without a path, what is built in."""

    name: str = "sample"
    path: str | None = None


@dataclass
class Engine:
    """What several processes do with the model: hold it whole (ddp), or a share of it each (fsdp2)."""

    name: str = "single"


@dataclass
class Training:
    """An app's own values of the trainer's; null takes the trainer's."""

    epochs: int | None = None
    steps_per_epoch: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None


@dataclass
class Weights:
    """Of the alignment losses."""

    mse: float = 1.0
    kld: float = 1.0
    argmax: float = 0.2


@dataclass
class AlignmentApp:
    """Alignment training. ``dataset`` is a name of that group or ``{path: FILE}``."""

    name: str = "alignment"
    model_name: str | None = None
    dataset: Any = None
    training: Training = field(default_factory=Training)
    weights: Weights = field(default_factory=Weights)
    max_tokens: int = 128


@dataclass
class TrainApp:
    """Any stage of training."""

    name: str = "train"
    stage: str = "questions"
    from_model: str = ""
    model_name: str | None = None
    dataset: Any = None
    training: Training = field(default_factory=Training)


@dataclass
class EvalApp:
    """Answers and citations, or perplexity."""

    name: str = "eval"
    task: str = "questions"
    from_model: str = "runs/refrag/questions"
    dataset: Any = None
    limit: int | None = 50
    compression: list[int] = field(default_factory=list)
    expand: list[float] = field(default_factory=lambda: [0.25])
    context: int = 64
    target: int = 32


@dataclass
class HelloApp:
    """Every process adds its rank."""

    name: str = "hello_dist"


@dataclass
class ChatApp:
    """A conversation in a terminal."""

    name: str = "chatcli"
    from_model: str = "runs/refrag/questions"
    documents: str | None = None
    retriever: str = "bm25"
    encoder: str = "minilm"
    top: int = 4
    expand: float = 0.25
    max_new_tokens: int = 64
    cache_dir: str | None = None


@dataclass
class Train:
    """The seed's ``train.steps``: overrides ``trainer.epochs * trainer.steps_per_epoch``."""

    steps: int | None = None


@dataclass
class RunConfig:
    """What ``config.yaml`` has."""

    env: Any = None
    driver: Driver = field(default_factory=Driver)
    app: Any = None
    model: ModelNames = field(default_factory=ModelNames)
    dataset: Dataset = field(default_factory=Dataset)
    trainer: Trainer = field(default_factory=Trainer)
    engine: Engine = field(default_factory=Engine)
    seed: int = 43
    device: str = "cpu"
    train: Train = field(default_factory=Train)


_GROUPS: dict[str, dict[str, type]] = {
    "env": {"local": LocalEnv, "torchrun": TorchrunEnv, "docker": DockerEnv, "awsbatch": BatchEnv},
    "driver": {"driver": Driver},
    "trainer": {"trainer": Trainer},
    "model": {"model": ModelNames},
    "dataset": {"dataset": Dataset},
    "engine": {"engine": Engine},
    "app": {
        "alignment": AlignmentApp,
        "train": TrainApp,
        "eval": EvalApp,
        "hello_dist": HelloApp,
        "chatcli": ChatApp,
    },
}


def register_schemas() -> None:
    """Make the types known to Hydra, as ``GROUP/NAME_schema``; the files of ``conf/`` begin with them."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store("config_schema", RunConfig)
    for group, types in _GROUPS.items():
        for name, kind in types.items():
            store.store(f"{name}_schema", kind, group=group)


def check_keys(config: Any) -> None:
    """Refuse keys that were added with ``+`` and that no schema has.

    Args:
        config: composed.

    Raises:
        UserError: naming the first such key.
    """
    from omegaconf import DictConfig, OmegaConf

    def walk(node: Any, prefix: str) -> None:
        kind = OmegaConf.get_type(node)
        known = {f.name for f in fields(kind)} if is_dataclass(kind) else None
        for key in node:
            if known is not None and key not in known:
                raise UserError(
                    f"unknown key {prefix}{key}", "configuration", f"The keys are: {', '.join(sorted(known))}"
                )
            child = node._get_node(key)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
                walk(child, f"{prefix}{key}.")

    walk(config, "")
