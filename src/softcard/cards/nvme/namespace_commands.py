"""Format NVM, Namespace Management and Attachment (NVMe 1.4, sections 5.19, 5.20 and 5.23)."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable

from softcard.cards.nvme.command import (
    ALL_NAMESPACES,
    DEFERRED,
    AdminOpcode,
    Command,
    Deferred,
    Handler,
)
from softcard.cards.nvme.controller import Controller
from softcard.cards.nvme.features import Features
from softcard.cards.nvme.identify import CONTROLLER_ID, NAMESPACE, SIZE
from softcard.cards.nvme.namespace import BLOCK_SHIFTS, GRANULE, Namespace
from softcard.cards.nvme.status import CommandError, Status

CREATE, DELETE = 0, 1
ATTACH, DETACH = 0, 1
NO_ERASE, ERASE_USER_DATA = 0, 1
MAX_LISTED_CONTROLLERS = 2047

Work = Callable[[], object]


class NamespaceCommands:
    """Commands that change what namespaces there are.

    Args:
        controller: whose namespaces they are.
        features: some belong to a namespace.
        saving: gives the work that makes the change outlast the process; None where the card has
            no file. It is called after the change.
    """

    def __init__(
        self,
        controller: Controller,
        features: Features,
        saving: Callable[[], Work | None],
    ) -> None:
        self.handlers: dict[int, Handler] = {
            AdminOpcode.FORMAT_NVM: self._format,
            AdminOpcode.NAMESPACE_MANAGEMENT: self._manage,
            AdminOpcode.NAMESPACE_ATTACHMENT: self._attach,
        }
        self._controller = controller
        self._namespaces = controller.namespaces
        self._features = features
        self._saving = saving

    def _check_writable(self) -> None:
        if self._namespaces.whole.read_only:
            raise CommandError(Status.NAMESPACE_WRITE_PROTECTED)

    def _saved(self, command: Command, result: int) -> int | Deferred:
        """Complete a command when its change is saved."""
        work = self._saving()
        if work is None:
            return result
        self._controller.background.submit(work, self._controller.finisher(command, lambda: result))
        return DEFERRED

    # Format.

    def _format(self, command: Command) -> int | Deferred:
        number, erase = command.dw10 & 0xF, command.dw10 >> 9 & 0x7
        metadata, protection = command.dw10 >> 4 & 1, command.dw10 >> 5 & 0x7
        if number >= len(BLOCK_SHIFTS) or metadata or protection:
            raise CommandError(Status.INVALID_FORMAT)
        if erase not in (NO_ERASE, ERASE_USER_DATA):
            raise CommandError(Status.INVALID_FIELD)
        chosen = self._namespaces.selected(command.nsid)
        self._check_writable()
        shift = BLOCK_SHIFTS[number]
        if any(namespace.store.size >> shift == 0 for namespace in chosen):
            raise CommandError(Status.INVALID_FORMAT)

        def clear() -> None:
            for namespace in chosen:
                namespace.store.discard(0, namespace.store.size)
            self._namespaces.whole.flush()

        if not self._namespaces.whole.slow:
            clear()
            return self._formatted(command, chosen, shift)
        self._set_formatting(chosen, True)
        finish = self._controller.finisher(command)

        def cleared(error: BaseException | None) -> None:
            self._set_formatting(chosen, False)
            if error is not None:
                finish(error)
                return
            self._change_format(chosen, shift)
            work = self._saving()
            if work is None:
                finish(None)
            else:
                self._controller.background.submit(work, finish)

        self._controller.background.submit(clear, cleared)
        return DEFERRED

    def _formatted(self, command: Command, chosen: list[Namespace], shift: int) -> int | Deferred:
        self._change_format(chosen, shift)
        return self._saved(command, 0)

    def _set_formatting(self, chosen: list[Namespace], formatting: bool) -> None:
        for namespace in chosen:
            namespace.formatting = formatting
        self._namespaces.update()

    def _change_format(self, chosen: list[Namespace], shift: int) -> None:
        for namespace in chosen:
            changed = namespace.shift != shift
            namespace.set_format(shift)
            if changed:
                self._controller.events.namespace_changed(namespace.nsid)
        self._namespaces.update()

    # Management.

    def _manage(self, command: Command) -> int | Deferred:
        select = command.dw10 & 0xF
        if select == CREATE:
            return self._create(command)
        if select == DELETE:
            return self._delete(command)
        raise CommandError(Status.INVALID_FIELD)

    def _create(self, command: Command) -> int | Deferred:
        data = self._controller.memory.read(command.prp1, command.prp2, SIZE)
        self._check_writable()
        blocks, capacity = NAMESPACE.get(data, "nsze"), NAMESPACE.get(data, "ncap")
        number = NAMESPACE.get(data, "flbas")
        if number >= len(BLOCK_SHIFTS) or NAMESPACE.get(data, "dps"):
            raise CommandError(Status.INVALID_FORMAT)
        if blocks != capacity:
            raise CommandError(Status.THIN_PROVISIONING_NOT_SUPPORTED)
        if not blocks or NAMESPACE.get(data, "nmic"):
            # There is one controller, so no namespace can be shared.
            raise CommandError(Status.INVALID_FIELD)
        shift = BLOCK_SHIFTS[number]
        size = -(-(blocks << shift) // GRANULE) * GRANULE
        nsid = self._namespaces.free_id()
        if nsid is None:
            raise CommandError(Status.NAMESPACE_IDENTIFIER_UNAVAILABLE)
        store = self._namespaces.allocate(size)
        if store is None:
            raise CommandError(Status.NAMESPACE_INSUFFICIENT_CAPACITY)
        namespace = Namespace(
            nsid, store, shift=shift, blocks=blocks, attached=False, identity=uuid.uuid4()
        )
        self._namespaces.add(namespace)
        return self._saved(command, nsid)

    def _delete(self, command: Command) -> int | Deferred:
        if command.nsid == ALL_NAMESPACES:
            chosen = list(self._namespaces.by_id.values())
        else:
            found = self._namespaces.existing(command.nsid)
            if found is None:
                raise CommandError(Status.INVALID_FIELD)
            chosen = [found]
        self._check_writable()
        if any(namespace.formatting for namespace in chosen):
            raise CommandError(Status.FORMAT_IN_PROGRESS)
        for namespace in chosen:
            self._namespaces.remove(namespace)
            self._features.forget(namespace.nsid)
            if namespace.attached:
                self._controller.events.namespace_changed(namespace.nsid)
        save = self._saving()

        def work() -> None:
            # In this order: were the process to end in between, the data would only be unreachable.
            if save is not None:
                save()
            for namespace in chosen:
                namespace.store.discard(0, namespace.store.size)

        if not self._namespaces.whole.slow:
            work()
            return 0
        self._controller.background.submit(work, self._controller.finisher(command))
        return DEFERRED

    # Attachment.

    def _attach(self, command: Command) -> int | Deferred:
        select = command.dw10 & 0xF
        namespace = self._namespaces.existing(command.nsid)
        if namespace is None or select not in (ATTACH, DETACH):
            raise CommandError(Status.INVALID_FIELD)
        data = self._controller.memory.read(command.prp1, command.prp2, SIZE)
        (count,) = struct.unpack_from("<H", data)
        if not 1 <= count <= MAX_LISTED_CONTROLLERS:
            raise CommandError(Status.CONTROLLER_LIST_INVALID)
        if set(struct.unpack_from(f"<{count}H", data, 2)) != {CONTROLLER_ID}:
            raise CommandError(Status.CONTROLLER_LIST_INVALID)
        if namespace.formatting:
            raise CommandError(Status.FORMAT_IN_PROGRESS)
        if namespace.attached is (select == ATTACH):
            raise CommandError(
                Status.NAMESPACE_ALREADY_ATTACHED
                if select == ATTACH
                else Status.NAMESPACE_NOT_ATTACHED
            )
        namespace.attached = select == ATTACH
        self._namespaces.update()
        self._controller.events.namespace_changed(namespace.nsid)
        return self._saved(command, 0)
