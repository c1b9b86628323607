/* The return path as the source reads it: requests are answered before anything is pushed. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "carry.h"
#include "scheduling.h"
#include "source_parts.h"
#include "util.h"

/* Puts the messages of the return path together from whatever read gives. */
struct requests {
    struct vm_source *s;
    int return_fd; /* read end */
    int page_fd;   /* where the answers go */
    bool of_vcpu;  /* the channel of one vCPU, which waits for each answer */
    bool ended;    /* nobody will ask any more */
    int64_t named; /* the block that was named last, or -1 */
    bool push;     /* the destination has asked for the push */
    uint32_t have;
    struct vm_carry carry;
    uint8_t buffer[4096];
};

static bool has_name(const struct vm_image *image, const uint8_t *name, uint32_t length)
{
    return image->name_length == length && memcmp(image->name, name, length) == 0;
}

/* The name counts. Whoever asks knows our table too, and says where in it the name stands: so a
 * request costs the same however many blocks there are. */
static int64_t find_name(const struct vm_source *s, uint32_t hint, const uint8_t *name,
                         uint32_t length)
{
    if (hint < s->count && has_name(&s->image[hint], name, length)) {
        return hint;
    }
    for (uint32_t i = 0; i < s->count; i++) {
        if (has_name(&s->image[i], name, length)) {
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

/* Whether a request is for whole pages of the block: its last one may lie before its first. */
static bool within(const struct vm_image *image, const struct vm_header *h, uint64_t first)
{
    int64_t stride = h->flags & VM_FLAG_AHEAD ? h->stride : 1, last;

    return h->offset == first << image->page_shift && h->pages > 0 && stride != 0 &&
           first < image->pages && !__builtin_mul_overflow(stride, h->pages - 1, &last) &&
           !__builtin_add_overflow(last, first, &last) && last >= 0 &&
           (uint64_t)last < image->pages;
}

/* What goes along with an answer: what a vCPU is going to, then what lies around it. A vCPU that
 * serves itself reads its channel only while it waits, so nothing goes along to it. */
static void plan(struct requests *q, const struct vm_header *h, uint32_t block, uint64_t first)
{
    if (q->of_vcpu) {
        return;
    }
    if (h->flags & VM_FLAG_AHEAD) {
        vm_carry_plan(&q->carry, (struct vm_window){.next = first + (uint64_t)h->stride,
                                                    .left = h->pages - 1,
                                                    .stride = h->stride,
                                                    .block = block,
                                                    .flags = VM_FLAG_AHEAD});
    }
    vm_carry_around(&q->carry, q->s, block, first);
}

/* The page was claimed by somebody else, and whoever waits here would wait for ever. */
static int tell_elsewhere(struct requests *q, uint32_t block, uint64_t page, struct vm_error *err)
{
    struct vm_header h = {
        .type = VM_MSG_ELSEWHERE,
        .block = block,
        .offset = page << q->s->image[block].page_shift,
        .pages = 1,
    };

    return vm_source_send(q->s, q->page_fd, &h, NULL, err);
}

/*
 * The push has sent the page, but whoever asks did not have it when it asked: it may lie in the
 * main channel behind a MiB of others. By the urgent channel it comes at once, and the destination
 * leaves it at the first that comes. Not so when what was sent is freed; and what fills the channel
 * by itself is better waited for.
 */
static bool may_overtake(const struct vm_source *s, const struct vm_image *image)
{
    return s->urgent_fd >= 0 && !s->release_ram && !s->withholds && !image->shared &&
           UINT64_C(1) << image->page_shift < VM_RUN_BYTES;
}

/* Answer a request: one message a page, so that the first page asked for is not held up by the
 * others. */
static int answer(struct requests *q, const struct vm_header *h, struct vm_error *err)
{
    struct vm_source *s = q->s;
    uint32_t block = (uint32_t)q->named;
    struct vm_image *image = &s->image[block];
    uint64_t first = h->offset >> image->page_shift, queued_ns = vm_now_ns();
    uint64_t pages = h->flags & VM_FLAG_AHEAD ? 1 : h->pages;

    if (!within(image, h, first)) {
        return refuse(h, "no whole pages of the block", err);
    }
    vm_add(&s->requests, 1);
    vm_event_at(s->log, queued_ns, VM_EVENT_QUEUE_PAGES, block, h->offset,
                pages << image->page_shift);
    for (uint64_t page = first; page < first + pages; page++) {
        bool asked = vm_bit_test_and_set(image->asked, page);
        bool fresh = !vm_bit_test_and_set(image->sent, page);

        vm_event(s->log, fresh ? VM_EVENT_QUEUED_PAGE : VM_EVENT_QUEUED_PAGE_NOT_DIRTY, block,
                 page << image->page_shift, 0);
        if (fresh || (!asked && may_overtake(s, image))) {
            struct vm_run run = {.block = block,
                                 .first = page,
                                 .pages = 1,
                                 .zero = vm_page_is_zero(image, page),
                                 .flags = VM_FLAG_URGENT,
                                 .queued_ns = queued_ns};

            if (vm_source_send_run(s, q->page_fd, &run, err) < 0) {
                return -1;
            }
        } else if (q->of_vcpu && tell_elsewhere(q, block, page, err) < 0) {
            return -1;
        }
    }
    plan(q, h, block, first);
    vm_push_asked(s, block, first + pages);
    return 0;
}

static int handle_request(struct requests *q, const struct vm_header *h, const uint8_t *name,
                          struct vm_error *err)
{
    if (q->of_vcpu && h->type != VM_MSG_REQ_PAGES_ID && h->type != VM_MSG_REQ_PAGES) {
        return refuse(h, "not expected from a vCPU", err);
    }
    switch (h->type) {
    case VM_MSG_REQ_PAGES_ID:
        q->named = find_name(q->s, h->block, name, h->length);
        return q->named < 0 ? refuse(h, "a block that does not exist", err) : answer(q, h, err);
    case VM_MSG_REQ_PAGES:
        return q->named < 0 ? refuse(h, "no block was named before", err) : answer(q, h, err);
    case VM_MSG_PUSH:
        if (!q->push) {
            q->push = true;
            eventfd_write(q->s->push_fd, 1);
        }
        return 0;
    case VM_MSG_SHUT:
        vm_event(q->s->log, VM_EVENT_RETURN_PATH_SHUT, 0, h->pages, 0);
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
 * stop. That of a vCPU ends with the vCPU's part in it. */
static int read_requests(struct requests *q, struct vm_error *err)
{
    ssize_t got = read(q->return_fd, q->buffer + q->have, sizeof(q->buffer) - q->have);

    if (got > 0) {
        q->have += (uint32_t)got;
        return handle_requests(q, err);
    }
    if (got == 0) {
        q->ended = true;
        if (!q->of_vcpu) {
            vm_set_release(&q->s->stop, 1);
        }
        return 0;
    }
    return errno == EINTR || errno == EAGAIN ? 0 : vm_fail_errno(err, "read of the return path", 0);
}

/* Whoever waits for a page comes before what nobody waits for: so this looks, and does not wait. */
static bool asked(const struct requests *q)
{
    struct pollfd p = {.fd = q->return_fd, .events = POLLIN};

    return poll(&p, 1, 0) > 0;
}

static int serve(struct requests *q, struct vm_error *err)
{
    int rc = 0;

    vm_schedule_urgent();
    while (rc == 0 && !q->ended && !vm_get_acquire(&q->s->stop)) {
        rc = q->carry.count && !asked(q) ? vm_carry_some(&q->carry, q->s, q->page_fd, err)
                                         : read_requests(q, err);
    }
    return rc;
}

int vm_source_serve(struct vm_source *s, struct vm_error *err)
{
    struct requests q = {
        .s = s,
        .return_fd = s->return_fd,
        .page_fd = s->urgent_fd >= 0 ? s->urgent_fd : s->main_fd,
        .named = -1,
    };
    int rc = serve(&q, err);

    vm_set_release(&s->stop, 1);
    eventfd_write(s->push_fd, 1); /* a push that has not begun has to see the end too */
    return rc;
}

int vm_source_serve_vcpu(struct vm_source *s, int return_fd, int page_fd, struct vm_error *err)
{
    struct requests q = {
        .s = s, .return_fd = return_fd, .page_fd = page_fd, .of_vcpu = true, .named = -1};

    return serve(&q, err);
}

/* How long to wait for a request before anything else may go; NULL: for ever. */
static const struct timespec *patience(const struct requests *q, bool pushing,
                                       struct timespec *wait)
{
    uint64_t delay = pushing && !q->carry.count ? vm_push_delay(q->s) : 0;

    *wait = (struct timespec){(time_t)(delay / 1000000000u), (long)(delay % 1000000000u)};
    return pushing || q->carry.count ? wait : NULL;
}

static int serve_and_push(struct vm_source *s, struct vm_error *err)
{
    struct requests q = {.s = s, .return_fd = s->return_fd, .page_fd = s->main_fd, .named = -1};
    struct pollfd p = {.fd = s->return_fd, .events = POLLIN};
    bool left = true;
    int rc = 0;

    while (rc >= 0 && !vm_get_acquire(&s->stop)) {
        bool pushing = q.push && left;
        struct timespec wait;
        int ready = ppoll(&p, 1, patience(&q, pushing, &wait), NULL);

        if (ready < 0) {
            if (errno == EINTR) {
                continue;
            }
            return vm_fail_errno(err, "poll of the return path", 0);
        }
        if (p.revents) {
            rc = read_requests(&q, err);
        } else if (q.carry.count) {
            rc = vm_carry_some(&q.carry, s, q.page_fd, err);
        } else if (pushing) {
            rc = vm_push_one_run(s, err);
            left = rc != 0;
            rc = left || rc < 0 ? rc : vm_push_complete(s, err);
        }
    }
    return rc < 0 ? -1 : 0;
}

int vm_source_both(struct vm_source *s, struct vm_error *err)
{
    int rc;

    vm_source_stay_close(s, true);
    rc = serve_and_push(s, err);
    vm_source_stay_close(s, false);
    return rc;
}
