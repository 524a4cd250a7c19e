// SPDX-License-Identifier: GPL-2.0-only
/* /dev/softcard. */
#include <linux/anon_inodes.h>
#include <linux/capability.h>
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <linux/vmalloc.h>

#include "softcard.h"

#define SEGMENTS_AT_ONCE	16
#define MAX_LINK_WIDTH		32

static struct softcard_function *softcard_function_of(struct softcard *card, u32 number)
{
	return number < card->function_count ? card->function[number] : NULL;
}

static bool softcard_bar_has(const struct softcard_function_info *info, unsigned int bar,
			     u64 offset, u64 size)
{
	return bar < SOFTCARD_BARS && offset <= info->bar_size[bar] &&
	       size <= info->bar_size[bar] - offset;
}

static bool softcard_info_is_valid(const struct softcard_function_info *info)
{
	unsigned int i;

	if (info->flags || info->reserved0 ||
	    memchr_inv(info->reserved1, 0, sizeof(info->reserved1)) ||
	    memchr_inv(info->reserved, 0, sizeof(info->reserved)) ||
	    info->express_capability > SOFTCARD_CONFIG_SIZE - PCI_CAP_EXP_ENDPOINT_SIZEOF_V2 ||
	    info->power_capability > SOFTCARD_CONFIG_SIZE - PCI_PM_SIZEOF)
		return false;
	for (i = 0; i < SOFTCARD_BARS; i++) {
		u64 size = info->bar_size[i];

		if (size && (size < 16 || size > SOFTCARD_MAX_BAR || !is_power_of_2(size)))
			return false;
	}
	if (info->msix_vectors) {
		u64 table = (u64)info->msix_vectors * PCI_MSIX_ENTRY_SIZE;
		u64 pba = BITS_TO_LONGS(info->msix_vectors) * sizeof(long);

		if (info->msix_vectors > SOFTCARD_VECTORS ||
		    info->msix_capability < PCI_STD_HEADER_SIZEOF ||
		    info->msix_capability > SOFTCARD_CONFIG_SIZE - 12 ||
		    info->msix_table_offset % 8 || info->msix_pba_offset % 8 ||
		    !softcard_bar_has(info, info->msix_table_bar, info->msix_table_offset, table) ||
		    !softcard_bar_has(info, info->msix_pba_bar, info->msix_pba_offset, pba))
			return false;
	} else if (info->msix_capability || info->msix_table_bar || info->msix_pba_bar ||
		   info->msix_table_offset || info->msix_pba_offset) {
		return false;
	}
	if (info->msi_vectors > SOFTCARD_MSI_VECTORS ||
	    info->msi_capability > SOFTCARD_CONFIG_SIZE - 24 ||
	    info->msi_mask > SOFTCARD_CONFIG_SIZE - 8 || info->msi_mask % 4)
		return false;
	return info->msi_vectors || (!info->msi_capability && !info->msi_mask);
}

static int softcard_set_function(struct softcard *card, void __user *arg)
{
	struct softcard_function_info info;
	struct softcard_function *function;
	int err;

	if (copy_from_user(&info, arg, sizeof(info)))
		return -EFAULT;
	function = softcard_function_of(card, info.function);
	if (!function || !softcard_info_is_valid(&info))
		return -EINVAL;
	if (card->state != SOFTCARD_NEW || function->present)
		return -EBUSY;
	function->info = info;
	memcpy(function->bar_size, info.bar_size, sizeof(info.bar_size));
	err = softcard_irq_set_function(function);
	if (err)
		return err;
	err = softcard_dma_set_function(function);
	if (err) {
		softcard_irq_free_function(function);
		return err;
	}
	function->present = true;
	return 0;
}

static int softcard_add_range(struct softcard *card, void __user *arg)
{
	struct softcard_memory *memory, *other;
	struct softcard_function *function;
	struct softcard_range range;
	unsigned long pages;
	long pinned;
	int err;

	if (copy_from_user(&range, arg, sizeof(range)))
		return -EFAULT;
	function = softcard_function_of(card, range.function);
	if (!function || range.flags || range.kind > SOFTCARD_RANGE_SHADOW ||
	    memchr_inv(range.reserved, 0, sizeof(range.reserved)) || !range.size ||
	    !IS_ALIGNED(range.offset | range.size | range.memory, PAGE_SIZE) ||
	    !softcard_bar_has(&function->info, range.bar, range.offset, range.size) ||
	    range.size >> PAGE_SHIFT > INT_MAX)
		return -EINVAL;
	if (card->state != SOFTCARD_NEW || !function->present)
		return -EBUSY;
	if (current->mm != card->mm)
		return -EPERM;
	if (function->memory_count >= SOFTCARD_MAX_RANGES)
		return -ENOSPC;
	list_for_each_entry(other, &function->memories, node)
		if (other->bar == range.bar && range.offset < other->offset + other->size &&
		    other->offset < range.offset + range.size)
			return -EEXIST;
	pages = range.size >> PAGE_SHIFT;
	memory = kzalloc(sizeof(*memory), GFP_KERNEL_ACCOUNT);
	if (!memory)
		return -ENOMEM;
	err = account_locked_vm(card->mm, pages, true);
	if (err)
		goto free;
	memory->page = kvcalloc(pages, sizeof(*memory->page), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	err = -ENOMEM;
	if (!memory->page)
		goto uncharge;
	pinned = pin_user_pages_fast(range.memory, pages, FOLL_WRITE | FOLL_LONGTERM,
				     memory->page);
	if (pinned != pages) {
		if (pinned > 0)
			unpin_user_pages(memory->page, pinned);
		err = pinned < 0 ? pinned : -EFAULT;
		goto uncharge;
	}
	card->locked_pages += pages;
	memory->pages = pages;
	memory->bar = range.bar;
	memory->shadow = range.kind == SOFTCARD_RANGE_SHADOW;
	memory->offset = range.offset;
	memory->size = range.size;
	list_add_tail(&memory->node, &function->memories);
	function->memory_count++;
	return 0;

uncharge:
	account_locked_vm(card->mm, pages, false);
	kvfree(memory->page);
free:
	kfree(memory);
	return err;
}

static int softcard_plug_user(struct softcard *card, void __user *arg)
{
	struct softcard_plug plug;
	int err;

	if (copy_from_user(&plug, arg, sizeof(plug)))
		return -EFAULT;
	if (plug.flags || plug.domain || plug.reserved0 ||
	    plug.link_speed > PCI_EXP_LNKCAP_SLS_64_0GB || plug.link_width > MAX_LINK_WIDTH ||
	    memchr_inv(plug.reserved, 0, sizeof(plug.reserved)))
		return -EINVAL;
	/* Whoever could not be told of the domain shall not have plugged in. */
	if (copy_to_user(arg, &plug, sizeof(plug)))
		return -EFAULT;
	err = softcard_plug(card, &plug);
	if (err)
		return err;
	return copy_to_user(arg, &plug, sizeof(plug)) ? -EFAULT : 0;
}

/* Whether there is anything in the ring; if not, the next entry wakes. */
static bool softcard_listen(struct softcard *card)
{
	WRITE_ONCE(card->armed, true);
	/* Pairs with the barrier of softcard_notify(). */
	smp_mb();
	if (READ_ONCE(card->head) == READ_ONCE(card->ring->tail))
		return false;
	WRITE_ONCE(card->armed, false);
	return true;
}

static int softcard_arm(struct softcard *card)
{
	softcard_rescue_set_program(card);
	return softcard_listen(card);
}

static int softcard_wake(struct softcard *card, unsigned long slot)
{
	if (slot >= SOFTCARD_SLOTS)
		return -EINVAL;
	wake_up(&card->slots[slot].wait);
	return 0;
}

static int softcard_interrupt_user(struct softcard *card, void __user *arg)
{
	struct softcard_interrupt interrupt;
	struct softcard_function *function;

	if (copy_from_user(&interrupt, arg, sizeof(interrupt)))
		return -EFAULT;
	function = softcard_function_of(card, interrupt.function);
	if (!function || interrupt.flags)
		return -EINVAL;
	if (READ_ONCE(card->state) == SOFTCARD_NEW || READ_ONCE(card->dead))
		return -ENXIO;
	return softcard_interrupt(function, interrupt.kind, interrupt.vector);
}

static int softcard_send_error(struct softcard *card, void __user *arg)
{
	struct softcard_function *function;
	struct softcard_error error;

	if (copy_from_user(&error, arg, sizeof(error)))
		return -EFAULT;
	function = softcard_function_of(card, error.function);
	if (!function || error.severity > SOFTCARD_ERROR_FATAL || error.reserved)
		return -EINVAL;
	if (READ_ONCE(card->state) == SOFTCARD_NEW || READ_ONCE(card->dead))
		return -ENXIO;
	softcard_port_error(function, error.severity);
	return 0;
}

static int softcard_dma_segments(struct softcard_function *function, struct softcard_dma *dma)
{
	struct softcard_segment __user *from = u64_to_user_ptr(dma->segments);
	struct softcard_segment segments[SEGMENTS_AT_ONCE];
	unsigned int at, i, count;
	int err;

	for (at = 0; at < dma->count; at += count) {
		count = min_t(unsigned int, dma->count - at, SEGMENTS_AT_ONCE);
		if (copy_from_user(segments, from + at, count * sizeof(*segments)))
			return -EFAULT;
		for (i = 0; i < count; i++) {
			struct softcard_segment *segment = &segments[i];
			bool write = segment->flags & SOFTCARD_DMA_WRITE;

			if (segment->flags & ~SOFTCARD_DMA_WRITE)
				return -EINVAL;
			err = softcard_dma_transfer(function, segment->address,
						    u64_to_user_ptr(segment->memory),
						    segment->length, write);
			if (err == -EPERM)
				pr_warn_ratelimited("softcard %x: DMA fault: function %u %s %u bytes at %#llx, which its driver has not mapped for that\n",
						    function->card->domain, function->number,
						    write ? "writes" : "reads", segment->length,
						    segment->address);
			if (err)
				return err;
			dma->done++;
		}
	}
	return 0;
}

static int softcard_dma_user(struct softcard *card, void __user *arg)
{
	struct softcard_function *function;
	struct softcard_dma dma;
	int err;

	if (copy_from_user(&dma, arg, sizeof(dma)))
		return -EFAULT;
	function = softcard_function_of(card, dma.function);
	if (!function || dma.flags || dma.done || dma.count > SOFTCARD_MAX_SEGMENTS ||
	    memchr_inv(dma.reserved, 0, sizeof(dma.reserved)))
		return -EINVAL;
	if (READ_ONCE(card->state) == SOFTCARD_NEW || READ_ONCE(card->dead))
		return -ENXIO;
	err = softcard_dma_segments(function, &dma);
	if (copy_to_user(arg, &dma, sizeof(dma)))
		return -EFAULT;
	return err;
}

/* Eventfds that inject. */

/**
 * struct softcard_injector - an eventfd that injects a vector
 * @node: in the card's list
 * @function: whose vector
 * @kind: SOFTCARD_INTERRUPT_MSIX or SOFTCARD_INTERRUPT_MSI
 * @vector: which
 * @context: the eventfd
 * @wait: hears of each signal
 * @table: how it gets into the eventfd's queue
 */
struct softcard_injector {
	struct list_head node;
	struct softcard_function *function;
	unsigned int kind;
	unsigned int vector;
	struct eventfd_ctx *context;
	wait_queue_entry_t wait;
	poll_table table;
};

static int softcard_injected(wait_queue_entry_t *wait, unsigned int mode, int sync, void *key)
{
	struct softcard_injector *injector = container_of(wait, struct softcard_injector, wait);
	__u64 count;

	if (!(key_to_poll(key) & EPOLLIN))
		return 0;
	/* With the lock of the eventfd's queue held, so that each signal comes here by itself. */
	eventfd_ctx_do_read(injector->context, &count);
	softcard_interrupt(injector->function, injector->kind, injector->vector);
	return 0;
}

static void softcard_queue_injector(struct file *file, wait_queue_head_t *head, poll_table *table)
{
	struct softcard_injector *injector =
		container_of(table, struct softcard_injector, table);

	add_wait_queue_priority(head, &injector->wait);
}

static void softcard_free_injector(struct softcard_injector *injector)
{
	__u64 count;

	eventfd_ctx_remove_wait_queue(injector->context, &injector->wait, &count);
	eventfd_ctx_put(injector->context);
	list_del(&injector->node);
	kfree(injector);
}

void softcard_user_forget_eventfds(struct softcard *card)
{
	struct softcard_injector *injector, *next;

	mutex_lock(&card->eventfd_lock);
	list_for_each_entry_safe(injector, next, &card->eventfds, node)
		softcard_free_injector(injector);
	mutex_unlock(&card->eventfd_lock);
}

static int softcard_add_injector(struct softcard *card, struct softcard_function *function,
				 const struct softcard_eventfd *arg)
{
	struct softcard_injector *injector;
	struct file *file;
	int err;

	injector = kzalloc(sizeof(*injector), GFP_KERNEL_ACCOUNT);
	if (!injector)
		return -ENOMEM;
	file = fget(arg->fd);
	if (!file) {
		err = -EBADF;
		goto free;
	}
	injector->context = eventfd_ctx_fileget(file);
	if (IS_ERR(injector->context)) {
		err = PTR_ERR(injector->context);
		goto put_file;
	}
	injector->function = function;
	injector->kind = arg->kind;
	injector->vector = arg->vector;
	init_waitqueue_func_entry(&injector->wait, softcard_injected);
	init_poll_funcptr(&injector->table, softcard_queue_injector);
	list_add_tail(&injector->node, &card->eventfds);
	if (vfs_poll(file, &injector->table) & EPOLLIN) {
		/* What was signalled before counts, too. */
		__u64 count;

		if (!eventfd_ctx_remove_wait_queue(injector->context, &injector->wait, &count))
			softcard_interrupt(function, arg->kind, arg->vector);
		vfs_poll(file, &injector->table);
	}
	fput(file);
	return 0;

put_file:
	fput(file);
free:
	kfree(injector);
	return err;
}

static int softcard_set_eventfd(struct softcard *card, void __user *argument)
{
	struct softcard_injector *injector, *next;
	struct softcard_function *function;
	struct softcard_eventfd arg;
	unsigned int vectors;
	int err = 0;

	if (copy_from_user(&arg, argument, sizeof(arg)))
		return -EFAULT;
	function = softcard_function_of(card, arg.function);
	if (!function || arg.kind > SOFTCARD_INTERRUPT_MSI ||
	    memchr_inv(arg.reserved, 0, sizeof(arg.reserved)))
		return -EINVAL;
	vectors = arg.kind ? function->info.msi_vectors : function->info.msix_vectors;
	if (arg.vector >= vectors || arg.fd < -1)
		return -EINVAL;
	if (card->state != SOFTCARD_PLUGGED || READ_ONCE(card->dead))
		return -ENXIO;
	mutex_lock(&card->eventfd_lock);
	list_for_each_entry_safe(injector, next, &card->eventfds, node)
		if (injector->function == function && injector->kind == arg.kind &&
		    injector->vector == arg.vector)
			softcard_free_injector(injector);
	if (arg.fd >= 0)
		err = softcard_add_injector(card, function, &arg);
	mutex_unlock(&card->eventfd_lock);
	return err;
}

/* A card's descriptor. */

static long softcard_locked_ioctl(struct softcard *card, unsigned int command, void __user *arg)
{
	int err;

	mutex_lock(&card->lock);
	switch (command) {
	case SOFTCARD_SET_FUNCTION:
		err = softcard_set_function(card, arg);
		break;
	case SOFTCARD_ADD_RANGE:
		err = softcard_add_range(card, arg);
		break;
	case SOFTCARD_PLUG:
		err = softcard_plug_user(card, arg);
		break;
	case SOFTCARD_UNPLUG:
		err = arg ? -EINVAL : softcard_unplug(card);
		break;
	case SOFTCARD_PULL:
		err = arg ? -EINVAL : card->state == SOFTCARD_NEW ? -ENXIO : 0;
		if (!err)
			softcard_kill(card, NULL);
		break;
	case SOFTCARD_SET_EVENTFD:
		err = softcard_set_eventfd(card, arg);
		break;
	default:
		err = -ENOTTY;
	}
	mutex_unlock(&card->lock);
	return err;
}

static long softcard_card_ioctl(struct file *file, unsigned int command, unsigned long arg)
{
	struct softcard *card = file->private_data;

	switch (command) {
	case SOFTCARD_ARM:
		return arg ? -EINVAL : softcard_arm(card);
	case SOFTCARD_WAKE:
		return softcard_wake(card, arg);
	case SOFTCARD_INTERRUPT:
		return softcard_interrupt_user(card, (void __user *)arg);
	case SOFTCARD_DMA:
		return softcard_dma_user(card, (void __user *)arg);
	case SOFTCARD_SEND_ERROR:
		return softcard_send_error(card, (void __user *)arg);
	}
	return softcard_locked_ioctl(card, command, (void __user *)arg);
}

static __poll_t softcard_card_poll(struct file *file, poll_table *table)
{
	struct softcard *card = file->private_data;
	__poll_t found = 0;

	poll_wait(file, &card->poll, table);
	/* Woken for what it had served already, a program sleeps on, and has to be woken again. */
	if (softcard_listen(card))
		found |= EPOLLIN;
	if (READ_ONCE(card->state) == SOFTCARD_GONE)
		found |= EPOLLIN | EPOLLHUP;
	return found;
}

static int softcard_card_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct softcard *card = file->private_data;

	if (vma->vm_pgoff)
		return softcard_coherent_mmap(card, vma);
	/* A copy after fork() would be another program's. */
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	if (vma->vm_flags & VM_EXEC)
		return -EPERM;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_mod(vma, VM_DONTCOPY, VM_MAYEXEC);
#else
	vma->vm_flags |= VM_DONTCOPY;
	vma->vm_flags &= ~VM_MAYEXEC;
#endif
	return remap_vmalloc_range(vma, card->ring, 0);
}

static int softcard_card_release(struct inode *inode, struct file *file)
{
	struct softcard *card = file->private_data;

	softcard_kill(card, NULL);
	softcard_user_forget_eventfds(card);
	softcard_put(card);
	return 0;
}

static const struct file_operations softcard_card_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = softcard_card_ioctl,
	.poll = softcard_card_poll,
	.mmap = softcard_card_mmap,
	.release = softcard_card_release,
	.llseek = noop_llseek,
};

/* /dev/softcard itself. */

static long softcard_ioctl(struct file *file, unsigned int command, unsigned long arg)
{
	struct softcard_create create;
	struct softcard *card;
	struct file *opened;
	int fd;

	switch (command) {
	case SOFTCARD_GET_API:
		return arg ? -EINVAL : SOFTCARD_API;
	case SOFTCARD_CREATE:
		break;
	default:
		return -ENOTTY;
	}
	if (copy_from_user(&create, (void __user *)arg, sizeof(create)))
		return -EFAULT;
	card = softcard_create(&create);
	if (IS_ERR(card))
		return PTR_ERR(card);
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0) {
		softcard_put(card);
		return fd;
	}
	opened = anon_inode_getfile("softcard", &softcard_card_fops, card, O_RDWR);
	if (IS_ERR(opened)) {
		put_unused_fd(fd);
		softcard_put(card);
		return PTR_ERR(opened);
	}
	softcard_coherent_open(card, opened);
	fd_install(fd, opened);
	return fd;
}

static const struct file_operations softcard_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = softcard_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice softcard_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "softcard",
	.fops = &softcard_fops,
	.mode = 0600,
};

int softcard_user_init(void)
{
	return misc_register(&softcard_device);
}

void softcard_user_exit(void)
{
	misc_deregister(&softcard_device);
}
