// SPDX-License-Identifier: GPL-2.0-only
/* A driver that leaves everything to a program: BAR 0 through uio. */
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/uio_driver.h>

static int uio_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct uio_info *info;
	int err = pcim_enable_device(pdev);

	if (err)
		return err;
	info = devm_kzalloc(&pdev->dev, sizeof(*info), GFP_KERNEL);
	if (!info)
		return -ENOMEM;
	info->name = KBUILD_MODNAME;
	info->version = "1";
	info->irq = UIO_IRQ_NONE;
	info->mem[0].memtype = UIO_MEM_PHYS;
	info->mem[0].addr = pci_resource_start(pdev, 0);
	info->mem[0].size = pci_resource_len(pdev, 0);
	return devm_uio_register_device(&pdev->dev, info);
}

static const struct pci_device_id uio_ids[] = {
	{ PCI_DEVICE(0x1ded, 0x0f20) },
	{ }
};

static struct pci_driver uio_driver = {
	.name = KBUILD_MODNAME,
	.id_table = uio_ids,
	.probe = uio_probe,
};
module_pci_driver(uio_driver);
MODULE_DESCRIPTION("Leaves a softcard to a program");
MODULE_LICENSE("GPL");
