"""Where to compute; to be chosen before the first computation."""

from __future__ import annotations

import tensorflow as tf

from latentlab_shared.errors import RunFailed, UserError


def use_device(name: str) -> None:
    """Let TensorFlow see the devices that are asked for.

    Args:
        name: "auto" (a GPU where there is one), "cpu", "cuda", or "mps" (TensorFlow's Metal plug-in).

    Raises:
        UserError: if there is no such device.
    """
    found = tf.config.list_physical_devices("GPU")
    if name == "cpu":
        tf.config.set_visible_devices([], "GPU")
        return
    if name != "auto" and not found:
        raise UserError("TensorFlow finds no GPU", f"--device {name}", "Use --device cpu, or install a build for it")
    for device in found:  # take what is needed, not the whole of it
        tf.config.experimental.set_memory_growth(device, True)


def one_thread() -> None:
    """Compute on one thread: processor time is then not stretched by threads that wait for each other.

    Raises:
        RunFailed: if TensorFlow has computed before.
    """
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError as error:
        raise RunFailed("TensorFlow has begun with more threads", "bench") from error
