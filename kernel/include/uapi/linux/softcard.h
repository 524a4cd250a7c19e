/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * softcard: PCI cards whose behaviour is a program.
 *
 * A program opens /dev/softcard, makes a card with SOFTCARD_CREATE, describes it on the descriptor
 * that it gets, maps the ring, and plugs the card in. From then on the kernel puts what drivers ask
 * of the card into the ring, in bus order, and the program answers. Closing the descriptor, or
 * dying, is a surprise removal.
 *
 * Every reserved field and every unknown flag must be zero, and is refused with EINVAL otherwise.
 */
#ifndef _UAPI_LINUX_SOFTCARD_H
#define _UAPI_LINUX_SOFTCARD_H

#include <linux/const.h>
#include <linux/ioctl.h>
#include <linux/types.h>

/* What SOFTCARD_GET_API returns; changes only when the interface becomes incompatible. */
#define SOFTCARD_API		1

#define SOFTCARD_CARDS		64
#define SOFTCARD_FUNCTIONS	8
#define SOFTCARD_BARS		6
#define SOFTCARD_VECTORS	2048
#define SOFTCARD_RING_ENTRIES	4096
#define SOFTCARD_SLOTS		256
#define SOFTCARD_MAX_SEGMENTS	65536

/**
 * enum softcard_op_code - what an entry of the ring is
 * @SOFTCARD_OP_WRITE: posted memory write of 1 to 8 bytes
 * @SOFTCARD_OP_READ: memory read of 1 to 8 bytes, to be answered
 * @SOFTCARD_OP_CONFIG_WRITE: configuration write of 1, 2 or 4 bytes; the driver does not wait
 * @SOFTCARD_OP_CONFIG_READ: configuration read of 1, 2 or 4 bytes, to be answered
 * @SOFTCARD_OP_DMA_ADDED: coherent memory, @value bytes at bus address @offset, may be mapped
 * @SOFTCARD_OP_DMA_REMOVED: it may no longer; what is mapped leads nowhere from now on
 * @SOFTCARD_OP_ADDED: the card is enumerated and drivers have been offered it
 * @SOFTCARD_OP_GONE: the card is off the bus, and nothing else will come
 * @SOFTCARD_OP_HOT_RESET: the port resets the bus behind it, and with that all functions
 */
enum softcard_op_code {
	SOFTCARD_OP_WRITE		= 1,
	SOFTCARD_OP_READ		= 2,
	SOFTCARD_OP_CONFIG_WRITE	= 3,
	SOFTCARD_OP_CONFIG_READ		= 4,
	SOFTCARD_OP_DMA_ADDED		= 5,
	SOFTCARD_OP_DMA_REMOVED		= 6,
	SOFTCARD_OP_ADDED		= 7,
	SOFTCARD_OP_GONE		= 8,
	SOFTCARD_OP_HOT_RESET		= 9,
};

/**
 * struct softcard_op - an entry of the ring
 * @code: enum softcard_op_code
 * @function: 0 to 7
 * @bar: 0 to 5, for memory accesses
 * @size: bytes, for accesses
 * @slot: where the answer goes, for reads
 * @reserved: zero
 * @offset: in the BAR or the configuration space; a bus address for DMA_*
 * @value: what is written; for reads, what to put into the answer's @sequence
 * @reserved2: zero
 */
struct softcard_op {
	__u8	code;
	__u8	function;
	__u8	bar;
	__u8	size;
	__u16	slot;
	__u16	reserved;
	__u64	offset;
	__u64	value;
	__u64	reserved2;
};

/**
 * struct softcard_answer - the answer to a read
 * @value: to be stored first
 * @sequence: to be stored last: the @value of the read's entry
 * @sleeper: not zero while somebody sleeps over the answer: call SOFTCARD_WAKE then
 * @reserved: zero
 */
struct softcard_answer {
	__u64	value;
	__u64	sequence;
	__u64	sleeper;
	__u64	reserved;
};

/**
 * struct softcard_ring - what is mapped at offset 0 of a card's descriptor
 * @head: entries that the kernel has produced, modulo 2**32; entry n is at n modulo 4096
 * @padding: keeps what the two sides write apart
 * @tail: entries that the program has consumed; the kernel waits while 4096 are not
 * @padding2: up to the end of the page
 * @ops: the entries
 * @answers: by slot
 */
struct softcard_ring {
	__u32			head;
	__u32			padding[15];
	__u32			tail;
	__u32			padding2[1007];
	struct softcard_op	ops[SOFTCARD_RING_ENTRIES];
	struct softcard_answer	answers[SOFTCARD_SLOTS];
};

/**
 * struct softcard_create - SOFTCARD_CREATE
 * @functions: 1 to 8
 * @flags: zero
 * @read_timeout_ms: how long a read that can sleep waits for its answer, before the driver gets
 *	all-ones; 0 for ever
 * @atomic_timeout_us: the same for one that cannot sleep, at most 1,000,000; 0 for the default.
 *	A write that cannot sleep and finds the ring full for ten times as long pulls the card.
 * @reserved: zero
 */
struct softcard_create {
	__u32	functions;
	__u32	flags;
	__u32	read_timeout_ms;
	__u32	atomic_timeout_us;
	__u64	reserved[6];
};

/**
 * struct softcard_function_info - SOFTCARD_SET_FUNCTION, once for each, before SOFTCARD_PLUG
 * @function: 0 to 7
 * @flags: zero
 * @bar_size: bytes of each BAR, a power of two; 0 where there is none. They are memory BARs; what
 *	kind each is, the configuration space says.
 * @msix_vectors: size of the MSI-X table, or 0. The kernel keeps table and pending bits.
 * @msix_capability: offset of the capability in the configuration space
 * @msix_table_bar: and so on: where the table and the pending bits are
 * @msix_pba_bar: see above
 * @msix_table_offset: see above
 * @msix_pba_offset: see above
 * @msi_vectors: how many the MSI capability offers, or 0
 * @msi_capability: offset of the capability
 * @msi_mask: offset of its mask bits in the configuration space, with the pending bits behind
 *	them; 0 where it has none
 * @express_capability: offset of the PCI Express capability, or 0. A function level reset resets
 *	what the kernel keeps.
 * @power_capability: offset of the power management capability, or 0. What the kernel answers by
 *	itself (tables, ranges) it answers in D0 only, and only with Memory Space Enable set.
 * @reserved1: zero
 * @reserved: zero
 */
struct softcard_function_info {
	__u32	function;
	__u32	flags;
	__u64	bar_size[SOFTCARD_BARS];
	__u16	msix_vectors;
	__u16	msix_capability;
	__u8	msix_table_bar;
	__u8	msix_pba_bar;
	__u16	reserved0;
	__u32	msix_table_offset;
	__u32	msix_pba_offset;
	__u16	msi_vectors;
	__u16	msi_capability;
	__u16	msi_mask;
	__u16	express_capability;
	__u16	power_capability;
	__u16	reserved1[3];
	__u64	reserved[7];
};

#define SOFTCARD_RANGE_MEMORY	0	/* reads and writes are memory accesses */
#define SOFTCARD_RANGE_SHADOW	1	/* reads are memory accesses, writes go to the ring */

/**
 * struct softcard_range - SOFTCARD_ADD_RANGE, before SOFTCARD_PLUG
 * @function: 0 to 7
 * @bar: 0 to 5
 * @kind: SOFTCARD_RANGE_MEMORY or SOFTCARD_RANGE_SHADOW
 * @flags: zero
 * @offset: in the BAR, a multiple of the page size
 * @size: bytes, a multiple of the page size
 * @memory: address in the program of the memory behind it, a multiple of the page size. It is
 *	pinned until the card is gone, and counts against RLIMIT_MEMLOCK.
 * @reserved: zero
 */
struct softcard_range {
	__u32	function;
	__u32	bar;
	__u32	kind;
	__u32	flags;
	__u64	offset;
	__u64	size;
	__u64	memory;
	__u64	reserved[4];
};

/**
 * struct softcard_plug - SOFTCARD_PLUG; returns before the card is enumerated
 * @flags: zero
 * @domain: returned: PCI domain. At bus 0, device 0 is a root port; the functions are behind it, at
 *	bus 1, device 0.
 * @link_speed: of the link, as in the Link Status register (1 is 2.5 GT/s); 0 for 1
 * @link_width: lanes of the link, at most 32; 0 for 1
 * @reserved0: zero
 * @reserved: zero
 */
struct softcard_plug {
	__u32	flags;
	__u32	domain;
	__u16	link_speed;
	__u16	link_width;
	__u32	reserved0;
	__u64	reserved[2];
};

#define SOFTCARD_INTERRUPT_MSIX		0
#define SOFTCARD_INTERRUPT_MSI		1
#define SOFTCARD_INTERRUPT_ASSERT	2	/* INTx */
#define SOFTCARD_INTERRUPT_RELEASE	3

/**
 * struct softcard_interrupt - SOFTCARD_INTERRUPT
 * @function: 0 to 7
 * @kind: SOFTCARD_INTERRUPT_*
 * @vector: for MSI and MSI-X. A masked vector stays pending until it is unmasked.
 * @flags: zero
 */
struct softcard_interrupt {
	__u32	function;
	__u32	kind;
	__u32	vector;
	__u32	flags;
};

/**
 * struct softcard_eventfd - SOFTCARD_SET_EVENTFD: signalling @fd injects an MSI-X or MSI vector
 * @function: 0 to 7
 * @kind: SOFTCARD_INTERRUPT_MSIX or SOFTCARD_INTERRUPT_MSI
 * @vector: which
 * @fd: an eventfd, or -1 for none any more. Each signal is one message, whatever it adds to the
 *	eventfd's counter; what was signalled before is one, too.
 * @reserved: zero
 */
struct softcard_eventfd {
	__u32	function;
	__u32	kind;
	__u32	vector;
	__s32	fd;
	__u64	reserved[2];
};

#define SOFTCARD_ERROR_CORRECTABLE	0
#define SOFTCARD_ERROR_NONFATAL		1
#define SOFTCARD_ERROR_FATAL		2

/**
 * struct softcard_error - SOFTCARD_SEND_ERROR: a function sends an error message to its port
 * @function: 0 to 7
 * @severity: SOFTCARD_ERROR_*. What kind of error it is, the function's own registers say, and they
 *	have to: of a function without an error Linux keeps a reference for ever (seen with 6.12),
 *	and with that the card.
 * @reserved: zero
 */
struct softcard_error {
	__u32	function;
	__u32	severity;
	__u64	reserved;
};

#define SOFTCARD_DMA_WRITE	1	/* to the driver's memory; otherwise from it */

/**
 * struct softcard_segment - one piece of a DMA
 * @address: bus address
 * @memory: address in the program
 * @length: bytes
 * @flags: SOFTCARD_DMA_WRITE or 0
 */
struct softcard_segment {
	__u64	address;
	__u64	memory;
	__u32	length;
	__u32	flags;
};

/**
 * struct softcard_dma - SOFTCARD_DMA: all segments, in their order
 * @function: 0 to 7
 * @flags: zero
 * @count: segments, at most SOFTCARD_MAX_SEGMENTS
 * @done: returned: segments that were transferred as a whole; on an error, the one that failed is
 *	the next. EPERM is a fault: the driver has not mapped that memory for that direction.
 * @segments: address of the first struct softcard_segment
 * @reserved: zero
 */
struct softcard_dma {
	__u32	function;
	__u32	flags;
	__u32	count;
	__u32	done;
	__u64	segments;
	__u64	reserved[2];
};

/*
 * SOFTCARD_MAP_COHERENT() - the offset of coherent memory for mmap() of a card's descriptor
 * @function: 0 to 7
 * @address: bus address, as SOFTCARD_OP_DMA_ADDED told it
 *
 * The length is that of the entry; the mapping is shared. Offset 0 is the ring. ENXIO tells that
 * the driver has no such memory, or has freed it meanwhile. What it frees while it is mapped leads
 * nowhere from then on, and is the program's alone until it is unmapped.
 */
#define SOFTCARD_MAP_FUNCTION	_BITULL(48)
#define SOFTCARD_MAP_COHERENT(function, address) \
	(((function) + 1) * SOFTCARD_MAP_FUNCTION + (address))

#define SOFTCARD_IOC		0xE5

/* On /dev/softcard. */
#define SOFTCARD_GET_API	_IO(SOFTCARD_IOC, 0x00)
#define SOFTCARD_CREATE		_IOW(SOFTCARD_IOC, 0x01, struct softcard_create)

/* On a card. */
#define SOFTCARD_SET_FUNCTION	_IOW(SOFTCARD_IOC, 0x10, struct softcard_function_info)
#define SOFTCARD_ADD_RANGE	_IOW(SOFTCARD_IOC, 0x11, struct softcard_range)
#define SOFTCARD_PLUG		_IOWR(SOFTCARD_IOC, 0x12, struct softcard_plug)
/* Orderly: drivers let go while the card still answers; SOFTCARD_OP_GONE tells the end. */
#define SOFTCARD_UNPLUG		_IO(SOFTCARD_IOC, 0x13)
/* Surprise removal: nothing is answered any more. */
#define SOFTCARD_PULL		_IO(SOFTCARD_IOC, 0x14)
/*
 * From now on, poll wakes for an entry in the ring, as it does where it has found none itself;
 * returns 1 where there is one already.
 */
#define SOFTCARD_ARM		_IO(SOFTCARD_IOC, 0x15)
/* Wakes who sleeps over the answer in this slot. */
#define SOFTCARD_WAKE		_IO(SOFTCARD_IOC, 0x16)
#define SOFTCARD_INTERRUPT	_IOW(SOFTCARD_IOC, 0x17, struct softcard_interrupt)
#define SOFTCARD_SET_EVENTFD	_IOW(SOFTCARD_IOC, 0x18, struct softcard_eventfd)
#define SOFTCARD_DMA		_IOWR(SOFTCARD_IOC, 0x19, struct softcard_dma)
#define SOFTCARD_SEND_ERROR	_IOW(SOFTCARD_IOC, 0x1a, struct softcard_error)

#endif /* _UAPI_LINUX_SOFTCARD_H */
