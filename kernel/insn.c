// SPDX-License-Identifier: GPL-2.0-only
/*
 * Decodes the instructions with which drivers access BARs, and does their arithmetic (Intel SDM,
 * volume 2). Compilers make of readl() and writel() plain moves; of a structure that lies in a BAR
 * anything that takes an operand in memory.
 */
#include <linux/bits.h>
#include <linux/kernel.h>

#include "softcard.h"
#include "insn.h"

#define REX_W	8
#define REX_R	4
#define REX_X	2
#define REX_B	1

#define FLAGS_RESULT	(X86_EFLAGS_CF | X86_EFLAGS_PF | X86_EFLAGS_AF | X86_EFLAGS_ZF | \
			 X86_EFLAGS_SF | X86_EFLAGS_OF)

struct decoder {
	const struct pt_regs *regs;
	const u8 *text;
	unsigned int at;
	u8 rex;
	bool has_rex;
	bool operand16;
	bool rep;
	u8 mod, reg, rm;
};

static const unsigned short register_offset[16] = {
	offsetof(struct pt_regs, ax), offsetof(struct pt_regs, cx), offsetof(struct pt_regs, dx),
	offsetof(struct pt_regs, bx), offsetof(struct pt_regs, sp), offsetof(struct pt_regs, bp),
	offsetof(struct pt_regs, si), offsetof(struct pt_regs, di), offsetof(struct pt_regs, r8),
	offsetof(struct pt_regs, r9), offsetof(struct pt_regs, r10), offsetof(struct pt_regs, r11),
	offsetof(struct pt_regs, r12), offsetof(struct pt_regs, r13), offsetof(struct pt_regs, r14),
	offsetof(struct pt_regs, r15),
};

static unsigned long register_value(const struct pt_regs *regs, unsigned int number)
{
	return *(const unsigned long *)((const char *)regs + register_offset[number]);
}

static u8 next_byte(struct decoder *decoder)
{
	/* An instruction of more bytes faults before it accesses anything. */
	if (decoder->at >= SOFTCARD_INSN_MAX)
		return 0;
	return decoder->text[decoder->at++];
}

static s64 next_signed(struct decoder *decoder, unsigned int size)
{
	u64 value = 0;
	unsigned int i;

	if (!size)
		return 0;
	for (i = 0; i < size; i++)
		value |= (u64)next_byte(decoder) << (8 * i);
	return sign_extend64(value, 8 * size - 1);
}

/*
 * The memory operand; false where there is none. An address relative to the next instruction is
 * told by @relative, since that is not known yet.
 */
static bool decode_memory(struct decoder *decoder, unsigned long *address, bool *relative)
{
	u8 modrm = next_byte(decoder);
	unsigned long at = 0;

	*relative = false;
	decoder->mod = modrm >> 6;
	decoder->reg = (modrm >> 3 & 7) | (decoder->rex & REX_R ? 8 : 0);
	decoder->rm = modrm & 7;
	if (decoder->mod == 3)
		return false;
	if (decoder->rm == 4) {
		u8 sib = next_byte(decoder);
		unsigned int index = (sib >> 3 & 7) | (decoder->rex & REX_X ? 8 : 0);
		unsigned int base = (sib & 7) | (decoder->rex & REX_B ? 8 : 0);

		if (index != 4)
			at += register_value(decoder->regs, index) << (sib >> 6);
		if ((base & 7) == 5 && decoder->mod == 0)
			at += next_signed(decoder, 4);
		else
			at += register_value(decoder->regs, base);
	} else if (decoder->rm == 5 && decoder->mod == 0) {
		*relative = true;
		at = next_signed(decoder, 4);
	} else {
		at = register_value(decoder->regs,
				    decoder->rm | (decoder->rex & REX_B ? 8 : 0));
	}
	if (decoder->mod == 1)
		at += next_signed(decoder, 1);
	else if (decoder->mod == 2)
		at += next_signed(decoder, 4);
	*address = at;
	return true;
}

static unsigned int operand_size(const struct decoder *decoder, bool byte)
{
	if (byte)
		return 1;
	if (decoder->rex & REX_W)
		return 8;
	return decoder->operand16 ? 2 : 4;
}

static void set_register(struct softcard_insn *insn, const struct decoder *decoder,
			 unsigned int size)
{
	insn->reg = decoder->reg;
	if (size == 1 && !decoder->has_rex && insn->reg >= 4) {
		insn->reg -= 4;
		insn->high = true;
	}
}

static void set_immediate(struct softcard_insn *insn, struct decoder *decoder, unsigned int size)
{
	insn->has_imm = true;
	insn->imm = next_signed(decoder, size);
}

/* Not known, but its length and its operand are. */
static bool decode_unknown(struct decoder *decoder, struct softcard_insn *insn,
			   unsigned int immediate, bool *relative)
{
	insn->kind = SOFTCARD_INSN_UNKNOWN;
	if (!decode_memory(decoder, &insn->address, relative))
		return false;
	next_signed(decoder, immediate);
	return true;
}

static bool decode_two_bytes(struct decoder *decoder, struct softcard_insn *insn, bool *relative)
{
	u8 opcode = next_byte(decoder);

	switch (opcode) {
	case 0xb6: case 0xb7: case 0xbe: case 0xbf:	/* MOVZX, MOVSX */
		insn->kind = SOFTCARD_INSN_LOAD;
		insn->size = opcode & 1 ? 2 : 1;
		insn->target = operand_size(decoder, false);
		insn->sign = opcode & 8;
		if (!decode_memory(decoder, &insn->address, relative))
			return false;
		insn->reg = decoder->reg;
		return true;
	case 0xc3:	/* MOVNTI */
		insn->kind = SOFTCARD_INSN_STORE;
		insn->size = operand_size(decoder, false);
		if (!decode_memory(decoder, &insn->address, relative))
			return false;
		insn->reg = decoder->reg;
		return true;
	case 0xba:	/* BT with an immediate */
		insn->kind = SOFTCARD_INSN_BIT_TEST;
		insn->size = operand_size(decoder, false);
		if (!decode_memory(decoder, &insn->address, relative) || (decoder->reg & 7) != 4)
			return false;
		set_immediate(insn, decoder, 1);
		return true;
	case 0x38:
		opcode = next_byte(decoder);
		if (opcode == 0xf9) {	/* MOVDIRI */
			insn->kind = SOFTCARD_INSN_STORE;
			insn->size = operand_size(decoder, false);
			if (!decode_memory(decoder, &insn->address, relative))
				return false;
			insn->reg = decoder->reg;
			return true;
		}
		if (opcode == 0xf8 && decoder->operand16) {	/* MOVDIR64B */
			insn->kind = SOFTCARD_INSN_MOVDIR64B;
			insn->size = 8;
			if (!decode_memory(decoder, &insn->source, relative) || *relative)
				return false;
			insn->address = register_value(decoder->regs, decoder->reg);
			return true;
		}
		return decode_unknown(decoder, insn, 0, relative);
	case 0x70: case 0xa4: case 0xac: case 0xc2: case 0xc4 ... 0xc6:
		return decode_unknown(decoder, insn, 1, relative);
	case 0x10 ... 0x17: case 0x28 ... 0x2f: case 0x40 ... 0x6f: case 0x71 ... 0x76:
	case 0x78 ... 0x7f: case 0x90 ... 0x9f: case 0xa3: case 0xa5: case 0xab:
	case 0xad ... 0xb5: case 0xb8: case 0xbb ... 0xbd: case 0xc0: case 0xc1: case 0xc7:
	case 0xd0 ... 0xff:
		return decode_unknown(decoder, insn, 0, relative);
	}
	return false;
}

static bool decode_string(struct decoder *decoder, struct softcard_insn *insn, u8 opcode)
{
	insn->size = operand_size(decoder, !(opcode & 1));
	insn->rep = decoder->rep;
	insn->address = decoder->regs->di;
	insn->source = decoder->regs->si;
	switch (opcode & ~1) {
	case 0xa4:
		insn->kind = SOFTCARD_INSN_MOVS;
		return true;
	case 0xaa:
		insn->kind = SOFTCARD_INSN_STOS;
		return true;
	case 0xac:
		insn->kind = SOFTCARD_INSN_LODS;
		insn->address = insn->source;
		insn->target = insn->size;
		return true;
	}
	return false;
}

static bool decode_one_byte(struct decoder *decoder, struct softcard_insn *insn, u8 opcode,
			    bool *relative)
{
	unsigned int size = operand_size(decoder, !(opcode & 1));

	insn->size = size;
	insn->target = size;
	if (opcode < 0x40 && (opcode & 7) < 4) {	/* ADD to CMP with a register */
		insn->alu = opcode >> 3;
		insn->kind = opcode & 2 ? SOFTCARD_INSN_ALU_REGISTER : SOFTCARD_INSN_ALU_MEMORY;
		if (!decode_memory(decoder, &insn->address, relative))
			return false;
		set_register(insn, decoder, size);
		return true;
	}
	switch (opcode) {
	case 0x88: case 0x89: case 0x8a: case 0x8b:	/* MOV */
		insn->kind = opcode & 2 ? SOFTCARD_INSN_LOAD : SOFTCARD_INSN_STORE;
		if (!decode_memory(decoder, &insn->address, relative))
			return false;
		set_register(insn, decoder, size);
		return true;
	case 0x63:	/* MOVSXD */
		insn->kind = SOFTCARD_INSN_LOAD;
		insn->size = 4;
		insn->target = operand_size(decoder, false);
		insn->sign = true;
		if (insn->target < 4 || !decode_memory(decoder, &insn->address, relative))
			return false;
		insn->reg = decoder->reg;
		return true;
	case 0xc6: case 0xc7:	/* MOV of an immediate */
		insn->kind = SOFTCARD_INSN_STORE;
		if (!decode_memory(decoder, &insn->address, relative) || decoder->reg & 7)
			return false;
		set_immediate(insn, decoder, min(size, 4U));
		return true;
	case 0x80: case 0x81: case 0x83:	/* ADD to CMP with an immediate */
		insn->kind = SOFTCARD_INSN_ALU_MEMORY;
		if (!decode_memory(decoder, &insn->address, relative))
			return false;
		insn->alu = decoder->reg & 7;
		set_immediate(insn, decoder, opcode == 0x81 ? min(size, 4U) : 1);
		return true;
	case 0x84: case 0x85:	/* TEST with a register */
		insn->kind = SOFTCARD_INSN_ALU_MEMORY;
		insn->alu = SOFTCARD_TEST;
		if (!decode_memory(decoder, &insn->address, relative))
			return false;
		set_register(insn, decoder, size);
		return true;
	case 0x86: case 0x87: case 0x8f: case 0xd0 ... 0xd3: case 0xd8 ... 0xdf: case 0xfe:
	case 0xff:
		return decode_unknown(decoder, insn, 0, relative);
	case 0x6b: case 0xc0: case 0xc1:
		return decode_unknown(decoder, insn, 1, relative);
	case 0x69:
		return decode_unknown(decoder, insn, min(operand_size(decoder, false), 4U),
				      relative);
	case 0xf6: case 0xf7:	/* TEST with an immediate */
		insn->kind = SOFTCARD_INSN_ALU_MEMORY;
		insn->alu = SOFTCARD_TEST;
		if (!decode_memory(decoder, &insn->address, relative))
			return false;
		if ((decoder->reg & 7) > 1)
			insn->kind = SOFTCARD_INSN_UNKNOWN;
		else
			set_immediate(insn, decoder, min(size, 4U));
		return true;
	}
	return decode_string(decoder, insn, opcode);
}

/**
 * softcard_decode - decode the instruction at @text
 * @regs: registers before it is executed
 * @text: its bytes; no more are looked at than it has
 * @insn: returned
 *
 * Return: whether it is known, and has an operand in memory.
 */
bool softcard_decode(const struct pt_regs *regs, const u8 *text, struct softcard_insn *insn)
{
	struct decoder decoder = { .regs = regs, .text = text };
	bool relative = false, found;
	u8 opcode;

	memset(insn, 0, sizeof(*insn));
	for (;;) {
		opcode = next_byte(&decoder);
		if (opcode == 0x66)
			decoder.operand16 = true;
		else if (opcode == 0xf3 || opcode == 0xf2)
			decoder.rep = true;
		/* LOCK, and segments without a base of their own. */
		else if (opcode != 0xf0 && opcode != 0x2e && opcode != 0x36 && opcode != 0x3e &&
			 opcode != 0x26)
			break;
		if (decoder.at >= SOFTCARD_INSN_MAX)
			return false;
	}
	if ((opcode & 0xf0) == 0x40) {
		decoder.rex = opcode;
		decoder.has_rex = true;
		opcode = next_byte(&decoder);
	}
	if (opcode == 0x0f)
		found = decode_two_bytes(&decoder, insn, &relative);
	else
		found = decode_one_byte(&decoder, insn, opcode, &relative);
	insn->length = decoder.at;
	if (relative)
		insn->address += regs->ip + insn->length;
	return found && decoder.at <= SOFTCARD_INSN_MAX;
}

/* The operand that is not in memory. */
static u64 softcard_operand(const struct pt_regs *regs, const struct softcard_insn *insn)
{
	u64 value = insn->has_imm ? insn->imm : register_value(regs, insn->reg);

	if (insn->high)
		value >>= 8;
	return value & softcard_all_ones(insn->size);
}

/* Loads the register as the instruction does: 32 bits clear the upper half, fewer leave it. */
void softcard_load(struct pt_regs *regs, const struct softcard_insn *insn, u64 value)
{
	unsigned long *reg = (void *)regs + register_offset[insn->reg];
	u64 mask = softcard_all_ones(insn->target);

	if (insn->sign)
		value = sign_extend64(value, 8 * insn->size - 1);
	if (insn->target >= 4)
		*reg = value & mask;
	else if (insn->high)
		*reg = (*reg & ~0xff00UL) | (value & 0xff) << 8;
	else
		*reg = (*reg & ~mask) | (value & mask);
}

/**
 * softcard_compute - the arithmetic of an instruction; sets the flags
 * @regs: registers
 * @insn: instruction
 * @first: the operand that is changed
 * @second: the other one
 *
 * Return: the result.
 */
static u64 softcard_compute(struct pt_regs *regs, const struct softcard_insn *insn, u64 first,
			    u64 second)
{
	u64 mask = softcard_all_ones(insn->size), sign = mask ^ (mask >> 1);
	u64 carry = regs->flags & X86_EFLAGS_CF ? 1 : 0;
	u64 result = 0, carries = 0;
	unsigned long flags = 0;

	first &= mask;
	second &= mask;
	switch (insn->alu) {
	case SOFTCARD_AND:
	case SOFTCARD_TEST:
		result = first & second;
		break;
	case SOFTCARD_OR:
		result = first | second;
		break;
	case SOFTCARD_XOR:
		result = first ^ second;
		break;
	case SOFTCARD_ADD:
		carry = 0;
		fallthrough;
	case SOFTCARD_ADC:
		result = (first + second + carry) & mask;
		carries = (first & second) | ((first | second) & ~result);
		if ((first ^ result) & (second ^ result) & sign)
			flags |= X86_EFLAGS_OF;
		break;
	case SOFTCARD_SUB:
	case SOFTCARD_CMP:
		carry = 0;
		fallthrough;
	case SOFTCARD_SBB:
		result = (first - second - carry) & mask;
		carries = (~first & second) | ((~first | second) & result);
		if ((first ^ second) & (first ^ result) & sign)
			flags |= X86_EFLAGS_OF;
		break;
	}
	if (carries & sign)
		flags |= X86_EFLAGS_CF;
	if (carries & BIT(3))
		flags |= X86_EFLAGS_AF;
	if (!result)
		flags |= X86_EFLAGS_ZF;
	if (result & sign)
		flags |= X86_EFLAGS_SF;
	if (!(hweight8(result) & 1))
		flags |= X86_EFLAGS_PF;
	regs->flags = (regs->flags & ~FLAGS_RESULT) | flags;
	return result;
}

static void softcard_bit_test(struct pt_regs *regs, const struct softcard_insn *insn, u64 value)
{
	regs->flags &= ~X86_EFLAGS_CF;
	if (value >> (insn->imm & (8 * insn->size - 1)) & 1)
		regs->flags |= X86_EFLAGS_CF;
}

/* Whether it has one operand in memory, and is known. */
bool softcard_has_one_operand(const struct softcard_insn *insn)
{
	return insn->kind <= SOFTCARD_INSN_BIT_TEST;
}

/* Whether the operand in memory has to be read. */
bool softcard_reads(const struct softcard_insn *insn)
{
	return insn->kind != SOFTCARD_INSN_STORE;
}

/**
 * softcard_apply - execute an instruction with one operand in memory
 * @regs: registers; what the instruction changes of them is changed
 * @insn: instruction
 * @operand: what was read from memory; returned: what is to be written there
 *
 * Return: whether anything is to be written.
 */
bool softcard_apply(struct pt_regs *regs, const struct softcard_insn *insn, u64 *operand)
{
	u64 value;

	switch (insn->kind) {
	case SOFTCARD_INSN_LOAD:
		softcard_load(regs, insn, *operand);
		return false;
	case SOFTCARD_INSN_STORE:
		*operand = softcard_operand(regs, insn);
		return true;
	case SOFTCARD_INSN_ALU_REGISTER:
		value = softcard_compute(regs, insn, softcard_operand(regs, insn), *operand);
		if (insn->alu != SOFTCARD_CMP)
			softcard_load(regs, insn, value);
		return false;
	case SOFTCARD_INSN_ALU_MEMORY:
		*operand = softcard_compute(regs, insn, *operand, softcard_operand(regs, insn));
		return insn->alu != SOFTCARD_CMP && insn->alu != SOFTCARD_TEST;
	case SOFTCARD_INSN_BIT_TEST:
		softcard_bit_test(regs, insn, *operand);
		return false;
	default:
		return false;
	}
}
