"""The state of a function as bytes, to be loaded into another of its kind.

Registers, plain memory and interrupts are saved by themselves; what else a card has it adds with
`Function.save_state`.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import TYPE_CHECKING, Any

from softcard.errors import StateError
from softcard.pcie.register_file import RegisterFile

if TYPE_CHECKING:
    from softcard.model.function import Function

FORMAT = 1


def save(function: Function) -> bytes:
    """Everything that `load` needs."""
    state = {
        "format": FORMAT,
        "shape": _shape(function),
        "config": _values(function.config.file),
        "bars": {str(n): _values(bar.file) for n, bar in function.bars.items()},
        "memory": {key: _pack(bytes(view)) for key, view in _memories(function).items()},
        "interrupts": function.interrupts.save(),
        "own": _pack(function.save_state()),
    }
    return json.dumps(state).encode()


def load(function: Function, data: bytes) -> None:
    """Make a function what another was.

    Raises:
        StateError: the data is no state, or that of a function of another kind; nothing is changed.
    """
    try:
        state = json.loads(data)
        wrong = state["format"] != FORMAT
        shape = state["shape"]
        memory = {key: _unpack(text) for key, text in state["memory"].items()}
        own = _unpack(state["own"])
        registers = [(function.config.file, state["config"])]
        registers += [(bar.file, state["bars"][str(n)]) for n, bar in function.bars.items()]
        interrupts = state["interrupts"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, zlib.error) as error:
        raise StateError(f"this is no saved state: {error!r}") from None
    if wrong or shape != _shape(function):
        raise StateError(
            f"this is the state of another card or of another version of it: {shape}, and this "
            f"one is {_shape(function)}"
        )
    views = _memories(function)
    if {key: len(view) for key, view in views.items()} != {k: len(b) for k, b in memory.items()}:
        raise StateError("the saved memory is not that of this card")
    for file, values in registers:
        _check(file, values)
    function.interrupts.check(interrupts)
    for file, values in registers:
        for register, value in zip(file.registers, values, strict=True):
            register.value = value
    for key, view in views.items():
        view[:] = memory[key]
    function.interrupts.load(interrupts)
    function.load_state(own)


def _shape(function: Function) -> dict[str, Any]:
    """What two functions of a kind have in common."""
    header = function.config.header
    return {
        "class": type(function).__name__,
        "ids": [header.vendor_id.value, header.device_id.value, header.revision_id.value],
        "bars": {str(number): bar.layout.size for number, bar in function.bars.items()},
    }


def _values(file: RegisterFile) -> list[int]:
    return [register.value for register in file.registers]


def _check(file: RegisterFile, values: Any) -> None:
    registers = file.registers
    if not isinstance(values, list) or len(values) != len(registers):
        raise StateError("the saved registers are not those of this card")
    for register, value in zip(registers, values, strict=True):
        if type(value) is not int or not 0 <= value < 1 << register.width:
            raise StateError(f"the saved value {value!r} does not fit register {register.name}")


def _memories(function: Function) -> dict[str, memoryview]:
    return {
        f"{number}+{memory.offset:#x}": memory.view
        for number, bar in function.bars.items()
        for memory in bar.memories
    }


def _pack(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 1)).decode()


def _unpack(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text, validate=True))
