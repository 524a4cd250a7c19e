// SPDX-License-Identifier: GPL-2.0-only
/*
 * The root port in front of a card (PCI Express Base 6.0, section 7.5): type 1 header, power
 * management, MSI, a slot whose card may go by surprise, and advanced error reporting. Linux's own
 * pciehp and aer drivers bind to it and find what they would find on hardware.
 */
#include <linux/pci.h>

#include "softcard.h"

#define PORT_VENDOR		0x1ded
#define PORT_DEVICE		0x5c00
#define PORT_PM			0x40
#define PORT_MSI		0x50
#define PORT_EXPRESS		0x60
#define PORT_AER		0x100

#define COMMAND_BITS		(PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | \
				 PCI_COMMAND_PARITY | PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE)
#define STATUS_ERRORS		(0xf900U << 16)
#define BUS_NUMBERS		0x00ffffff
#define WINDOW_BITS		0xfff0fff0
#define BRIDGE_CONTROL_BITS	(PCI_BRIDGE_CTL_PARITY | PCI_BRIDGE_CTL_SERR | \
				 PCI_BRIDGE_CTL_MASTER_ABORT | PCI_BRIDGE_CTL_BUS_RESET)
/* As the reset values of the specification, sections 7.8.4.3, 7.8.4.4 and 7.8.4.6. */
#define UNCORRECTABLE_MASK	0x00400000
#define UNCORRECTABLE_SEVERITY	0x00462030
#define CORRECTABLE_MASK	0x0000e000
#define UNCORRECTABLE_ERRORS	0x07fff030
#define CORRECTABLE_ERRORS	0x0000f1c1
#define ROOT_COMMANDS		(PCI_ERR_ROOT_CMD_COR_EN | PCI_ERR_ROOT_CMD_NONFATAL_EN | \
				 PCI_ERR_ROOT_CMD_FATAL_EN)
#define ROOT_ERRORS		0x7f

/* The fastest and widest there is; what the link has come to depends on the card. */
#define LINK_SPEED		PCI_EXP_LNKCAP_SLS_64_0GB
#define LINK_WIDTH		32
#define LINK_SPEEDS		0x7e

/**
 * struct softcard_port_register - 32 bits of the port's configuration space
 * @offset: where
 * @reset: what is there after power-on
 * @rw: bits that can be written
 * @w1c: bits that are cleared by writing 1
 */
struct softcard_port_register {
	u16 offset;
	u32 reset;
	u32 rw;
	u32 w1c;
};

static const struct softcard_port_register registers[] = {
	{ PCI_VENDOR_ID, PORT_DEVICE << 16 | PORT_VENDOR },
	{ PCI_COMMAND, PCI_STATUS_CAP_LIST << 16, COMMAND_BITS, STATUS_ERRORS },
	{ PCI_CLASS_REVISION, PCI_CLASS_BRIDGE_PCI << 16 },
	{ PCI_CACHE_LINE_SIZE, PCI_HEADER_TYPE_BRIDGE << 16, 0xff },
	{ PCI_PRIMARY_BUS, 0, BUS_NUMBERS },
	{ PCI_IO_BASE, 0, 0, STATUS_ERRORS },
	/* Both windows are closed: they end before they begin. */
	{ PCI_MEMORY_BASE, 0x0000fff0, WINDOW_BITS },
	{ PCI_PREF_MEMORY_BASE, PCI_PREF_RANGE_TYPE_64 << 16 | PCI_PREF_RANGE_TYPE_64 | 0xfff0,
	  WINDOW_BITS },
	{ PCI_PREF_BASE_UPPER32, 0, ~0U },
	{ PCI_PREF_LIMIT_UPPER32, 0, ~0U },
	{ PCI_CAPABILITY_LIST, PORT_PM },
	{ PCI_INTERRUPT_LINE, 0, BRIDGE_CONTROL_BITS << 16 | 0xff },

	{ PORT_PM, 0x0003U << 16 | PORT_MSI << 8 | PCI_CAP_ID_PM },
	{ PORT_PM + PCI_PM_CTRL, PCI_PM_CTRL_NO_SOFT_RESET, PCI_PM_CTRL_STATE_MASK },

	{ PORT_MSI, PCI_MSI_FLAGS_64BIT << 16 | PORT_EXPRESS << 8 | PCI_CAP_ID_MSI,
	  PCI_MSI_FLAGS_ENABLE << 16 },
	{ PORT_MSI + PCI_MSI_ADDRESS_LO, 0, ~3U },
	{ PORT_MSI + PCI_MSI_ADDRESS_HI, 0, ~0U },
	{ PORT_MSI + PCI_MSI_DATA_64, 0, 0xffff },

	{ PORT_EXPRESS, (PCI_EXP_FLAGS_SLOT | PCI_EXP_TYPE_ROOT_PORT << 4 | 2) << 16 |
			PCI_CAP_ID_EXP },
	{ PORT_EXPRESS + PCI_EXP_DEVCAP,
	  PCI_EXP_DEVCAP_RBER | PCI_EXP_DEVCAP_EXT_TAG | 2 },
	{ PORT_EXPRESS + PCI_EXP_DEVCTL, 0x2810, 0x79ff, 0xf << 16 },
	{ PORT_EXPRESS + PCI_EXP_LNKCAP,
	  LINK_SPEED | LINK_WIDTH << 4 | PCI_EXP_LNKCAP_DLLLARC },
	{ PORT_EXPRESS + PCI_EXP_LNKCTL, PCI_EXP_LNKSTA_SLC << 16,
	  PCI_EXP_LNKCTL_ASPMC | PCI_EXP_LNKCTL_RCB | PCI_EXP_LNKCTL_CCC | PCI_EXP_LNKCTL_ES },
	{ PORT_EXPRESS + PCI_EXP_SLTCAP,
	  PCI_EXP_SLTCAP_HPC | PCI_EXP_SLTCAP_HPS | PCI_EXP_SLTCAP_NCCS },
	{ PORT_EXPRESS + PCI_EXP_SLTCTL, 0,
	  PCI_EXP_SLTCTL_PDCE | PCI_EXP_SLTCTL_HPIE | PCI_EXP_SLTCTL_DLLSCE,
	  (PCI_EXP_SLTSTA_PDC | PCI_EXP_SLTSTA_DLLSC) << 16 },
	{ PORT_EXPRESS + PCI_EXP_RTCTL, 0, 0x1f },
	{ PORT_EXPRESS + PCI_EXP_RTSTA, 0, 0, PCI_EXP_RTSTA_PME },
	{ PORT_EXPRESS + PCI_EXP_DEVCAP2, PCI_EXP_DEVCAP2_COMP_TMOUT_DIS },
	{ PORT_EXPRESS + PCI_EXP_DEVCTL2, 0, 0x1f },
	{ PORT_EXPRESS + PCI_EXP_LNKCAP2, LINK_SPEEDS },
	{ PORT_EXPRESS + PCI_EXP_LNKCTL2, LINK_SPEED, PCI_EXP_LNKCTL2_TLS },

	{ PORT_AER, 2 << 16 | PCI_EXT_CAP_ID_ERR },
	{ PORT_AER + PCI_ERR_UNCOR_STATUS, 0, 0, UNCORRECTABLE_ERRORS },
	{ PORT_AER + PCI_ERR_UNCOR_MASK, UNCORRECTABLE_MASK, UNCORRECTABLE_ERRORS },
	{ PORT_AER + PCI_ERR_UNCOR_SEVER, UNCORRECTABLE_SEVERITY, UNCORRECTABLE_ERRORS },
	{ PORT_AER + PCI_ERR_COR_STATUS, 0, 0, CORRECTABLE_ERRORS },
	{ PORT_AER + PCI_ERR_COR_MASK, CORRECTABLE_MASK, CORRECTABLE_ERRORS },
	{ PORT_AER + PCI_ERR_ROOT_COMMAND, 0, ROOT_COMMANDS },
	{ PORT_AER + PCI_ERR_ROOT_STATUS, 0, 0, ROOT_ERRORS },
};

static u32 *softcard_port_word(struct softcard_port *port, unsigned int offset)
{
	return &port->config[offset / 4];
}

/* A field of 16 bits. */
static u16 *softcard_port_half(struct softcard_port *port, unsigned int offset)
{
	return (u16 *)port->config + offset / 2;
}

/* What the port would interrupt for, as far as it is enabled. */
static bool softcard_port_slot_event(struct softcard_port *port)
{
	u16 control = *softcard_port_half(port, PORT_EXPRESS + PCI_EXP_SLTCTL);
	u16 status = *softcard_port_half(port, PORT_EXPRESS + PCI_EXP_SLTSTA);

	return control & PCI_EXP_SLTCTL_HPIE &&
	       ((control & PCI_EXP_SLTCTL_PDCE && status & PCI_EXP_SLTSTA_PDC) ||
		(control & PCI_EXP_SLTCTL_DLLSCE && status & PCI_EXP_SLTSTA_DLLSC));
}

static bool softcard_port_error_event(struct softcard_port *port)
{
	u32 command = *softcard_port_word(port, PORT_AER + PCI_ERR_ROOT_COMMAND);
	u32 status = *softcard_port_word(port, PORT_AER + PCI_ERR_ROOT_STATUS);

	return (command & PCI_ERR_ROOT_CMD_COR_EN && status & PCI_ERR_ROOT_COR_RCV) ||
	       (command & PCI_ERR_ROOT_CMD_NONFATAL_EN && status & PCI_ERR_ROOT_NONFATAL_RCV) ||
	       (command & PCI_ERR_ROOT_CMD_FATAL_EN && status & PCI_ERR_ROOT_FATAL_RCV);
}

/* A message for each event that has not been there before; the caller holds @lock. */
static void softcard_port_update(struct softcard_port *port)
{
	bool slot = softcard_port_slot_event(port), error = softcard_port_error_event(port);
	u16 flags = *softcard_port_half(port, PORT_MSI + PCI_MSI_FLAGS);

	if (((slot && !port->slot_event) || (error && !port->error_event)) &&
	    flags & PCI_MSI_FLAGS_ENABLE)
		softcard_vector_signal(&port->vector);
	port->slot_event = slot;
	port->error_event = error;
}

/**
 * softcard_port_init - the port as it is after power-on, with the card in its slot
 * @card: the card
 * @number: of the slot
 * @speed: of the link, as in the Link Status register
 * @width: of the link, in lanes
 */
void softcard_port_init(struct softcard *card, unsigned int number, unsigned int speed,
			unsigned int width)
{
	struct softcard_port *port = &card->port;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(registers); i++)
		*softcard_port_word(port, registers[i].offset) = registers[i].reset;
	*softcard_port_word(port, PORT_EXPRESS + PCI_EXP_LNKCAP) |= (number & 0xff) << 24;
	*softcard_port_word(port, PORT_EXPRESS + PCI_EXP_SLTCAP) |= number << 19;
	*softcard_port_half(port, PORT_EXPRESS + PCI_EXP_LNKSTA) |=
		PCI_EXP_LNKSTA_DLLLA | width << PCI_EXP_LNKSTA_NLW_SHIFT | speed;
	*softcard_port_half(port, PORT_EXPRESS + PCI_EXP_SLTSTA) |= PCI_EXP_SLTSTA_PDS;
}

u32 softcard_port_read(struct softcard *card, unsigned int where, unsigned int size)
{
	struct softcard_port *port = &card->port;
	unsigned long flags;
	u32 value = 0;

	if (where + size > sizeof(port->config))
		return 0;
	raw_spin_lock_irqsave(&port->lock, flags);
	memcpy(&value, (u8 *)port->config + where, size);
	raw_spin_unlock_irqrestore(&port->lock, flags);
	return value;
}

static const struct softcard_port_register *softcard_port_register(unsigned int offset)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(registers); i++)
		if (registers[i].offset == offset)
			return &registers[i];
	return NULL;
}

/**
 * softcard_port_write - Linux writes to the port's configuration space
 * @card: the card behind it
 * @where: offset
 * @size: 1, 2 or 4
 * @value: what is written
 *
 * Return: whether that resets the bus behind the port.
 */
bool softcard_port_write(struct softcard *card, unsigned int where, unsigned int size, u32 value)
{
	const struct softcard_port_register *its = softcard_port_register(where & ~3);
	unsigned int shift = 8 * (where & 3);
	struct softcard_port *port = &card->port;
	u32 mask = softcard_all_ones(size) << shift;
	bool before, after;
	unsigned long flags;
	u16 *control;
	u32 *word;

	if (!its)
		return false;
	value <<= shift;
	word = softcard_port_word(port, its->offset);
	control = softcard_port_half(port, PCI_BRIDGE_CONTROL);
	raw_spin_lock_irqsave(&port->lock, flags);
	before = *control & PCI_BRIDGE_CTL_BUS_RESET;
	*word = (*word & ~(its->rw & mask)) | (value & its->rw & mask);
	*word &= ~(value & its->w1c & mask);
	after = *control & PCI_BRIDGE_CTL_BUS_RESET;
	softcard_port_update(port);
	raw_spin_unlock_irqrestore(&port->lock, flags);
	return after && !before;
}

/* Whether a driver listens to what happens to the slot. */
bool softcard_port_has_listener(struct softcard *card)
{
	return softcard_port_read(card, PORT_EXPRESS + PCI_EXP_SLTCTL, 2) & PCI_EXP_SLTCTL_HPIE;
}

/* The card has been pulled: nothing is in the slot, and the link is down. */
void softcard_port_link_down(struct softcard *card)
{
	struct softcard_port *port = &card->port;
	unsigned long flags;

	raw_spin_lock_irqsave(&port->lock, flags);
	*softcard_port_half(port, PORT_EXPRESS + PCI_EXP_LNKSTA) = PCI_EXP_LNKSTA_SLC;
	*softcard_port_half(port, PORT_EXPRESS + PCI_EXP_SLTSTA) =
		PCI_EXP_SLTSTA_PDC | PCI_EXP_SLTSTA_DLLSC;
	softcard_port_update(port);
	raw_spin_unlock_irqrestore(&port->lock, flags);
}

/**
 * softcard_port_error - an error message of a function arrives at the port (section 6.2.4)
 * @function: whose
 * @severity: SOFTCARD_ERROR_*
 */
void softcard_port_error(struct softcard_function *function, unsigned int severity)
{
	struct softcard_port *port = &function->card->port;
	unsigned long flags;
	u32 *status;
	u16 source;
	u16 *id;

	status = softcard_port_word(port, PORT_AER + PCI_ERR_ROOT_STATUS);
	id = softcard_port_half(port, PORT_AER + PCI_ERR_ROOT_ERR_SRC);
	raw_spin_lock_irqsave(&port->lock, flags);
	source = PCI_DEVID(((u8 *)port->config)[PCI_SECONDARY_BUS], PCI_DEVFN(0, function->number));
	if (severity == SOFTCARD_ERROR_CORRECTABLE) {
		if (*status & PCI_ERR_ROOT_COR_RCV)
			*status |= PCI_ERR_ROOT_MULTI_COR_RCV;
		else
			id[0] = source;
		*status |= PCI_ERR_ROOT_COR_RCV;
	} else {
		bool fatal = severity == SOFTCARD_ERROR_FATAL;

		if (*status & PCI_ERR_ROOT_UNCOR_RCV) {
			*status |= PCI_ERR_ROOT_MULTI_UNCOR_RCV;
		} else {
			id[1] = source;
			*status |= fatal ? PCI_ERR_ROOT_FIRST_FATAL : 0;
		}
		*status |= PCI_ERR_ROOT_UNCOR_RCV |
			   (fatal ? PCI_ERR_ROOT_FATAL_RCV : PCI_ERR_ROOT_NONFATAL_RCV);
	}
	softcard_port_update(port);
	raw_spin_unlock_irqrestore(&port->lock, flags);
}
