#include "mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

int vm_map(uint64_t length, int fd, uint64_t alignment, uint64_t *address, struct vm_error *err)
{
    int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    uint64_t room = length + alignment, start;
    void *hole, *mapped;

    /*
     * Where the kernel likes first: hugepages are aligned by themselves, and a shortage fails here
     * with nothing to undo. A MAP_FIXED that fails may leave a gap in the hole below, in which
     * another thread can map something before the hole is given back.
     */
    mapped = mmap(NULL, length, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (mapped == MAP_FAILED) {
        return vm_fail_errno(err, "mmap", 0);
    }
    if (((uintptr_t)mapped & (alignment - 1)) == 0) {
        *address = (uintptr_t)mapped;
        return 0;
    }
    munmap(mapped, length);
    /* A hole with room to align in; the memory is mapped over it and the ends are given back. */
    hole = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (hole == MAP_FAILED) {
        return vm_fail_errno(err, "mmap of address space", 0);
    }
    start = ((uintptr_t)hole + alignment - 1) & ~(alignment - 1);
    mapped =
        mmap((void *)(uintptr_t)start, length, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0);
    if (mapped == MAP_FAILED) {
        vm_fail_errno(err, "mmap", start);
        munmap(hole, room);
        return -1;
    }
    if (start > (uintptr_t)hole) {
        munmap(hole, start - (uintptr_t)hole);
    }
    munmap((void *)(uintptr_t)(start + length), (uintptr_t)hole + room - start - length);
    *address = start;
    return 0;
}

int vm_cover(uint64_t address, uint64_t length, struct vm_error *err)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    void *at = (void *)(uintptr_t)address;

    return mmap(at, length, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED
               ? vm_fail_errno(err, "mmap of ordinary memory", address)
               : 0;
}

/* The address of the first page that is not there: the kernel says only that there is one. */
static uint64_t first_missing(uint64_t address, uint64_t length)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), end = address + length;

    while (address + page < end &&
           madvise((void *)(uintptr_t)address, page, MADV_POPULATE_READ) == 0) {
        address += page;
    }
    return address;
}

int vm_populate_read(uint64_t address, uint64_t length, struct vm_error *err)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    int errnum;

    if (madvise((void *)(uintptr_t)address, length, MADV_POPULATE_READ) == 0) {
        return 0;
    }
    if (errno != EINVAL) {
        errnum = errno;
        address = first_missing(address, length);
        errno = errnum;
        return vm_fail_errno(err, "MADV_POPULATE_READ", address);
    }
    for (uint64_t at = 0; at < length; at += page) { /* a kernel before 5.14 */
        (void)*(const volatile uint8_t *)(uintptr_t)(address + at);
    }
    return 0;
}

int vm_unmap(uint64_t address, uint64_t length, struct vm_error *err)
{
    return munmap((void *)(uintptr_t)address, length) < 0 ? vm_fail_errno(err, "munmap", address)
                                                          : 0;
}

int vm_advise(uint64_t address, uint64_t length, int advice, struct vm_error *err)
{
    return madvise((void *)(uintptr_t)address, length, advice) < 0
               ? vm_fail_errno(err, "madvise", address)
               : 0;
}

int vm_punch_hole(int fd, uint64_t offset, uint64_t length, struct vm_error *err)
{
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

    return fallocate(fd, mode, (off_t)offset, (off_t)length) < 0
               ? vm_fail_errno(err, "fallocate", offset)
               : 0;
}
