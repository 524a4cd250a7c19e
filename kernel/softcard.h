/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of softcard.ko know of each other.
 *
 * card.c	a card's life, and its ring
 * rescue.c	keeps the card's program off processors that wait for it
 * power.c	suspend, hibernation and reboot
 * pci.c	host bridge, its root bus, windows
 * config.c	configuration space
 * port.c	the root port in front of a card
 * bar.c	accesses to BARs
 * irq.c	Linux interrupts: MSI-X, MSI and INTx
 * mask.c	masks and pending bits
 * dma.c	bus addresses: what drivers have mapped for DMA
 * transfer.c	the card's accesses to that
 * coherent.c	those that its program makes by itself
 * trap.c	accesses to BARs by the kernel: addresses that fault, and what is done then
 * insn.c	the instructions that make them
 * map.c	BARs that programs have mapped
 * user.c	/dev/softcard
 *
 * Only trap.c, insn.c and thunk.S know the processor; only user.c knows user space's structs,
 * apart from the ring.
 */
#ifndef _SOFTCARD_H
#define _SOFTCARD_H

#include <linux/bitmap.h>
#include <linux/fs.h>
#include <linux/irq_work.h>
#include <linux/irqdomain.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/msi.h>
#include <linux/smp.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <linux/softcard.h>

#define SOFTCARD_CONFIG_SIZE	4096
#define SOFTCARD_MSI_VECTORS	32
#define SOFTCARD_IOVA_PAGES	BIT(20)
#define SOFTCARD_LEAF_PAGES	512
#define SOFTCARD_MAX_RANGES	64
#define SOFTCARD_MAX_BAR	BIT_ULL(40)
#define SOFTCARD_WINDOWS	2
#define SOFTCARD_PORT_CONFIG	512

struct softcard;
struct softcard_function;

/**
 * struct softcard_vector - an MSI-X or MSI vector, or an INTx line
 * @function: whose
 * @work: calls the handler, in hard interrupt context
 * @remote: the same on another processor
 * @worker: the same on top of a thread of the kernel's own, which the scheduler places
 * @count: messages that are on their way
 * @virq: Linux's number, 0 while no driver has it
 * @cpu: where it goes
 * @quiet: how often its handler has been called without reading a register, up to a limit
 * @level: the handler is not called again before others have had their turn
 */
struct softcard_vector {
	struct softcard_function *function;
	struct irq_work work;
	call_single_data_t remote;
	struct work_struct worker;
	atomic_long_t count;
	unsigned int virq;
	unsigned int cpu;
	unsigned int quiet;
	bool level;
};

/**
 * struct softcard_memory - plain memory behind a part of a BAR
 * @node: in the function's list, which does not change once the card is plugged in
 */
struct softcard_memory {
	struct list_head node;
	unsigned int bar;
	bool shadow;
	u64 offset;
	u64 size;
	unsigned long pages;
	struct page **page;
};

/**
 * struct softcard_mapping - what a driver has mapped
 * @address: bus address
 * @size: bytes
 * @memory: the memory, in the kernel's direct map; NULL for that of a list
 * @direction: what the card may do
 * @coherent: memory of softcard_alloc(), which the card's program may map
 * @page: the pages of a list, the first and the last of which may be used in part
 */
struct softcard_mapping {
	u64 address;
	size_t size;
	void *memory;
	enum dma_data_direction direction;
	bool coherent;
	void *page[];
};

/**
 * struct softcard_dma_space - the bus addresses of a function
 * @lock: protects everything here. A card's access holds it for reading, some pages at a time, so
 *	that nothing is accessed any more when an unmapping returns.
 * @used: pages of bus addresses that are mapped, or guard those
 * @next: where to look for free ones: addresses are used again as late as possible
 * @leaf: which mapping a page belongs to
 */
struct softcard_dma_space {
	rwlock_t lock;
	unsigned long *used;
	unsigned long next;
	struct softcard_mapping **leaf[SOFTCARD_IOVA_PAGES / SOFTCARD_LEAF_PAGES];
	bool closed;
};

/**
 * struct softcard_function - a function of a card
 * @pdev: what Linux made of it, NULL before and after; under @irq_lock
 * @irq_lock: protects @table, @pending, @msi_pending, @msi_masks and INTx
 * @table: the MSI-X table
 * @memory_enabled: the driver has set Memory Space Enable
 * @awake: the function is in D0
 */
struct softcard_function {
	struct softcard *card;
	unsigned int number;
	bool present;
	u64 bar_size[SOFTCARD_BARS];
	struct list_head memories;
	unsigned int memory_count;
	bool memory_enabled;
	bool awake;
	u8 config[SOFTCARD_CONFIG_SIZE];

	raw_spinlock_t irq_lock;
	struct pci_dev *pdev;
	struct softcard_function_info info;
	u32 *table;
	unsigned long *pending;
	bool msix_masked;
	u32 msi_masks;
	u32 msi_pending;
	bool intx_asserted;
	bool intx_masked;
	struct softcard_vector *msix;
	struct softcard_vector *msi;
	struct softcard_vector intx;

	struct softcard_dma_space *dma;
};

/**
 * struct softcard_port - the root port in front of a card
 * @lock: protects everything here
 * @config: its configuration space
 * @slot_event: the port interrupts for what has happened to its slot
 * @error_event: the port interrupts for an error message
 */
struct softcard_port {
	raw_spinlock_t lock;
	u32 config[SOFTCARD_PORT_CONFIG / sizeof(u32)];
	bool slot_event;
	bool error_event;
	struct softcard_vector vector;
};

enum softcard_state { SOFTCARD_NEW, SOFTCARD_PLUGGED, SOFTCARD_UNPLUGGING, SOFTCARD_GONE };

/**
 * struct softcard_slot - a read that waits for its answer
 * @sequence: of the last read; only whoever has the slot changes it
 */
struct softcard_slot {
	u64 sequence;
	wait_queue_head_t wait;
};

/**
 * struct softcard - a card
 * @ref: held by the descriptor, the host bridge, each of a driver's mappings, and each access
 * @lock: protects @state, and whatever describes the card before it is plugged in
 * @dead: nothing is asked any more; set once, read everywhere
 * @ring_lock: orders what goes into the ring
 * @head: as in the ring, where the program can write it
 * @program: whose threads answer; changed under @lock, read under RCU
 * @rescue_wanted: a read that cannot sleep waits on @rescue_cpu
 * @rescue_cpu: which its threads are kept off; -1 for none
 * @mapping: what the program has mapped of the descriptor
 * @cut_off: held for writing while coherent memory is taken away from the program
 * @left: wakes who waits until Linux has removed the last function
 */
struct softcard {
	struct kref ref;
	struct list_head node;
	struct work_struct free_work;
	struct work_struct add_work;
	struct work_struct remove_work;
	struct work_struct die_work;
	struct mutex lock;		/* of the state and the description */
	enum softcard_state state;
	bool dead;
	bool armed;
	atomic_t removing;

	raw_spinlock_t ring_lock;
	u32 head;
	struct softcard_ring *ring;
	wait_queue_head_t poll;
	struct softcard_slot slots[SOFTCARD_SLOTS];
	DECLARE_BITMAP(slots_used, SOFTCARD_SLOTS);
	unsigned int read_timeout_ms;
	unsigned int atomic_timeout_us;
	struct pid *program;
	struct work_struct rescue_work;
	bool rescue_wanted;
	int rescue_cpu;

	int domain;
	struct address_space mapping;
	struct rw_semaphore cut_off;
	struct softcard_bridge *bridge;
	struct softcard_port port;
	wait_queue_head_t left;
	struct resource *window[SOFTCARD_WINDOWS];
	struct irq_domain *msi_domain;
	struct msi_domain_info msi_info;	/* of kernels before 6.16 */
	struct irq_domain *intx_domain;
	struct fwnode_handle *msi_fwnode;
	struct fwnode_handle *intx_fwnode;

	struct list_head eventfds;
	struct mutex eventfd_lock;	/* of the list */
	struct mm_struct *mm;
	unsigned long locked_pages;

	unsigned int function_count;
	struct softcard_function *function[SOFTCARD_FUNCTIONS];
};

/* card.c */
extern struct list_head softcard_list;
struct softcard *softcard_create(const struct softcard_create *create);
void softcard_get(struct softcard *card);
bool softcard_tryget(struct softcard *card);
void softcard_put(struct softcard *card);
void softcard_kill(struct softcard *card, const char *why);
void softcard_kill_all(const char *why);
int softcard_plug(struct softcard *card, struct softcard_plug *plug);
int softcard_unplug(struct softcard *card);
int softcard_post(struct softcard *card, const struct softcard_op *op);
u64 softcard_ask(struct softcard *card, struct softcard_op *op, bool *answered);
bool softcard_may_sleep(void);
int softcard_card_init(void);
void softcard_card_exit(void);

/* Whether a configuration access has to do with this byte. */
static inline bool softcard_covers(unsigned int offset, unsigned int size, unsigned int byte)
{
	return byte >= offset && byte < offset + size;
}

static inline u64 softcard_all_ones(unsigned int size)
{
	return size >= 8 ? ~0ULL : (1ULL << (8 * size)) - 1;
}

/* rescue.c */
void softcard_rescue_init(struct softcard *card);
void softcard_rescue_release(struct softcard *card);
void softcard_rescue_set_program(struct softcard *card);
bool softcard_rescue_begin(struct softcard *card);
void softcard_rescue_end(struct softcard *card);

/* port.c */
void softcard_port_init(struct softcard *card, unsigned int number, unsigned int speed,
			unsigned int width);
u32 softcard_port_read(struct softcard *card, unsigned int where, unsigned int size);
bool softcard_port_write(struct softcard *card, unsigned int where, unsigned int size, u32 value);
bool softcard_port_has_listener(struct softcard *card);
void softcard_port_link_down(struct softcard *card);
void softcard_port_error(struct softcard_function *function, unsigned int severity);

/* pci.c */
int softcard_pci_prepare(struct softcard *card, struct softcard_plug *plug);
void softcard_pci_add(struct softcard *card);
void softcard_pci_remove(struct softcard *card);
void softcard_pci_release(struct softcard *card);
void softcard_pci_disconnected(struct softcard *card);
int softcard_pci_init(void);
void softcard_pci_exit(void);
/* The function behind a device on a card's bus; NULL for the port. */
struct softcard_function *softcard_function_of_pci(struct pci_dev *pdev);

/* bar.c */

/* Whether the kernel answers by itself; the card's program knows when it does. */
static inline bool softcard_answers(const struct softcard_function *function)
{
	return READ_ONCE(function->memory_enabled) && READ_ONCE(function->awake);
}

u64 softcard_bar_read(struct softcard_function *function, unsigned int bar, u64 offset,
		      unsigned int size);
void softcard_bar_write(struct softcard_function *function, unsigned int bar, u64 offset,
			unsigned int size, u64 value);
/* Which BAR an address is in; the caller holds RCU. */
struct softcard_function *softcard_find_bar(phys_addr_t phys, unsigned int *bar, u64 *offset);
bool softcard_owns(phys_addr_t phys);
/* The page behind a part of a BAR that is plain memory; NULL where it is not. */
struct page *softcard_bar_page(struct softcard_function *function, unsigned int bar, u64 offset);

/* irq.c */
int softcard_irq_prepare(struct softcard *card);
void softcard_irq_release(struct softcard *card);
int softcard_irq_set_function(struct softcard_function *function);
void softcard_irq_settle(struct softcard *card);
void softcard_vector_signal(struct softcard_vector *vector);
void softcard_vector_reads(void);
int softcard_irq_init(void);
void softcard_irq_exit(void);
void softcard_intx_update(struct softcard_function *function);
void softcard_irq_free_function(struct softcard_function *function);
int softcard_intx_virq(struct softcard_function *function);

/* config.c */
void softcard_function_reset(struct softcard_function *function);
u32 softcard_function_read(struct softcard_function *function, unsigned int where,
			   unsigned int size);
void softcard_function_write(struct softcard_function *function, unsigned int where,
			     unsigned int size, u32 value);

/* mask.c */
int softcard_interrupt(struct softcard_function *function, unsigned int kind, unsigned int vector);
void softcard_irq_reset(struct softcard_function *function);
bool softcard_irq_read(struct softcard_function *function, unsigned int bar, u64 offset,
		       unsigned int size, u64 *value);
bool softcard_irq_write(struct softcard_function *function, unsigned int bar, u64 offset,
			unsigned int size, u64 value);
void softcard_irq_config_write(struct softcard_function *function, unsigned int offset,
			       unsigned int size, u32 value);
u32 softcard_irq_config_read(struct softcard_function *function, unsigned int offset,
			     unsigned int size, u32 value);

/* dma.c */
int softcard_dma_set_function(struct softcard_function *function);
void softcard_dma_free_function(struct softcard_function *function);
void softcard_dma_attach(struct softcard_function *function, struct pci_dev *pdev);
void softcard_dma_detach(struct softcard_function *function);
void softcard_dma_settle(struct softcard *card);
struct softcard_mapping *softcard_dma_find(struct softcard_dma_space *space, u64 address);

/* transfer.c */
int softcard_dma_transfer(struct softcard_function *function, u64 address, void __user *memory,
			  size_t length, bool write);

/* coherent.c */
int softcard_coherent_mmap(struct softcard *card, struct vm_area_struct *vma);
void softcard_coherent_cut_off(struct softcard *card);
void softcard_coherent_init(struct softcard *card);
void softcard_coherent_open(struct softcard *card, struct file *file);

/* trap.c */
int softcard_trap_init(void);
void softcard_trap_exit(void);

/* map.c */
int softcard_map_init(void);
void softcard_map_exit(void);

/* power.c */
int softcard_power_init(void);
void softcard_power_exit(void);

/* user.c */
int softcard_user_init(void);
void softcard_user_exit(void);
void softcard_user_forget_eventfds(struct softcard *card);

#endif /* _SOFTCARD_H */
