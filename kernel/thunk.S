/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where an instruction that accesses a BAR continues after its fault: in its own context, with
 * interrupts and preemption as they were, so that the access may sleep if its function may.
 *
 * rax has the address of a struct softcard_diversion: where the instruction was, and what rax was.
 * The stack is that of a call: kernel code keeps nothing below its stack pointer.
 */
#include <linux/linkage.h>
#include <linux/objtool.h>
#include <linux/version.h>
#include <asm/asm.h>
#include <asm/nospec-branch.h>
#include <asm/segment.h>
#include <asm/unwind_hints.h>

#define DIVERSION_IP	0
#define DIVERSION_AX	8
#define REGS_SS		160
#define REGS_SP		152
#define REGS_FLAGS	144
#define REGS_IP		128

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
#define UNWIND_HINT_NOWHERE	UNWIND_HINT_UNDEFINED
#else
#define UNWIND_HINT_NOWHERE	UNWIND_HINT_EMPTY
#endif

	.text
SYM_CODE_START(softcard_thunk)
	UNWIND_HINT_NOWHERE
	ANNOTATE_NOENDBR
	/* struct pt_regs, from its end. The pushes and lea change no flags. */
	pushq	$__KERNEL_DS
	pushq	%rsp
	pushfq
	pushq	$__KERNEL_CS
	pushq	DIVERSION_IP(%rax)
	pushq	%rax			/* orig_ax: the diversion */
	pushq	%rdi
	pushq	%rsi
	pushq	%rdx
	pushq	%rcx
	pushq	DIVERSION_AX(%rax)
	pushq	%r8
	pushq	%r9
	pushq	%r10
	pushq	%r11
	pushq	%rbx
	pushq	%rbp
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	/* What was pushed is where ss is, 8 below the stack pointer of the instruction. */
	addq	$8, REGS_SP(%rsp)
	UNWIND_HINT_REGS
	cld
	movq	%rsp, %rdi
	movq	%rsp, %rbp
	andq	$-16, %rsp
	UNWIND_HINT_REGS base=%rbp
	call	softcard_access
	movq	%rbp, %rsp
	UNWIND_HINT_REGS
	/* A return address where ss was, and the flags below it. */
	movq	REGS_IP(%rsp), %rax
	movq	%rax, REGS_SS(%rsp)
	movq	REGS_FLAGS(%rsp), %rax
	movq	%rax, REGS_SP(%rsp)
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbp
	popq	%rbx
	popq	%r11
	popq	%r10
	popq	%r9
	popq	%r8
	popq	%rax
	popq	%rcx
	popq	%rdx
	popq	%rsi
	popq	%rdi
	UNWIND_HINT_NOWHERE
	leaq	REGS_SP-15*8(%rsp), %rsp
	popfq
	RET
SYM_CODE_END(softcard_thunk)

	.section .note.GNU-stack, "", @progbits
