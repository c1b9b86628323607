/*
 * A program whose accesses are known: says where its pages lie, then stores to each of 64 from the
 * last to the first, and loads from it. With "fork", a child stores to 64 more pages, says so, and
 * stays.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 64, CHILD_STAYS_S = 60 };

static char own[PAGES * PAGE] __attribute__((aligned(PAGE)));
static char of_child[PAGES * PAGE] __attribute__((aligned(PAGE)));

static int sum;

static void touch(volatile char *pages)
{
    for (int i = PAGES - 1; i >= 0; i--) {
        *(volatile short *)(pages + i * PAGE + 8) = (short)i;
        sum += pages[i * PAGE + 3];
    }
}

static void leave_child(void)
{
    int ready[2];
    char byte = 0;
    if (pipe(ready) != 0)
        exit(1);
    pid_t child = fork();
    if (child == 0) {
        touch(of_child);
        if (write(ready[1], &byte, 1) == 1) {
            /* Whoever reads what we print must not wait for the child. */
            close(0), close(1), close(2);
            sleep(CHILD_STAYS_S);
        }
        _exit(0);
    }
    if (read(ready[0], &byte, 1) != 1)
        exit(1);
    printf("%d\n", (int)child);
}

int main(int argc, char **argv)
{
    printf("%p %p\n", (void *)own, (void *)of_child);
    if (argc > 1 && strcmp(argv[1], "fork") == 0)
        leave_child();
    touch(own);
    return sum;
}
