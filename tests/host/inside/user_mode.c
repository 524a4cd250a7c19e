/* SPDX-License-Identifier: MIT */
/*
 * A driver that is a program: it maps BAR 0 of the card of user_mode.py, and accesses it in every way
 * that a compiler may make of a load or a store. Arguments: the file to map, and what is tried.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE		0x4000
#define SCRATCH		0x00
#define ANSWER		0x08
#define COUNT		0x10
#define MEMORY		0x2000
#define WRITES		5000

static volatile uint8_t *bar;

static void check(int right, const char *what)
{
	if (!right) {
		printf("wrong: %s\n", what);
		exit(1);
	}
}

#define AT(type, offset)	(*(volatile type *)(bar + (offset)))

static void instructions(void)
{
	uint64_t wide;
	int64_t extended;
	uint8_t flag;

	AT(uint64_t, SCRATCH) = 0x0123456789abcdefULL;
	check(AT(uint64_t, SCRATCH) == 0x0123456789abcdefULL, "8 bytes");
	check(AT(uint32_t, SCRATCH) == 0x89abcdef, "4 bytes");
	check(AT(uint16_t, SCRATCH + 2) == 0x89ab, "2 bytes");
	check(AT(uint8_t, SCRATCH + 7) == 0x01, "1 byte");
	AT(uint32_t, SCRATCH) = 0xfffffff0;
	AT(uint16_t, SCRATCH + 4) = 0x8000;
	AT(uint8_t, SCRATCH + 6) = 0x7f;
	check(AT(uint64_t, SCRATCH) == 0x017f8000fffffff0ULL, "parts");
	extended = AT(int32_t, SCRATCH);
	check(extended == -16, "sign extension of 4 bytes");
	extended = AT(int16_t, SCRATCH + 4);
	check(extended == -32768, "sign extension of 2 bytes");
	wide = 0x5a;
	__asm__ volatile("movb %1, %h0" : "+Q" (wide) : "m" (AT(uint8_t, SCRATCH + 6)));
	check(wide == 0x7f5a, "bits 8 to 15 of a register");
	__asm__ volatile("orl $0x0f, %0" : "+m" (AT(uint32_t, SCRATCH)));
	check(AT(uint32_t, SCRATCH) == 0xffffffff, "or");
	__asm__ volatile("addl $2, %0; setc %1" : "+m" (AT(uint32_t, SCRATCH)), "=q" (flag));
	check(flag && AT(uint32_t, SCRATCH) == 1, "add with carry");
	__asm__ volatile("cmpl $1, %1; sete %0" : "=q" (flag) : "m" (AT(uint32_t, SCRATCH)));
	check(flag, "compare");
	__asm__ volatile("testb $2, %1; setz %0" : "=q" (flag) : "m" (AT(uint8_t, SCRATCH)));
	check(flag, "test");
	wide = 41;
	__asm__ volatile("addq %1, %0" : "+r" (wide) : "m" (AT(uint64_t, ANSWER)));
	check(wide == 41 + 0x5a5a5a5a5a5a5a5aULL, "add from memory");
}

static void burst(void)
{
	uint32_t i;

	for (i = 1; i <= WRITES; i++)
		AT(uint32_t, COUNT) = i;
	check(AT(uint32_t, COUNT) == WRITES, "writes in a burst");
}

static void memory(void)
{
	char text[256];

	memset((void *)(bar + MEMORY), 'x', sizeof(text));
	memcpy((void *)(bar + MEMORY), "the driver's", 12);
	memcpy(text, (void *)(bar + MEMORY), sizeof(text));
	check(!memcmp(text, "the driver'sxxxx", 16) && text[255] == 'x', "plain memory");
}

static void child(void)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		AT(uint32_t, SCRATCH) = 77;
		_exit(AT(uint32_t, ANSWER) != 0x5a5a5a5a);
	}
	check(waitpid(pid, &status, 0) == pid && !status, "a child");
	check(AT(uint32_t, SCRATCH) == 77, "what a child has written");
}

static int dies(void (*access)(void))
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		access();
		_exit(0);
	}
	waitpid(pid, &status, 0);
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS;
}

static void vector_load(void)
{
	__asm__ volatile("movdqu %0, %%xmm0" : : "m" (AT(uint64_t, ANSWER)) : "xmm0");
}

static void plain_load(void)
{
	(void)AT(uint32_t, ANSWER);
}

static void refused(void)
{
	int pipes[2];

	check(dies(vector_load), "16 bytes at once are no access of a register");
	check(!pipe(pipes) && write(pipes[1], (void *)(bar + ANSWER), 4) == -1 && errno == EFAULT,
	      "a system call that is given a register");
}

/* Waits for a line on standard input, when the card has gone. */
static void gone(void)
{
	check(AT(uint32_t, ANSWER) == 0x5a5a5a5a, "before");
	puts("mapped");
	fflush(stdout);
	getchar();
	check(dies(plain_load), "no access without a card");
}

int main(int argc, char **argv)
{
	static const struct { const char *name; void (*run)(void); } parts[] = {
		{ "instructions", instructions }, { "burst", burst }, { "memory", memory },
		{ "child", child }, { "refused", refused }, { "gone", gone },
	};
	int fd = open(argv[1], O_RDWR | O_SYNC);
	unsigned int i;

	check(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0) == MAP_FAILED,
	      "a private mapping");
	bar = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	check(bar != MAP_FAILED, "mmap");
	for (i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
		if (!strcmp(argv[2], parts[i].name))
			parts[i].run();
	return 0;
}
