/*
 * munmap frees with one thread, for some 60 ms a GiB of small pages. MADV_DONTNEED holds the lock
 * of the address space for reading alone, so several threads can be at it.
 */
#include "emptying.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>

#include "util.h"

enum { PIECE = 16 << 20 };   /* much more than a thread takes to fetch it; hugepages are whole */
enum { WORTH_A_THREAD = 4 }; /* pieces */
enum { MOST_HELPERS = 7 };   /* the kernel's lists of pages have locks as well */

struct emptying {
    uint64_t address;
    uint64_t length;
    uint64_t next; /* offset of the piece that nobody has taken yet */
};

static void *empty_pieces(void *opaque)
{
    struct emptying *e = opaque;
    uint64_t at;

    while ((at = vm_add(&e->next, PIECE)) < e->length) {
        uint64_t left = e->length - at;

        madvise((void *)(uintptr_t)(e->address + at), left < PIECE ? left : PIECE, MADV_DONTNEED);
    }
    return NULL;
}

static int helpers_for(uint64_t length)
{
    uint64_t most = length / PIECE / WORTH_A_THREAD;
    cpu_set_t may;
    int cpus = sched_getaffinity(0, sizeof(may), &may) == 0 ? CPU_COUNT(&may) : 1;

    cpus = cpus - 1 < MOST_HELPERS ? cpus - 1 : MOST_HELPERS;
    return (uint64_t)cpus < most ? cpus : (int)most;
}

void vm_empty(uint64_t address, uint64_t length)
{
    struct emptying e = {address, length, 0};
    int wanted = helpers_for(length), helpers = 0;
    pthread_t helper[MOST_HELPERS];
    sigset_t all, before;

    /* Signals are for the threads that Python knows. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (helpers < wanted && pthread_create(&helper[helpers], NULL, empty_pieces, &e) == 0) {
        helpers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    empty_pieces(&e);
    for (int i = 0; i < helpers; i++) {
        pthread_join(helper[i], NULL);
    }
}
