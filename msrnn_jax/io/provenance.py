"""What a result must say about where it came from."""

import hashlib
import importlib.metadata
import importlib.util
import json
import platform
from typing import Any

import jax
import numpy as np

from msrnn_jax.io.journal import Line

PACKAGES = ("msrnn_jax", "jax", "jaxlib", "flax", "numpy")


def provenance() -> dict[str, Any]:
    """Versions and device of this process, as JSON values."""
    device = jax.local_devices()[0]
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "device": f"{device.platform} {device.device_kind}",
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def text_hash(text: str) -> str:
    """The first 16 hex digits of the SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def json_hash(value: Any) -> str:
    """`text_hash` of a JSON value, whatever the order of its names."""
    return text_hash(json.dumps(value, sort_keys=True))


def tokens_hash(tokens: np.ndarray) -> str:
    """The first 16 hex digits of the SHA-256 of token numbers, little-endian int32."""
    return hashlib.sha256(tokens.astype("<i4").tobytes()).hexdigest()[:16]


def environment() -> Line:
    """What the last digits of a number depend on beside the model: versions, device, and how JAX computes."""
    options = {name: getattr(jax.config, name) for name in ("jax_enable_x64", "jax_default_matmul_precision")}
    return {**provenance(), **options}
