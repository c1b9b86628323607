/* userfaultfd: open, negotiate, register, place pages, wake. One system call a function, none
 * ignored. */
#ifndef VM_UFFD_H
#define VM_UFFD_H

#include <stdbool.h>
#include <stdint.h>

#include "error.h"

enum vm_uffd_how {
    VM_UFFD_SYSCALL = 0, /* userfaultfd(2): root, or vm.unprivileged_userfaultfd=1 */
    VM_UFFD_DEVICE = 1,  /* /dev/userfaultfd: whoever may open it */
    VM_UFFD_USER_MODE_ONLY =
        2, /* userfaultfd(2) for anyone; faults inside system calls get EFAULT */
};

/* What placing pages met on the way; none of these is an error. */
struct vm_place_stats {
    uint64_t exists;  /* EEXIST: the page was there already; its waiters were woken */
    uint64_t again;   /* EAGAIN: the mappings were changing; tried again */
    uint64_t partial; /* the kernel stopped in the middle of a run; gone on from there */
    /* Pages, by what brought them; zeros are not counted. */
    uint64_t copied, continued;
};

/* Returns the descriptor (close-on-exec, non-blocking), or -1. */
int vm_uffd_open(int how, struct vm_error *err);

/*
 * Whether vm_uffd_open leaves its process alive: 0, or the signal that would end it. A seccomp
 * filter may kill who asks, so a child does. -1 when there can be no child.
 */
int vm_uffd_open_kills(int how, struct vm_error *err);

/* The handshake. features: in, the bits asked for; out, all that the kernel has. */
int vm_uffd_api(int fd, uint64_t *features, uint64_t *ioctls, struct vm_error *err);

int vm_uffd_register(int fd, uint64_t start, uint64_t length, uint64_t mode, uint64_t *ioctls,
                     struct vm_error *err);
/* Wakes everybody who waits in the range; what they touch next is an ordinary page of the kernel.
 */
int vm_uffd_unregister(int fd, uint64_t start, uint64_t length, struct vm_error *err);
int vm_uffd_wake(int fd, uint64_t start, uint64_t length, struct vm_error *err);

/*
 * Place length bytes (a whole number of pages of page_size) and wake who waits for them. A page
 * that is there already is left as it is. Returns 0, 1 when the mapping is gone (ENOENT, ESRCH: it
 * is over), or -1.
 */
int vm_uffd_copy(int fd, uint64_t destination, const void *source, uint64_t length,
                 uint64_t page_size, struct vm_place_stats *stats, struct vm_error *err);
int vm_uffd_zeropage(int fd, uint64_t destination, uint64_t length, uint64_t page_size,
                     struct vm_place_stats *stats, struct vm_error *err);
/* Map pages that the page cache has already, after a minor fault; otherwise as the two above. */
int vm_uffd_continue(int fd, uint64_t destination, uint64_t length, uint64_t page_size,
                     struct vm_place_stats *stats, struct vm_error *err);

/*
 * Map pages of shared memory that the page cache has already; what it lacks becomes zeros. As the
 * others.
 */
int vm_uffd_map_there(int fd, uint64_t destination, uint64_t length, uint64_t page_size,
                      struct vm_place_stats *stats, struct vm_error *err);

/* Write-protect whole pages, or allow writes again and wake who waits to write. */
int vm_uffd_protect(int fd, uint64_t start, uint64_t length, bool protect, struct vm_error *err);

#endif
