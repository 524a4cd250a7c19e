// SPDX-License-Identifier: GPL-2.0-only
/*
 * The card on the bus: a host bridge of its own, in a PCI domain of its own, with a window that has
 * no memory behind it. Configuration accesses go to the card; what the kernel has to know of them
 * (interrupts) is looked at on the way.
 */
#include <linux/idr.h>
#include <linux/ioport.h>
#include <linux/log2.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/version.h>

#include "softcard.h"

/* Domains of firmware and of VMD are 16 bits. */
#define FIRST_DOMAIN		0x10000
#define MAX_CARDS		64
/* So low that BARs of 32 bits fit, and not 0, which PCI software takes for "not assigned". */
#define LOW_WINDOW		0x80000000ULL
#define HIGH_WINDOW		(1ULL << 41)
#define MIN_WINDOW		(1ULL << 20)

/**
 * struct softcard_bridge - what the PCI core keeps of a card
 * @sysdata: has to come first, which x86 relies on
 */
struct softcard_bridge {
	struct pci_sysdata sysdata;
	struct softcard *card;
	struct pci_bus *bus;
	struct resource bus_numbers;
	struct resource bus_window;
};

static DEFINE_IDA(softcard_domains);

static struct softcard *softcard_of_bus(struct pci_bus *bus)
{
	return container_of(bus->sysdata, struct softcard_bridge, sysdata)->card;
}

static struct softcard_function *softcard_function_at(struct pci_bus *bus, unsigned int devfn)
{
	struct softcard *card = softcard_of_bus(bus);

	if (bus->parent || PCI_SLOT(devfn) || PCI_FUNC(devfn) >= card->function_count)
		return NULL;
	return card->function[PCI_FUNC(devfn)];
}

struct softcard_function *softcard_function_of_pci(struct pci_dev *pdev)
{
	return softcard_function_at(pdev->bus, pdev->devfn);
}

/*
 * Who holds pci_lock, as readers in sysfs do, cannot sleep; on a single processor nobody would
 * answer then, and it gets what was last seen.
 */
static int softcard_config_read(struct pci_bus *bus, unsigned int devfn, int where, int size,
				u32 *value)
{
	struct softcard_function *function = softcard_function_at(bus, devfn);
	struct softcard_op op = {
		.code = SOFTCARD_OP_CONFIG_READ,
		.size = size,
		.offset = where,
	};
	bool answered;
	u32 found;

	PCI_SET_ERROR_RESPONSE(value);
	if (!function || READ_ONCE(function->card->dead))
		return PCIBIOS_DEVICE_NOT_FOUND;
	op.function = function->number;
	found = softcard_ask(function->card, &op, &answered);
	if (answered)
		memcpy(function->config + where, &found, size);
	else if (!READ_ONCE(function->card->dead))
		memcpy(&found, function->config + where, size);
	*value = softcard_irq_config_read(function, where, size, found);
	return PCIBIOS_SUCCESSFUL;
}

static int softcard_config_write(struct pci_bus *bus, unsigned int devfn, int where, int size,
				 u32 value)
{
	struct softcard_function *function = softcard_function_at(bus, devfn);
	struct softcard_op op = {
		.code = SOFTCARD_OP_CONFIG_WRITE,
		.size = size,
		.offset = where,
		.value = value,
	};

	if (!function)
		return PCIBIOS_DEVICE_NOT_FOUND;
	op.function = function->number;
	softcard_irq_config_write(function, where, size, value);
	softcard_post(function->card, &op);
	return PCIBIOS_SUCCESSFUL;
}

static struct pci_ops softcard_pci_ops = {
	.read = softcard_config_read,
	.write = softcard_config_write,
};

static int softcard_map_irq(const struct pci_dev *pdev, u8 slot, u8 pin)
{
	struct softcard_function *function = softcard_function_at(pdev->bus, pdev->devfn);

	return function ? softcard_intx_virq(function) : 0;
}

/* Devices as they come and go, by whatever way: DMA and INTx have to be there before a driver. */

static int softcard_device_changed(struct notifier_block *block, unsigned long action, void *data)
{
	struct pci_dev *pdev = to_pci_dev(data);
	struct softcard_function *function;
	unsigned long flags;

	if (pdev->bus->ops != &softcard_pci_ops)
		return NOTIFY_DONE;
	function = softcard_function_at(pdev->bus, pdev->devfn);
	if (!function)
		return NOTIFY_DONE;
	switch (action) {
	case BUS_NOTIFY_ADD_DEVICE:
		softcard_dma_attach(function, pdev);
		/* Keeps ACPI from looking for a wire; pci_assign_irq() asks the card itself. */
		pdev->pin = 0;
		raw_spin_lock_irqsave(&function->irq_lock, flags);
		function->pdev = pdev;
		if (READ_ONCE(function->card->dead))
			pdev->error_state = pci_channel_io_perm_failure;
		raw_spin_unlock_irqrestore(&function->irq_lock, flags);
		break;
	case BUS_NOTIFY_REMOVED_DEVICE:
		raw_spin_lock_irqsave(&function->irq_lock, flags);
		function->pdev = NULL;
		raw_spin_unlock_irqrestore(&function->irq_lock, flags);
		softcard_dma_detach(function);
		break;
	}
	return NOTIFY_OK;
}

static struct notifier_block softcard_device_notifier = {
	.notifier_call = softcard_device_changed,
};

/* A surprise: drivers that ask get to know at once, before they are told to let go. */
void softcard_pci_disconnected(struct softcard *card)
{
	unsigned long flags;
	unsigned int i;

	for (i = 0; i < card->function_count; i++) {
		struct softcard_function *function = card->function[i];

		raw_spin_lock_irqsave(&function->irq_lock, flags);
		if (function->pdev)
			function->pdev->error_state = pci_channel_io_perm_failure;
		raw_spin_unlock_irqrestore(&function->irq_lock, flags);
	}
}

static void softcard_release_bridge(struct pci_host_bridge *host)
{
	struct softcard_bridge *bridge = host->release_data;

	remove_resource(&bridge->bus_window);
	softcard_put(bridge->card);
	kfree(bridge);
}

/* All BARs of the card, each aligned to its size. */
static u64 softcard_window_size(struct softcard *card, u64 *largest)
{
	u64 size = 0;
	unsigned int i, j;

	*largest = MIN_WINDOW;
	for (i = 0; i < card->function_count; i++) {
		for (j = 0; j < SOFTCARD_BARS; j++) {
			u64 bar = max_t(u64, card->function[i]->bar_size[j], PAGE_SIZE);

			if (!card->function[i]->bar_size[j])
				continue;
			size += bar;
			*largest = max(*largest, bar);
		}
	}
	return roundup_pow_of_two(max(size, *largest));
}

/**
 * softcard_pci_prepare - everything that can fail without the card's program
 * @card: the card
 */
int softcard_pci_prepare(struct softcard *card)
{
	struct softcard_bridge *bridge;
	u64 size, largest;
	int err;

	bridge = kzalloc(sizeof(*bridge), GFP_KERNEL);
	if (!bridge)
		return -ENOMEM;
	card->domain = ida_alloc_range(&softcard_domains, FIRST_DOMAIN,
				       FIRST_DOMAIN + MAX_CARDS - 1, GFP_KERNEL);
	if (card->domain < 0) {
		err = -ENOSPC;
		goto free_bridge;
	}
	size = softcard_window_size(card, &largest);
	/* Twice, so that an aligned one is in it wherever it is. */
	card->window = request_free_mem_region(&iomem_resource, 2 * size, "softcard");
	if (IS_ERR(card->window)) {
		err = PTR_ERR(card->window);
		card->window = NULL;
		goto free_domain;
	}
	/* Not the device memory that the function is for; ioremap() warns of that. */
	card->window->desc = IORES_DESC_NONE;
	bridge->card = card;
	bridge->sysdata.domain = card->domain;
	bridge->sysdata.node = NUMA_NO_NODE;
	bridge->bus_numbers = (struct resource) {
		.name = "softcard bus",
		.start = 0,
		.end = 0,
		.flags = IORESOURCE_BUS,
	};
	card->bridge = bridge;
	return 0;

free_domain:
	ida_free(&softcard_domains, card->domain);
	card->domain = -1;
free_bridge:
	kfree(bridge);
	return err;
}

/**
 * softcard_pci_add - enumerate the card and offer it to drivers
 * @card: the card
 *
 * In a context of its own: the card's program answers meanwhile.
 */
void softcard_pci_add(struct softcard *card)
{
	struct softcard_bridge *bridge = card->bridge;
	struct pci_host_bridge *host;
	resource_size_t start, low;
	u64 size, largest;
	int err;

	card->bridge = NULL;
	host = pci_alloc_host_bridge(0);
	if (!host) {
		kfree(bridge);
		softcard_kill(card, "no memory for its host bridge");
		return;
	}
	size = softcard_window_size(card, &largest);
	start = ALIGN(card->window->start, size);
	low = size > LOW_WINDOW ? HIGH_WINDOW : LOW_WINDOW;
	card->window->flags = IORESOURCE_MEM | (size > LOW_WINDOW ? IORESOURCE_MEM_64 : 0);
	bridge->bus_window = (struct resource) {
		.name = "softcard window",
		.start = start,
		.end = start + size - 1,
		.flags = card->window->flags,
	};
	/* With BARs inside, the window is a bridge's, not busy itself. */
	err = insert_resource(card->window, &bridge->bus_window);
	if (err) {
		pci_free_host_bridge(host);
		kfree(bridge);
		softcard_kill(card, "its window cannot be entered");
		return;
	}
	pci_add_resource_offset(&host->windows, &bridge->bus_window, start - low);
	pci_add_resource(&host->windows, &bridge->bus_numbers);
	host->sysdata = &bridge->sysdata;
	host->ops = &softcard_pci_ops;
	host->map_irq = softcard_map_irq;
	softcard_get(card);
	pci_set_host_bridge_release(host, softcard_release_bridge, bridge);
	dev_set_msi_domain(&host->dev, card->msi_domain);

	pci_lock_rescan_remove();
	err = pci_scan_root_bus_bridge(host);
	if (err) {
		pci_unlock_rescan_remove();
		pci_free_host_bridge(host);
		softcard_kill(card, "its host bridge cannot be registered");
		return;
	}
	bridge->bus = host->bus;
	card->bridge = bridge;
	pci_bus_size_bridges(host->bus);
	pci_bus_assign_resources(host->bus);
	pci_bus_add_devices(host->bus);
	pci_unlock_rescan_remove();
}

/* Takes the card off the bus; drivers have let go when it returns. */
void softcard_pci_remove(struct softcard *card)
{
	struct pci_host_bridge *host;
	struct pci_bus *bus;

	if (!card->bridge)
		return;
	bus = card->bridge->bus;
	host = to_pci_host_bridge(bus->bridge);
	card->bridge = NULL;
	pci_lock_rescan_remove();
	pci_stop_root_bus(bus);
	pci_remove_root_bus(bus);
	pci_unlock_rescan_remove();
	/* The bus is removed, but the bridge is still whose it was from the beginning. */
	pci_free_host_bridge(host);
}

/* Nobody knows the card any more. */
void softcard_pci_release(struct softcard *card)
{
	if (card->window) {
		/* Only what is busy can be released. */
		card->window->flags |= IORESOURCE_BUSY;
		release_mem_region(card->window->start, resource_size(card->window));
	}
	if (card->domain >= 0)
		ida_free(&softcard_domains, card->domain);
	/* Linux never had it. */
	kfree(card->bridge);
	card->window = NULL;
	card->domain = -1;
	card->bridge = NULL;
}

/* Accesses to BARs. */

bool softcard_owns(phys_addr_t phys)
{
	struct softcard *card;
	bool found = false;

	rcu_read_lock();
	list_for_each_entry_rcu(card, &softcard_list, node) {
		if (phys >= card->window->start && phys <= card->window->end) {
			found = true;
			break;
		}
	}
	rcu_read_unlock();
	return found;
}

struct softcard_function *softcard_find_bar(phys_addr_t phys, unsigned int *bar, u64 *offset)
{
	struct softcard_function *function, *found = NULL;
	struct softcard *card;
	unsigned long flags;
	unsigned int i, j;

	list_for_each_entry_rcu(card, &softcard_list, node) {
		if (phys < card->window->start || phys > card->window->end)
			continue;
		for (i = 0; i < card->function_count && !found; i++) {
			function = card->function[i];
			raw_spin_lock_irqsave(&function->irq_lock, flags);
			for (j = 0; function->pdev && j < SOFTCARD_BARS; j++) {
				struct resource *res = &function->pdev->resource[j];

				if (!(res->flags & IORESOURCE_MEM) || phys < res->start ||
				    phys > res->end)
					continue;
				*bar = j;
				*offset = phys - res->start;
				found = function;
				break;
			}
			raw_spin_unlock_irqrestore(&function->irq_lock, flags);
		}
		break;
	}
	return found;
}

static void *softcard_memory_at(struct softcard_function *function, unsigned int bar, u64 offset,
				unsigned int size, bool write)
{
	struct softcard_memory *memory;

	list_for_each_entry(memory, &function->memories, node) {
		u64 at = offset - memory->offset;

		if (memory->bar != bar || offset < memory->offset || at + size > memory->size)
			continue;
		/* An access over the end of a page is rare, and can go the long way. */
		if ((write && memory->shadow) || offset_in_page(at) + size > PAGE_SIZE)
			return NULL;
		return page_address(memory->page[at >> PAGE_SHIFT]) + offset_in_page(at);
	}
	return NULL;
}

/**
 * softcard_bar_read - a driver's read
 * @function: whose BAR
 * @bar: which
 * @offset: in it
 * @size: 1, 2, 4 or 8
 */
u64 softcard_bar_read(struct softcard_function *function, unsigned int bar, u64 offset,
		      unsigned int size)
{
	struct softcard_op op = {
		.code = SOFTCARD_OP_READ,
		.function = function->number,
		.bar = bar,
		.size = size,
		.offset = offset,
	};
	u64 value = 0;
	bool answered;
	void *memory;

	if (READ_ONCE(function->card->dead))
		return softcard_all_ones(size);
	if (softcard_irq_read(function, bar, offset, size, &value))
		return value;
	memory = softcard_memory_at(function, bar, offset, size, false);
	if (!memory)
		return softcard_ask(function->card, &op, &answered);
	switch (size) {
	case 1:
		return READ_ONCE(*(u8 *)memory);
	case 2:
		return READ_ONCE(*(u16 *)memory);
	case 4:
		return READ_ONCE(*(u32 *)memory);
	}
	return READ_ONCE(*(u64 *)memory);
}

void softcard_bar_write(struct softcard_function *function, unsigned int bar, u64 offset,
			unsigned int size, u64 value)
{
	struct softcard_op op = {
		.code = SOFTCARD_OP_WRITE,
		.function = function->number,
		.bar = bar,
		.size = size,
		.offset = offset,
		.value = value & softcard_all_ones(size),
	};
	void *memory;

	if (READ_ONCE(function->card->dead) ||
	    softcard_irq_write(function, bar, offset, size, value))
		return;
	memory = softcard_memory_at(function, bar, offset, size, true);
	if (memory)
		memcpy(memory, &value, size);
	else
		softcard_post(function->card, &op);
}

int softcard_pci_init(void)
{
	return bus_register_notifier(&pci_bus_type, &softcard_device_notifier);
}

void softcard_pci_exit(void)
{
	bus_unregister_notifier(&pci_bus_type, &softcard_device_notifier);
	ida_destroy(&softcard_domains);
}
