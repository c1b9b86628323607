/* What the parts of the source share: pre-copy, push, requests. Not for others. */
#ifndef VM_SOURCE_PARTS_H
#define VM_SOURCE_PARTS_H

#include "source.h"
#include "wire.h"

/* length is a multiple of 64 */
bool vm_bytes_are_zero(const uint8_t *bytes, uint64_t length);

/* Whole target pages of an image whose zeros are noted. */
bool vm_zeros_are_noted(const struct vm_image *image, uint64_t offset, uint64_t length);

static inline bool vm_range_is_zero(const struct vm_image *image, uint64_t offset, uint64_t length)
{
    return image->zeros ? vm_zeros_are_noted(image, offset, length)
                        : vm_bytes_are_zero(image->data + offset, length);
}

static inline bool vm_page_is_zero(const struct vm_image *image, uint64_t page)
{
    return vm_range_is_zero(image, page << image->page_shift, UINT64_C(1) << image->page_shift);
}

/* Before and after everything that is sent on the main channel without waiting for an answer. */
void vm_source_stay_close(const struct vm_source *s, bool close);

/* The peer closing its end is how a destination that is done, or dies, looks from here: it sets
 * s->stop and is no failure. */
int vm_source_send(struct vm_source *s, int fd, const struct vm_header *h, const void *payload,
                   struct vm_error *err);

/* Host pages of a block that travel together in post-copy: all of them are zeros or none. */
struct vm_run {
    uint32_t block;
    uint64_t first;
    uint32_t pages;
    bool zero;
    uint16_t flags;
    uint64_t queued_ns; /* when the request that they answer was read; 0: nobody asked */
};

int vm_source_send_run(struct vm_source *s, int fd, const struct vm_run *run, struct vm_error *err);

/* The background push, a run at a time: 1 when one was sent, 0 when nothing is left, -1 on failure.
 */
int vm_push_one_run(struct vm_source *s, struct vm_error *err);
int vm_push_complete(struct vm_source *s, struct vm_error *err);
/* How long the limiter holds the next run back, ns. */
uint64_t vm_push_delay(struct vm_source *s);

#endif
