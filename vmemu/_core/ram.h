/* The table of RAM blocks in a process that runs vCPUs: where each is mapped, and at the
 * destination which host pages it has. */
#ifndef VM_RAM_H
#define VM_RAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VM_NAME_MAX 255 /* bytes of a block's name, as QEMU's idstr */

/* How the final content of each page arrived: every page of a complete block is in exactly one of
 * them. */
struct vm_arrivals {
    uint64_t precopied;
    uint64_t requested;
    uint64_t pushed;
    uint64_t zero;
};

/* Who asked for a page first, and when its fault was read. */
struct vm_ask {
    uint64_t ns; /* CLOCK_MONOTONIC */
    uint32_t tid;
    uint32_t told; /* the log has the page's arrival */
};

struct vm_block {
    uint64_t host; /* address of the mapping */
    uint64_t size; /* bytes, whole host pages */
    uint64_t pages;
    uint32_t page_shift;
    bool hugetlb;
    /* Channel shm. The block's memory is the source's image itself: placing maps, copies nothing.
     */
    bool in_image;
    bool release_image;    /* free what was copied from the image */
    int image_fd;          /* of the image, where it is another memory than the block's */
    uint64_t image;        /* address of its mapping, for reading; 0: pages come with their bytes */
    uint64_t image_mapped; /* so many bytes from its start are in our page table, holes left out */
    uint64_t *received;    /* a bit a host page: it is placed */
    uint64_t *requested;   /* a bit a host page: it was asked for */
    struct vm_ask *ask;    /* a host page each; of the pages that were asked for */
    /* Pre-copy, a bit a target page: it came before the flip and was not discarded; as zeros. */
    uint64_t *precopied;
    uint64_t *precopied_zero;
    uint64_t discarded; /* host pages of which pre-copy had brought something that was forgotten */
    struct vm_arrivals arrived;
    uint32_t name_length;
    char name[VM_NAME_MAX + 1];
};

struct vm_ram {
    uint32_t count;
    uint32_t *by_host; /* indices in the order of addresses, for the look-up */
    uint64_t pages_total;
    uint64_t pages_received;
    struct vm_block block[];
};

struct vm_ram *vm_ram_create(uint32_t count);
void vm_ram_destroy(struct vm_ram *ram);
/* Describe block index; returns 0, or -1 without memory. All blocks first, then vm_ram_seal. */
int vm_ram_set(struct vm_ram *ram, uint32_t index, const char *name, uint64_t host, uint64_t size,
               uint32_t page_shift, bool hugetlb);
void vm_ram_seal(struct vm_ram *ram);

/* Index of the block that holds the address, or -1; logarithmic in the number of blocks. */
int64_t vm_ram_find(const struct vm_ram *ram, uint64_t address);

/*
 * Note that pages [first, first + count) of a block are placed; returns how many were not before.
 * The pages must be readable already: whoever sees the bit may touch them. vm_ram_count_received
 * then adds them to the total and tells whether these were the last; between the two the caller
 * does its own counting, so that whoever sees the full total finds every figure complete.
 */
uint64_t vm_ram_mark_received(struct vm_block *block, uint64_t first, uint64_t count);
bool vm_ram_count_received(struct vm_ram *ram, uint64_t fresh);
static inline bool vm_ram_complete(const struct vm_ram *ram)
{
    return __atomic_load_n(&ram->pages_received, __ATOMIC_ACQUIRE) == ram->pages_total;
}

/* Copy between a block and ordinary memory outside of Python; a missing page stops only the calling
 * thread. */
void vm_ram_read(uint64_t host, void *buffer, size_t length);
void vm_ram_write(uint64_t host, const void *buffer, size_t length);

#endif
