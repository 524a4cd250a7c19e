"""The smallest card: it prints whatever the driver writes to its one register."""

from softcard import Bar, Card, Register, run


class Printer(Card):
    """Prints whatever the driver writes to its one register."""

    vendor_id, device_id = 0x1DED, 0x0001

    class bar0(Bar, size=4096):
        message = Register(0x00)

    @bar0.message.on_write
    def show(self, value: int) -> None:
        """Called after each write."""
        print(f"the driver wrote {value:#010x}")


run(Printer)
