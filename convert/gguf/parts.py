"""A model in one GGUF file, or in several as `llama-gguf-split` writes them: their headers, joined."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..problems import refuse, shorten, shown
from .header import Header, Tensor, read_header

NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
PREFIX = "split."


class JoinedFiles(NamedTuple):
    """The headers of all files of a model as one."""

    metadata: Mapping[str, Any]  # of the first file, which the others do not contradict
    tensors: Mapping[str, Tensor]  # by name
    files: Mapping[str, Path]  # by name


def read_joined(path: Path) -> JoinedFiles:
    """Reads the header of a file and, where it is the first part of a model, those of the others beside it.

    Raises:
      ValueError: a header is damaged, the file is not the first part, or parts are missing or do not belong
        together.
    """
    headers = {path: read_header(path)}
    metadata = headers[path].metadata
    count = metadata.get("split.count", 1)
    if type(count) is not int or not 0 <= count < 100_000:
        raise ValueError(f"{path}: split.count is {shown(count)}; it must be the number of files")
    problems: list[str] = []
    if count > 1:
        paths = _name_parts(path, count, metadata.get("split.no"))
        missing = [f"missing file {part.name!r}, one of {count} parts" for part in paths if not part.is_file()]
        refuse(path, shorten(missing, "missing files"))
        headers |= {part: read_header(part) for part in paths[1:]}
        problems += _compare(headers)
    tensors: dict[str, Tensor] = {}
    for tensor in (tensor for header in headers.values() for tensor in header.tensors):
        if tensor.name in tensors:
            problems.append(
                f"tensor {shown(tensor.name)} is in {tensors[tensor.name].path.name} and in {tensor.path.name}"
            )
        tensors[tensor.name] = tensor
    refuse(path, shorten(problems, "problems"))
    return JoinedFiles(metadata, tensors, {part.name: part for part in headers})


def _name_parts(path: Path, count: int, number: Any) -> list[Path]:
    match = NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise ValueError(
            f"{path} is one of {count} parts (split.count), so its name must end in -00001-of-{count:05}.gguf"
        )
    names = [f"{match['stem']}-{part + 1:05}-of-{count:05}.gguf" for part in range(count)]
    if names[0] != path.name or number != 0:
        raise ValueError(
            f"{path} is a part of a model, split.no {shown(number)}; name the first part, {names[0]} (split.no 0)"
        )
    return [path.parent / name for name in names]


def _compare(headers: Mapping[Path, Header]) -> list[str]:
    """What does not belong together in the parts of a model, the first of which has the metadata."""
    first = next(iter(headers.values())).metadata
    count = sum(len(header.tensors) for header in headers.values())
    problems = []
    for number, (part, (metadata, _)) in enumerate(headers.items()):
        wanted = {"split.no": number, "split.count": len(headers)}
        problems += [
            f"{part.name}: {key} is {shown(metadata.get(key))}; it must be {value}"
            for key, value in wanted.items()
            if metadata.get(key) != value
        ]
        problems += [
            f"{part.name}: {shown(key)} is {shown(value)}, but {shown(first.get(key))} in the first part"
            for key, value in metadata.items()
            if not key.startswith(PREFIX) and (key not in first or first[key] != value)
        ]
    stated = first.get("split.tensors.count", count)
    if stated != count:
        problems.append(f"split.tensors.count is {shown(stated)}, but the parts hold {count} tensors")
    return problems
