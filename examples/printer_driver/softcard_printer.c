// SPDX-License-Identifier: GPL-2.0-only
/*
 * The driver of softcard's printer card: what is written to the file "message" of its PCI device
 * in sysfs goes to the card's one register.
 *
 *	echo 0xdeadbeef > /sys/bus/pci/devices/0000:00:00.0/message
 */

#include <linux/io.h>
#include <linux/module.h>
#include <linux/pci.h>

#define MESSAGE 0x00

static ssize_t message_store(struct device *dev, struct device_attribute *attr, const char *buf,
			     size_t count)
{
	void __iomem *registers = dev_get_drvdata(dev);
	u32 value;
	int ret;

	ret = kstrtou32(buf, 0, &value);
	if (ret)
		return ret;
	writel(value, registers + MESSAGE);
	return count;
}
static DEVICE_ATTR_WO(message);

static struct attribute *printer_attrs[] = {
	&dev_attr_message.attr,
	NULL
};
ATTRIBUTE_GROUPS(printer);

static int printer_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	void __iomem *registers;
	int ret;

	ret = pcim_enable_device(pdev);
	if (ret)
		return ret;
	registers = pcim_iomap(pdev, 0, 0);
	if (!registers)
		return -ENOMEM;
	pci_set_drvdata(pdev, registers);
	return 0;
}

static const struct pci_device_id printer_ids[] = {
	{ PCI_DEVICE(0x1ded, 0x0001) },
	{ }
};
MODULE_DEVICE_TABLE(pci, printer_ids);

static struct pci_driver printer_driver = {
	.name = KBUILD_MODNAME,
	.id_table = printer_ids,
	.probe = printer_probe,
	.dev_groups = printer_groups,
};
module_pci_driver(printer_driver);

MODULE_DESCRIPTION("Driver of softcard's printer card");
MODULE_LICENSE("GPL");
