// SPDX-License-Identifier: GPL-2.0-only
/*
 * Counts interrupts by MSI-X vector, and masks the vectors in the table meanwhile. The test asks
 * through debugfs:
 *
 * counts	interrupts of each vector since the last time, a line each
 * flip		write N: N times, mask every vector and let it pass again
 * work		write N: handlers take N microseconds
 */
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/seq_file.h>

#define TABLE		0x800
#define VECTORS		8

static void __iomem *regs;
static struct dentry *folder;
static atomic_t counted[VECTORS];
static u32 work;

static irqreturn_t count_interrupt(int irq, void *data)
{
	atomic_inc((atomic_t *)data);
	if (work)
		udelay(work);
	return IRQ_HANDLED;
}

static int counts_show(struct seq_file *file, void *data)
{
	int i;

	for (i = 0; i < VECTORS; i++)
		seq_printf(file, "%d\n", atomic_read(&counted[i]));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(counts);

static void count_mask(bool masked)
{
	int i;

	for (i = 0; i < VECTORS; i++)
		writel(masked ? PCI_MSIX_ENTRY_CTRL_MASKBIT : 0,
		       regs + TABLE + i * PCI_MSIX_ENTRY_SIZE + PCI_MSIX_ENTRY_VECTOR_CTRL);
}

static int flip_set(void *data, u64 count)
{
	for (; count; count--) {
		count_mask(true);
		cond_resched();
		count_mask(false);
		cond_resched();
	}
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(flip_fops, NULL, flip_set, "%llu\n");

static void count_free(void *data)
{
	struct pci_dev *pdev = data;

	pci_free_irq_vectors(pdev);
}

static int count_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	int err, i;

	err = pcim_enable_device(pdev);
	if (err)
		return err;
	regs = pcim_iomap(pdev, 0, 0);
	if (!regs)
		return -ENOMEM;
	pci_set_master(pdev);
	err = pci_alloc_irq_vectors(pdev, VECTORS, VECTORS, PCI_IRQ_MSIX);
	if (err < 0)
		return err;
	err = devm_add_action_or_reset(&pdev->dev, count_free, pdev);
	for (i = 0; !err && i < VECTORS; i++) {
		atomic_set(&counted[i], 0);
		err = devm_request_irq(&pdev->dev, pci_irq_vector(pdev, i), count_interrupt, 0,
				       KBUILD_MODNAME, &counted[i]);
	}
	if (err)
		return err;
	folder = debugfs_create_dir(KBUILD_MODNAME, NULL);
	debugfs_create_file("counts", 0400, folder, NULL, &counts_fops);
	debugfs_create_file_unsafe("flip", 0200, folder, NULL, &flip_fops);
	debugfs_create_u32("work", 0600, folder, &work);
	return 0;
}

static void count_remove(struct pci_dev *pdev)
{
	debugfs_remove(folder);
}

static const struct pci_device_id count_ids[] = {
	{ PCI_DEVICE(0x1ded, 0xf022) },
	{ }
};

static struct pci_driver count_driver = {
	.name = KBUILD_MODNAME,
	.id_table = count_ids,
	.probe = count_probe,
	.remove = count_remove,
};
module_pci_driver(count_driver);
MODULE_DESCRIPTION("Counts interrupts of a softcard");
MODULE_LICENSE("GPL");
