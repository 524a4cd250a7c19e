// SPDX-License-Identifier: GPL-2.0-only
/*
 * The card on the bus: a host bridge of its own, in a PCI domain of its own, with windows that have
 * no memory behind them, and a root port.
 */
#include <linux/idr.h>
#include <linux/ioport.h>
#include <linux/log2.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/version.h>

#include "softcard.h"

/*
 * Firmware's domains have 16 bits, and VMD's begin behind them. IOMMU drivers look at the lower 16
 * bits alone, which must not be those of a device that is there.
 */
#define FIRST_DOMAIN		0x1ff00
#define CARD_BUS		1
/* So low that BARs of 32 bits fit, and not 0, which PCI software takes for "not assigned". */
#define LOW_WINDOW		0x80000000ULL
#define LOW_LIMIT		BIT_ULL(30)
#define HIGH_WINDOW		BIT_ULL(42)
/* Windows of a port are in units of this, and a hotplug port may be given two of them anyway. */
#define PORT_UNIT		BIT_ULL(20)
#define LETTING_GO		(10 * HZ)

/**
 * struct softcard_bridge - what the PCI core keeps of a card
 * @sysdata: has to come first, which x86 relies on
 * @card: whose
 * @bus: the bus with the port, once it is there
 * @bus_numbers: the port's bus, and the card's
 * @bus_window: addresses for BARs of 32 bits, and for those of 64 bits that are prefetchable
 */
struct softcard_bridge {
	struct pci_sysdata sysdata;
	struct softcard *card;
	struct pci_bus *bus;
	struct resource bus_numbers;
	struct resource bus_window[SOFTCARD_WINDOWS];
};

static DEFINE_IDA(softcard_domains);

static struct softcard *softcard_of_bus(struct pci_bus *bus)
{
	return container_of(bus->sysdata, struct softcard_bridge, sysdata)->card;
}

static struct softcard_function *softcard_function_at(struct pci_bus *bus, unsigned int devfn)
{
	struct softcard *card = softcard_of_bus(bus);

	/* A card may say that it is a bridge; behind that is nothing, least of all itself again. */
	if (!bus->parent || !pci_is_root_bus(bus->parent) || PCI_SLOT(devfn) ||
	    PCI_FUNC(devfn) >= card->function_count)
		return NULL;
	return card->function[PCI_FUNC(devfn)];
}

struct softcard_function *softcard_function_of_pci(struct pci_dev *pdev)
{
	return softcard_function_at(pdev->bus, pdev->devfn);
}

static void softcard_hot_reset(struct softcard *card)
{
	struct softcard_op op = { .code = SOFTCARD_OP_HOT_RESET };
	unsigned int i;

	for (i = 0; i < card->function_count; i++)
		softcard_function_reset(card->function[i]);
	softcard_post(card, &op);
}

/* Linux follows capabilities where they lead to: the last one of a card may reach over the end. */
static bool softcard_is_beyond(int where, int size)
{
	return where < 0 || where + size > SOFTCARD_CONFIG_SIZE;
}

static int softcard_config_read(struct pci_bus *bus, unsigned int devfn, int where, int size,
				u32 *value)
{
	struct softcard_function *function = softcard_function_at(bus, devfn);

	PCI_SET_ERROR_RESPONSE(value);
	if (softcard_is_beyond(where, size))
		return PCIBIOS_BAD_REGISTER_NUMBER;
	if (pci_is_root_bus(bus) && !devfn) {
		*value = softcard_port_read(softcard_of_bus(bus), where, size);
		return PCIBIOS_SUCCESSFUL;
	}
	if (!function || READ_ONCE(function->card->dead))
		return PCIBIOS_DEVICE_NOT_FOUND;
	*value = softcard_function_read(function, where, size);
	return PCIBIOS_SUCCESSFUL;
}

static int softcard_config_write(struct pci_bus *bus, unsigned int devfn, int where, int size,
				 u32 value)
{
	struct softcard_function *function = softcard_function_at(bus, devfn);

	if (softcard_is_beyond(where, size))
		return PCIBIOS_BAD_REGISTER_NUMBER;
	if (pci_is_root_bus(bus) && !devfn) {
		if (softcard_port_write(softcard_of_bus(bus), where, size, value))
			softcard_hot_reset(softcard_of_bus(bus));
		return PCIBIOS_SUCCESSFUL;
	}
	if (!function)
		return PCIBIOS_DEVICE_NOT_FOUND;
	softcard_function_write(function, where, size, value);
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

/*
 * What a card says in its configuration space need not be what its program told the module, and
 * Linux would believe that, be it that a BAR is where other devices are.
 */
static void softcard_confine(struct softcard_function *function, struct pci_dev *pdev)
{
	const struct softcard_function_info *info = &function->info;
	unsigned int i;

	for (i = 0; i < PCI_BRIDGE_RESOURCES; i++) {
		struct resource *res = &pdev->resource[i];
		bool known = i == PCI_ROM_RESOURCE;

		if (i < SOFTCARD_BARS)
			known = resource_size(res) == info->bar_size[i];
		if (!res->flags || (known && res->flags & IORESOURCE_MEM &&
				    !(res->flags & IORESOURCE_PCI_FIXED)))
			continue;
		pci_warn(pdev, "softcard: resource %u is ignored: the module was not told of it\n",
			 i);
		res->start = 0;
		res->end = 0;
		res->flags = 0;
	}
	if (pdev->msix_cap != info->msix_capability)
		pdev->msix_cap = 0;
	if (pdev->msi_cap != info->msi_capability)
		pdev->msi_cap = 0;
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
	case BUS_NOTIFY_BIND_DRIVER:
		if (!strcmp(pdev->dev.driver->name, "vfio-pci"))
			pci_warn(pdev, "softcard: vfio-pci needs an IOMMU, which this bus does not have yet: map the BARs through resourceN\n");
		break;
	case BUS_NOTIFY_ADD_DEVICE:
		softcard_confine(function, pdev);
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
		wake_up_all(&function->card->left);
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
	unsigned int i;

	for (i = 0; i < SOFTCARD_WINDOWS; i++)
		remove_resource(&bridge->bus_window[i]);
	softcard_put(bridge->card);
	kfree(bridge);
}

/* All BARs of the card, each aligned to its size, and what a port takes. */
static u64 softcard_window_size(struct softcard *card)
{
	u64 size = 2 * PORT_UNIT, largest = PORT_UNIT;
	unsigned int i, j;

	for (i = 0; i < card->function_count; i++) {
		for (j = 0; j < SOFTCARD_BARS; j++) {
			u64 bar = max_t(u64, card->function[i]->bar_size[j], PAGE_SIZE);

			if (!card->function[i]->bar_size[j])
				continue;
			size += bar;
			largest = max(largest, bar);
		}
	}
	return roundup_pow_of_two(size + 2 * largest);
}

/* A window for BARs of 32 bits, and one for those that are prefetchable and may be anywhere. */
static int softcard_reserve_window(struct softcard *card, struct softcard_bridge *bridge,
				   unsigned int number)
{
	u64 size = softcard_window_size(card);
	unsigned long flags = IORESOURCE_MEM;
	struct resource *window;
	resource_size_t start;
	int err;

	if (number)
		flags |= IORESOURCE_PREFETCH | IORESOURCE_MEM_64;
	else
		size = min_t(u64, size, LOW_LIMIT);
	/* Twice, so that an aligned one is in it wherever it is. */
	window = request_free_mem_region(&iomem_resource, 2 * size, "softcard");
	if (IS_ERR(window))
		return PTR_ERR(window);
	/* Not the device memory that the function is for; ioremap() warns of that. */
	window->desc = IORES_DESC_NONE;
	/* With BARs inside, the window is a bridge's, not busy itself. */
	window->flags = flags;
	card->window[number] = window;
	start = ALIGN(window->start, size);
	bridge->bus_window[number] = (struct resource) {
		.name = "softcard window",
		.start = start,
		.end = start + size - 1,
		.flags = flags,
	};
	err = insert_resource(window, &bridge->bus_window[number]);
	if (err)
		bridge->bus_window[number].end = 0;
	return err;
}

static void softcard_release_windows(struct softcard *card, struct softcard_bridge *bridge)
{
	unsigned int i;

	for (i = 0; i < SOFTCARD_WINDOWS; i++) {
		if (bridge && bridge->bus_window[i].end)
			remove_resource(&bridge->bus_window[i]);
		if (!card->window[i])
			continue;
		/* Only what is busy can be released. */
		card->window[i]->flags |= IORESOURCE_BUSY;
		release_mem_region(card->window[i]->start, resource_size(card->window[i]));
		card->window[i] = NULL;
	}
}

/**
 * softcard_pci_prepare - everything that can fail without the card's program
 * @card: the card
 * @plug: what its program says of the link; its domain is returned
 */
int softcard_pci_prepare(struct softcard *card, struct softcard_plug *plug)
{
	struct softcard_bridge *bridge;
	unsigned int i;
	int err;

	bridge = kzalloc(sizeof(*bridge), GFP_KERNEL);
	if (!bridge)
		return -ENOMEM;
	card->domain = ida_alloc_range(&softcard_domains, FIRST_DOMAIN,
				       FIRST_DOMAIN + SOFTCARD_CARDS - 1, GFP_KERNEL);
	if (card->domain < 0) {
		kfree(bridge);
		return -ENOSPC;
	}
	card->bridge = bridge;
	for (i = 0; i < SOFTCARD_WINDOWS; i++) {
		err = softcard_reserve_window(card, bridge, i);
		if (err) {
			softcard_pci_release(card);
			return err;
		}
	}
	bridge->card = card;
	bridge->sysdata.domain = card->domain;
	bridge->sysdata.node = NUMA_NO_NODE;
	bridge->bus_numbers = (struct resource) {
		.name = "softcard bus",
		.start = 0,
		.end = CARD_BUS,
		.flags = IORESOURCE_BUS,
	};
	for (i = 0; i < card->function_count; i++)
		softcard_function_reset(card->function[i]);
	softcard_port_init(card, card->domain - FIRST_DOMAIN + 1, plug->link_speed ?: 1,
			   plug->link_width ?: 1);
	plug->domain = card->domain;
	return 0;
}

static struct pci_host_bridge *softcard_host_bridge(struct softcard *card,
						    struct softcard_bridge *bridge)
{
	struct pci_host_bridge *host = pci_alloc_host_bridge(0);
	struct resource *window = bridge->bus_window;

	if (!host)
		return NULL;
	pci_add_resource_offset(&host->windows, &window[0], window[0].start - LOW_WINDOW);
	pci_add_resource_offset(&host->windows, &window[1], window[1].start - HIGH_WINDOW);
	pci_add_resource(&host->windows, &bridge->bus_numbers);
	host->sysdata = &bridge->sysdata;
	host->ops = &softcard_pci_ops;
	host->map_irq = softcard_map_irq;
	softcard_get(card);
	pci_set_host_bridge_release(host, softcard_release_bridge, bridge);
	dev_set_msi_domain(&host->dev, card->msi_domain);
	return host;
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
	struct pci_dev *port;
	int err;

	host = softcard_host_bridge(card, bridge);
	if (!host) {
		softcard_kill(card, "no memory for its host bridge");
		return;
	}
	/* From here on, it goes with the host bridge. */
	card->bridge = NULL;
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
	/* Not pci_assign_unassigned_bus_resources(): what a card says can make it BUG(). */
	pci_bus_size_bridges(host->bus);
	pci_bus_assign_resources(host->bus);
	pci_unlock_rescan_remove();
	/*
	 * pciehp wants this lock while it holds one of its own, which it takes when it is bound,
	 * too: so the port is added without it.
	 */
	port = pci_get_slot(host->bus, 0);
	if (port)
		pci_bus_add_device(port);
	pci_dev_put(port);
	pci_lock_rescan_remove();
	pci_bus_add_devices(host->bus);
	pci_unlock_rescan_remove();
}

static bool softcard_has_left(struct softcard *card)
{
	unsigned int i;

	for (i = 0; i < card->function_count; i++)
		if (READ_ONCE(card->function[i]->pdev))
			return false;
	return true;
}

/* Drivers let go while the card still answers. */
static void softcard_remove_functions(struct pci_bus *bus)
{
	struct pci_dev *pdev, *next;

	pci_lock_rescan_remove();
	list_for_each_entry_safe_reverse(pdev, next, &bus->devices, bus_list)
		pci_stop_and_remove_bus_device(pdev);
	pci_unlock_rescan_remove();
}

/* Takes the card and its port off the bus; drivers have let go when it returns. */
void softcard_pci_remove(struct softcard *card)
{
	struct pci_host_bridge *host;
	struct pci_dev *port;
	struct pci_bus *bus;

	if (!card->bridge)
		return;
	bus = card->bridge->bus;
	host = to_pci_host_bridge(bus->bridge);
	card->bridge = NULL;
	port = pci_get_slot(bus, 0);
	if (port) {
		if (!READ_ONCE(card->dead) && port->subordinate)
			softcard_remove_functions(port->subordinate);
		else if (softcard_port_has_listener(card))
			wait_event_timeout(card->left, softcard_has_left(card), LETTING_GO);
		/*
		 * pciehp waits for its own thread when it is removed, and that may want
		 * pci_lock_rescan_remove(): so it has to go before that is held here.
		 */
		device_release_driver(&port->dev);
		pci_dev_put(port);
	}
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
	softcard_release_windows(card, card->bridge);
	if (card->domain >= 0)
		ida_free(&softcard_domains, card->domain);
	/* Linux never had it. */
	kfree(card->bridge);
	card->domain = -1;
	card->bridge = NULL;
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
