// SPDX-License-Identifier: GPL-2.0-only
/*
 * Maps memory for a card's DMA, one piece or list at a time, as the test asks through debugfs:
 *
 * command	write "single DIRECTION SIZE": memory of kmalloc(), "list DIRECTION PAGES": one by
 *		one, "coherent 0 SIZE", or "unmap 0 0", after which the memory is still there. A
 *		direction is that of enum dma_data_direction.
 * where	bus address and length of each piece, a line each
 * data		the memory's content, to be read and written
 */
#include <linux/debugfs.h>
#include <linux/dma-mapping.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/scatterlist.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#define MAX_PAGES	8192

enum kind { NONE, SINGLE, LIST, COHERENT };

static struct pci_dev *device;
static struct dentry *folder;
static enum kind kind;
static enum dma_data_direction direction;
static bool mapped;
static size_t size;
static void *memory;
static dma_addr_t address;
static struct sg_table table;

static void unmap(void)
{
	if (!mapped)
		return;
	if (kind == SINGLE)
		dma_unmap_single(&device->dev, address, size, direction);
	else if (kind == LIST)
		dma_unmap_sgtable(&device->dev, &table, direction, 0);
	else
		dma_free_coherent(&device->dev, size, memory, address);
	mapped = false;
}

static void forget(void)
{
	unmap();
	if (kind == SINGLE)
		kfree(memory);
	if (kind == LIST) {
		sg_free_table(&table);
		vfree(memory);
	}
	kind = NONE;
}

static int map_single(void)
{
	memory = kzalloc(size, GFP_KERNEL);
	if (!memory)
		return -ENOMEM;
	kind = SINGLE;
	address = dma_map_single(&device->dev, memory, size, direction);
	return dma_mapping_error(&device->dev, address);
}

/* vmalloc() takes page by page. */
static int map_list(unsigned int pages)
{
	struct scatterlist *sg;
	unsigned int i;
	int err;

	size = pages * PAGE_SIZE;
	memory = vzalloc(size);
	if (!memory)
		return -ENOMEM;
	err = sg_alloc_table(&table, pages, GFP_KERNEL);
	if (err) {
		vfree(memory);
		return err;
	}
	kind = LIST;
	for_each_sg(table.sgl, sg, pages, i)
		sg_set_page(sg, vmalloc_to_page(memory + i * PAGE_SIZE), PAGE_SIZE, 0);
	return dma_map_sgtable(&device->dev, &table, direction, 0);
}

static int map_coherent(void)
{
	memory = dma_alloc_coherent(&device->dev, size, &address, GFP_KERNEL);
	if (!memory)
		return -ENOMEM;
	kind = COHERENT;
	return 0;
}

static ssize_t command_write(struct file *file, const char __user *from, size_t count, loff_t *at)
{
	char words[64] = {}, what[16];
	unsigned int number;
	int err;

	if (count >= sizeof(words) || copy_from_user(words, from, count) ||
	    sscanf(words, "%15s %d %u", what, &err, &number) != 3)
		return -EINVAL;
	if (!strcmp(what, "unmap")) {
		unmap();
		return count;
	}
	forget();
	direction = err;
	size = number;
	if (!strcmp(what, "single"))
		err = map_single();
	else if (!strcmp(what, "list"))
		err = number && number <= MAX_PAGES ? map_list(number) : -EINVAL;
	else
		err = map_coherent();
	mapped = !err;
	return err ?: count;
}

static const struct file_operations command_fops = {
	.owner = THIS_MODULE,
	.write = command_write,
};

static int where_show(struct seq_file *file, void *data)
{
	struct scatterlist *sg;
	int i;

	if (kind == LIST)
		for_each_sgtable_dma_sg(&table, sg, i)
			seq_printf(file, "%#llx %u\n", sg_dma_address(sg), sg_dma_len(sg));
	else
		seq_printf(file, "%#llx %zu\n", address, size);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(where);

static ssize_t data_read(struct file *file, char __user *to, size_t count, loff_t *at)
{
	char byte;
	size_t i;

	count = min_t(size_t, count, size > *at ? size - *at : 0);
	for (i = 0; i < count; i++) {
		byte = ((char *)memory)[*at + i];
		if (put_user(byte, to + i))
			return -EFAULT;
	}
	*at += count;
	return count;
}

static ssize_t data_write(struct file *file, const char __user *from, size_t count, loff_t *at)
{
	char byte;
	size_t i;

	count = min_t(size_t, count, size > *at ? size - *at : 0);
	for (i = 0; i < count; i++) {
		if (get_user(byte, from + i))
			return -EFAULT;
		((char *)memory)[*at + i] = byte;
	}
	*at += count;
	return count ?: -ENOSPC;
}

static const struct file_operations data_fops = {
	.owner = THIS_MODULE,
	.read = data_read,
	.write = data_write,
	.llseek = default_llseek,
};

static int dma_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	int err = pcim_enable_device(pdev);

	if (!err)
		err = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64));
	if (err)
		return err;
	pci_set_master(pdev);
	dma_set_max_seg_size(&pdev->dev, UINT_MAX);
	device = pdev;
	folder = debugfs_create_dir(KBUILD_MODNAME, NULL);
	debugfs_create_file("command", 0200, folder, NULL, &command_fops);
	debugfs_create_file("where", 0400, folder, NULL, &where_fops);
	debugfs_create_file("data", 0600, folder, NULL, &data_fops);
	return 0;
}

static void dma_remove(struct pci_dev *pdev)
{
	debugfs_remove(folder);
	forget();
}

static const struct pci_device_id dma_ids[] = {
	{ PCI_DEVICE(0x1ded, 0x0d0a) },
	{ }
};

static struct pci_driver dma_driver = {
	.name = KBUILD_MODNAME,
	.id_table = dma_ids,
	.probe = dma_probe,
	.remove = dma_remove,
};
module_pci_driver(dma_driver);
MODULE_DESCRIPTION("Maps memory for the DMA of a softcard");
MODULE_LICENSE("GPL");
