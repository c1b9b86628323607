#include "shared_in.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "access.h"
#include "mapping.h"
#include "util.h"

int vm_image_map(int fd, uint64_t length, uint64_t *address, struct vm_error *err)
{
    void *at = mmap(NULL, length, PROT_READ, MAP_SHARED, fd, 0);

    if (at == MAP_FAILED) {
        return vm_fail_errno(err, "mmap of the source's image", 0);
    }
    *address = (uintptr_t)at;
    return 0;
}

/* Refused, the pages stay: freeing them is a courtesy to the host. */
static void release(const struct vm_block *block, uint64_t offset, uint64_t length)
{
    struct vm_error ignored;

    if (block->release_image && block->image) {
        vm_punch_hole(block->image_fd, offset, length, &ignored);
    }
}

enum { LARGEST_COPIED_ANYHOW = 2 << 20 };

/*
 * The kernel copies with page faults off, and begins anew for every page of the image that our page
 * table does not have yet. For one small page that is cheaper than to map it first; a run is mapped
 * in one go, if it was not mapped ahead. A page of 1 GiB would not be copied at all.
 */
static bool must_be_mapped(const struct vm_block *block, uint64_t offset, uint64_t length)
{
    return length > LARGEST_COPIED_ANYHOW ||
           (length > VM_PAGE_SIZE && offset + length > vm_get(&block->image_mapped));
}

static int copy_from_image(int uffd, const struct vm_block *block, uint64_t offset, uint64_t length,
                           struct vm_place_stats *stats, struct vm_error *err)
{
    uint64_t from = block->image + offset;
    int rc;

    if (must_be_mapped(block, offset, length) && vm_populate_read(from, length, err) < 0) {
        return -1;
    }
    rc = vm_uffd_copy(uffd, block->host + offset, (const void *)(uintptr_t)from, length,
                      UINT64_C(1) << block->page_shift, stats, err);
    if (rc == 0) {
        release(block, offset, length);
    }
    return rc;
}

int vm_image_place(int uffd, const struct vm_block *block, const struct vm_header *h,
                   struct vm_place_stats *stats, struct vm_error *err)
{
    uint64_t length = (uint64_t)h->pages << block->page_shift;

    if (block->in_image) {
        return vm_uffd_map_there(uffd, block->host + h->offset, length,
                                 UINT64_C(1) << block->page_shift, stats, err);
    }
    return copy_from_image(uffd, block, h->offset, length, stats, err);
}

/* By the kernel, for which a page without memory is EFAULT; copied here it would be a SIGBUS. */
static int read_image(const struct vm_block *block, uint64_t offset, uint64_t length,
                      struct vm_error *err)
{
    while (length > 0) {
        void *to = (void *)(uintptr_t)(block->host + offset);
        ssize_t got = pread(block->image_fd, to, length, (off_t)offset);

        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            errno = got ? errno : EIO;
            return vm_fail_errno(err, "read of the source's image",
                                 errno == EFAULT ? (uintptr_t)to : 0);
        }
        offset += (uint64_t)got;
        length -= (uint64_t)got;
    }
    return 0;
}

int vm_image_take(const struct vm_block *block, uint64_t offset, uint64_t length,
                  struct vm_error *err)
{
    return block->in_image ? vm_populate_read(block->host + offset, length, err)
                           : read_image(block, offset, length, err);
}

/* Maps a little more behind *offset of the block's image, whose holes stay holes; false: there is
 * no more, or it can't be mapped. */
static bool map_more(struct vm_block *block, uint64_t *offset)
{
    off_t data = lseek(block->image_fd, (off_t)*offset, SEEK_DATA), hole;
    struct vm_error ignored;
    uint64_t end;

    if (data < 0 || (uint64_t)data >= block->size) {
        return false;
    }
    hole = lseek(block->image_fd, data, SEEK_HOLE);
    end = (uint64_t)data + VM_RUN_BYTES;
    end = hole >= 0 && (uint64_t)hole < end ? (uint64_t)hole : end;
    *offset = end < block->size ? end : block->size;
    if (vm_populate_read(block->image + (uint64_t)data, *offset - (uint64_t)data, &ignored) < 0) {
        return false;
    }
    vm_set(&block->image_mapped, *offset);
    return true;
}

void vm_image_map_hugepages(struct vm_ram *ram)
{
    for (uint32_t i = 0; i < ram->count; i++) {
        struct vm_block *block = &ram->block[i];
        uint64_t offset = 0;

        while (block->hugetlb && block->image && map_more(block, &offset)) {
        }
    }
}

bool vm_image_map_ahead(struct vm_ram *ram, struct vm_image_ahead *at)
{
    for (; at->block < ram->count; at->block++, at->offset = 0) {
        struct vm_block *block = &ram->block[at->block];

        /* What was freed would be filled again. */
        if (block->image && !block->hugetlb && !block->release_image &&
            map_more(block, &at->offset)) {
            return true;
        }
    }
    return false;
}

int vm_image_map_again(const struct vm_incoming *in, const struct vm_block *block, uint64_t offset,
                       struct vm_error *err)
{
    struct vm_place_stats ignored = {0}; /* it was placed before */
    uint64_t page_size = UINT64_C(1) << block->page_shift;
    int rc = vm_uffd_map_there(in->uffd, block->host + offset, page_size, page_size, &ignored, err);

    return rc < 0 ? -1 : 0;
}

/* The first run of host pages from *first on that were received; 0: there is none. */
static uint64_t received_run(const struct vm_block *block, uint64_t *first)
{
    uint64_t page = *first, end;

    while (page < block->pages && !vm_bit_test(block->received, page)) {
        page++;
    }
    for (end = page; end < block->pages && vm_bit_test(block->received, end); end++) {
    }
    *first = page;
    return end - page;
}

static bool has_client(const struct vm_incoming *in, uint32_t index)
{
    for (uint32_t i = 0; i < in->clients; i++) {
        if (in->client[i].block == index) {
            return true;
        }
    }
    return false;
}

void vm_image_show_clients(struct vm_incoming *in)
{
    for (uint32_t i = 0; i < in->ram->count; i++) {
        const struct vm_block *block = &in->ram->block[i];
        uint64_t first = 0, pages;

        while (block->in_image && has_client(in, i) && (pages = received_run(block, &first)) > 0) {
            vm_clients_wake(in, i, first << block->page_shift, pages << block->page_shift);
            first += pages;
        }
    }
}

void vm_image_release_received(struct vm_ram *ram)
{
    for (uint32_t i = 0; i < ram->count; i++) {
        const struct vm_block *block = &ram->block[i];
        uint64_t first = 0, pages;

        while (block->release_image && (pages = received_run(block, &first)) > 0) {
            release(block, first << block->page_shift, pages << block->page_shift);
            first += pages;
        }
    }
}
