/*
 * Functions that are called as often as lines on standard input say; each line is answered by one. Arguments are lines that
 * come before. It allocates no memory but where it is told to.
 *
 *   call FUNCTION COUNT FIRST  calls it so often, with FIRST and the numbers after it
 *   all NUMBER                 calls each of told_00 to told_99 once
 *   pace FUNCTION US FIRST     calls it every so many microseconds until there is a line, which is taken; answers how often
 *   malloc COUNT SIZE          calls malloc so often
 *   open LIBRARY               from now on there is its function `from_library`
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <malloc.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Two of the same code would be made one. */
#define FUNCTION(name) \
	__attribute__((noinline, visibility("default"))) long name(long number) \
	{ \
		__asm__ volatile("# " #name : : "r"(number)); \
		return number + 1; \
	}
#define ROW(name) {#name, name},
#define TEN(one, n) \
	one(told_##n##0) one(told_##n##1) one(told_##n##2) one(told_##n##3) one(told_##n##4) \
	one(told_##n##5) one(told_##n##6) one(told_##n##7) one(told_##n##8) one(told_##n##9)
#define HUNDRED(one) \
	TEN(one, 0) TEN(one, 1) TEN(one, 2) TEN(one, 3) TEN(one, 4) TEN(one, 5) TEN(one, 6) TEN(one, 7) TEN(one, 8) TEN(one, 9)

#ifdef LIBRARY

FUNCTION(from_library)

#else

#define OTHERS 4

FUNCTION(called)
FUNCTION(first)
FUNCTION(second)
HUNDRED(FUNCTION)

typedef long (*function)(long);

static struct {
	const char *name;
	function call;
} functions[] = {{"from_library", NULL}, ROW(called) ROW(first) ROW(second) HUNDRED(ROW)};
static const size_t count = sizeof functions / sizeof *functions;

static function named(const char *name)
{
	for (size_t at = 0; name && at < count; at++)
		if (!strcmp(functions[at].name, name))
			return functions[at].call;
	return NULL;
}

/* False at the end of the input, and of an empty line. */
static int line(char *text, size_t size)
{
	size_t length = 0;
	char byte;
	while (read(0, &byte, 1) == 1 && byte != '\n')
		if (length + 1 < size)
			text[length++] = byte;
	text[length] = 0;
	return length > 0;
}

static long number(void)
{
	const char *word = strtok(NULL, " ");
	return word ? atol(word) : 0;
}

static long pace(function call, long us, long first)
{
	char text[256];
	struct pollfd input = {.fd = 0, .events = POLLIN};
	struct timespec pause = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};
	long calls = 0;
	while (poll(&input, 1, 0) == 0) {
		call(first + calls++);
		nanosleep(&pause, NULL);
	}
	line(text, sizeof text);
	return calls;
}

static const char *allocate(long times, size_t size)
{
	static int begun;
	void *(*volatile allocator)(size_t) = malloc;
	if (!begun && mallinfo2().arena != 0)
		return "somebody has called malloc before";
	begun = 1;
	for (long at = 0; at < times; at++)
		free(allocator(size));
	return "done";
}

static const char *open_library(const char *path)
{
#ifdef DYNAMIC
	void *library = path ? dlopen(path, RTLD_NOW) : NULL;
	functions[0].call = library ? (function)dlsym(library, "from_library") : NULL;
#else
	(void)path;
#endif
	return functions[0].call ? "done" : "no library";
}

static void answer(char *command)
{
	static char text[64];
	const char *said = "what?", *verb = strtok(command, " ");
	if (verb && !strcmp(verb, "all")) {
		long with = number();
		for (size_t at = OTHERS; at < count; at++)
			functions[at].call(with);
		said = "done";
	} else if (verb && !strcmp(verb, "malloc")) {
		long times = number();
		said = allocate(times, number());
	} else if (verb && !strcmp(verb, "open")) {
		said = open_library(strtok(NULL, " "));
	} else if (verb) {
		function call = named(strtok(NULL, " "));
		long second = number(), third = number();
		if (call && !strcmp(verb, "call")) {
			for (long at = 0; at < second; at++)
				call(third + at);
			said = "done";
		} else if (call && !strcmp(verb, "pace")) {
			snprintf(text, sizeof text, "%ld", pace(call, second, third));
			said = text;
		}
	}
	if (write(1, said, strlen(said)) < 0 || write(1, "\n", 1) < 0)
		exit(1);
}

int main(int argc, char **argv)
{
	char command[4096];
	for (int at = 1; at < argc; at++)
		answer(argv[at]);
	while (line(command, sizeof command))
		answer(command);
	return 0;
}

#endif
