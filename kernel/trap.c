// SPDX-License-Identifier: GPL-2.0-only
/*
 * Accesses to BARs by the kernel.
 *
 * ioremap() and its kin give drivers an alias: the address that they would have got with one bit
 * flipped, so that it is not canonical, and has no page tables to be kept right. An access faults;
 * the fault's handler only sends the instruction on to a thunk, which makes the access in the
 * driver's own context. An unknown instruction that would be a driver's fault gets a warning.
 */
#include <linux/io.h>
#include <linux/kdebug.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/rculist.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <asm/traps.h>
#include <asm/trapnr.h>

#include "softcard.h"
#include "insn.h"

#define ALIAS_BIT	BIT_ULL(62)
#define DIVERSIONS	256
#define TEST_SIZE	64

/**
 * struct softcard_alias - what ioremap() has given a driver
 * @node: in softcard_aliases
 * @rcu: frees it
 * @start: alias
 * @size: bytes
 * @function: whose BAR; NULL where there is none, and in the self-test
 * @bar: which
 * @offset: in it
 * @test: memory that stands for the BAR in the self-test
 */
struct softcard_alias {
	struct list_head node;
	struct rcu_head rcu;
	unsigned long start;
	unsigned long size;
	struct softcard_function *function;
	unsigned int bar;
	u64 offset;
	u8 *test;
};

/* Read under RCU. */
static LIST_HEAD(softcard_aliases);
static DEFINE_RAW_SPINLOCK(softcard_alias_lock);

/**
 * struct softcard_diversion - an instruction on its way to the thunk
 * @ip: where it is
 * @ax: the register that points here meanwhile
 *
 * thunk.S knows its layout.
 */
struct softcard_diversion {
	unsigned long ip;
	unsigned long ax;
};

static struct softcard_diversion softcard_diversions[DIVERSIONS];
static DECLARE_BITMAP(softcard_diverted, DIVERSIONS);

static_assert(offsetof(struct softcard_diversion, ip) == 0);
static_assert(offsetof(struct softcard_diversion, ax) == 8);

asmlinkage void softcard_thunk(void);
asmlinkage void softcard_access(struct pt_regs *regs);

static struct softcard_alias *softcard_find_alias(unsigned long address)
{
	struct softcard_alias *alias;

	list_for_each_entry_rcu(alias, &softcard_aliases, node)
		if (address - alias->start < alias->size)
			return alias;
	return NULL;
}

/* The bytes of an instruction that has just been executed, as far as they are there. */
static bool softcard_text(unsigned long ip, u8 *text)
{
	unsigned int i;

	memset(text, 0, SOFTCARD_INSN_MAX);
	if (!copy_from_kernel_nofault(text, (void *)ip, SOFTCARD_INSN_MAX))
		return true;
	for (i = 0; i < SOFTCARD_INSN_MAX; i++)
		if (copy_from_kernel_nofault(text + i, (void *)(ip + i), 1))
			break;
	return i;
}

/* Whether the instruction accesses an alias; the caller holds RCU. */
static bool softcard_is_access(const struct softcard_insn *insn)
{
	if (softcard_find_alias(insn->address))
		return true;
	return (insn->kind == SOFTCARD_INSN_MOVS || insn->kind == SOFTCARD_INSN_MOVDIR64B) &&
	       softcard_find_alias(insn->source);
}

static int softcard_die(struct notifier_block *block, unsigned long action, void *data)
{
	struct die_args *args = data;
	struct pt_regs *regs = args->regs;
	u8 text[SOFTCARD_INSN_MAX];
	struct softcard_insn insn;
	unsigned int slot;

	if (list_empty(&softcard_aliases) || !regs || user_mode(regs) || args->err)
		return NOTIFY_DONE;
	if (action != DIE_GPF && !(action == DIE_TRAP && args->trapnr == X86_TRAP_SS))
		return NOTIFY_DONE;
	if (!softcard_text(regs->ip, text) || !softcard_decode(regs, text, &insn) ||
	    !softcard_is_access(&insn))
		return NOTIFY_DONE;
	slot = find_first_zero_bit(softcard_diverted, DIVERSIONS);
	/* Where all are taken, or another processor was faster, the instruction faults again. */
	if (slot >= DIVERSIONS || test_and_set_bit(slot, softcard_diverted))
		return NOTIFY_STOP;
	softcard_diversions[slot].ip = regs->ip;
	softcard_diversions[slot].ax = regs->ax;
	regs->ax = (unsigned long)&softcard_diversions[slot];
	regs->ip = (unsigned long)softcard_thunk;
	return NOTIFY_STOP;
}

NOKPROBE_SYMBOL(softcard_die);

static struct notifier_block softcard_die_notifier = {
	.notifier_call = softcard_die,
	.priority = INT_MAX,
};

/* One end of an access: a BAR, or memory. */
struct softcard_place {
	struct softcard_alias alias;
	bool is_alias;
	unsigned long address;
};

/* Keeps the card until softcard_leave(). */
static void softcard_enter(struct softcard_place *place, unsigned long address)
{
	struct softcard_alias *alias;

	place->address = address;
	rcu_read_lock();
	alias = softcard_find_alias(address);
	place->is_alias = alias;
	if (alias) {
		place->alias = *alias;
		if (alias->function && !softcard_tryget(alias->function->card))
			place->alias.function = NULL;
	}
	rcu_read_unlock();
}

static void softcard_leave(struct softcard_place *place)
{
	if (place->is_alias && place->alias.function)
		softcard_put(place->alias.function->card);
}

static bool softcard_still_inside(const struct softcard_place *place)
{
	return !place->is_alias || place->address - place->alias.start < place->alias.size;
}

static u64 softcard_read(const struct softcard_place *place, unsigned int size)
{
	unsigned long at = place->address - place->alias.start;
	u64 value = 0;

	if (!place->is_alias) {
		memcpy(&value, (void *)place->address, size);
		return value;
	}
	if (place->alias.test) {
		memcpy(&value, place->alias.test + at, size);
		return value;
	}
	if (!place->alias.function)
		return softcard_all_ones(size);
	return softcard_bar_read(place->alias.function, place->alias.bar,
				 place->alias.offset + at, size);
}

static void softcard_write(const struct softcard_place *place, unsigned int size, u64 value)
{
	unsigned long at = place->address - place->alias.start;

	if (!place->is_alias)
		memcpy((void *)place->address, &value, size);
	else if (place->alias.test)
		memcpy(place->alias.test + at, &value, size);
	else if (place->alias.function)
		softcard_bar_write(place->alias.function, place->alias.bar,
				   place->alias.offset + at, size, value);
}

/* Returns whether the instruction has come to its end. */
static bool softcard_string(struct pt_regs *regs, const struct softcard_insn *insn)
{
	long step = regs->flags & X86_EFLAGS_DF ? -(long)insn->size : insn->size;
	unsigned long count = insn->rep ? regs->cx : 1;
	struct softcard_place to, from;
	bool moves = insn->kind == SOFTCARD_INSN_MOVS;

	softcard_enter(&to, insn->address);
	softcard_enter(&from, moves ? insn->source : insn->address);
	while (count && softcard_still_inside(&to) && softcard_still_inside(&from)) {
		if (insn->kind == SOFTCARD_INSN_LODS)
			softcard_load(regs, insn, softcard_read(&from, insn->size));
		else
			softcard_write(&to, insn->size,
				       moves ? softcard_read(&from, insn->size) : regs->ax);
		to.address += step;
		from.address += step;
		count--;
	}
	softcard_leave(&from);
	softcard_leave(&to);
	if (insn->kind != SOFTCARD_INSN_LODS)
		regs->di = to.address;
	if (insn->kind != SOFTCARD_INSN_STOS)
		regs->si = from.address;
	if (insn->rep)
		regs->cx = count;
	return !count;
}

static void softcard_movdir64b(const struct softcard_insn *insn)
{
	struct softcard_place to, from;
	unsigned int i;

	softcard_enter(&to, insn->address);
	softcard_enter(&from, insn->source);
	for (i = 0; i < 8 && softcard_still_inside(&to); i++) {
		softcard_write(&to, 8, softcard_read(&from, 8));
		to.address += 8;
		from.address += 8;
	}
	softcard_leave(&from);
	softcard_leave(&to);
}

static void softcard_plain(struct pt_regs *regs, const struct softcard_insn *insn)
{
	struct softcard_place place;
	u64 value = 0;

	if (!softcard_has_one_operand(insn)) {
		WARN_ONCE(1, "softcard: %pS accesses a BAR by an instruction that is not known",
			  (void *)regs->ip);
		return;
	}
	softcard_enter(&place, insn->address);
	if (softcard_reads(insn))
		value = softcard_read(&place, insn->size);
	if (softcard_apply(regs, insn, &value))
		softcard_write(&place, insn->size, value);
	softcard_leave(&place);
}

/**
 * softcard_access - make an access; called by the thunk
 * @regs: registers before the instruction; afterwards, those behind it
 */
asmlinkage void softcard_access(struct pt_regs *regs)
{
	struct softcard_diversion *diversion = (void *)regs->orig_ax;
	u8 text[SOFTCARD_INSN_MAX];
	struct softcard_insn insn;
	bool done = true;

	clear_bit(diversion - softcard_diversions, softcard_diverted);
	regs->orig_ax = -1;
	softcard_text(regs->ip, text);
	softcard_decode(regs, text, &insn);
	switch (insn.kind) {
	case SOFTCARD_INSN_MOVS:
	case SOFTCARD_INSN_STOS:
	case SOFTCARD_INSN_LODS:
		done = softcard_string(regs, &insn);
		break;
	case SOFTCARD_INSN_MOVDIR64B:
		softcard_movdir64b(&insn);
		break;
	default:
		softcard_plain(regs, &insn);
	}
	if (done)
		regs->ip += insn.length;
}

NOKPROBE_SYMBOL(softcard_access);

/* Aliases. */

static void softcard_add_alias(struct softcard_alias *alias)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&softcard_alias_lock, flags);
	list_add_rcu(&alias->node, &softcard_aliases);
	raw_spin_unlock_irqrestore(&softcard_alias_lock, flags);
}

static void softcard_free_alias(struct rcu_head *head)
{
	struct softcard_alias *alias = container_of(head, struct softcard_alias, rcu);

	if (alias->function)
		softcard_put(alias->function->card);
	kfree(alias);
	module_put(THIS_MODULE);
}

struct softcard_ioremap {
	phys_addr_t phys;
	unsigned long size;
};

static int softcard_ioremap_entered(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	struct softcard_ioremap *call = (void *)instance->data;

	call->phys = regs->di;
	call->size = regs->si;
	return !softcard_owns(call->phys);
}

static int softcard_ioremap_returns(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	struct softcard_ioremap *call = (void *)instance->data;
	unsigned long address = regs_return_value(regs);
	struct softcard_alias *alias;

	if (!address || !(address & ALIAS_BIT))
		return 0;
	alias = kzalloc(sizeof(*alias), GFP_ATOMIC);
	if (!alias) {
		pr_warn("softcard: no memory to let a driver access a BAR\n");
		regs_set_return_value(regs, 0);
		return 0;
	}
	alias->start = address ^ ALIAS_BIT;
	alias->size = call->size;
	rcu_read_lock();
	alias->function = softcard_find_bar(call->phys, &alias->bar, &alias->offset);
	if (alias->function && !softcard_tryget(alias->function->card))
		alias->function = NULL;
	rcu_read_unlock();
	__module_get(THIS_MODULE);
	softcard_add_alias(alias);
	regs_set_return_value(regs, alias->start);
	return 0;
}

/* Before iounmap(), the address becomes again what ioremap() had returned. */
static int softcard_iounmap_entered(struct kprobe *probe, struct pt_regs *regs)
{
	struct softcard_alias *alias, *found = NULL;
	unsigned long flags;

	if (regs->di & ALIAS_BIT)
		return 0;
	raw_spin_lock_irqsave(&softcard_alias_lock, flags);
	list_for_each_entry(alias, &softcard_aliases, node) {
		if (alias->start == regs->di && !alias->test) {
			list_del_rcu(&alias->node);
			found = alias;
			break;
		}
	}
	raw_spin_unlock_irqrestore(&softcard_alias_lock, flags);
	if (found) {
		regs->di ^= ALIAS_BIT;
		call_rcu(&found->rcu, softcard_free_alias);
	}
	return 0;
}

static struct kprobe softcard_iounmap = {
	.symbol_name = "iounmap",
	.pre_handler = softcard_iounmap_entered,
};

#define IOREMAP(name) {							\
	.kp.symbol_name = name,						\
	.entry_handler = softcard_ioremap_entered,			\
	.handler = softcard_ioremap_returns,				\
	.data_size = sizeof(struct softcard_ioremap),			\
	.maxactive = 64,						\
}

static struct kretprobe softcard_ioremaps[] = {
	IOREMAP("ioremap"), IOREMAP("ioremap_wc"), IOREMAP("ioremap_wt"), IOREMAP("ioremap_uc"),
	IOREMAP("ioremap_cache"), IOREMAP("ioremap_prot"),
};

static int softcard_probe(void)
{
	unsigned int i;
	int err;

	err = register_kprobe(&softcard_iounmap);
	if (err)
		return err;
	for (i = 0; i < ARRAY_SIZE(softcard_ioremaps); i++) {
		err = register_kretprobe(&softcard_ioremaps[i]);
		if (err) {
			pr_err("softcard: %s() cannot be probed\n",
			       softcard_ioremaps[i].kp.symbol_name);
			while (i--)
				unregister_kretprobe(&softcard_ioremaps[i]);
			unregister_kprobe(&softcard_iounmap);
			return err;
		}
	}
	return 0;
}

static void softcard_unprobe(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(softcard_ioremaps); i++)
		unregister_kretprobe(&softcard_ioremaps[i]);
	unregister_kprobe(&softcard_iounmap);
}

/* The self-test: what this processor and this kernel make of an alias. */

static bool softcard_test_accesses(u8 *memory, void __iomem *io)
{
	u64 copy[TEST_SIZE / 8];
	bool below, zero;
	u32 word = 0x01020304;

	writel(0x89abcdef, io);
	writeb(0x77, io + 5);
	writew(0x1234, io + 6);
	writeq(0x0123456789abcdefULL, io + 8);
	if (*(u32 *)memory != 0x89abcdef || memory[5] != 0x77 || *(u16 *)(memory + 6) != 0x1234 ||
	    *(u64 *)(memory + 8) != 0x0123456789abcdefULL)
		return false;
	if (readl(io) != 0x89abcdef || readb(io + 5) != 0x77 || readw(io + 6) != 0x1234 ||
	    readq(io + 8) != 0x0123456789abcdefULL)
		return false;
	memcpy_fromio(copy, io, sizeof(copy));
	if (memcmp(copy, memory, sizeof(copy)))
		return false;
	memset(copy, 0x5a, sizeof(copy));
	memcpy_toio(io, copy, sizeof(copy));
	if (memcmp(copy, memory, sizeof(copy)))
		return false;
	asm volatile("orl %2, (%1)\n\t"
		     "cmpl $0x5b5a5b5a, (%1)\n\t"
		     "setb %0" : "=q" (below) : "r" (io), "r" (word) : "cc", "memory");
	asm volatile("testb $1, (%1)\n\t"
		     "setz %0" : "=q" (zero) : "r" (io) : "cc", "memory");
	return !below && zero && *(u32 *)memory == (0x5a5a5a5a | 0x01020304);
}

/* A frame pointer as the base makes it a fault of another kind. */
static noinline u32 softcard_test_stack_segment(void __iomem *io)
{
	u32 value;

	asm volatile("xchgq %%rbp, %1\n\t"
		     "movl (%%rbp), %0\n\t"
		     "xchgq %%rbp, %1" : "=a" (value), "+c" (io) : : "memory");
	return value;
}

static int softcard_self_test(void)
{
	struct softcard_alias *alias = kzalloc(sizeof(*alias), GFP_KERNEL);
	u8 *memory = kzalloc(TEST_SIZE, GFP_KERNEL);
	bool right;

	if (!alias || !memory) {
		kfree(alias);
		kfree(memory);
		return -ENOMEM;
	}
	alias->start = (VMALLOC_START + PAGE_SIZE) ^ ALIAS_BIT;
	alias->size = TEST_SIZE;
	alias->test = memory;
	softcard_add_alias(alias);
	right = softcard_test_accesses(memory, (void __iomem *)alias->start);
	*(u32 *)memory = 0x600df00d;
	right &= softcard_test_stack_segment((void __iomem *)alias->start) == 0x600df00d;
	raw_spin_lock_irq(&softcard_alias_lock);
	list_del_rcu(&alias->node);
	raw_spin_unlock_irq(&softcard_alias_lock);
	synchronize_rcu();
	kfree(alias);
	kfree(memory);
	if (!right)
		pr_err("softcard: accesses to BARs are not trapped as they must be on this machine\n");
	return right ? 0 : -ENODEV;
}

int softcard_trap_init(void)
{
	int err;

	err = register_die_notifier(&softcard_die_notifier);
	if (err)
		return err;
	err = softcard_self_test();
	if (!err)
		err = softcard_probe();
	if (err)
		unregister_die_notifier(&softcard_die_notifier);
	return err;
}

void softcard_trap_exit(void)
{
	softcard_unprobe();
	unregister_die_notifier(&softcard_die_notifier);
	/* Who is in a handler has to be out of it, and aliases freed. */
	synchronize_rcu();
	rcu_barrier();
}
