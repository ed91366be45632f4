"""Configurations from files and overrides."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from latentlab_shared.config import from_dict, load_config, to_dict
from latentlab_shared.errors import UserError


@dataclass(frozen=True)
class Model:
    heads: tuple[int, ...] = (4, 4)
    rate: float = 0.1
    kind: Literal["small", "full"] = "small"


@dataclass(frozen=True)
class Config:
    model: Model = field(default_factory=Model)
    epochs: int = 2
    path: Path | None = None
    bias: bool = True

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError("epochs must be at least 1")


def test_weakest_first_defaults_base_file_overrides(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("epochs: 5\nmodel:\n  rate: 1\n")
    made = load_config(Config, file, ["model.heads=[1,2,3]", "epochs=7"], base={"bias": False})
    assert made == Config(Model(heads=(1, 2, 3), rate=1.0), epochs=7, bias=False)
    assert load_config(Config) == Config()


def test_round_trip() -> None:
    config = Config(Model(kind="full"), path=Path("x"))
    assert from_dict(Config, to_dict(config)) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epoch=3", "unknown key epoch. Did you mean epochs?"),
        ("model.head=3", "Did you mean model.heads?"),
        ("epochs=many", "epochs='many' is not of type int"),
        ("epochs=1.5", "epochs=1.5 is not of type int"),
        ("bias=1", "bias=1 is not of type bool"),
        ("epochs=true", "is not of type int"),
        ("model.kind=huge", "model.kind='huge' is not one of small, full"),
        ("model.heads=[1,x]", "model.heads[1]='x'"),
        ("model=3", "model=3 is not of type Model"),
        pytest.param("model.rate=" + "9" * 400, "99… is not of type float", id="beyond the largest float"),
        pytest.param("epochs=" + "x" * 400, "xx… is not of type int", id="long"),
        pytest.param("model.rate=0x" + "f" * 9000, "an integer of thousands of digits is not of", id="beyond print"),
        ("epochs=0", "epochs must be at least 1"),
        ("epochs", "'epochs' is not key=value"),
        ("model.heads=3", "model.heads=3 is not of type list"),
    ],
)
def test_every_mistake_is_named_by_its_key(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(Config, None, [override])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "just words", "epochs: {"])
def test_a_bad_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_config(Config, file)


def test_missing_binary_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_config(Config, tmp_path / "absent.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(Config, tmp_path / "b.yaml")
    (tmp_path / "e.yaml").write_text("")
    assert load_config(Config, tmp_path / "e.yaml") == Config()


@pytest.mark.parametrize(
    "value", ["[1", "{", "'", "@", "%", "*a", "&a [*a]", ": :", "!!python/object/apply:os.system ['id']"]
)
def test_a_value_that_is_no_yaml_is_one_line(value):
    with pytest.raises(UserError, match="--set") as error:
        load_config(Config, None, [f"epochs={value}"])
    assert "\n" not in str(error.value)
