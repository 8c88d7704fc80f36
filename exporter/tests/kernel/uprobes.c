/* What uprobes are tried on: functions of every type of argument, and every way out of one. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROBED __attribute__((noinline, noclone, visibility("default")))

PROBED long all_ints(signed char a, short b, int c, long d, unsigned char e, unsigned short f, unsigned g, unsigned long h)
{
	__asm__ volatile("");
	return a + b + c + d + e + f + g + (long)h;
}

PROBED int strings(const char *text, const char *longer, const char *none, const char *bad, const void *data, int length)
{
	__asm__ volatile("" : : "r"(text), "r"(longer), "r"(none), "r"(bad), "r"(data), "r"(length) : "memory");
	return -7;
}

PROBED bool others(bool yes, const float *single, const double *twice, const void *pointer)
{
	__asm__ volatile("" : : "r"(yes), "r"(single), "r"(twice), "r"(pointer) : "memory");
	return yes;
}

PROBED const char *greeting(int which)
{
	__asm__ volatile("" : : "r"(which));
	return which ? "hello there" : NULL;
}

PROBED int descend(int n)
{
	__asm__ volatile("");
	return n == 0 ? 100 : descend(n - 1) + 1;
}

static jmp_buf out;

PROBED int jumped(int n)
{
	__asm__ volatile("");
	if (n % 2)
		longjmp(out, 1);
	return n;
}

PROBED int jumps_over(int n)
{
	if (setjmp(out) == 0)
		return jumped(n);
	return -1;
}

PROBED void empty(int n)
{
	__asm__ volatile("" : : "r"(n));
}

PROBED int forks(int n)
{
	pid_t child = fork();
	__asm__ volatile("" : : "r"(n));
	if (child > 0)
		waitpid(child, NULL, 0);
	return child == 0 ? 1 : 2;
}

unsigned short marked_semaphore __attribute__((section(".probes"), visibility("default")));

PROBED void mark(int number, long *memory)
{
#ifdef __x86_64__
	__asm__ volatile(".globl marked\nmarked: nop" : : "D"(number), "S"(memory) : "memory");
#else
	register long n __asm__("x0") = number;
	register long *m __asm__("x1") = memory;
	__asm__ volatile(".globl marked\nmarked: nop" : : "r"(n), "r"(m) : "memory");
#endif
}

static void *thread(void *times)
{
	for (long i = 0; i < (long)times; i++)
		descend(3);
	return NULL;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	long times = argc > 2 ? atol(argv[2]) : 1;
	if (!strcmp(mode, "ints")) {
		all_ints(-1, -300, -70000, -5000000000L, 200, 60000, 4000000000U, ~0UL);
	} else if (!strcmp(mode, "strings")) {
		static char longer[5001];
		memset(longer, 'x', 5000);
		strings("text", longer, NULL, (char *)16, "a\0b", 3);
		// Written, so that it is in memory: a page that nothing has touched yet is not read by the programs.
		char empty[] = "";
		strings("0123456789", empty, empty, empty, longer, -1);
	} else if (!strcmp(mode, "others")) {
		float single = 1.5f;
		double twice = -2.25;
		others(true, &single, &twice, (void *)0x1234);
		greeting(1);
		greeting(0);
	} else if (!strcmp(mode, "descend")) {
		descend(times);
	} else if (!strcmp(mode, "threads")) {
		pthread_t threads[4];
		for (int i = 0; i < 4; i++)
			pthread_create(&threads[i], NULL, thread, (void *)times);
		for (int i = 0; i < 4; i++)
			pthread_join(threads[i], NULL);
	} else if (!strcmp(mode, "jumps")) {
		for (int i = 0; i < times; i++)
			jumps_over(i);
	} else if (!strcmp(mode, "empty")) {
		for (long i = 0; i < times; i++)
			empty(i);
	} else if (!strcmp(mode, "fork")) {
		forks(5);
	} else if (!strcmp(mode, "exec")) {
		empty(1);
		execl("/proc/self/exe", "again", "empty", "1", NULL);
	} else if (!strcmp(mode, "dlopen")) {
		void *library = dlopen(argv[2], RTLD_NOW);
		void (*found)(int) = library ? (void (*)(int))dlsym(library, "empty") : NULL;
		if (!found)
			return 1;
		found(77);
	} else if (!strcmp(mode, "mark")) {
		long memory = -9;
		mark(-42, &memory);
		printf("%u\n", marked_semaphore);
	} else {
		return 2;
	}
	return 0;
}
