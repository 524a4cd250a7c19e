// SPDX-License-Identifier: GPL-2.0-only
/*
 * Does for a test what a driver does: counts interrupts of each kind, and accesses a BAR with
 * every accessor that the kernel has for blocks. The test asks through debugfs:
 *
 * counts     interrupts of each vector since the driver was bound, a line each
 * kind       MSI-X, MSI or INTx
 * ring       write N: have the card signal N interrupts, round its vectors
 * blocks     copies to and from the memory in BAR 2; what went wrong, or "fine"
 * stuck      what a read gives that the card does not answer
 * broken     what a read gives whose handler raises
 */

#include <linux/debugfs.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/seq_file.h>
#include <linux/slab.h>

#define REG_CAUSE	0x00	/* a bit for each vector that was signalled; write 1 to clear */
#define REG_RING	0x04	/* signals as many interrupts as are written */
#define REG_STUCK	0x08	/* a read is not answered */
#define REG_BROKEN	0x0c	/* a read raises in the card */
#define REG_FAREWELL	0x10	/* written when the driver lets go */
#define MAX_VECTORS	8
#define BLOCK		4096

static char *kind = "msix";
module_param(kind, charp, 0444);
MODULE_PARM_DESC(kind, "msix, msi or intx");

/**
 * struct probe - the one card
 * @pdev: its PCI device
 * @regs: BAR 0, @memory: BAR 2
 * @folder: our debugfs folder
 * @vectors: how many there are
 * @counts: interrupts of each; written by its handler only
 */
struct probe {
	struct pci_dev *pdev;
	void __iomem *regs;
	void __iomem *memory;
	struct dentry *folder;
	int vectors;
	struct vector {
		struct probe *probe;
		unsigned int count;
	} counts[MAX_VECTORS];
};

static irqreturn_t probe_message(int irq, void *data)
{
	struct vector *vector = data;

	vector->count++;
	return IRQ_HANDLED;
}

static irqreturn_t probe_line(int irq, void *data)
{
	struct vector *vector = data;
	u32 cause = ioread32(vector->probe->regs + REG_CAUSE);

	if (!cause)
		return IRQ_NONE;
	iowrite32(cause, vector->probe->regs + REG_CAUSE);
	vector->count++;
	return IRQ_HANDLED;
}

static int counts_show(struct seq_file *file, void *unused)
{
	struct probe *probe = file->private;
	int i;

	for (i = 0; i < probe->vectors; i++)
		seq_printf(file, "%u\n", probe->counts[i].count);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(counts);

static int kind_show(struct seq_file *file, void *unused)
{
	struct probe *probe = file->private;

	seq_puts(file, probe->pdev->msix_enabled ? "MSI-X\n" :
		       probe->pdev->msi_enabled ? "MSI\n" : "INTx\n");
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(kind);

static int ring_set(void *data, u64 value)
{
	struct probe *probe = data;

	iowrite32(value, probe->regs + REG_RING);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(ring_fops, NULL, ring_set, "%llu\n");

/* Fill with what differs in every byte, and in every run. */
static void pattern(u8 *buffer, size_t size, int seed)
{
	size_t i;

	for (i = 0; i < size; i++)
		buffer[i] = (i * 7 + (i >> 8) + seed) & 0xff;
}

static bool try_block(struct probe *probe, u8 *ours, u8 *theirs, size_t at, size_t size)
{
	pattern(ours, size, at + size);
	memset_io(probe->memory, 0xee, BLOCK);
	memcpy_toio(probe->memory + at, ours, size);
	memcpy_fromio(theirs, probe->memory, BLOCK);
	if (memcmp(theirs + at, ours, size))
		return false;
	if (at && memchr_inv(theirs, 0xee, at))
		return false;
	return !memchr_inv(theirs + at + size, 0xee, BLOCK - at - size);
}

static int blocks_show(struct seq_file *file, void *unused)
{
	static const size_t sizes[] = { 1, 2, 3, 4, 7, 8, 9, 16, 31, 64, 255, 256, 1000, 2048 };
	struct probe *probe = file->private;
	u8 *ours = kmalloc(BLOCK, GFP_KERNEL), *theirs = kmalloc(BLOCK, GFP_KERNEL);
	size_t at, i;

	if (!ours || !theirs)
		goto out;
	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		for (at = 0; at < 9; at++) {
			if (!try_block(probe, ours, theirs, at, sizes[i])) {
				seq_printf(file, "%zu bytes at %zu differ\n", sizes[i], at);
				goto out;
			}
		}
	}
	seq_puts(file, "fine\n");
out:
	kfree(ours);
	kfree(theirs);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(blocks);

static int stuck_show(struct seq_file *file, void *unused)
{
	struct probe *probe = file->private;

	seq_printf(file, "%#x\n", ioread32(probe->regs + REG_STUCK));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(stuck);

static int broken_show(struct seq_file *file, void *unused)
{
	struct probe *probe = file->private;

	seq_printf(file, "%#x\n", ioread32(probe->regs + REG_BROKEN));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(broken);

/* Its name before 6.8. */
#ifndef PCI_IRQ_INTX
#define PCI_IRQ_INTX PCI_IRQ_LEGACY
#endif

static unsigned int wanted_kind(void)
{
	if (!strcmp(kind, "msix"))
		return PCI_IRQ_MSIX;
	return !strcmp(kind, "msi") ? PCI_IRQ_MSI : PCI_IRQ_INTX;
}

static void probe_free_irqs(struct probe *probe, int count)
{
	while (count--)
		free_irq(pci_irq_vector(probe->pdev, count), &probe->counts[count]);
	pci_free_irq_vectors(probe->pdev);
}

static int probe_request_irqs(struct probe *probe)
{
	unsigned int type = wanted_kind();
	int err, i;

	probe->vectors = pci_alloc_irq_vectors(probe->pdev, 1, MAX_VECTORS, type);
	if (probe->vectors < 0)
		return probe->vectors;
	for (i = 0; i < probe->vectors; i++) {
		probe->counts[i].probe = probe;
		err = request_irq(pci_irq_vector(probe->pdev, i),
				  type == PCI_IRQ_INTX ? probe_line : probe_message,
				  type == PCI_IRQ_INTX ? IRQF_SHARED : 0,
				  KBUILD_MODNAME, &probe->counts[i]);
		if (err) {
			probe_free_irqs(probe, i);
			return err;
		}
	}
	return 0;
}

static int probe_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct probe *probe;
	int err;

	probe = devm_kzalloc(&pdev->dev, sizeof(*probe), GFP_KERNEL);
	if (!probe)
		return -ENOMEM;
	probe->pdev = pdev;
	pci_set_drvdata(pdev, probe);
	err = pcim_enable_device(pdev);
	if (err)
		return err;
	probe->regs = pcim_iomap(pdev, 0, 0);
	if (!probe->regs)
		return -ENOMEM;
	probe->memory = pcim_iomap(pdev, 2, 0);
	if (!probe->memory)
		return -ENOMEM;
	pci_set_master(pdev);
	err = probe_request_irqs(probe);
	if (err)
		return err;
	probe->folder = debugfs_create_dir(KBUILD_MODNAME, NULL);
	debugfs_create_file("counts", 0400, probe->folder, probe, &counts_fops);
	debugfs_create_file("kind", 0400, probe->folder, probe, &kind_fops);
	debugfs_create_file("blocks", 0400, probe->folder, probe, &blocks_fops);
	debugfs_create_file("stuck", 0400, probe->folder, probe, &stuck_fops);
	debugfs_create_file("broken", 0400, probe->folder, probe, &broken_fops);
	debugfs_create_file("ring", 0200, probe->folder, probe, &ring_fops);
	return 0;
}

static void probe_remove(struct pci_dev *pdev)
{
	struct probe *probe = pci_get_drvdata(pdev);

	debugfs_remove_recursive(probe->folder);
	probe_free_irqs(probe, probe->vectors);
	/* A card that is still there sees this; a write to one that is not goes nowhere. */
	iowrite32(1, probe->regs + REG_FAREWELL);
}

static const struct pci_device_id probe_ids[] = {
	{ PCI_DEVICE(0x1ded, 0x0f00) },
	{ }
};
MODULE_DEVICE_TABLE(pci, probe_ids);

static struct pci_driver probe_driver = {
	.name = KBUILD_MODNAME,
	.id_table = probe_ids,
	.probe = probe_probe,
	.remove = probe_remove,
};
module_pci_driver(probe_driver);

MODULE_DESCRIPTION("What a test of softcard needs of a driver");
MODULE_LICENSE("GPL");
