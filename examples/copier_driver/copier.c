// SPDX-License-Identifier: GPL-2.0-only
/*
 * The driver of the tutorial's copier: what is written to /dev/copier is copied by the card, and
 * what the card has made of it is read back.
 */

#include <linux/completion.h>
#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/uaccess.h>

#define IDENTIFICATION		0x00
#define IDENTITY		0xc0b1e001
#define CONTROL			0x04
#define CONTROL_START		BIT(0)
#define CONTROL_INTERRUPT	BIT(1)
#define STATUS			0x08
#define STATUS_DONE		BIT(0)
#define STATUS_ERROR		BIT(1)
#define SOURCE			0x10
#define DESTINATION		0x18
#define LENGTH			0x20

struct copier {
	struct miscdevice misc;
	void __iomem *registers;
	struct completion done;
	struct mutex lock;	/* one copy at a time, and the buffers */
	dma_addr_t source, destination;
	char *from, *to;
	size_t length;
	u32 status;
};

static irqreturn_t copier_interrupt(int irq, void *data)
{
	struct copier *copier = data;
	u32 status = readl(copier->registers + STATUS);

	if (!(status & STATUS_DONE))
		return IRQ_NONE;
	writel(status, copier->registers + STATUS);
	copier->status = status;
	complete(&copier->done);
	return IRQ_HANDLED;
}

static ssize_t copier_write(struct file *file, const char __user *data, size_t count,
			    loff_t *position)
{
	struct copier *copier = container_of(file->private_data, struct copier, misc);
	ssize_t ret = 0;

	mutex_lock(&copier->lock);
	count = min_t(size_t, count, PAGE_SIZE);
	if (copy_from_user(copier->from, data, count)) {
		ret = -EFAULT;
		goto unlock;
	}
	copier->length = 0;
	reinit_completion(&copier->done);
	writeq(copier->source, copier->registers + SOURCE);
	writeq(copier->destination, copier->registers + DESTINATION);
	writel(count, copier->registers + LENGTH);
	writel(CONTROL_START | CONTROL_INTERRUPT, copier->registers + CONTROL);
	if (!wait_for_completion_timeout(&copier->done, 5 * HZ))
		ret = -ETIMEDOUT;
	else if (copier->status & STATUS_ERROR)
		ret = -EIO;
	if (!ret)
		copier->length = count;
unlock:
	mutex_unlock(&copier->lock);
	return ret ?: count;
}

static ssize_t copier_read(struct file *file, char __user *data, size_t count, loff_t *position)
{
	struct copier *copier = container_of(file->private_data, struct copier, misc);
	ssize_t ret;

	mutex_lock(&copier->lock);
	ret = simple_read_from_buffer(data, count, position, copier->to, copier->length);
	mutex_unlock(&copier->lock);
	return ret;
}

static const struct file_operations copier_operations = {
	.owner = THIS_MODULE,
	.read = copier_read,
	.write = copier_write,
};

static int copier_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct device *dev = &pdev->dev;
	struct copier *copier;
	int ret;

	copier = devm_kzalloc(dev, sizeof(*copier), GFP_KERNEL);
	if (!copier)
		return -ENOMEM;
	init_completion(&copier->done);
	mutex_init(&copier->lock);
	pci_set_drvdata(pdev, copier);

	ret = pcim_enable_device(pdev);
	if (ret)
		return ret;
	copier->registers = pcim_iomap_region(pdev, 0, KBUILD_MODNAME);
	if (IS_ERR(copier->registers))
		return PTR_ERR(copier->registers);
	if (readl(copier->registers + IDENTIFICATION) != IDENTITY)
		return dev_err_probe(dev, -ENODEV, "this is no copier\n");

	ret = dma_set_mask_and_coherent(dev, DMA_BIT_MASK(64));
	if (ret)
		return ret;
	copier->from = dmam_alloc_coherent(dev, PAGE_SIZE, &copier->source, GFP_KERNEL);
	copier->to = dmam_alloc_coherent(dev, PAGE_SIZE, &copier->destination, GFP_KERNEL);
	if (!copier->from || !copier->to)
		return -ENOMEM;
	pci_set_master(pdev);

	ret = pci_alloc_irq_vectors(pdev, 1, 1, PCI_IRQ_MSI);
	if (ret < 0)
		return ret;
	ret = request_irq(pci_irq_vector(pdev, 0), copier_interrupt, 0, KBUILD_MODNAME, copier);
	if (ret)
		goto free_vectors;
	copier->misc.minor = MISC_DYNAMIC_MINOR;
	copier->misc.name = "copier";
	copier->misc.fops = &copier_operations;
	ret = misc_register(&copier->misc);
	if (ret)
		goto free_irq;
	return 0;

free_irq:
	free_irq(pci_irq_vector(pdev, 0), copier);
free_vectors:
	pci_free_irq_vectors(pdev);
	return ret;
}

static void copier_remove(struct pci_dev *pdev)
{
	struct copier *copier = pci_get_drvdata(pdev);

	misc_deregister(&copier->misc);
	free_irq(pci_irq_vector(pdev, 0), copier);
	pci_free_irq_vectors(pdev);
}

static const struct pci_device_id copier_ids[] = {
	{ PCI_DEVICE(0x1ded, 0xc0b1) },
	{ }
};
MODULE_DEVICE_TABLE(pci, copier_ids);

static struct pci_driver copier_driver = {
	.name = KBUILD_MODNAME,
	.id_table = copier_ids,
	.probe = copier_probe,
	.remove = copier_remove,
};
module_pci_driver(copier_driver);

MODULE_DESCRIPTION("Driver of the card that softcard's tutorial writes");
MODULE_LICENSE("GPL");
