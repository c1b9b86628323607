#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "floor.h"

void not_here(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(3);
}

void failed(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

void fill(uint64_t *memory, size_t bytes)
{
    for (size_t i = 0; i < bytes / WORD; i++) {
        memory[i] = mix(i + 1);
    }
}

void check(const uint64_t *memory, size_t bytes)
{
    for (size_t i = 0; i < bytes / WORD; i++) {
        if (memory[i] != mix(i + 1)) {
            fprintf(stderr, "the word at %zu is wrong\n", i * WORD);
            exit(1);
        }
    }
}

uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

uint8_t *map_private(size_t bytes, bool huge)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (huge ? MAP_HUGETLB | 21 << MAP_HUGE_SHIFT : 0);
    uint8_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);

    if (memory == MAP_FAILED) {
        not_here(huge ? "too few free hugepages of 2 MiB" : "memory");
    }
    if (!huge) {
        /* One transparent hugepage would answer 512 faults. */
        madvise(memory, bytes, MADV_NOHUGEPAGE);
    }
    return memory;
}

uint8_t *map_image(size_t bytes)
{
    uint8_t *memory = map_private(bytes, false);

    madvise(memory, bytes, MADV_HUGEPAGE);
    return memory;
}

uint8_t *map_shared(size_t bytes, int *fd)
{
    uint8_t *memory;

    *fd = memfd_create("floor", MFD_CLOEXEC);
    if (*fd < 0 || ftruncate(*fd, (off_t)bytes)) {
        not_here("memfd");
    }
    memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    if (memory == MAP_FAILED) {
        not_here("shared memory");
    }
    return memory;
}

void make_pipe(int ends[2])
{
    if (pipe2(ends, O_CLOEXEC)) {
        failed("pipe");
    }
    /* Above pipe-max-size this is EPERM for an ordinary user; then it stays as it was. */
    fcntl(ends[1], F_SETPIPE_SZ, 1 << 20);
}

void write_all(int fd, const void *from, size_t bytes)
{
    const uint8_t *at = from;

    while (bytes > 0) {
        ssize_t done = write(fd, at, bytes);

        if (done < 0) {
            failed("write");
        }
        at += done;
        bytes -= (size_t)done;
    }
}

void send_pages(int fd, const void *header, const void *pages, size_t bytes)
{
    uint8_t joined[HEADER + BASE_PAGE];
    struct iovec left = {(void *)pages, bytes};

    if (bytes <= BASE_PAGE) {
        memcpy(joined, header, HEADER);
        memcpy(joined + HEADER, pages, bytes);
        write_all(fd, joined, HEADER + bytes);
        return;
    }
    write_all(fd, header, HEADER);
    while (left.iov_len > 0) {
        ssize_t done = vmsplice(fd, &left, 1, 0);

        if (done < 0) {
            failed("vmsplice");
        }
        left.iov_base = (uint8_t *)left.iov_base + done;
        left.iov_len -= (size_t)done;
    }
}

bool read_all(int fd, void *to, size_t bytes)
{
    uint8_t *at = to;

    while (bytes > 0) {
        ssize_t done = read(fd, at, bytes);

        if (done < 0) {
            failed("read");
        }
        if (done == 0) {
            return false;
        }
        at += done;
        bytes -= (size_t)done;
    }
    return true;
}

static void pin(bool last)
{
    cpu_set_t may, one;
    int chosen = -1;

    sched_getaffinity(0, sizeof(may), &may);
    for (int cpu = 0; cpu < CPU_SETSIZE && (last || chosen < 0); cpu++) {
        if (CPU_ISSET(cpu, &may)) {
            chosen = cpu;
        }
    }
    CPU_ZERO(&one);
    CPU_SET(chosen, &one);
    if (sched_setaffinity(0, sizeof(one), &one)) {
        failed("sched_setaffinity");
    }
}

void pin_first(void)
{
    pin(false);
}

void pin_last(void)
{
    pin(true);
}

pid_t fork_bound(void)
{
    pid_t owner = getpid(), child = fork();

    if (child < 0) {
        failed("fork");
    }
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != owner) {
            _exit(1); /* it died before the signal was asked for */
        }
    }
    return child;
}

void wait_for(pid_t child)
{
    int status;

    if (waitpid(child, &status, 0) < 0 || status != 0) {
        failed("the source has failed");
    }
}
