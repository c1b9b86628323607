#include "ram.h"

#include <stdlib.h>
#include <string.h>

#include "access.h"
#include "util.h"

static uint64_t *bitmap_create(uint64_t bits)
{
    return calloc((bits + 63) / 64, sizeof(uint64_t));
}

struct vm_ram *vm_ram_create(uint32_t count)
{
    struct vm_ram *ram = calloc(1, sizeof(*ram) + count * sizeof(ram->block[0]));

    if (!ram) {
        return NULL;
    }
    ram->by_host = calloc(count, sizeof(*ram->by_host));
    if (!ram->by_host) {
        free(ram);
        return NULL;
    }
    ram->count = count;
    return ram;
}

void vm_ram_destroy(struct vm_ram *ram)
{
    if (!ram) {
        return;
    }
    for (uint32_t i = 0; i < ram->count; i++) {
        free(ram->block[i].received);
        free(ram->block[i].requested);
        free(ram->block[i].ask);
        free(ram->block[i].precopied);
        free(ram->block[i].precopied_zero);
    }
    free(ram->by_host);
    free(ram);
}

int vm_ram_set(struct vm_ram *ram, uint32_t index, const char *name, uint64_t host, uint64_t size,
               uint32_t page_shift, bool hugetlb)
{
    struct vm_block *block = &ram->block[index];
    size_t length = strnlen(name, VM_NAME_MAX);

    block->host = host;
    block->size = size;
    block->page_shift = page_shift;
    block->pages = size >> page_shift;
    block->hugetlb = hugetlb;
    block->name_length = (uint32_t)length;
    memcpy(block->name, name, length);
    block->received = bitmap_create(block->pages);
    block->requested = bitmap_create(block->pages);
    block->ask = calloc(block->pages, sizeof(*block->ask));
    block->precopied = bitmap_create(size >> VM_PAGE_SHIFT);
    block->precopied_zero = bitmap_create(size >> VM_PAGE_SHIFT);
    return block->received && block->requested && block->ask && block->precopied &&
                   block->precopied_zero
               ? 0
               : -1;
}

void vm_ram_seal(struct vm_ram *ram)
{
    ram->pages_total = 0;
    for (uint32_t i = 0; i < ram->count; i++) {
        uint32_t at = i;

        /* Insertion keeps the order of addresses; a table is built once and has few blocks. */
        while (at > 0 && ram->block[ram->by_host[at - 1]].host > ram->block[i].host) {
            ram->by_host[at] = ram->by_host[at - 1];
            at--;
        }
        ram->by_host[at] = i;
        ram->pages_total += ram->block[i].pages;
    }
}

int64_t vm_ram_find(const struct vm_ram *ram, uint64_t address)
{
    uint32_t low = 0, high = ram->count;

    while (low < high) {
        uint32_t middle = (low + high) / 2;

        if (ram->block[ram->by_host[middle]].host <= address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low == 0) {
        return -1;
    }
    const struct vm_block *block = &ram->block[ram->by_host[low - 1]];

    return address - block->host < block->size ? (int64_t)ram->by_host[low - 1] : -1;
}

uint64_t vm_ram_mark_received(struct vm_block *block, uint64_t first, uint64_t count)
{
    uint64_t fresh = 0, page = first, end = first + count;

    while (page < end) { /* a word at a time */
        uint64_t in_word = 64 - (page & 63), most = end - page;
        uint64_t bits = in_word < most ? in_word : most;
        uint64_t mask = (bits == 64 ? ~UINT64_C(0) : (UINT64_C(1) << bits) - 1) << (page & 63);
        uint64_t before = __atomic_fetch_or(&block->received[page >> 6], mask, __ATOMIC_ACQ_REL);

        fresh += (uint64_t)__builtin_popcountll(mask & ~before);
        page += bits;
    }
    return fresh;
}

bool vm_ram_count_received(struct vm_ram *ram, uint64_t fresh)
{
    return fresh &&
           __atomic_add_fetch(&ram->pages_received, fresh, __ATOMIC_ACQ_REL) == ram->pages_total;
}

void vm_ram_read(uint64_t host, void *buffer, size_t length)
{
    memcpy(buffer, (const void *)(uintptr_t)host, length);
}

void vm_ram_write(uint64_t host, const void *buffer, size_t length)
{
    memcpy((void *)(uintptr_t)host, buffer, length);
}
