"""How errors are told: one line for a mistake, the card's own code for a fault in it."""

from __future__ import annotations

import logging
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import click

from softcard.cli.output import err
from softcard.errors import SoftcardError, UsageError

# Words that belong before --help, in the `meta` of a command's context.
SHOWN_NAME = "softcard.shown_name"
FAILED, MISTAKE, INTERRUPTED = 1, 2, 130
PACKAGE = Path(__file__).resolve().parent.parent
LIBRARIES = tuple(
    Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")
)


class CardCodeError(Exception):
    """The card's own code raised an exception, its `__cause__`, before it was plugged in."""


@dataclass
class Outcome:
    """What the process ends with."""

    status: int = 0


@contextmanager
def reported() -> Iterator[Outcome]:
    """Tell every expected error on standard error, and turn it into an exit status."""
    outcome = Outcome()
    try:
        yield outcome
    except click.exceptions.Exit as end:
        outcome.status = end.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        tell(error.format_message())
        if context is not None:
            command = " ".join([context.command_path, *context.meta.get(SHOWN_NAME, [])])
            err().print(f"{command} --help shows what is possible", style="dim")
        outcome.status = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        outcome.status = INTERRUPTED
    except CardCodeError as error:
        assert error.__cause__ is not None
        show_user_frames(error.__cause__)
        outcome.status = MISTAKE
    except SoftcardError as error:
        tell(str(error))
        outcome.status = MISTAKE if isinstance(error, UsageError) else FAILED
    except BrokenPipeError:
        # Whoever read our output has seen enough; keep the interpreter from flushing again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        outcome.status = FAILED


def tell(message: str) -> None:
    """Print an error: its first line in red, what follows, such as the end of a log, plainly."""
    first, _, rest = message.partition("\n")
    err().print(f"softcard: {first}", style="red", markup=False)
    if rest:
        err().print(rest, markup=False)


def show_user_frames(error: BaseException) -> None:
    """Print a traceback without the frames of softcard and of libraries."""
    kept = _user_frames(error.__traceback__)
    if err().is_terminal:
        from rich.traceback import Traceback

        err().print(Traceback.from_exception(type(error), error, kept, extra_lines=2))
    else:
        lines = traceback.format_exception(type(error), error, kept, chain=False)
        err().print("".join(lines).rstrip(), markup=False)


def _user_frames(trace: TracebackType | None) -> TracebackType | None:
    frames = []
    while trace is not None:
        if _is_user_code(trace.tb_frame.f_code.co_filename):
            frames.append(trace)
        trace = trace.tb_next
    kept = None
    for frame in reversed(frames):
        kept = TracebackType(kept, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return kept


def _is_user_code(filename: str) -> bool:
    path = Path(filename)
    if path.is_relative_to(PACKAGE):
        return path.is_relative_to(PACKAGE / "cards")
    return not filename.startswith("<") and not any(path.is_relative_to(p) for p in LIBRARIES)


class CardLog(logging.Handler):
    """Shows what softcard and cards log: a line each, and the card's own part of a traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        """See logging."""
        try:
            style = "red" if record.levelno >= logging.ERROR else "yellow"
            if record.levelno < logging.WARNING:
                style = "dim"
            err().print(record.getMessage(), style=style, markup=False)
            if record.exc_info and record.exc_info[1] is not None:
                show_user_frames(record.exc_info[1])
        except Exception:
            self.handleError(record)


def show_log(verbose: bool = False) -> None:
    """Let what is logged from now on appear on standard error: warnings, or everything."""
    logger = logging.getLogger("softcard")
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    if not any(isinstance(handler, CardLog) for handler in logger.handlers):
        logger.addHandler(CardLog())
        logger.propagate = False
