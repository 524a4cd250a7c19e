"""Who may make cards, and what he reaches by that."""

from __future__ import annotations

from tests.host.conftest import Inside, Modules

from softcard.guest.qemu import QemuGuest

GROUP = 4242


def test_a_member_of_the_group_reaches_nothing_but_what_is_his(
    guest: QemuGuest, inside: Inside, modules: Modules
) -> None:
    inside("leaks", "before")
    guest.sh(f"chgrp {GROUP} /dev/softcard; chmod 660 /dev/softcard")
    try:
        assert inside("member", modules("examples/edu_driver")).stdout == "confined\n"
    finally:
        guest.sh("chgrp 0 /dev/softcard; chmod 600 /dev/softcard")
    inside("leaks", "after")
