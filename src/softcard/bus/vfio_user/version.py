"""What client and server agree on at first."""

from __future__ import annotations

from dataclasses import dataclass

from softcard.wire import vfio_user as wire
from softcard.wire.vfio_user import FormatError


@dataclass(frozen=True, slots=True)
class Terms:
    """What was agreed on.

    Attributes:
        transfer: bytes that the client takes in one message.
        by_messages: interrupts come as messages.
        twin: our commands go over a second socket, the first descriptor with the reply.
        reply: the payload.
    """

    transfer: int
    by_messages: bool
    twin: bool
    reply: bytes


def agree(payload: bytes, *, passes_fds: bool) -> Terms:
    """Answer a client's VERSION.

    Raises:
        FormatError: that is impossible.
    """
    major, minor, offered = wire.unpack_version(payload)
    if major != wire.MAJOR:
        raise FormatError(f"it speaks version {major}, and we speak {wire.MAJOR}")
    transfer = wire.number_capability(offered, "max_data_xfer_size", wire.DEFAULT_TRANSFER)
    ours: dict[str, object] = {
        name: True for name in (wire.INTERRUPTS, "write_multiple") if offered.get(name) is True
    }
    ours["max_msg_fds"] = wire.MAX_FDS
    if passes_fds and wire.offers_twin(offered):
        ours[wire.TWIN_SOCKET] = {"supported": True, "fd_index": 0}
    minor = min(minor, wire.MINOR)
    reply = wire.pack_version(wire.MAJOR, minor, ours)
    # QEMU has no room for a reply that is longer than its request: what can be spared goes first.
    while ours and len(reply) > len(payload):
        ours.popitem()
        reply = wire.pack_version(wire.MAJOR, minor, ours)
    return Terms(
        transfer=min(transfer, wire.DEFAULT_TRANSFER),
        by_messages=wire.INTERRUPTS in ours,
        twin=wire.TWIN_SOCKET in ours,
        reply=reply if len(reply) <= len(payload) else reply[: wire.VERSION.size],
    )
