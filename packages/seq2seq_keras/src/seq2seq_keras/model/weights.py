"""Variables as safetensors, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from latentlab_shared.errors import UserError
from latentlab_shared.files import atomic_path


def named_weights(model: Any) -> dict[str, Any]:
    """A model's weights under their paths."""
    return {variable.path: variable for variable in model.weights}


def training_variables(model: Any, optimizer: Any) -> dict[str, Any]:
    """All that a next update depends on: weights, the state of dropout's generators, and the optimizer's variables."""
    # Keras numbers generators over the whole process, so their paths differ from run to run; their order does not.
    generators = [v for v in model.variables if "seed_generator" in v.path]
    return {
        **named_weights(model),
        **{f"dropout/{number}": v for number, v in enumerate(generators)},
        **{f"optimizer/{number}": v for number, v in enumerate(optimizer.variables)},
    }


def to_array(variable: Any) -> NDArray[Any]:
    """A copy of a Keras variable's values, of this worker's where there are several."""
    return np.array(tf.convert_to_tensor(variable.value))


def save_variables(variables: Mapping[str, Any], path: Path) -> None:
    """Write variables, atomically."""
    with atomic_path(path) as temporary:
        save_file({name: to_array(variable) for name, variable in variables.items()}, temporary)


def load_variables(variables: Mapping[str, Any], path: Path) -> None:
    """Fill variables from a file; a missing name or another shape is an error, and nothing is changed.

    Raises:
        UserError: for a file that is damaged or of another model.
    """
    try:
        arrays = load_file(path)
    except FileNotFoundError:
        raise UserError("there is no such file", path) from None
    except Exception as error:  # safetensors' own exceptions are not public names
        raise UserError(f"the weights cannot be read ({error})", path) from error
    for name, variable in variables.items():
        if name not in arrays:
            raise UserError(f"the weight {name} is missing", path, "The file is of another model")
        if arrays[name].shape != tuple(variable.shape):
            found = f"{arrays[name].shape}, not {tuple(variable.shape)}"
            raise UserError(f"the weight {name} has the shape {found}", path, "The file is of another model")
        if arrays[name].dtype.kind == "f" and not np.isfinite(arrays[name]).all():
            raise UserError(f"the weight {name} holds a number that is none", path, "Train the model again")
    for name, variable in variables.items():
        variable.assign(arrays[name])
