"""One ONNX Runtime session, made from verified bytes and nothing else: weights in other files are handed over in
memory as well.

A batch is one ``run``. On a CUDA device rows are padded to powers of two, so that kernels and memory of a few shapes
are made once, before the model serves; on the CPU padding is work for nothing and is left out.
"""

import logging
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from penstock.models.manifest import ModelError
from penstock.models.verification import VerifiedModel
from penstock.telemetry import INFERENCE_SECONDS
from penstock_inference.providers import CPU, CUDA, Choice

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]

SMALLEST_BUCKET, LARGEST_BUCKET = 64, 65_536
_PROBE_ROWS = 3
_PLACE = re.compile(r"/onnxruntime_src/\S+:\d+ .*?\) (?=\S)")
_OPTIONS: dict[str, dict[str, str]] = {
    # TF32 keeps ten bits of a weight: a GPU would then answer visibly otherwise than a CPU
    CUDA: {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"},
}


class ModelFailed(Exception):
    """The model raised on these rows; fewer of them may do."""


class NoScores(Exception):
    """The model ran, but what it gave is not one score per row."""


class DeviceLost(SystemExit):
    """The device is gone and only a new process gets it back: no row is to blame, so nothing may catch this."""


class ScoreSession:
    """Scores float32 matrices. ``provider`` is the one that really loaded. Used by one thread at a time.

    Raises ``ModelError`` when ONNX Runtime refuses the model or its input and output are not those of the manifest.
    """

    def __init__(self, verified: VerifiedModel, choice: Choice, *, threads: int = 1, max_rows: int = 16_384) -> None:
        manifest = verified.manifest
        self.label, self._name = manifest.label, manifest.name
        self._width = len(manifest.input.columns)
        self._input, self._output, self._column = manifest.input.name, manifest.output.name, manifest.output.column
        self._session, why = _open(verified, choice, threads)
        self.provider: str = self._session.get_providers()[0]
        self._check_signature()
        self._run: Callable[[Floats], Any] = self._plain
        self._padded: PaddedRuns | None = None
        if self.provider == CUDA:
            self._padded = PaddedRuns(self._session, self._input, self._output, self._width, "cuda")
            self._run = self._padded.run
        self._warm_up(max_rows)
        log.info(
            "model %s runs on %s: %s",
            self.label,
            self.provider,
            why,
            extra={"model": manifest.name, "version": manifest.version, "provider": self.provider},
        )

    def score(self, features: Floats) -> Scores:
        """float64[n] for float32[n, k] in C order. Raises ``ModelFailed`` or ``NoScores``."""
        start = time.perf_counter()
        scores = self._scores(self._run(features), len(features))
        INFERENCE_SECONDS.labels(self._name).observe(time.perf_counter() - start)
        return scores

    def _plain(self, features: Floats) -> Any:
        return _guarded(lambda: self._session.run([self._output], {self._input: features})[0])

    def _scores(self, raw: Any, rows: int) -> Scores:
        column = self._column
        if not isinstance(raw, np.ndarray) or raw.dtype.kind != "f":
            raise NoScores(f"output {self._output!r} is no float tensor")
        if raw.ndim not in (1, 2) or len(raw) != rows:
            raise NoScores(f"output {self._output!r} has shape {list(raw.shape)} for {rows} rows")
        if raw.ndim == 2:
            if column is None and raw.shape[1] != 1:
                raise NoScores(
                    f"output {self._output!r} has {raw.shape[1]} columns, and no manifest says which is the score"
                )
            if (column or 0) >= raw.shape[1]:
                raise NoScores(
                    f"output {self._output!r} has {raw.shape[1]} columns, the score is said to be number {column}"
                )
            raw = raw[:, column or 0]
        scores: Scores = raw.astype(np.float64)
        return scores

    def _check_signature(self) -> None:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        wanted = f"one tensor(float) {self._input!r} of shape [None, {self._width}]"
        given = ", ".join(f"{i.type} {i.name!r} {i.shape}" for i in inputs)
        if len(inputs) != 1 or inputs[0].name != self._input or inputs[0].type != "tensor(float)":
            raise ModelError(f"model {self.label} takes {given}, the manifest says {wanted}. Export it with that input")
        shape = inputs[0].shape
        if len(shape) != 2 or isinstance(shape[0], int) or (isinstance(shape[1], int) and shape[1] != self._width):
            raise ModelError(
                f"model {self.label} takes {given}, the manifest says {wanted}. Export it with a free row count"
            )
        if self._output not in [o.name for o in outputs]:
            raise ModelError(
                f"model {self.label} has outputs {', '.join(repr(o.name) for o in outputs)}, the manifest says "
                f"{self._output!r}. Register it with the output that holds the score"
            )

    def _warm_up(self, max_rows: int) -> None:
        try:
            self._scores(self._run(np.zeros((_PROBE_ROWS, self._width), np.float32)), _PROBE_ROWS)
            if self._padded is not None:
                self._padded.warm_up(max_rows)
        except NoScores as error:
            raise ModelError(
                f"model {self.label}: {error}. Export one score per row, or set the manifest's output"
            ) from None
        except ModelFailed as error:
            # some models refuse the probe's zeros but not real rows; those rows are looked at one by one when they come
            log.warning("model %s failed on its warm-up: %s", self.label, error)


class PaddedRuns:
    """Runs in a few fixed shapes with input and output bound on ``device``. Batches over the largest bucket are
    cut.
    """

    def __init__(self, session: Any, input_name: str, output_name: str, width: int, device: str) -> None:
        self._session, self._input, self._output, self._device = session, input_name, output_name, device
        self._width = width
        self._buckets: dict[int, tuple[Floats, Any, Any]] = {}

    def warm_up(self, max_rows: int) -> None:
        """One run of every bucket that a batch of up to ``max_rows`` can meet. Raises ``ModelFailed``."""
        size = SMALLEST_BUCKET
        while True:
            self.run(np.zeros((size, self._width), np.float32))
            if size >= min(max_rows, LARGEST_BUCKET):
                return
            size *= 2

    def run(self, features: Floats) -> Any:
        """The output for the rows given. Raises ``ModelFailed``."""
        n = len(features)
        if n <= LARGEST_BUCKET:
            return self._padded(features)
        return np.concatenate([self._padded(features[at : at + LARGEST_BUCKET]) for at in range(0, n, LARGEST_BUCKET)])

    def _padded(self, features: Floats) -> Any:
        n = len(features)
        size = bucket(n)
        if size not in self._buckets:
            host = np.zeros((size, self._width), np.float32)
            on_device = ort.OrtValue.ortvalue_from_numpy(host, self._device, 0)
            binding = self._session.io_binding()
            binding.bind_ortvalue_input(self._input, on_device)
            binding.bind_output(self._output, self._device)
            self._buckets[size] = host, on_device, binding
        host, on_device, binding = self._buckets[size]
        host[:n] = features
        host[n:] = 0
        _guarded(lambda: (on_device.update_inplace(host), self._session.run_with_iobinding(binding)))
        out = binding.copy_outputs_to_cpu()[0]
        # an output of another length is not one score per row, whatever the padding: leave it for the check
        return out[:n] if isinstance(out, np.ndarray) and out.ndim and len(out) == size else out


def bucket(rows: int) -> int:
    """The smallest power of two that holds ``rows``, at least 64."""
    return max(SMALLEST_BUCKET, 1 << (rows - 1).bit_length())


def _open(verified: VerifiedModel, choice: Choice, threads: int) -> tuple[Any, str]:
    """The session, and why it runs where it runs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # what fails is raised, told once in our own log and counted; ONNX Runtime would print a paragraph for each run
    options.log_severity_level = 4
    # batches have every length there is: a memory plan for each would only pile up
    options.enable_mem_pattern = False
    # idle threads of ONNX Runtime would otherwise burn whole cores
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # its own format would be read without a look at the files it names
    options.add_session_config_entry("session.load_model_format", "ONNX")
    external = verified.external
    if external:
        sizes = [len(content) for content in external.values()]
        options.add_external_initializers_from_files_in_memory(list(external), list(external.values()), sizes)
    providers = [(name, _OPTIONS.get(name, {})) for name in choice.providers]
    first = choice.providers[0]
    try:
        session = ort.InferenceSession(verified.model, options, providers=providers, enable_fallback=0)
    except Exception as error:  # noqa: BLE001  # ONNX Runtime's errors have no class of their own in common
        if first != CPU and not choice.required:
            return _open(verified, Choice((CPU,), f"{first} refused it: {_short(error)}", required=False), threads)
        raise ModelError(
            f"model {verified.manifest.label}: ONNX Runtime {ort.__version__} refuses it: {_short(error)}. "
            "Export it again"
        ) from None
    loaded = session.get_providers()[0]
    if loaded == first:
        return session, choice.why
    if choice.required:
        raise ModelError(
            f"model {verified.manifest.label}: {first} was asked for and only {loaded} loaded. "
            "Install that provider's libraries, or set PENSTOCK_PROVIDERS=auto"
        )
    return session, f"{choice.why}, but {first} did not load"


def _guarded(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except Exception as error:  # whatever the model raises, it raised on these rows
        if type(error).__name__ == "DeviceReset":
            raise DeviceLost(f"the device that ran the model was reset: {_short(error)}") from error
        raise ModelFailed(_short(error)) from None


def _short(error: Exception) -> str:
    """The first line without ONNX Runtime's own source file and C++ signature."""
    lines = str(error).strip().splitlines()
    return _PLACE.sub("", lines[0])[:300] if lines else type(error).__name__
