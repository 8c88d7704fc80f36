/* Attaches to the process that is named, says what came of it, and lets go: `attach PID`. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

int main(int argc, char **argv) {
    pid_t pid = argc > 1 ? atoi(argv[1]) : 0;
    if (ptrace(PTRACE_ATTACH, pid, 0, 0) != 0) {
        printf("refused %d\n", errno);
        return 0;
    }
    waitpid(pid, NULL, __WALL);
    printf("attached\n");
    return ptrace(PTRACE_DETACH, pid, 0, 0) != 0;
}
