"""Where a model runs. ``onnxruntime-gpu`` also imports on a machine without a GPU and then tries CUDA in vain with
errors on stderr, so the driver is asked first and the log says what was chosen and why.
"""

import ctypes
import importlib.util
from typing import NamedTuple

import onnxruntime as ort

from penstock.models.manifest import ModelError

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
_SHORT = {"cuda": CUDA, "cpu": CPU}


class Choice(NamedTuple):
    """``providers`` in the order in which ONNX Runtime shall try them; ``required``: the first must load."""

    providers: tuple[str, ...]
    why: str
    required: bool


def choose(setting: str) -> Choice:
    """``auto``, or names in order (``cuda,cpu`` or ONNX Runtime's own). Raises ``ModelError`` for a name that this
    build does not have.
    """
    if setting.strip().lower() == "auto":
        missing = no_cuda()
        if missing:
            return Choice((CPU,), missing, required=False)
        _preload()
        return Choice((CUDA, CPU), "a CUDA device is there", required=False)
    names = tuple(_SHORT.get(name.strip().lower(), name.strip()) for name in setting.split(",") if name.strip())
    available = ort.get_available_providers()
    unknown = [name for name in names if name not in available]
    if unknown or not names:
        raise ModelError(
            f"PENSTOCK_PROVIDERS={setting!r}: this ONNX Runtime has {', '.join(available)}. Name one of those, or auto"
        )
    if CUDA in names:
        _preload()
    return Choice(names, "PENSTOCK_PROVIDERS says so", required=True)


def _preload() -> None:
    # CUDA and cuDNN from Python packages are on no path that the linker knows; a machine's own need nothing
    if importlib.util.find_spec("nvidia") is not None:
        ort.preload_dlls()


def no_cuda() -> str | None:
    """Why CUDA cannot be used here, or None when the driver has a device."""
    if CUDA not in ort.get_available_providers():
        return "this ONNX Runtime is built without CUDA"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no CUDA driver on this machine (libcuda.so.1)"
    count = ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if failed:
        return f"the CUDA driver answers error {failed}"
    return None if count.value else "the CUDA driver has no device"
