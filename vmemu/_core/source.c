#include "source.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "access.h"
#include "source_parts.h"
#include "util.h"

struct vm_source *vm_source_create(uint32_t count)
{
    struct vm_source *s = calloc(1, sizeof(*s) + count * sizeof(s->image[0]));

    if (s) {
        s->count = count;
    }
    return s;
}

void vm_source_destroy(struct vm_source *s)
{
    if (!s) {
        return;
    }
    for (uint32_t i = 0; i < s->count; i++) {
        if (s->image[i].data) {
            munmap(s->image[i].data, s->image[i].size);
        }
        free(s->image[i].sent);
        free(s->image[i].asked);
        free(s->image[i].dirty);
        free(s->image[i].zeros);
    }
    free(s->recorded);
    free(s);
}

int vm_source_set(struct vm_source *s, uint32_t index, const char *name, uint64_t size,
                  uint32_t page_shift, struct vm_error *err)
{
    struct vm_image *image = &s->image[index];
    size_t length = strnlen(name, VM_NAME_MAX);
    void *data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (data == MAP_FAILED) {
        return vm_fail_errno(err, "mmap of the source's image", 0);
    }
    madvise(data, size, MADV_HUGEPAGE); /* filled faster; nothing depends on it */
    image->data = data;
    image->size = size;
    image->page_shift = page_shift;
    image->pages = size >> page_shift;
    image->name_length = (uint32_t)length;
    memcpy(image->name, name, length);
    image->sent = calloc((image->pages + 63) / 64, sizeof(uint64_t));
    image->asked = calloc((image->pages + 63) / 64, sizeof(uint64_t));
    image->dirty = calloc((size / VM_PAGE_SIZE + 63) / 64, sizeof(uint64_t));
    if (!image->sent || !image->asked || !image->dirty) {
        return vm_fail_errno(err, "memory for the bitmaps of a block", 0);
    }
    for (uint64_t page = 0; page < size / VM_PAGE_SIZE; page++) {
        vm_bit_test_and_set(image->dirty, page); /* nothing is at the destination yet */
    }
    return 0;
}

bool vm_bytes_are_zero(const uint8_t *bytes, uint64_t length)
{
    const uint64_t *word = (const uint64_t *)bytes;

    /* Nearly every page that is not zero shows it at once; the rest is read eight words at a time.
     */
    for (uint64_t i = 0; i < length / 8; i += 8) {
        if (word[i] | word[i + 1] | word[i + 2] | word[i + 3] | word[i + 4] | word[i + 5] |
            word[i + 6] | word[i + 7]) {
            return false;
        }
    }
    return true;
}

/* rc of a write: the peer may be done, or gone. */
static int judge_sent(struct vm_source *s, int rc, struct vm_error *err)
{
    if (rc == 0) {
        return 0;
    }
    if (errno == EPIPE || errno == ECONNRESET) {
        vm_set_release(&s->stop, 1);
        return 0;
    }
    return vm_fail_errno(err, "write to the destination", 0);
}

int vm_source_send(struct vm_source *s, int fd, const struct vm_header *h, const void *payload,
                   struct vm_error *err)
{
    return judge_sent(s, vm_wire_send(fd, h, payload), err);
}

/* Refused (of locked memory), the pages stay: freeing them is a courtesy to the host. */
static void release(struct vm_source *s, const struct vm_image *image, uint64_t first,
                    uint64_t pages)
{
    uint64_t offset = first << image->page_shift, length = pages << image->page_shift;

    if (madvise(image->data + offset, length, MADV_DONTNEED) == 0) {
        vm_add(&s->bytes_released, length);
    }
}

int vm_source_send_run(struct vm_source *s, int fd, const struct vm_run *run, struct vm_error *err)
{
    const struct vm_image *image = &s->image[run->block];
    bool urgent = run->flags & VM_FLAG_URGENT;
    struct vm_header h = {
        .type = run->zero ? VM_MSG_ZERO : VM_MSG_PAGES,
        .flags = run->flags | (image->shared && !run->zero ? VM_FLAG_IN_IMAGE : 0),
        .block = run->block,
        .offset = run->first << image->page_shift,
        .pages = run->pages,
        .length = run->zero || image->shared ? 0 : run->pages << image->page_shift,
        .queued_ns = run->queued_ns,
        .sent_ns = urgent ? vm_now_ns() : 0,
    };

    vm_add(run->zero ? &s->pages_zero : urgent ? &s->pages_urgent : &s->pages_pushed, run->pages);
    /* The guest runs elsewhere: nobody writes to the image any more. */
    if (judge_sent(s, vm_wire_lend(fd, &h, image->data + h.offset), err) < 0) {
        return -1;
    }
    /* All of it is in the channel, which holds what it needs; unless the other end is closed. */
    if (s->release_ram && !image->shared && !vm_get(&s->stop)) {
        release(s, image, run->first, run->pages);
    }
    return 0;
}

void vm_source_release_sent(struct vm_source *s)
{
    for (uint32_t block = 0; s->release_ram && block < s->count; block++) {
        const struct vm_image *image = &s->image[block];

        /* A shared image is read there when it is placed, and freed there. */
        for (uint64_t page = 0, end; !image->shared && page < image->pages; page = end) {
            bool sent = vm_bit_test(image->sent, page);

            for (end = page + 1; end < image->pages && vm_bit_test(image->sent, end) == sent;
                 end++) {
            }
            if (sent) {
                release(s, image, page, end - page);
            }
        }
    }
}
