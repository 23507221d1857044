"""The tokenizer of a text encoder, read from a file that the user has.

Both kinds of file that such models are published with do: `tokenizer.json` (read by the
package tokenizers) and `spiece.model` (read by sentencepiece). The peers read the
former. The latter gives the same tokens, except that it may spell characters outside
its vocabulary in bytes, where the former says "unknown". Neither package is needed for
anything else here, so both are optional.
"""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from avatar_jax.types import InputError

END = "</s>"
PACKAGES = {"tokenizer.json": "tokenizers", "spiece.model": "sentencepiece"}


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """What a text encoder needs to know of its tokenizer.

    Attributes:
      encode: text to tokens, without any that mark begin, end or padding.
      end: the token that ends every text.
    """

    encode: Callable[[str], list[int]]
    end: int


def load(path: str | Path) -> Tokenizer:
    """Read a tokenizer file, or the one in a folder: tokenizer.json if it has both.

    Raises:
      InputError: no such file, one of another kind, or its package is not installed.
    """
    path = _find(Path(path))
    package = _import(path)
    read = _read_json if path.suffix == ".json" else _read_sentencepiece
    try:
        return read(package, path)
    except InputError:
        raise
    except Exception as error:  # the packages raise no narrower kind for a bad file
        raise InputError(
            f"expected a tokenizer, {path} is none ({error}); give the file that came "
            "with the text encoder's weights."
        ) from error


def _find(path: Path) -> Path:
    if path.is_dir():
        found = [path / name for name in PACKAGES if (path / name).is_file()]
        if not found:
            raise InputError(
                f"expected {' or '.join(PACKAGES)} in {path}, came neither; copy the "
                "tokenizer that belongs to the text encoder there."
            )
        return found[0]
    if not path.is_file():
        raise InputError(
            f"expected a tokenizer file, {path} does not exist; give the "
            f"{' or '.join(PACKAGES)} that came with the text encoder's weights."
        )
    if path.suffix not in (".json", ".model"):
        raise InputError(
            f"expected a tokenizer file ({' or '.join(PACKAGES)}), came {path.name}."
        )
    return path


def _package(path: Path) -> str:
    return next(p for name, p in PACKAGES.items() if Path(name).suffix == path.suffix)


def _import(path: Path) -> ModuleType:
    try:
        return importlib.import_module(_package(path))
    except ImportError as error:
        raise InputError(
            f"{path.name} is read by the package {_package(path)}, which is not "
            f"installed; run pip install {_package(path)}."
        ) from error


def _read_json(tokenizers: ModuleType, path: Path) -> Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.no_truncation()  # files may carry either setting
    tokenizer.no_padding()
    end = tokenizer.token_to_id(END)
    return Tokenizer(
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        _check_end(end, path),
    )


def _read_sentencepiece(sentencepiece: ModuleType, path: Path) -> Tokenizer:
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    end = model.eos_id()
    return Tokenizer(
        lambda text: model.encode(text, out_type=int),
        _check_end(end if end >= 0 else None, path),
    )


def _check_end(end: int | None, path: Path) -> int:
    if end is None:
        raise InputError(
            f"expected a tokenizer with the token {END}, {path} has none; give the one "
            "that came with the text encoder's weights."
        )
    return end
