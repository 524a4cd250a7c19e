"""Where a card comes from: a Python file, or the cards that are shipped."""

from __future__ import annotations

import difflib
import importlib
import inspect
import linecache
import pkgutil
import sys
import traceback
from dataclasses import dataclass
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Protocol

import softcard.cards
from softcard.cli.errors import CardCodeError
from softcard.errors import DeclarationError, PlugError, UsageError
from softcard.model.card import Card

PACKAGE = Path(softcard.__file__).parent
VFIO_USER = "vfio-user:"


class Source(Protocol):
    """Something that a card's class can be loaded from."""

    @property
    def name(self) -> str:
        """As the user wrote it."""

    @property
    def file(self) -> Path | None:
        """The file to watch for changes."""

    def load(self) -> type[Card]:
        """The card's class; each call reads the file anew.

        Raises:
            UsageError: there is no such card, or its declaration is wrong.
            CardCodeError: the file raises an exception when it is imported.
        """


@dataclass(frozen=True)
class Shipped:
    """A card of `softcard.cards`."""

    name: str
    file: None = None

    def load(self) -> type[Card]:
        """See `Source`."""
        module = importlib.import_module(f"softcard.cards.{self.name}")
        return _only_card(module, module.__name__, self.name)


@dataclass(frozen=True)
class Served:
    """A card that a vfio-user server serves at a socket of this machine."""

    name: str
    path: Path
    file: None = None

    def load(self) -> type[Card]:
        """See `Source`; making the card connects."""
        from softcard.bridge.vfio_user import VfioUserCard

        path = self.path

        class ServedCard(VfioUserCard):
            """A card that a vfio-user server serves."""

            def __init__(self) -> None:
                super().__init__(path)

        return ServedCard


@dataclass(frozen=True)
class Distant:
    """A card that a vfio-user server serves on a network; `name` is its address."""

    name: str
    file: None = None

    def load(self) -> type[Card]:
        """See `Source`; making the card connects."""
        from softcard.bridge.vfio_user import VfioUserCard
        from softcard.wire.address import check_private, parse_address
        from softcard.wire.tls import Credentials

        address = parse_address(self.name)

        class DistantCard(VfioUserCard):
            """A card that softcard serve serves on another machine.

            Args:
                tls: the folder with ca.pem, cert.pem and key.pem; softcard certificates makes it.
                plain_tcp: let everything pass readable and unauthenticated.
            """

            def __init__(self, *, tls: Path | None = None, plain_tcp: bool = False) -> None:
                check_private(address, plain_allowed=plain_tcp)
                super().__init__(address, credentials=Credentials(tls) if tls else None)

        return DistantCard


@dataclass(frozen=True)
class CardFile:
    """A card in a Python file; `class_name` is None where it is the only one there."""

    name: str
    file: Path
    class_name: str | None

    def load(self) -> type[Card]:
        """See `Source`."""
        _forget_modules(self.file.parent)
        linecache.checkcache()
        with user_code(self.file):
            module = _execute(self.file)
        if self.class_name is None:
            return _only_card(module, module.__name__, self.file.name)
        found = getattr(module, self.class_name, None)
        if found is None:
            raise UsageError(
                f"{self.file.name} has no class {self.class_name}"
                + did_you_mean(self.class_name, [c.__name__ for c in _cards_in(module)])
            )
        if not _is_card(found):
            raise UsageError(
                f"{self.class_name} in {self.file.name} is no card: a card is a class derived "
                "from softcard.Card"
            )
        card: type[Card] = found
        return card


def find(name: str) -> Source:
    """What the user named: `FILE`, `FILE:CLASS`, `vfio-user:SOCKET`, `tls://HOST:PORT` or a
    shipped card.

    Raises:
        UsageError: there is nothing of this name.
    """
    if name.startswith(VFIO_USER):
        address = name.removeprefix(VFIO_USER)
        if not address:
            raise UsageError(f"{name} names no socket: write {VFIO_USER}/path/to/socket")
        return Served(name, Path(address))
    if "://" in name:
        return Distant(name)
    path, colon, class_name = name.rpartition(":")
    if not colon:
        path, class_name = name, ""
    if path.endswith(".py") or "/" in path or Path(path).is_file():
        file = Path(path)
        if not file.is_file():
            what = "is a folder" if file.is_dir() else "does not exist"
            raise UsageError(f"{path} {what}: name the Python file that has the card's class")
        return CardFile(name, file.resolve(), class_name or None)
    shipped = shipped_names()
    if name not in shipped:
        raise UsageError(
            f"there is no card {name}{did_you_mean(name, shipped)}: give a Python file, such as "
            f"printer.py, or one of the shipped cards: {', '.join(shipped)}"
        )
    return Shipped(name)


def shipped_names() -> list[str]:
    """The names of the shipped cards."""
    return sorted(module.name for module in pkgutil.iter_modules(softcard.cards.__path__))


class user_code:  # noqa: N801 - used as a statement
    """Runs code of the card's author: a wrong declaration is told with its line, any other
    exception becomes a `CardCodeError`, unless it says that the card is not to be had."""

    def __init__(self, file: Path | None) -> None:
        self.file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DeclarationError) and self.file is not None:
            where = _line_in(self.file, error)
            if where is not None:
                raise DeclarationError(f"{self.file.name}, line {where}: {error}") from None
        if isinstance(error, Exception) and not isinstance(error, UsageError | PlugError):
            raise CardCodeError(str(error)) from error


def _line_in(file: Path, error: BaseException) -> int | None:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    return lines[-1] if lines else None


def _execute(file: Path) -> ModuleType:
    """Import a file by its path, from its source: a compiled copy may be as old as a second."""
    root, name = file.parent, file.stem
    while (root / "__init__.py").exists():
        root, name = root.parent, f"{root.name}.{name}"
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    # A file may be called as a module that is loaded already.
    if "." not in name and name in sys.modules:
        name = f"card_{name}"
    spec = spec_from_loader(name, _SourceLoader(file), origin=str(file))
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        assert spec.loader is not None
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


class _SourceLoader(Loader):
    def __init__(self, file: Path) -> None:
        self._file = file

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = str(self._file)
        code = compile(self._file.read_bytes(), str(self._file), "exec")
        exec(code, module.__dict__)


def _forget_modules(folder: Path) -> None:
    """Modules beside the card's file are imported anew with it."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name == "__main__" or not file or Path(file).parent != folder:
            continue
        if not Path(file).is_relative_to(PACKAGE):
            del sys.modules[name]


def _is_card(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Card)


def _cards_in(module: ModuleType) -> list[type[Card]]:
    """The card classes that a module defines; those that others are derived from are not cards
    by themselves."""
    package = f"{module.__name__}."
    found = {
        value: None
        for value in vars(module).values()
        if _is_card(value) and f"{value.__module__}.".startswith(package)
    }
    bases = {base for card in found for base in card.__mro__[1:]}
    return [card for card in found if card not in bases and not inspect.isabstract(card)]


def _only_card(module: ModuleType, module_name: str, name: str) -> type[Card]:
    cards = _cards_in(module)
    if not cards:
        raise UsageError(f"{name} has no card: a card is a class derived from softcard.Card")
    if len(cards) > 1:
        names = ", ".join(card.__name__ for card in cards)
        raise UsageError(
            f"{name} has {len(cards)} cards ({names}): name one, as in {name}:{cards[0].__name__}"
        )
    return cards[0]


def did_you_mean(name: str, known: list[str]) -> str:
    """What may have been meant by a name that does not exist; empty if nothing is near."""
    close = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {close[0]}?)" if close else ""
