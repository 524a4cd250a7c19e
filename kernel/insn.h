/* SPDX-License-Identifier: GPL-2.0-only */
/* The instructions with which drivers access BARs. */
#ifndef _SOFTCARD_INSN_H
#define _SOFTCARD_INSN_H

#include <linux/ptrace.h>
#include <linux/types.h>

#define SOFTCARD_INSN_MAX	15

enum softcard_insn_kind {
	SOFTCARD_INSN_LOAD,		/* register from memory */
	SOFTCARD_INSN_STORE,		/* register or immediate to memory */
	SOFTCARD_INSN_ALU_REGISTER,	/* register and memory, result into the register */
	SOFTCARD_INSN_ALU_MEMORY,	/* memory and operand, result into memory */
	SOFTCARD_INSN_BIT_TEST,
	SOFTCARD_INSN_MOVS,
	SOFTCARD_INSN_STOS,
	SOFTCARD_INSN_LODS,
	SOFTCARD_INSN_MOVDIR64B,
	SOFTCARD_INSN_UNKNOWN,		/* only where it accesses memory, and where it ends */
};

/* As in the opcodes, and TEST. */
enum softcard_alu {
	SOFTCARD_ADD, SOFTCARD_OR, SOFTCARD_ADC, SOFTCARD_SBB, SOFTCARD_AND, SOFTCARD_SUB,
	SOFTCARD_XOR, SOFTCARD_CMP, SOFTCARD_TEST,
};

/**
 * struct softcard_insn - an instruction
 * @length: bytes
 * @size: bytes of an element in memory
 * @target: bytes of the register that is loaded, at least @size
 * @sign: the register is loaded with the sign extended
 * @rep: repeated, as often as the counter says
 * @reg: number of the register; with @high, bits 8 to 15 of it
 * @has_imm: the operand is @imm, not a register
 * @address: of the memory operand; for MOVS the destination
 * @source: for MOVS, LODS and MOVDIR64B
 */
struct softcard_insn {
	enum softcard_insn_kind kind;
	enum softcard_alu alu;
	u8 length;
	u8 size;
	u8 target;
	bool sign;
	bool rep;
	u8 reg;
	bool high;
	bool has_imm;
	u64 imm;
	unsigned long address;
	unsigned long source;
};

bool softcard_decode(const struct pt_regs *regs, const u8 *text, struct softcard_insn *insn);
void softcard_load(struct pt_regs *regs, const struct softcard_insn *insn, u64 value);
bool softcard_has_one_operand(const struct softcard_insn *insn);
bool softcard_reads(const struct softcard_insn *insn);
bool softcard_apply(struct pt_regs *regs, const struct softcard_insn *insn, u64 *operand);

#endif /* _SOFTCARD_INSN_H */
