/*
 * The destination in pre-copy. Memory is not registered with userfaultfd yet, so that a page is
 * read from the channel straight into its place. Pages are target pages of 4 KiB whatever the
 * block's pages are.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "access.h"
#include "incoming.h"
#include "mapping.h"
#include "shared_in.h"
#include "util.h"

/* 1 when all bytes are read, 0 when told to quit, -1 on failure. */
static int read_all(struct vm_incoming *in, void *buffer, uint64_t length, struct vm_error *err)
{
    struct pollfd p[2] = {
        {.fd = in->main_fd, .events = POLLIN},
        {.fd = in->quit_fd, .events = POLLIN},
    };
    uint8_t *to = buffer;

    while (length > 0) {
        ssize_t got;

        if (poll(p, 2, -1) < 0) {
            if (errno == EINTR) {
                continue;
            }
            return vm_fail_errno(err, "poll of the main channel", 0);
        }
        if (p[1].revents) {
            return 0;
        }
        got = read(in->main_fd, to, length);
        if (got == 0) {
            return vm_fail_gone(err, "main channel", "the source closed it during pre-copy");
        }
        if (got < 0) {
            if (errno == EINTR || errno == EAGAIN) {
                continue;
            }
            /* EFAULT: the page that is read into gets no memory, such as on a tmpfs that is full.
             */
            return vm_fail_errno(err, "main channel", errno == EFAULT ? (uintptr_t)to : 0);
        }
        to += got;
        length -= (uint64_t)got;
    }
    return 1;
}

static int refuse(const struct vm_header *h, const char *why, struct vm_error *err)
{
    return vm_fail_protocol(err, "main channel",
                            "pre-copy of block %u, offset %#llx, %u target pages, %u bytes: %s",
                            h->block, (unsigned long long)h->offset, h->pages, h->length, why);
}

static bool bytes_follow(const struct vm_header *h)
{
    return h->type == VM_MSG_PRECOPY_PAGES && !(h->flags & VM_FLAG_IN_IMAGE);
}

static int check_precopy(const struct vm_ram *ram, const struct vm_header *h, struct vm_error *err)
{
    uint64_t first = h->offset >> VM_PAGE_SHIFT, pages;

    if (h->block >= ram->count) {
        return refuse(h, "no such block", err);
    }
    pages = ram->block[h->block].size >> VM_PAGE_SHIFT;
    if (h->offset != first << VM_PAGE_SHIFT || h->pages == 0 || first >= pages ||
        h->pages > pages - first) {
        return refuse(h, "not whole target pages of the block", err);
    }
    if (h->pages > VM_RUN_BYTES >> VM_PAGE_SHIFT) {
        return refuse(h, "the run is too long", err);
    }
    if (h->type == VM_MSG_PRECOPY_PAGES &&
        vm_block_shares(&ram->block[h->block]) != !!(h->flags & VM_FLAG_IN_IMAGE)) {
        return refuse(h, "the bytes of this block come another way", err);
    }
    if (h->length != (bytes_follow(h) ? (uint64_t)h->pages << VM_PAGE_SHIFT : 0)) {
        return refuse(h, "the length is not that of the pages", err);
    }
    return 0;
}

/* Only what was something else before is written. The page is there: see vm_populate_read. */
static void make_zero(uint64_t host)
{
    const volatile uint64_t *word = (const volatile uint64_t *)(uintptr_t)host;

    for (unsigned i = 0; i < VM_PAGE_SIZE / 8; i++) {
        if (word[i]) {
            memset((void *)(uintptr_t)host, 0, VM_PAGE_SIZE);
            return;
        }
    }
}

static void clear_bit(uint64_t *map, uint64_t bit)
{
    map[bit >> 6] &= ~(UINT64_C(1) << (bit & 63));
}

/* 1 when the pages are in place, 0 when told to quit, -1 on failure. */
static int take_pages(struct vm_incoming *in, const struct vm_header *h, struct vm_error *err)
{
    struct vm_block *block = &in->ram->block[h->block];
    uint64_t first = h->offset >> VM_PAGE_SHIFT, length = (uint64_t)h->pages << VM_PAGE_SHIFT;
    bool zero = h->type == VM_MSG_PRECOPY_ZERO;

    if (!zero && (h->flags & VM_FLAG_IN_IMAGE)) {
        if (vm_image_take(block, h->offset, length, err) < 0) {
            return -1;
        }
    } else if (zero) {
        /*
         * A page of zeros has to be there as well: registered later, one that was never touched
         * would be missing. Touched here, one that the kernel has no memory for would be a SIGBUS.
         */
        if (vm_populate_read(block->host + h->offset, length, err) < 0) {
            return -1;
        }
    } else {
        int rc = read_all(in, (void *)(uintptr_t)(block->host + h->offset), h->length, err);

        if (rc != 1) {
            return rc;
        }
    }
    for (uint64_t page = first; page < first + h->pages; page++) {
        vm_bit_test_and_set(block->precopied, page);
        if (zero && block->in_image) {
            vm_bit_test_and_set(block->precopied_zero, page); /* the guest at the source has it */
        } else if (zero) {
            make_zero(block->host + (page << VM_PAGE_SHIFT));
            vm_bit_test_and_set(block->precopied_zero, page);
        } else {
            clear_bit(block->precopied_zero, page);
        }
    }
    vm_add(&in->bytes_precopied, zero ? 0 : length);
    return 1;
}

int vm_precopy_receive(struct vm_incoming *in, struct vm_error *err)
{
    for (;;) {
        struct vm_header h;
        int rc = read_all(in, &h, sizeof(h), err);

        if (rc != 1) {
            return rc;
        }
        vm_add(&in->messages, 1);
        if (h.type == VM_MSG_ROUND && h.length == 0) {
            vm_set(&in->rounds, h.pages);
            continue;
        }
        if (h.type != VM_MSG_PRECOPY_PAGES && h.type != VM_MSG_PRECOPY_ZERO) {
            in->control = h;
            return 0;
        }
        if (check_precopy(in->ram, &h, err) < 0) {
            return -1;
        }
        rc = take_pages(in, &h, err);
        if (rc != 1) {
            return rc;
        }
    }
}

/* How many of the host page's target pages are set in the map. */
static uint64_t set_in_page(const struct vm_block *block, const uint64_t *map, uint64_t page)
{
    uint64_t per_page = UINT64_C(1) << (block->page_shift - VM_PAGE_SHIFT), set = 0;

    for (uint64_t target = page * per_page; target < (page + 1) * per_page; target++) {
        set += vm_bit_test(map, target);
    }
    return set;
}

void vm_precopy_forget(struct vm_ram *ram, uint32_t index, uint64_t offset, uint64_t length)
{
    struct vm_block *block = &ram->block[index];

    for (uint64_t page = offset >> block->page_shift; page < (offset + length) >> block->page_shift;
         page++) {
        block->discarded += set_in_page(block, block->precopied, page) > 0;
    }
    for (uint64_t target = offset >> VM_PAGE_SHIFT; target < (offset + length) >> VM_PAGE_SHIFT;
         target++) {
        clear_bit(block->precopied, target);
        clear_bit(block->precopied_zero, target);
    }
}

uint64_t vm_precopy_settle(struct vm_ram *ram, uint32_t index)
{
    struct vm_block *block = &ram->block[index];
    uint64_t per_page = UINT64_C(1) << (block->page_shift - VM_PAGE_SHIFT), partial = 0, fresh = 0;

    for (uint64_t page = 0; page < block->pages; page++) {
        uint64_t set = set_in_page(block, block->precopied, page);

        if (set == per_page) {
            bool zero = set_in_page(block, block->precopied_zero, page) == per_page;

            vm_add(zero ? &block->arrived.zero : &block->arrived.precopied, 1);
            fresh += vm_ram_mark_received(block, page, 1);
        } else {
            partial += set > 0;
        }
    }
    vm_ram_count_received(ram, fresh);
    return partial;
}
