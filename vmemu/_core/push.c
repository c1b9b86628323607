/* The background push: everything that nobody has asked for, from where the guest is now. */
#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "source_parts.h"
#include "util.h"

static uint32_t run_limit(const struct vm_image *image)
{
    uint32_t pages = VM_RUN_BYTES >> image->page_shift;

    return pages ? pages : 1;
}

/* The first page at or after the cursor, round all blocks, that nobody has claimed; false: none is
 * left. */
static bool next_unsent(struct vm_source *s, uint32_t *block, uint64_t *page)
{
    uint64_t cursor = vm_get(&s->cursor);
    uint32_t first = (uint32_t)(cursor >> VM_CURSOR_SHIFT);
    uint64_t from = cursor & ((UINT64_C(1) << VM_CURSOR_SHIFT) - 1);

    for (uint32_t step = 0; step <= s->count; step++) {
        uint32_t at = (first + step) % s->count;
        const struct vm_image *image = &s->image[at];

        for (uint64_t p = step ? 0 : from; p < image->pages; p++) {
            if (vm_get(&image->sent[p >> 6]) == UINT64_MAX) {
                p |= 63; /* a whole word of sent pages */
            } else if (!vm_bit_test(image->sent, p)) {
                *block = at;
                *page = p;
                return true;
            }
        }
    }
    return false;
}

/* Claim the page and those behind it that are like it, zeros or not, while they are free. */
static uint32_t claim_run(struct vm_image *image, uint64_t first, bool *zero)
{
    uint32_t pages = 1, limit = run_limit(image);

    if (vm_bit_test_and_set(image->sent, first)) {
        return 0; /* a request was faster */
    }
    *zero = vm_page_is_zero(image, first);
    /* Looked at first: reading what was sent, and perhaps released, would be for nothing. */
    while (pages < limit && first + pages < image->pages &&
           !vm_bit_test(image->sent, first + pages) &&
           vm_page_is_zero(image, first + pages) == *zero &&
           !vm_bit_test_and_set(image->sent, first + pages)) {
        pages++;
    }
    return pages;
}

int vm_push_one_run(struct vm_source *s, struct vm_error *err)
{
    uint32_t block, pages;
    uint64_t page, before = vm_get(&s->cursor);
    bool zero = false;

    if (!next_unsent(s, &block, &page)) {
        return 0;
    }
    pages = claim_run(&s->image[block], page, &zero);
    /* A request that came meanwhile has moved the cursor to where the guest is now: then leave it
     * there. */
    __atomic_compare_exchange_n(&s->cursor, &before,
                                (uint64_t)block << VM_CURSOR_SHIFT | (page + pages), false,
                                __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    if (pages && vm_source_send_run(s, s->main_fd, block, page, pages, zero, 0, err) < 0) {
        return -1;
    }
    vm_limiter_charge(&s->limiter, vm_now_ns(),
                      zero ? 0 : (uint64_t)pages << s->image[block].page_shift);
    return 1;
}

int vm_push_complete(struct vm_source *s, struct vm_error *err)
{
    struct vm_header h = {.type = VM_MSG_COMPLETE};

    if (s->withholds) {
        return 0;
    }
    vm_event(s->log, VM_EVENT_POSTCOPY_END, 0, 0, 0);
    return vm_source_send(s, s->main_fd, &h, NULL, err);
}

/* Wait for the limiter to let the next bytes go; true when it is over meanwhile. */
static bool held_back(struct vm_source *s)
{
    uint64_t delay = vm_limiter_delay(&s->limiter, vm_now_ns());
    struct timespec wait = {(time_t)(delay / 1000000000u), (long)(delay % 1000000000u)};
    struct pollfd over = {.fd = s->push_fd, .events = POLLIN};

    /* Rung at the end, after stop was set; unless that ring was read with the one of the begin. */
    if (delay && !vm_get_acquire(&s->stop)) {
        ppoll(&over, 1, &wait, NULL);
    }
    return vm_get_acquire(&s->stop);
}

int vm_source_push(struct vm_source *s, struct vm_error *err)
{
    eventfd_t begin;
    int rc = 1;

    while (read(s->push_fd, &begin, sizeof(begin)) < 0) {
        if (errno != EINTR) {
            return vm_fail_errno(err, "wait for the push to begin", 0);
        }
    }
    while (rc == 1 && !held_back(s)) {
        rc = vm_push_one_run(s, err);
    }
    /* Stopped half-way, it is not complete: whoever stopped it says what is to be said. */
    return rc == 0 ? vm_push_complete(s, err) : rc < 0 ? -1 : 0;
}
