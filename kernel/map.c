// SPDX-License-Identifier: GPL-2.0-only
/*
 * BARs that programs have mapped: through resourceN of sysfs, uio, or whatever else has the kernel
 * put a BAR into an address space.
 *
 * Such a mapping has no pages. An access faults, and is made here, in the place of the instruction
 * that wanted it; so it may wait for the card's answer. Where the card has plain memory, that is
 * put there instead, and nothing faults any more.
 */
#include <linux/fs.h>
#include <linux/kprobes.h>
#include <linux/magic.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/ptrace.h>
#include <linux/sched/task_stack.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#include "softcard.h"
#include "insn.h"

/* What a mapping has at an address. */
static phys_addr_t softcard_mapped(const struct vm_area_struct *vma, unsigned long address)
{
	return ((phys_addr_t)vma->vm_pgoff << PAGE_SHIFT) + address - vma->vm_start;
}

/* Keeps the card, which the caller has to put; NULL where no card is there any more. */
static struct softcard_function *softcard_get_bar(phys_addr_t phys, unsigned int *bar, u64 *offset)
{
	struct softcard_function *function;

	rcu_read_lock();
	function = softcard_find_bar(phys, bar, offset);
	if (function && !softcard_tryget(function->card))
		function = NULL;
	rcu_read_unlock();
	return function;
}

/* Whether the page is plain memory of the card, which is there now. */
static bool softcard_insert_memory(struct vm_fault *vmf)
{
	unsigned long address = vmf->address & PAGE_MASK;
	struct softcard_function *function;
	struct page *page;
	unsigned int bar;
	u64 offset;
	int err;

	function = softcard_get_bar(softcard_mapped(vmf->vma, address), &bar, &offset);
	if (!function)
		return false;
	page = softcard_bar_page(function, bar, offset);
	/* Not every page may be mapped: a program's private one may not, nor part of a huge one. */
	err = page && !PageHuge(page) ? vm_insert_page(vmf->vma, address, page) : -EINVAL;
	softcard_put(function->card);
	/* Another thread may have been quicker. */
	return !err || err == -EBUSY;
}

static bool softcard_user_text(unsigned long ip, u8 *text)
{
	unsigned int i;

	memset(text, 0, SOFTCARD_INSN_MAX);
	if (!copy_from_user_nofault(text, (void __user *)ip, SOFTCARD_INSN_MAX))
		return true;
	for (i = 0; i < SOFTCARD_INSN_MAX; i++)
		if (copy_from_user_nofault(text + i, (void __user *)(ip + i), 1))
			break;
	return i;
}

/* Makes the access that the program's next instruction is about. */
static vm_fault_t softcard_emulate(struct vm_fault *vmf)
{
	struct pt_regs *regs = task_pt_regs(current);
	unsigned long page = vmf->address & PAGE_MASK;
	struct softcard_function *function;
	u8 text[SOFTCARD_INSN_MAX];
	struct softcard_insn insn;
	u64 offset, value = 0;
	unsigned int bar;

	/* Not a system call that was given this memory. */
	if (!(vmf->flags & FAULT_FLAG_USER) || !user_64bit_mode(regs))
		return VM_FAULT_SIGBUS;
	if (!softcard_user_text(regs->ip, text) || !softcard_decode(regs, text, &insn) ||
	    !softcard_has_one_operand(&insn)) {
		pr_warn_ratelimited("softcard: %s[%d] accesses a BAR at %#lx by an instruction that can only access memory (%*ph)\n",
				    current->comm, task_pid_nr(current), vmf->address, 8, text);
		return VM_FAULT_SIGBUS;
	}
	if (insn.address - page >= PAGE_SIZE || insn.size > page + PAGE_SIZE - insn.address)
		return VM_FAULT_SIGBUS;
	function = softcard_get_bar(softcard_mapped(vmf->vma, insn.address), &bar, &offset);
	if (!function)
		return VM_FAULT_SIGBUS;
	if (softcard_reads(&insn))
		value = softcard_bar_read(function, bar, offset, insn.size);
	if (softcard_apply(regs, &insn, &value))
		softcard_bar_write(function, bar, offset, insn.size, value);
	regs->ip += insn.length;
	softcard_put(function->card);
	return VM_FAULT_NOPAGE;
}

static vm_fault_t softcard_fault(struct vm_fault *vmf)
{
	return softcard_insert_memory(vmf) ? VM_FAULT_NOPAGE : softcard_emulate(vmf);
}

static void softcard_opened(struct vm_area_struct *vma)
{
	__module_get(THIS_MODULE);
}

static void softcard_closed(struct vm_area_struct *vma)
{
	module_put(THIS_MODULE);
}

static const struct vm_operations_struct softcard_vm_ops = {
	.open = softcard_opened,
	.close = softcard_closed,
	.fault = softcard_fault,
};

/* sysfs wraps these, takes none that has .close, and makes no call when the device has gone. */
static const struct vm_operations_struct softcard_sysfs_vm_ops = {
	.fault = softcard_fault,
};

/* In place of remap_pfn_range(), where that is about a BAR. */
static int softcard_remap(struct vm_area_struct *vma, unsigned long address, unsigned long pfn,
			  unsigned long size, pgprot_t prot)
{
	vm_flags_t flags = VM_IO | VM_MIXEDMAP | VM_DONTEXPAND | VM_DONTDUMP;

	/* What is written to a private mapping would stay in it. */
	if ((vma->vm_flags & (VM_SHARED | VM_MAYWRITE)) == VM_MAYWRITE)
		return -EINVAL;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_set(vma, flags);
#else
	vma->vm_flags |= flags;
#endif
	/* It is memory that is put there, and not a device. */
	vma->vm_page_prot = vm_get_page_prot(vma->vm_flags);
	vma->vm_pgoff = pfn - ((address - vma->vm_start) >> PAGE_SHIFT);
	if (file_inode(vma->vm_file)->i_sb->s_magic == SYSFS_MAGIC) {
		vma->vm_ops = &softcard_sysfs_vm_ops;
	} else {
		vma->vm_ops = &softcard_vm_ops;
		__module_get(THIS_MODULE);
	}
	return 0;
}

static int softcard_remap_entered(struct kprobe *probe, struct pt_regs *regs)
{
	if (!softcard_owns(PFN_PHYS(regs->dx)))
		return 0;
	regs->ip = (unsigned long)softcard_remap;
	return 1;
}

/* A probe that has something to do afterwards is never made a mere jump, which would return. */
static void softcard_stay(struct kprobe *probe, struct pt_regs *regs, unsigned long flags)
{
}

static struct kprobe softcard_remap_probe = {
	.symbol_name = "remap_pfn_range",
	.pre_handler = softcard_remap_entered,
	.post_handler = softcard_stay,
};

/* A BAR has no pages that drivers could give to others, as nvme does with a controller's memory. */
static void *softcard_no_pages(struct dev_pagemap *map, int node)
{
	return ERR_PTR(-EOPNOTSUPP);
}

static int softcard_pages_entered(struct kprobe *probe, struct pt_regs *regs)
{
	const struct dev_pagemap *map = (const struct dev_pagemap *)regs->di;

	if (!softcard_owns(map->range.start))
		return 0;
	regs->ip = (unsigned long)softcard_no_pages;
	return 1;
}

static struct kprobe softcard_pages_probe = {
	.symbol_name = "memremap_pages",
	.pre_handler = softcard_pages_entered,
	.post_handler = softcard_stay,
};

int softcard_map_init(void)
{
	int err = register_kprobe(&softcard_remap_probe);

	if (err) {
		pr_err("softcard: remap_pfn_range() cannot be probed\n");
		return err;
	}
	if (IS_ENABLED(CONFIG_ZONE_DEVICE)) {
		err = register_kprobe(&softcard_pages_probe);
		if (err) {
			pr_err("softcard: memremap_pages() cannot be probed\n");
			unregister_kprobe(&softcard_remap_probe);
		}
	}
	return err;
}

void softcard_map_exit(void)
{
	if (IS_ENABLED(CONFIG_ZONE_DEVICE))
		unregister_kprobe(&softcard_pages_probe);
	unregister_kprobe(&softcard_remap_probe);
}
