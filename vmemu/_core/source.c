#include "source.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "util.h"
#include "wire.h"

enum { CURSOR_SHIFT = 40 }; /* 2^40 pages a block, 2^24 blocks */

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
    }
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
    return image->sent ? 0 : vm_fail_errno(err, "memory for the sent bitmap", 0);
}

/* ---- sending ---- */

static bool page_is_zero(const struct vm_image *image, uint64_t page)
{
    const uint64_t *word = (const uint64_t *)(image->data + (page << image->page_shift));
    uint64_t words = (UINT64_C(1) << image->page_shift) / 8;

    /* Nearly every page that is not zero shows it at once; the rest is read eight words at a time.
     */
    for (uint64_t i = 0; i < words; i += 8) {
        if (word[i] | word[i + 1] | word[i + 2] | word[i + 3] | word[i + 4] | word[i + 5] |
            word[i + 6] | word[i + 7]) {
            return false;
        }
    }
    return true;
}

/* The peer closing its end is how a destination that dies, or is done, looks from here: not a
 * failure. */
static int send_message(struct vm_source *s, int fd, const struct vm_header *h, const void *payload,
                        struct vm_error *err)
{
    if (vm_wire_send(fd, h, payload) == 0) {
        return 0;
    }
    if (errno == EPIPE || errno == ECONNRESET) {
        vm_set_release(&s->stop, 1);
        return 0;
    }
    return vm_fail_errno(err, "write to the destination", 0);
}

static int send_run(struct vm_source *s, int fd, uint32_t block, uint64_t first, uint32_t pages,
                    bool zero, unsigned flags, struct vm_error *err)
{
    const struct vm_image *image = &s->image[block];
    struct vm_header h = {
        .type = zero ? VM_MSG_ZERO : VM_MSG_PAGES,
        .flags = (uint16_t)flags,
        .block = block,
        .offset = first << image->page_shift,
        .pages = pages,
        .length = zero ? 0 : pages << image->page_shift,
    };

    vm_add(zero                     ? &s->pages_zero
           : flags & VM_FLAG_URGENT ? &s->pages_urgent
                                    : &s->pages_pushed,
           pages);
    return send_message(s, fd, &h, image->data + h.offset, err);
}

/* ---- the background push ---- */

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
    uint32_t first = (uint32_t)(cursor >> CURSOR_SHIFT);
    uint64_t from = cursor & ((UINT64_C(1) << CURSOR_SHIFT) - 1);

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
    *zero = page_is_zero(image, first);
    while (pages < limit && first + pages < image->pages &&
           page_is_zero(image, first + pages) == *zero &&
           !vm_bit_test_and_set(image->sent, first + pages)) {
        pages++;
    }
    return pages;
}

/* Send one run; 1 when there was one, 0 when nothing is left, -1 on failure. */
static int push_one_run(struct vm_source *s, struct vm_error *err)
{
    uint32_t block, pages;
    uint64_t page, before = vm_get(&s->cursor);
    bool zero;

    if (!next_unsent(s, &block, &page)) {
        return 0;
    }
    pages = claim_run(&s->image[block], page, &zero);
    /* A request that came meanwhile has moved the cursor to where the guest is now: then leave it
     * there. */
    __atomic_compare_exchange_n(&s->cursor, &before,
                                (uint64_t)block << CURSOR_SHIFT | (page + pages), false,
                                __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    if (pages && send_run(s, s->main_fd, block, page, pages, zero, 0, err) < 0) {
        return -1;
    }
    return 1;
}

static int send_complete(struct vm_source *s, struct vm_error *err)
{
    struct vm_header h = {.type = VM_MSG_COMPLETE};

    return send_message(s, s->main_fd, &h, NULL, err);
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
    while (rc == 1 && !vm_get_acquire(&s->stop)) {
        rc = push_one_run(s, err);
    }
    return rc < 0 ? -1 : send_complete(s, err);
}

/* ---- requests ---- */

/* Puts the messages of the return path together from whatever read gives. */
struct requests {
    struct vm_source *s;
    int64_t named; /* the block that was named last, or -1 */
    bool push;     /* the destination has asked for the push */
    uint32_t have;
    uint8_t buffer[4096];
};

static int64_t find_name(const struct vm_source *s, const uint8_t *name, uint32_t length)
{
    for (uint32_t i = 0; i < s->count; i++) {
        if (s->image[i].name_length == length && memcmp(s->image[i].name, name, length) == 0) {
            return i;
        }
    }
    return -1;
}

static int refuse(const struct vm_header *h, const char *why, struct vm_error *err)
{
    return vm_fail_protocol(err, "return path",
                            "message type %u, offset %#llx, %u pages, %u bytes: %s", h->type,
                            (unsigned long long)h->offset, h->pages, h->length, why);
}

/* Answer a request: one message a page, so that the first page asked for is not held up by the
 * others. */
static int answer(struct requests *q, const struct vm_header *h, struct vm_error *err)
{
    struct vm_source *s = q->s;
    uint32_t block = (uint32_t)q->named;
    struct vm_image *image = &s->image[block];
    uint64_t first = h->offset >> image->page_shift;
    int fd = s->urgent_fd >= 0 ? s->urgent_fd : s->main_fd;

    if (h->offset != first << image->page_shift || h->pages == 0 || first >= image->pages ||
        h->pages > image->pages - first) {
        return refuse(h, "no whole pages of the block", err);
    }
    vm_add(&s->requests, 1);
    for (uint64_t page = first; page < first + h->pages; page++) {
        if (!vm_bit_test_and_set(image->sent, page) &&
            send_run(s, fd, block, page, 1, page_is_zero(image, page), VM_FLAG_URGENT, err) < 0) {
            return -1;
        }
    }
    /* What the guest needs next is likely to lie behind what it needed now: the push goes on from
     * here. */
    vm_set(&s->cursor, (uint64_t)block << CURSOR_SHIFT | (first + h->pages));
    return 0;
}

static int handle_request(struct requests *q, const struct vm_header *h, const uint8_t *name,
                          struct vm_error *err)
{
    switch (h->type) {
    case VM_MSG_REQ_PAGES_ID:
        q->named = find_name(q->s, name, h->length);
        return q->named < 0 ? refuse(h, "a block that does not exist", err) : answer(q, h, err);
    case VM_MSG_REQ_PAGES:
        return q->named < 0 ? refuse(h, "no block was named before", err) : answer(q, h, err);
    case VM_MSG_PUSH:
        q->push = true;
        eventfd_write(q->s->push_fd, 1);
        return 0;
    case VM_MSG_SHUT:
        vm_set_release(&q->s->stop, 1);
        return 0;
    default:
        return refuse(h, "not expected here", err);
    }
}

static int handle_requests(struct requests *q, struct vm_error *err)
{
    uint32_t used = 0;

    while (q->have - used >= sizeof(struct vm_header) && !vm_get(&q->s->stop)) {
        struct vm_header h;

        memcpy(&h, q->buffer + used, sizeof(h));
        if (h.length > VM_NAME_MAX || (h.length && h.type != VM_MSG_REQ_PAGES_ID)) {
            return refuse(&h, "the length can't be right", err);
        }
        if (q->have - used < sizeof(h) + h.length) {
            break;
        }
        if (handle_request(q, &h, q->buffer + used + sizeof(h), err) < 0) {
            return -1;
        }
        used += (uint32_t)sizeof(h) + h.length;
    }
    q->have -= used;
    memmove(q->buffer, q->buffer + used, q->have);
    return 0;
}

/* One read of the return path and what it completes. Its end means that the destination is gone:
 * stop. */
static int read_requests(struct requests *q, struct vm_error *err)
{
    ssize_t got = read(q->s->return_fd, q->buffer + q->have, sizeof(q->buffer) - q->have);

    if (got > 0) {
        q->have += (uint32_t)got;
        return handle_requests(q, err);
    }
    if (got == 0) {
        vm_set_release(&q->s->stop, 1);
        return 0;
    }
    return errno == EINTR || errno == EAGAIN ? 0 : vm_fail_errno(err, "read of the return path", 0);
}

int vm_source_serve(struct vm_source *s, struct vm_error *err)
{
    struct requests q = {.s = s, .named = -1};
    int rc = 0;

    while (rc == 0 && !vm_get_acquire(&s->stop)) {
        rc = read_requests(&q, err);
    }
    vm_set_release(&s->stop, 1);
    eventfd_write(s->push_fd, 1); /* a push that has not begun has to see the end too */
    return rc;
}

int vm_source_both(struct vm_source *s, struct vm_error *err)
{
    struct requests q = {.s = s, .named = -1};
    struct pollfd p = {.fd = s->return_fd, .events = POLLIN};
    bool left = true;
    int rc = 0;

    while (rc >= 0 && !vm_get_acquire(&s->stop)) {
        bool pushing = q.push && left;

        if (poll(&p, 1, pushing ? 0 : -1) < 0) {
            if (errno == EINTR) {
                continue;
            }
            return vm_fail_errno(err, "poll of the return path", 0);
        }
        if (p.revents) {
            rc = read_requests(&q, err);
        } else if (pushing) {
            rc = push_one_run(s, err);
            left = rc != 0;
            rc = left || rc < 0 ? rc : send_complete(s, err);
        }
    }
    return rc < 0 ? -1 : 0;
}
