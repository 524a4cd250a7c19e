// SPDX-License-Identifier: MIT
/*
 * QEMU's edu card, in C and without softcard's Python: a card of the host bus is whatever program
 * speaks with /dev/softcard as linux/softcard.h says. It has registers, one MSI interrupt, and DMA
 * both ways between the driver's memory and a buffer of its own.
 *
 *	make && sudo ./edu		plugs the card in; ^C unplugs it
 *	lspci -nn			shows it, as 1234:11e8
 *	sudo insmod softcard_edu.ko	(examples/edu_driver) tries each of its parts
 */
#include <err.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <linux/pci_regs.h>
#include <linux/softcard.h>

#define BAR_SIZE		0x100000

#define IDENTIFICATION		0x00
#define LIVENESS		0x04
#define FACTORIAL		0x08
#define STATUS			0x20
#define STATUS_INTERRUPT	0x80
#define INTERRUPT_STATUS	0x24
#define INTERRUPT_RAISE		0x60
#define INTERRUPT_ACKNOWLEDGE	0x64
#define DMA_SOURCE		0x80
#define DMA_DESTINATION		0x88
#define DMA_COUNT		0x90
#define DMA_COMMAND		0x98
#define DMA_START		0x01
#define DMA_TO_MEMORY		0x02
#define DMA_INTERRUPT		0x04
#define BUFFER			0x40000

#define WHY_FACTORIAL		0x001
#define WHY_DMA			0x100

#define MSI			0x40

static int card = -1;
static struct softcard_ring *ring;

/* The configuration space, and which of its bits software can write. */
static __u8 config[256], writable[256];

static struct {
	__u32 liveness, factorial, status, why;
	__u64 source, destination, count;
	__u8 buffer[4096];
} edu;

static void put(__u8 *space, unsigned int at, unsigned int size, __u32 value)
{
	memcpy(space + at, &value, size);	/* both are little-endian */
}

static void set_up_config(void)
{
	put(config, PCI_VENDOR_ID, 2, 0x1234);
	put(config, PCI_DEVICE_ID, 2, 0x11e8);
	put(config, PCI_STATUS, 2, PCI_STATUS_CAP_LIST);
	put(config, PCI_REVISION_ID, 4, 0x00ff0010);	/* class ff00, revision 0x10 */
	put(config, PCI_CAPABILITY_LIST, 1, MSI);
	put(config, MSI, 1, PCI_CAP_ID_MSI);
	put(config, MSI + PCI_MSI_FLAGS, 2, PCI_MSI_FLAGS_64BIT);

	put(writable, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER |
				      PCI_COMMAND_INTX_DISABLE);
	put(writable, PCI_INTERRUPT_LINE, 1, 0xff);
	/* The low bits are fixed, which is how software finds the BAR's size. */
	put(writable, PCI_BASE_ADDRESS_0, 4, ~(BAR_SIZE - 1));
	put(writable, MSI + PCI_MSI_FLAGS, 2, PCI_MSI_FLAGS_ENABLE);
	put(writable, MSI + PCI_MSI_ADDRESS_LO, 4, ~3);
	put(writable, MSI + PCI_MSI_ADDRESS_HI, 4, ~0);
	put(writable, MSI + PCI_MSI_DATA_64, 2, 0xffff);
}

static __u64 config_read(__u64 offset, unsigned int size)
{
	__u64 value = 0;

	if (offset + size <= sizeof(config))
		memcpy(&value, config + offset, size);
	return value;
}

static void config_write(__u64 offset, unsigned int size, __u64 value)
{
	for (unsigned int i = 0; i < size && offset + i < sizeof(config); i++) {
		__u8 *byte = &config[offset + i], mask = writable[offset + i];

		*byte = (*byte & ~mask) | ((value >> (8 * i)) & mask);
	}
}

static void interrupt(__u32 why)
{
	struct softcard_interrupt request = { .kind = SOFTCARD_INTERRUPT_MSI };

	edu.why |= why;
	if (ioctl(card, SOFTCARD_INTERRUPT, &request))
		warn("the card cannot interrupt");
}

static void copy(__u32 command)
{
	bool to_memory = command & DMA_TO_MEMORY;
	__u64 inside = (to_memory ? edu.source : edu.destination) - BUFFER;
	struct softcard_segment segment = {
		.address = to_memory ? edu.destination : edu.source,
		.memory = (__u64)(edu.buffer + inside),
		.length = edu.count,
		.flags = to_memory ? SOFTCARD_DMA_WRITE : 0,
	};
	struct softcard_dma request = { .count = 1, .segments = (__u64)&segment };

	if (inside > sizeof(edu.buffer) || edu.count > sizeof(edu.buffer) - inside)
		warnx("the driver wants %llu bytes at %#llx of the buffer", edu.count, inside);
	else if (ioctl(card, SOFTCARD_DMA, &request))
		warn("DMA at %#llx", segment.address);	/* EPERM: the driver has not mapped it */
	if (command & DMA_INTERRUPT)
		interrupt(WHY_DMA);
}

static __u64 bar_read(__u64 offset)
{
	switch (offset) {
	case IDENTIFICATION:
		return 0x010000ed;
	case LIVENESS:
		return edu.liveness;
	case FACTORIAL:
		return edu.factorial;
	case STATUS:
		return edu.status;
	case INTERRUPT_STATUS:
		return edu.why;
	}
	return ~0ULL;
}

static void bar_write(__u64 offset, __u64 value)
{
	switch (offset) {
	case LIVENESS:
		edu.liveness = ~value;
		break;
	case FACTORIAL:
		for (edu.factorial = 1; value > 1 && edu.factorial; value--)
			edu.factorial *= value;
		if (edu.status & STATUS_INTERRUPT)
			interrupt(WHY_FACTORIAL);
		break;
	case STATUS:
		edu.status = value & STATUS_INTERRUPT;
		break;
	case INTERRUPT_RAISE:
		interrupt(value);
		break;
	case INTERRUPT_ACKNOWLEDGE:
		edu.why &= ~value;
		break;
	case DMA_SOURCE:
		edu.source = value;
		break;
	case DMA_DESTINATION:
		edu.destination = value;
		break;
	case DMA_COUNT:
		edu.count = value;
		break;
	case DMA_COMMAND:
		if (value & DMA_START)
			copy(value);
		break;
	}
}

static void answer(const struct softcard_op *op, __u64 value)
{
	struct softcard_answer *slot = &ring->answers[op->slot];

	slot->value = value;
	__atomic_store_n(&slot->sequence, op->value, __ATOMIC_RELEASE);
	/* Either this sees who has gone to sleep, or he sees the answer. */
	atomic_thread_fence(memory_order_seq_cst);
	if (__atomic_load_n(&slot->sleeper, __ATOMIC_RELAXED))
		ioctl(card, SOFTCARD_WAKE, op->slot);
}

/* Returns false when the card is off the bus. */
static bool serve(const struct softcard_op *op)
{
	switch (op->code) {
	case SOFTCARD_OP_READ:
		answer(op, bar_read(op->offset));
		break;
	case SOFTCARD_OP_WRITE:
		bar_write(op->offset, op->value);
		break;
	case SOFTCARD_OP_CONFIG_READ:
		answer(op, config_read(op->offset, op->size));
		break;
	case SOFTCARD_OP_CONFIG_WRITE:
		config_write(op->offset, op->size, op->value);
		break;
	case SOFTCARD_OP_ADDED:
		puts("the card is enumerated");
		fflush(stdout);
		break;
	}
	return op->code != SOFTCARD_OP_GONE;
}

static void unplug(int number)
{
	/* Drivers let go, for which the card has to go on answering: SOFTCARD_OP_GONE is the end. */
	ioctl(card, SOFTCARD_UNPLUG, 0);
}

static void plug(void)
{
	struct softcard_function_info info = {
		.bar_size = { BAR_SIZE }, .msi_vectors = 1, .msi_capability = MSI,
	};
	struct softcard_create create = { .functions = 1, .read_timeout_ms = 5000 };
	struct softcard_plug request = {};
	int device = open("/dev/softcard", O_RDWR | O_CLOEXEC);

	if (device < 0)
		err(1, "/dev/softcard");
	if (ioctl(device, SOFTCARD_GET_API, 0) != SOFTCARD_API)
		errx(1, "the kernel module is of another version than this program");
	card = ioctl(device, SOFTCARD_CREATE, &create);
	if (card < 0 || ioctl(card, SOFTCARD_SET_FUNCTION, &info))
		err(1, "the kernel makes no card");
	ring = mmap(NULL, sizeof(*ring), PROT_READ | PROT_WRITE, MAP_SHARED, card, 0);
	if (ring == MAP_FAILED)
		err(1, "the ring");
	if (ioctl(card, SOFTCARD_PLUG, &request))
		err(1, "the card cannot be plugged in");
	printf("domain %04x\n", request.domain);
	fflush(stdout);
}

int main(void)
{
	struct pollfd waiting = { .events = POLLIN };
	__u32 tail = 0;

	set_up_config();
	plug();
	signal(SIGINT, unplug);
	signal(SIGTERM, unplug);
	waiting.fd = card;
	for (;;) {
		while (tail != __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE)) {
			if (!serve(&ring->ops[tail % SOFTCARD_RING_ENTRIES]))
				return 0;
			__atomic_store_n(&ring->tail, ++tail, __ATOMIC_RELEASE);
		}
		if (ioctl(card, SOFTCARD_ARM, 0))
			continue;	/* something has come meanwhile */
		if (poll(&waiting, 1, -1) == 1 && waiting.revents & POLLHUP)
			return 0;	/* off the bus, as after a pull, of which the ring says nothing */
	}
}
