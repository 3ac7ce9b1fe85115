"""A model in several GGUF files, as `llama-gguf-split` writes them: their headers, joined."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..problems import refuse, shorten, shown
from .header import Header, read_header

NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
PREFIX = "split."


class JoinedFiles(NamedTuple):
    """The headers of all files of a model as one."""

    header: Header
    files: Mapping[str, Path]  # by name


def read_model(path: Path) -> JoinedFiles:
    """Reads the header of a file and, where it is the first part of a model, those of the others beside it.

    Raises:
      ValueError: a header is damaged, the file is not the first part, or parts are missing or do not belong
        together.
    """
    header = read_header(path)
    count = header.metadata.get("split.count", 1)
    if type(count) is not int or not 0 <= count < 100_000:
        raise ValueError(f"{path}: split.count is {shown(count)}; it must be the number of files")
    if count <= 1:
        return JoinedFiles(header, {path.name: path})
    paths = _name_parts(path, count, header.metadata.get("split.no"))
    missing = [f"missing file {part.name!r}, one of {count} parts" for part in paths if not part.is_file()]
    refuse(path, shorten(missing, "missing files"))
    return JoinedFiles(_join(path, [header, *map(read_header, paths[1:])], paths), {part.name: part for part in paths})


def _name_parts(path: Path, count: int, number: Any) -> list[Path]:
    match = NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise ValueError(
            f"{path} is one of {count} parts (split.count), so its name must end in -00001-of-{count:05}.gguf"
        )
    names = [f"{match['stem']}-{part + 1:05}-of-{count:05}.gguf" for part in range(count)]
    if names[0] != path.name or number != 0 or type(number) is not int:
        raise ValueError(
            f"{path} is a part of a model, split.no {shown(number)}; name the first part, {names[0]} (split.no 0)"
        )
    return [path.parent / name for name in names]


def _join(path: Path, headers: list[Header], paths: list[Path]) -> Header:
    """One header of all tensors, with the metadata of the first part, which the others must not contradict."""
    first = headers[0].metadata
    problems: list[str] = []
    for number, (part, (metadata, _)) in enumerate(zip(paths, headers, strict=True)):
        wanted = {"split.no": number, "split.count": len(paths)}
        problems += [
            f"{part.name}: {key} is {shown(metadata.get(key))}; it must be {value}"
            for key, value in wanted.items()
            if metadata.get(key) != value
        ]
        problems += [
            f"{part.name}: {shown(key)} is {shown(value)}, but {shown(first.get(key))} in the first part"
            for key, value in metadata.items()
            if number > 0 and not key.startswith(PREFIX) and (key not in first or first[key] != value)
        ]
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    places: dict[str, Path] = {}
    for tensor in tensors:
        if tensor.name in places:
            two = f"{places[tensor.name].name} and in {tensor.path.name}"
            problems.append(f"tensor {shown(tensor.name)} is in {two}")
        places[tensor.name] = tensor.path
    stated = first.get("split.tensors.count", len(tensors))
    if stated != len(tensors):
        problems.append(f"split.tensors.count is {shown(stated)}, but the parts hold {len(tensors)} tensors")
    refuse(path, shorten(problems, "problems"))
    return Header(first, tensors)
